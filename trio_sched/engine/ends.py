"""What came of a call, as the message that tells it: a value, an exception, or why there is neither (R24).

An exception travels twice: pickled, so that it arrives as its own type, and in words (name, message, full traceback),
so that nothing is lost when it cannot be pickled here or unpickled there. Results that cannot be sent are errors of
their own, which name the type and the reason.

Arrays travel as they lie in memory. That is safe only while nobody writes to them, and a task may well return an array
that another task goes on changing (a cache, a model), long before libzmq has sent it or a reconnection sends it again.
So each buffer whose owner is known to anybody but us is copied; `alone` tells by counting references.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from trio_sched import errors
from trio_sched.errors import CallError, ResultError, UnmetDependency
from trio_sched.wire import payload
from trio_sched.wire.native import INLINE_BYTES, Call, Frame, RemoteError, TaskEnd, sendable

Ended: TypeAlias = tuple[TaskEnd, tuple[Frame, ...]]
"""The answer and the frames that go with it."""
TEXT_LIMIT = 1_000_000
"""Characters of a message or traceback; the middle of a longer one is left out."""
MODULE_ADVICE = (
    "Install the module on that host, or put it into a directory that exists there as well and was in the client's "
    "sys.path when the client was made; "
    "functions of the client's own script or notebook (of __main__) need no module there"
)
NONE = payload.dumps(None)[0]
_ENGINE = str(Path(__file__).parent)
_plain = msgspec.msgpack.Encoder()


def of_value(call: Call, value: Any, took_s: float, limit_bytes: int) -> Ended:
    """The call returned `value`. Give it up before this: the caller's own reference would look like somebody else's."""
    codec: Any = "pickle"
    buffers: list[Frame] = []
    kind = type(value).__qualname__
    try:
        if call.call and (plain := _as_plain_data(value)) is not None:
            body, codec = plain, "msgpack"
        else:
            body, buffers = payload.dumps(value)
    except BaseException as error:  # a __reduce__ of somebody else's may raise anything
        return of_error(call, _unsendable(call, value, error), took_s, limit_bytes)
    del value
    if not buffers and len(body) <= INLINE_BYTES:
        return TaskEnd(id=call.id, body=body, codec=codec, attempt=call.attempt, took_s=took_s), ()
    size = len(body) + sum(memoryview(buffer).nbytes for buffer in buffers)
    if limit_bytes and size > limit_bytes:
        too_large = ResultError(
            f"the result of {name_of(call)}, of type {kind}, takes {size} bytes; the scheduler takes messages of "
            f"at most {limit_bytes}. Return less, or write it where the client can read it"
        )
        return of_error(call, too_large, took_s, limit_bytes)
    record_body, frames = payload.pack(body, [_private(buffer) for buffer in buffers])
    end = TaskEnd(id=call.id, body=record_body, frames=len(frames), codec=codec, attempt=call.attempt, took_s=took_s)
    return end, frames


def of_error(call: Call, error: BaseException, took_s: float, limit_bytes: int) -> Ended:
    """The call raised `error`, or could not be made."""
    if isinstance(error, UnmetDependency):
        return TaskEnd(id=call.id, outcome="unmet", reason=_message(error), attempt=call.attempt, took_s=took_s), ()
    words = RemoteError(name=_error_name(error), message=_message(error), traceback=_traceback(error))
    body, frames = _pickled_error(error, limit_bytes)
    end = TaskEnd(
        id=call.id,
        outcome="error",
        body=body,
        frames=len(frames),
        error=words,
        attempt=call.attempt,
        took_s=took_s,
    )
    return end, frames


def name_of(call: Call) -> str:
    """How messages name the call."""
    options = call.options
    label = f" ({options.label})" if options is not None and options.label else ""
    return f"{call.call or 'the task'}{label}"


def call_error(call: Call, what: str, error: BaseException, engine: str) -> CallError:
    """A function or argument could not be loaded on this `engine`: a module is missing, or is of another version, or
    anything that the modules' own code raises."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        words = f"needs the module {error.name!r}, which is not there: {_message(error)}. {MODULE_ADVICE}"
    elif isinstance(error, CallError):
        words = f"could not be loaded: {_message(error)}"
    else:
        words = f"could not be loaded: {type(error).__name__}: {_message(error)}"
    failed = CallError(f"on {engine}, {what} of {name_of(call)} {words}")
    failed.__cause__ = error
    return failed


