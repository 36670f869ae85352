"""From a Python call to a `Call` on the wire: arguments pickled, futures among them found (R9), culprits named.

Arguments are what they were when `submit` returned: buffers, which travel out of band, are copied once here unless they
cannot change (bytes, arrays with `writeable=False`), because the caller may write to an array again long before it
is sent, and sent again after a broken connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from trio_sched.client.ends import BaseFuture, described
from trio_sched.client.functions import Function, Functions
from trio_sched.errors import SubmitError
from trio_sched.wire import payload
from trio_sched.wire.native import INLINE_BYTES, Call, Frame, Options

_NO_OPTIONS = Options()
FRAME_OVERHEAD_BYTES = 4096
"""Left free in a message of the largest size for everything but a call's body and buffers."""


def find_function(functions: Functions, function: Callable[..., Any]) -> Function:
    """The pickled function.

    :raises SubmitError: it cannot be pickled.
    :raises TypeError: it is no function, nor anything else that can be called.
    """
    if not callable(function):
        raise TypeError(f"'{type(function).__name__}' object is not callable; submit(fn, *args) takes a function first")
    try:
        return functions.of(function)
    except Exception as error:
        name = getattr(function, "__qualname__", None) or repr(function)
        raise SubmitError(
            f"the function {name} (a {type(function).__name__}) cannot be pickled: {described(error)}"
        ) from error


def make_call(
    function: Function,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: Options | None,
    session: int,
    limit_bytes: int,
) -> tuple[Call, Sequence[Frame], list[BaseFuture[Any]]]:
    """(the call without its number, its frames, its inputs that must not have ended when it is submitted).

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
        options = replace(options or _NO_OPTIONS, inputs=[_input_number(future, session) for future in met])
    call = Call(0, fn=function.digest, body=body, frames=len(frames), options=options)
    return call, frames, [future for future in met if future.succeeded or not future.ended] if met else []


def frozen(buffer: Frame) -> Frame:
    """A buffer that nobody will write to: itself, or a copy."""
    if isinstance(buffer, memoryview):
        flat = buffer if buffer.ndim == 1 and buffer.itemsize == 1 else buffer.cast("B")
        return flat if flat.readonly else bytes(flat)
    return bytes(buffer)


def _input_number(future: BaseFuture[Any], session: int) -> int:
    if future.session != session:
        raise SubmitError(
            f"argument: task {future.task_id} belongs to another client (this session is {session}); "
            "pass its result instead"
        )
    return future.number


def _blamed(args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> SubmitError:
    """Name the argument that cannot be pickled."""
    places = [(f"argument {number}", value) for number, value in enumerate(args, 1)]
    places += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    for place, value in places:
        with payload.meeting():
            try:
                payload.dumps(value)
            except Exception as found:
                return SubmitError(f"{place} (a {type(value).__name__}) cannot be pickled: {described(found)}")
    return SubmitError(f"the arguments cannot be pickled: {described(error)}")
