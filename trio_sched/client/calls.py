"""Conversion of a Python call into a `Call` of the wire protocol, with its futures as inputs (R9).

Arguments are sent as they are when `submit` returns. Buffers, which travel out of band, are copied once here unless
they cannot change (bytes, arrays with `writeable=False`): the caller may write to an array long before it is sent, and
a broken connection may require that it is sent again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from trio_sched.client.conditions import Chunk
from trio_sched.client.functions import Function, FunctionRegistry
from trio_sched.client.misuse import suggest_alternative
from trio_sched.client.results import BaseFuture, SessionRef, describe_error
from trio_sched.errors import SubmitError
from trio_sched.wire import payload
from trio_sched.wire.native import INLINE_BYTES, Call, Frame, Options

_NO_OPTIONS = Options()
#: Bytes of a message of the largest size that are reserved for everything but a call's body and buffers.
MESSAGE_OVERHEAD_BYTES = 4096


def pickle_function(functions: FunctionRegistry, function: Callable[..., Any]) -> Function:
    """Return the pickled form of a function.

    :raises SubmitError: the function cannot be pickled, or a module that it needs was edited after it was imported.
    :raises TypeError: the object is not callable.
    """
    if not callable(function):
        raise TypeError(f"'{type(function).__name__}' object is not callable; submit(fn, *args) takes a function first")
    try:
        return functions.register(function)
    except SubmitError:
        raise
    except Exception as error:
        name = getattr(function, "__qualname__", None) or repr(function)
        raise SubmitError(
            f"the function {name} (a {type(function).__name__}) cannot be pickled: {describe_error(error)}"
        ) from error


def prepare_map(
    functions: FunctionRegistry, function: Callable[..., Any], iterables: Sequence[Iterable[Any]], chunksize: int
) -> tuple[Function, Iterator[tuple[Any, ...]]]:
    """Return what `map` submits: the pickled function, and a lazy iterator over the arguments of each task.

    With a `chunksize` above 1 each task calls the function for that many rows, and returns the list of the results.

    :raises SubmitError: the function cannot be pickled.
    """
    rows = zip(*iterables)  # noqa: B905  # as in the built-in map, the shortest iterable decides
    if chunksize == 1:
        return pickle_function(functions, function), rows
    return pickle_function(functions, Chunk(function)), ((chunk,) for chunk in split_rows(rows, chunksize))


def split_rows(rows: Iterable[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    """Split the rows into lists of `size`; the last list may be shorter."""
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def check_map_arguments(chunksize: int, buffersize: int | None) -> None:
    """Check the numbers that `map` takes.

    :raises TypeError: `buffersize` is neither an integer nor None.
    :raises ValueError: one of the numbers is less than 1.
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
    session_ref: SessionRef,
    max_bytes: int,
) -> tuple[Call, Sequence[Frame], list[BaseFuture[Any]]]:
    """Pickle a call.

    An input that succeeded after it was pickled is among the returned inputs: the scheduler may have dropped its value,
    so the call must be made again, with the value. An input that failed stays an input of the call, so that the task
    fails as it should, and is not returned.

    :param session_ref: the session of the call; only futures of the same session can be inputs.
    :param max_bytes: the largest message that the scheduler takes; 0: no limit.
    :returns: the call, without its counter; its frames; the inputs that must be unfinished when it is submitted.
    :raises SubmitError: an argument cannot be pickled or is a future of another client, or the arguments are too large.
    """
    with payload.collecting_futures() as collected:
        try:
            body, buffers = payload.dumps((args, kwargs), INLINE_BYTES)
        except Exception as error:
            raise _pickling_error(args, kwargs, error) from error
    if not buffers and len(body) <= INLINE_BYTES:
        frames: Sequence[Frame] = ()
    else:
        body, frames = payload.pack(body, [to_immutable(buffer) for buffer in buffers])
        size_bytes = len(body) + sum(map(len, frames)) + MESSAGE_OVERHEAD_BYTES
        if max_bytes and size_bytes > max_bytes:
            raise SubmitError(
                f"the arguments take {size_bytes:,} bytes, but the scheduler takes messages of at most {max_bytes:,}; "
                "pass a path, or raise max_message_bytes there"
            )
    if collected:
        for future in collected:
            if future.session != session_ref.session or future.scheduler != session_ref.scheduler:
                raise _foreign_future_error(args, kwargs, future, session_ref)
        options = replace(options or _NO_OPTIONS, inputs=[future.number for future in collected])
    call = Call(0, fn=function.digest, body=body, frames=len(frames), options=options)
    return call, frames, [future for future in collected if future.succeeded or not future.ended] if collected else []


def to_immutable(buffer: Frame) -> Frame:
    """Return a buffer that the caller cannot write to: the buffer itself, or a copy of a writable one."""
    if isinstance(buffer, memoryview):
        flat = buffer if buffer.ndim == 1 and buffer.itemsize == 1 else buffer.cast("B")
        return flat if flat.readonly else bytes(flat)
    return bytes(buffer)


def _foreign_future_error(
    args: tuple[Any, ...], kwargs: dict[str, Any], future: BaseFuture[Any], session_ref: SessionRef
) -> SubmitError:
    """Make the error that names the argument with a future of another session."""
    argument = "an argument"
    for name, value in _named_arguments(args, kwargs):
        with payload.collecting_futures() as collected:
            payload.dumps(value)
        if future in collected:
            argument = name
            break
    owner = "another client" if future.scheduler == session_ref.scheduler else "a client of another scheduler"
    return SubmitError(
        f"{argument}: task {future.task_id} belongs to {owner} (this client's session is {session_ref.session}); wait "
        "for its result, and pass that"
    )


def _pickling_error(args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> SubmitError:
    """Make the error that names the argument that cannot be pickled."""
    for argument, value in _named_arguments(args, kwargs):
        with payload.collecting_futures():
            try:
                payload.dumps(value)
            except Exception as found:
                reason = describe_error(found) + suggest_alternative(value, found)
                return SubmitError(f"{argument} (a {type(value).__name__}) cannot be pickled: {reason}")
    return SubmitError(f"the arguments cannot be pickled: {describe_error(error)}")


def _named_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
    """The arguments, each with its name in error messages."""
    named: list[tuple[str, Any]] = [(f"argument {number}", value) for number, value in enumerate(args, 1)]
    return named + [(f"argument {name!r}", value) for name, value in kwargs.items()]
