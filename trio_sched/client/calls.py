"""From a Python call to a `Call` on the wire: arguments pickled, futures among them found (R9), culprits named.

Arguments are what they were when `submit` returned: buffers, which travel out of band, are copied once here unless they
cannot change (bytes, arrays with `writeable=False`), because the caller may write to an array again long before it
is sent, and sent again after a broken connection.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from trio_sched.client.ends import BaseFuture, Origin, described
from trio_sched.client.functional import Chunk
from trio_sched.client.functions import Function, Functions
from trio_sched.client.misuse import instead_of
from trio_sched.errors import SubmitError
from trio_sched.wire import payload
from trio_sched.wire.native import INLINE_BYTES, Call, Frame, Options

_NO_OPTIONS = Options()
FRAME_OVERHEAD_BYTES = 4096
"""Left free in a message of the largest size for everything but a call's body and buffers."""


def find_function(functions: Functions, function: Callable[..., Any]) -> Function:
    """The pickled function.

    :raises SubmitError: it cannot be pickled, or a module that it needs was edited after it was imported here.
    :raises TypeError: it is no function, nor anything else that can be called.
    """
    if not callable(function):
        raise TypeError(f"'{type(function).__name__}' object is not callable; submit(fn, *args) takes a function first")
    try:
        return functions.of(function)
    except SubmitError:
        raise
    except Exception as error:
        name = getattr(function, "__qualname__", None) or repr(function)
        raise SubmitError(
            f"the function {name} (a {type(function).__name__}) cannot be pickled: {described(error)}"
        ) from error


def find_rows(
    functions: Functions, function: Callable[..., Any], iterables: Sequence[Iterable[Any]], chunksize: int
) -> tuple[Function, Iterator[tuple[Any, ...]]]:
    """What `map` submits: the pickled function, and lazily the arguments of one task after the other.

    With a `chunksize` above 1 each task runs the function on that many rows, and returns the list of their results.

    :raises SubmitError: the function cannot be pickled.
    """
    rows = zip(*iterables)  # noqa: B905  # as the built-in map: the shortest decides
    if chunksize == 1:
        return find_function(functions, function), rows
    return find_function(functions, Chunk(function)), ((chunk,) for chunk in chunks(rows, chunksize))


def chunks(rows: Iterable[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    """The rows in lists of `size`, the last one perhaps shorter."""
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def check_map(chunksize: int, buffersize: int | None) -> None:
    """Check the numbers that `map` takes.

    :raises TypeError: `buffersize` is neither an integer nor None.
    :raises ValueError: one of them is less than 1.
    """
    if chunksize < 1:
        raise ValueError(f"chunksize={chunksize!r}: must be 1 or more")
    if buffersize is None:
        return
    if not isinstance(buffersize, int):
        raise TypeError(f"buffersize must be an integer or None, not {buffersize!r}")
    if buffersize < 1:
        raise ValueError(f"buffersize must be None or > 0, not {buffersize!r}")


def make_call(
    function: Function,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: Options | None,
    origin: Origin,
    limit_bytes: int,
) -> tuple[Call, Sequence[Frame], list[BaseFuture[Any]]]:
    """(the call without its number, its frames, its inputs that must not have ended when it is submitted).

    `origin` is the task's: only futures of the same session can be inputs.
    An input that ended well since it was pickled is one of these: its value is to go along instead, for the scheduler
    may have dropped it. One that failed stays an input, so that the call fails as it should.

    :raises SubmitError: an argument cannot be pickled, or is a future of somebody else, or it is all too large.
    """
    with payload.meeting() as met:
        try:
            body, buffers = payload.dumps((args, kwargs), INLINE_BYTES)
        except Exception as error:
            raise _blamed(args, kwargs, error) from error
    if not buffers and len(body) <= INLINE_BYTES:
        frames: Sequence[Frame] = ()
    else:
        body, frames = payload.pack(body, [frozen(buffer) for buffer in buffers])
        size = len(body) + sum(map(len, frames)) + FRAME_OVERHEAD_BYTES
        if limit_bytes and size > limit_bytes:
            raise SubmitError(
                f"the arguments take {size:,} bytes, but the scheduler takes messages of at most {limit_bytes:,}; "
                "pass a path, or raise max_message_bytes there"
            )
    if met:
        for future in met:
            if future.session != origin.session or future.scheduler != origin.scheduler:
                raise _foreign(args, kwargs, future, origin)
        options = replace(options or _NO_OPTIONS, inputs=[future.number for future in met])
    call = Call(0, fn=function.digest, body=body, frames=len(frames), options=options)
    return call, frames, [future for future in met if future.succeeded or not future.ended] if met else []


def frozen(buffer: Frame) -> Frame:
    """A buffer that nobody will write to: itself, or a copy."""
    if isinstance(buffer, memoryview):
        flat = buffer if buffer.ndim == 1 and buffer.itemsize == 1 else buffer.cast("B")
        return flat if flat.readonly else bytes(flat)
    return bytes(buffer)


def _foreign(args: tuple[Any, ...], kwargs: dict[str, Any], future: BaseFuture[Any], origin: Origin) -> SubmitError:
    """Name the argument with a future whose value the scheduler cannot fill in."""
    place = "an argument"
    for name, value in _places(args, kwargs):
        with payload.meeting() as met:
            payload.dumps(value)
        if future in met:
            place = name
            break
    whose = "another client" if future.scheduler == origin.scheduler else "a client of another scheduler"
    return SubmitError(
        f"{place}: task {future.task_id} belongs to {whose} (this client's session is {origin.session}); wait for its "
        "result, and pass that"
    )


def _blamed(args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> SubmitError:
    """Name the argument that cannot be pickled."""
    for place, value in _places(args, kwargs):
        with payload.meeting():
            try:
                payload.dumps(value)
            except Exception as found:
                why = described(found) + instead_of(value, found)
                return SubmitError(f"{place} (a {type(value).__name__}) cannot be pickled: {why}")
    return SubmitError(f"the arguments cannot be pickled: {described(error)}")


def _places(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
    """The arguments, and what messages call them."""
    places: list[tuple[str, Any]] = [(f"argument {number}", value) for number, value in enumerate(args, 1)]
    return places + [(f"argument {name!r}", value) for name, value in kwargs.items()]
