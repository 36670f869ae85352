"""Python objects to bodies and buffers, and back: pickle, with cloudpickle where pickle would not do.

Plain pickle first, because it is several times faster; cloudpickle when that fails, or when the bytes name `__main__`:
a name that plain pickle takes by reference here and that means another module on the engine.
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
    """Pickle `value`: the body, and its out-of-band buffers. Raises whatever the pickling raises.

    Buffers up to `in_band_bytes` go into the body: a copy of a small array costs less than a frame of its own.
    """
    buffers: list[pickle.PickleBuffer] = []
    apart: Callable[[pickle.PickleBuffer], Any] = buffers.append
    if in_band_bytes:

        def apart(buffer: pickle.PickleBuffer) -> bool:
            small = len(raw(buffer)) <= in_band_bytes
            if not small:
                buffers.append(buffer)
            return small

    try:
        body = pickle.dumps(value, PROTOCOL, buffer_callback=apart)
        by_value = b"__main__" in body
    except Exception:  # whatever pickle cannot do, cloudpickle may
        by_value = True
    if by_value:
        import cloudpickle  # type: ignore[import-untyped]  # it ships no types

        buffers.clear()
        body = cloudpickle.dumps(value, PROTOCOL, buffer_callback=apart)
    return body, [raw(buffer) for buffer in buffers]


def raw(buffer: pickle.PickleBuffer) -> Frame:
    """The memory of an out-of-band buffer, uncopied where it is contiguous."""
    try:
        return buffer.raw()
    except BufferError:
        return memoryview(buffer).tobytes()


def loads(body: Frame, buffers: Sequence[Frame] = ()) -> Any:
    """The inverse of `dumps`."""
    return pickle.loads(body, buffers=buffers)


def pack(body: bytes, buffers: Sequence[Frame]) -> tuple[bytes, tuple[Frame, ...]]:
    """(the body to put into the record, the frames to attach): a large body becomes the first frame."""
    if len(body) <= INLINE_BYTES:
        return body, tuple(buffers)
    return b"", (body, *buffers)


def unpack(body: bytes, frames: Sequence[Frame]) -> tuple[Frame, Sequence[Frame]]:
    """The inverse of `pack`: (body, buffers)."""
    if body or not frames:
        return body, frames
    return frames[0], frames[1:]


def digest(function: bytes) -> bytes:
    """The name of a pickled function."""
    return hashlib.blake2b(function, digest_size=FUNCTION_DIGEST_BYTES).digest()


def dump_function(function: Callable[..., Any]) -> bytes:
    """Pickle a function: by reference where it can be imported, by value where not."""
    body, buffers = dumps(function)
    if buffers:  # a callable that carries arrays: keep it whole
        import cloudpickle

        body = cloudpickle.dumps(function, PROTOCOL)
    return body


# ---- results as arguments (R9) --------------------------------------------------------------------------------------
# A future pickles itself as a call of `input_value(index)`. Around the pickling the client lists the futures met;
# around the unpickling the engine provides their values.

_inputs: ContextVar[Sequence[Any] | None] = ContextVar("trio_sched_inputs", default=None)
_met: ContextVar[dict[Any, int] | None] = ContextVar("trio_sched_futures_met", default=None)


def input_value(index: int) -> Any:
    """The value of the task's index-th input; what a pickled future turns into on the engine."""
    values = _inputs.get()
    if values is None:
        raise RuntimeError("a pickled future can only be unpickled as an argument of a task")
    return values[index]


@contextmanager
def providing(values: Sequence[Any]) -> Iterator[None]:
    """Engine: the values that `input_value` finds."""
    token = _inputs.set(values)
    try:
        yield
    finally:
        _inputs.reset(token)


class meeting:  # noqa: N801  # a context manager, and a class because a generator would cost every submission 1 us
    """Client: the futures that are pickled inside, in order, each with its index."""

    __slots__ = ("_token",)

    def __enter__(self) -> dict[Any, int]:
        futures: dict[Any, int] = {}
        self._token = _met.set(futures)
        return futures

    def __exit__(self, *exc: object) -> None:
        _met.reset(self._token)


def met(future: Any) -> tuple[Callable[[int], Any], tuple[int]]:
    """For a future's `__reduce__`: note it as an input. Raises TypeError outside of a submission."""
    futures = _met.get()
    if futures is None:
        raise TypeError("a future can only be pickled as an argument of submit")
    return input_value, (futures.setdefault(future, len(futures)),)