# ---- values ---------------------------------------------------------------------------------------------------------


def _as_plain_data(value: Any) -> bytes | None:
    """As msgpack, for calls by name, whose callers may not be Python; None when it is not plain data."""
    try:
        return _plain.encode(value)
    except Exception:  # whatever msgspec cannot encode, pickle may
        return None


def _unsendable(call: Call, value: Any, error: BaseException) -> ResultError:
    kind = type(value)
    failed = ResultError(
        f"the result of {name_of(call)}, of type {kind.__module__}.{kind.__qualname__}, cannot be pickled: "
        f"{type(error).__name__}: {_message(error)}"
    )
    failed.__cause__ = error
    return failed


def _references(view: memoryview) -> list[int]:
    """How often the buffer's owner is referred to, and the owner's owner (an array's base), and so on."""
    counts = [sys.getrefcount(view.obj)]
    base = getattr(view.obj, "base", None)
    while base is not None:
        counts.append(sys.getrefcount(base))
        base = getattr(base, "base", None)
    return counts


class _Probe(bytearray):
    base: Any = None


def _counts_when_alone() -> tuple[int, int]:
    """What `_references` says of an owner and its base that nobody else knows; Python versions count differently."""
    probe = _Probe(1)
    probe.base = _Probe(1)
    view = memoryview(probe)
    del probe
    owner, base = _references(view)
    return owner, base


_OWNER_ALONE, _BASE_ALONE = _counts_when_alone()


def alone(view: memoryview) -> bool:
    """Whether nobody but this view knows the memory behind it."""
    owner, *bases = _references(view)
    return owner <= _OWNER_ALONE and all(count <= _BASE_ALONE for count in bases)


def _private(buffer: Frame) -> Frame:
    if isinstance(buffer, memoryview) and not alone(buffer):
        return bytes(buffer)
    return buffer


# ---- exceptions -----------------------------------------------------------------------------------------------------


def _error_name(error: BaseException) -> str:
    kind = type(error)
    if kind.__module__ in ("builtins", "__main__", errors.__name__):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    try:
        return _bounded(str(error))
    except Exception as trouble:  # a __str__ of somebody else's
        return f"(its message cannot be shown: {type(trouble).__name__})"


def _traceback(error: BaseException) -> str:
    """As Python would print it, without our own frames at the top."""
    top = error.__traceback__
    while top is not None and top.tb_frame.f_code.co_filename.startswith(_ENGINE):
        top = top.tb_next
    try:
        return _bounded("".join(traceback.format_exception(type(error), error, top)))
    except Exception as trouble:  # a __str__ or __repr__ of somebody else's
        return f"{_error_name(error)}: {_message(error)} (its traceback cannot be shown: {type(trouble).__name__})\n"


def _bounded(text: str) -> str:
    text = sendable(text)
    if len(text) <= TEXT_LIMIT:
        return text
    half = TEXT_LIMIT // 2
    return f"{text[:half]}\n[... {len(text) - TEXT_LIMIT} characters cut ...]\n{text[-half:]}"


def _pickled_error(error: BaseException, limit_bytes: int) -> tuple[bytes, tuple[Frame, ...]]:
    """The exception pickled, or nothing if it cannot be, or could not be read back: the words are there as well."""
    try:
        body, buffers = payload.dumps(error)
        if not isinstance(payload.loads(body, buffers), BaseException):
            return b"", ()
    except BaseException:  # code of somebody else's class: an exception's constructor may raise anything
        return b"", ()
    kept: list[Frame] = [bytes(buffer) for buffer in buffers]
    if limit_bytes and len(body) + sum(len(buffer) for buffer in kept) > limit_bytes:
        return b"", ()
    return payload.pack(body, kept)
