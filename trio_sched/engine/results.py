"""Results of calls as messages: a value, an exception, or the reason why there is neither (R24).

An exception travels twice: pickled, so that it arrives with its own type, and in words (name, message, full traceback),
so that nothing is lost when the exception cannot be pickled here or unpickled at the client. A value that cannot be
sent becomes a `ResultError` that names the value's type and the reason.

The memory of arrays is sent without a copy. That is safe only while nothing writes to it, and a task may return an
array that other tasks go on changing (a cache, a model) before libzmq has sent it or a reconnection sends it again. So
each buffer whose owner is referenced elsewhere is copied; `is_unshared` finds out by counting references.
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
from trio_sched.wire.native import INLINE_BYTES, Call, Frame, RemoteError, TaskResult, sendable

#: A result and its frames.
FramedResult: TypeAlias = tuple[TaskResult, tuple[Frame, ...]]
#: The most characters of a message or traceback; the middle of a longer one is cut.
TEXT_LIMIT = 1_000_000
MODULE_ADVICE = (
    "Install the module on that host, or put it into a directory that exists there as well and was in the client's "
    "sys.path when the client was made; "
    "functions of the client's own script or notebook (of __main__) need no module there"
)
#: The body of a result that is None.
PICKLED_NONE = payload.dumps(None)[0]
_ENGINE = str(Path(__file__).parent)
_plain = msgspec.msgpack.Encoder()


def result_of_value(call: Call, value: Any, took_s: float, limit_bytes: int) -> FramedResult:
    """Build the result of a call that returned `value`.

    The caller must not keep a reference to the value, which would cause a copy of its buffers.

    :param limit_bytes: the largest message that the scheduler accepts; 0: unknown. A larger result is an error.
    """
    codec: Any = "pickle"
    buffers: list[Frame] = []
    kind = type(value).__qualname__
    try:
        if call.call and (plain := _as_plain_data(value)) is not None:
            body, codec = plain, "msgpack"
        else:
            body, buffers = payload.dumps(value)
    except BaseException as error:  # a user's __reduce__ may raise anything
        return result_of_error(call, _unpicklable_error(call, value, error), took_s, limit_bytes)
    del value
    if not buffers and len(body) <= INLINE_BYTES:
        return TaskResult(id=call.id, body=body, codec=codec, attempt=call.attempt, took_s=took_s), ()
    size = len(body) + sum(memoryview(buffer).nbytes for buffer in buffers)
    if limit_bytes and size > limit_bytes:
        too_large = ResultError(
            f"the result of {describe_call(call)}, of type {kind}, takes {size} bytes; the scheduler takes messages of "
            f"at most {limit_bytes}. Return less, or write it where the client can read it"
        )
        return result_of_error(call, too_large, took_s, limit_bytes)
    record_body, frames = payload.pack(body, [_own_copy(buffer) for buffer in buffers])
    result = TaskResult(
        id=call.id, body=record_body, frames=len(frames), codec=codec, attempt=call.attempt, took_s=took_s
    )
    return result, frames


def result_of_error(call: Call, error: BaseException, took_s: float, limit_bytes: int) -> FramedResult:
    """Build the result of a call that raised `error`, or that could not be made because of it.

    :param limit_bytes: as for `result_of_value`; a larger exception is sent in words only.
    """
    if isinstance(error, UnmetDependency):
        return TaskResult(id=call.id, outcome="unmet", reason=_message(error), attempt=call.attempt, took_s=took_s), ()
    words = RemoteError(name=_error_name(error), message=_message(error), traceback=_traceback(error))
    body, frames = _pickled_error(error, limit_bytes)
    result = TaskResult(
        id=call.id,
        outcome="error",
        body=body,
        frames=len(frames),
        error=words,
        attempt=call.attempt,
        took_s=took_s,
    )
    return result, frames


def describe_call(call: Call) -> str:
    """The words for the call in messages: its name if it is called by name, and its label."""
    options = call.options
    label = f" ({options.label})" if options is not None and options.label else ""
    return f"{call.call or 'the task'}{label}"


def call_error(call: Call, what: str, error: BaseException, engine: str) -> CallError:
    """Build the error of a call whose function or argument cannot be loaded.

    :param what: "the function" or "an argument".
    :param error: what the loading raised: a module is missing or has another version, or the module's code failed.
    :param engine: the words for this engine.
    """
    if isinstance(error, ModuleNotFoundError) and error.name:
        words = f"needs the module {error.name!r}, which is not there: {_message(error)}. {MODULE_ADVICE}"
    elif isinstance(error, CallError):
        words = f"could not be loaded: {_message(error)}"
    else:
        words = f"could not be loaded: {type(error).__name__}: {_message(error)}"
    failed = CallError(f"on {engine}, {what} of {describe_call(call)} {words}")
    failed.__cause__ = error
    return failed


# ---- values ---------------------------------------------------------------------------------------------------------


def _as_plain_data(value: Any) -> bytes | None:
    """Encode as msgpack, for calls by name, whose callers may not be Python; None: the value is not plain data."""
    try:
        return _plain.encode(value)
    except Exception:  # the value is pickled instead
        return None


def _unpicklable_error(call: Call, value: Any, error: BaseException) -> ResultError:
    kind = type(value)
    failed = ResultError(
        f"the result of {describe_call(call)}, of type {kind.__module__}.{kind.__qualname__}, cannot be pickled: "
        f"{type(error).__name__}: {_message(error)}"
    )
    failed.__cause__ = error
    return failed


def _references(view: memoryview) -> list[int]:
    """Reference counts of the buffer's owner, of the owner's base (as arrays have), of the base's base, and so on."""
    counts = [sys.getrefcount(view.obj)]
    base = getattr(view.obj, "base", None)
    while base is not None:
        counts.append(sys.getrefcount(base))
        base = getattr(base, "base", None)
    return counts


