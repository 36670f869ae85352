"""Pickle Python objects as a body and out-of-band buffers, and unpickle them.

Plain pickle is tried first, because it is several times faster. Cloudpickle is used when pickle fails, or when the body
names `__main__`, which pickle takes by reference and which is another module on the engine.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from trio_sched.wire.native import FUNCTION_DIGEST_BYTES, INLINE_BYTES, Frame

PROTOCOL = 5


def dumps(value: Any, in_band_bytes: int = 0) -> tuple[bytes, list[Frame]]:
    """Pickle `value`; returns the body and its out-of-band buffers.

    :param in_band_bytes: buffers up to this size go into the body: a copy of a small array costs less than a frame.
    :raises Exception: anything that the pickling raises.
    """
    buffers: list[pickle.PickleBuffer] = []
    keep_in_band: Callable[[pickle.PickleBuffer], Any] = buffers.append
    if in_band_bytes:

        def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
            small = len(raw(buffer)) <= in_band_bytes
            if not small:
                buffers.append(buffer)
            return small

    try:
        body = pickle.dumps(value, PROTOCOL, buffer_callback=keep_in_band)
        by_value = b"__main__" in body
    except Exception:  # cloudpickle supports more types
        by_value = True
    if by_value:
        import cloudpickle  # type: ignore[import-untyped]  # it ships no types

        buffers.clear()
        body = cloudpickle.dumps(value, PROTOCOL, buffer_callback=keep_in_band)
    return body, [raw(buffer) for buffer in buffers]


def raw(buffer: pickle.PickleBuffer) -> Frame:
    """The memory of an out-of-band buffer, copied only if it is not contiguous."""
    try:
        return buffer.raw()
    except BufferError:
        return memoryview(buffer).tobytes()


def loads(body: Frame, buffers: Sequence[Frame] = ()) -> Any:
    """Unpickle what `dumps` returned."""
    return pickle.loads(body, buffers=buffers)


def pack(body: bytes, buffers: Sequence[Frame]) -> tuple[bytes, tuple[Frame, ...]]:
    """Move a body of more than INLINE_BYTES into the frames; returns the record's body and its frames."""
    if len(body) <= INLINE_BYTES:
        return body, tuple(buffers)
    return b"", (body, *buffers)


def unpack(body: bytes, frames: Sequence[Frame]) -> tuple[Frame, Sequence[Frame]]:
    """Undo `pack`; returns the body and the buffers."""
    if body or not frames:
        return body, frames
    return frames[0], frames[1:]


def digest(function: bytes) -> bytes:
    """The digest by which messages name a pickled function."""
    return hashlib.blake2b(function, digest_size=FUNCTION_DIGEST_BYTES).digest()


def dump_function(function: Callable[..., Any]) -> bytes:
    """Pickle a function, by reference if it can be imported, otherwise by value.

    :raises Exception: anything that the pickling raises.
    """
    body, buffers = dumps(function)
    if buffers:  # a callable that holds arrays: the pickled function has no frames
        import cloudpickle

        body = cloudpickle.dumps(function, PROTOCOL)
    return body


# ---- results as arguments (R9) --------------------------------------------------------------------------------------
# A future pickles itself as a call of `input_value(index)`. The client pickles arguments inside `collecting_futures`,
# which collects their futures; the engine unpickles the arguments inside `provide_inputs`, which holds the values.

_inputs: ContextVar[Sequence[Any] | None] = ContextVar("trio_sched_inputs", default=None)
_collected: ContextVar[dict[Any, int] | None] = ContextVar("trio_sched_collected_futures", default=None)


def input_value(index: int) -> Any:
    """The value of the task's input with this index; a pickled future unpickles to it.

    :raises RuntimeError: no arguments of a task are being unpickled.
    """
    values = _inputs.get()
    if values is None:
        raise RuntimeError("a pickled future can only be unpickled as an argument of a task")
    return values[index]


@contextmanager
def provide_inputs(values: Sequence[Any]) -> Iterator[None]:
    """Provide, on the engine, the values that `input_value` returns inside the block."""
    token = _inputs.set(values)
    try:
        yield
    finally:
        _inputs.reset(token)


class collecting_futures:  # noqa: N801  # a context manager, and a class because a generator would cost every submission 1 us
    """Collect, on the client, the futures that are pickled inside the block: a dict of each future's index."""

    __slots__ = ("_token",)

    def __enter__(self) -> dict[Any, int]:
        futures: dict[Any, int] = {}
        self._token = _collected.set(futures)
        return futures

    def __exit__(self, *exc: object) -> None:
        _collected.reset(self._token)


def collect(future: Any) -> tuple[Callable[[int], Any], tuple[int]]:
    """Collect a future as an input; the result of the future's `__reduce__`.

    :raises TypeError: no arguments of a submission are being pickled.
    """
    futures = _collected.get()
    if futures is None:
        raise TypeError("a future can only be pickled as an argument of submit")
    return input_value, (futures.setdefault(future, len(futures)),)