class _Probe(bytearray):
    base: Any = None


def _unshared_counts() -> tuple[int, int]:
    """The `_references` of an owner and its base without other references; they differ between Python versions."""
    probe = _Probe(1)
    probe.base = _Probe(1)
    view = memoryview(probe)
    del probe
    owner, base = _references(view)
    return owner, base


_OWNER_COUNT, _BASE_COUNT = _unshared_counts()


def is_unshared(view: memoryview) -> bool:
    """Whether this view has the only reference to the memory behind it."""
    owner, *bases = _references(view)
    return owner <= _OWNER_COUNT and all(count <= _BASE_COUNT for count in bases)


def _own_copy(buffer: Frame) -> Frame:
    """The buffer, copied if its memory is shared."""
    if isinstance(buffer, memoryview) and not is_unshared(buffer):
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
    except Exception as failure:  # in a user's __str__
        return f"(its message cannot be shown: {type(failure).__name__})"


def _traceback(error: BaseException) -> str:
    """The traceback as Python prints it, without the frames of this package at the top."""
    top = error.__traceback__
    while top is not None and top.tb_frame.f_code.co_filename.startswith(_ENGINE):
        top = top.tb_next
    try:
        return _bounded("".join(traceback.format_exception(type(error), error, top)))
    except Exception as failure:  # in a user's __str__ or __repr__
        return f"{_error_name(error)}: {_message(error)} (its traceback cannot be shown: {type(failure).__name__})\n"


def _bounded(text: str) -> str:
    text = sendable(text)
    if len(text) <= TEXT_LIMIT:
        return text
    half = TEXT_LIMIT // 2
    return f"{text[:half]}\n[... {len(text) - TEXT_LIMIT} characters cut ...]\n{text[-half:]}"


def _pickled_error(error: BaseException, limit_bytes: int) -> tuple[bytes, tuple[Frame, ...]]:
    """Pickle the exception; empty if it cannot be pickled, unpickled, or is too large: the words are sent as well."""
    try:
        body, buffers = payload.dumps(error)
        if not isinstance(payload.loads(body, buffers), BaseException):
            return b"", ()
    except BaseException:  # the exception's own constructor may raise anything
        return b"", ()
    kept: list[Frame] = [bytes(buffer) for buffer in buffers]
    if limit_bytes and len(body) + sum(len(buffer) for buffer in kept) > limit_bytes:
        return b"", ()
    return payload.pack(body, kept)
