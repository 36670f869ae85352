"""Results of tasks in the client, and the base class of the futures of both clients.

A result is unpickled by the thread that asks for its value, not when it arrives, and never if no thread asks. A remote
exception is raised with its own type and the remote traceback as its `__cause__`; a failure that the scheduler decided
is raised as the class of `trio_sched.errors` that it names.
"""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, NoReturn, TypeAlias, TypeVar, cast

from trio_sched import errors
from trio_sched.client.functions import Function
from trio_sched.wire import payload
from trio_sched.wire.ids import format_task_id, make_task_id
from trio_sched.wire.native import Frame, FramedRecord, TaskResult

T = TypeVar("T")

#: The error of each outcome that the scheduler decides, where the result does not name a class.
ERROR_OF_OUTCOME: dict[str, type[errors.TaskError]] = {
    "unreachable": errors.ImpossibleDependency,
    "timeout": errors.TaskTimeout,
    "lost": errors.EngineError,
    "cancelled": errors.TaskCancelled,
    "unmet": errors.UnmetDependency,
}


_lock = threading.Lock()


def lock() -> threading.Lock:
    """Return the lock of all futures in this process, held for the moments in which a future changes its state."""
    return _lock


def _renew_lock() -> None:
    """Replace the lock in a forked child, where the thread that may hold it does not run."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class SessionRef:
    """The session that tasks belong to, shared by all of its futures."""

    __slots__ = ("request_cancel", "scheduler", "session", "thread")

    def __init__(
        self, session: int, request_cancel: Callable[[int], object], thread: int = 0, scheduler: str = ""
    ) -> None:
        self.session = session
        #: The scheduler instance; tasks of another instance have the same numbers.
        self.scheduler = scheduler
        #: The ident of the client's own thread, which runs callbacks; 0: the client has no thread.
        self.thread = thread
        #: Requests the cancellation of a task, by its counter.
        self.request_cancel = request_cancel


def refuse_pickling() -> NoReturn:
    """Implement `__reduce__` for the parts of a client.

    :raises TypeError: always.
    """
    raise TypeError("a client cannot be sent; create one in the task, with Client()")


class Undecoded:
    """The type of the placeholder for a value that is not decoded."""

    __slots__ = ()


UNDECODED: Any = Undecoded()
#: What resolves a future: the scheduler's record with its frames, if there are any, or an exception of this process.
Outcome: TypeAlias = TaskResult | FramedRecord | BaseException


class BaseFuture(Generic[T]):
    """A submitted task: its id, and its result once it has ended. The base of both clients' futures."""

    __slots__ = ("_error", "_outcome", "_session_ref", "_value", "function", "number")

    _outcome: Outcome | None
    _error: BaseException | None
    _value: T
    _session_ref: SessionRef
    #: The task's counter within its session.
    number: int
    function: Function | None

    @property
    def task_id(self) -> str:
        """The task's id as text: session and counter, for example "3-17"."""
        return format_task_id(self.full_id)

    @property
    def full_id(self) -> int:
        """The task's id as one number, unique within its scheduler instance."""
        return make_task_id(self._session_ref.session, self.number)

    @property
    def session(self) -> int:
        """The number of the session that submitted the task."""
        return self._session_ref.session

    @property
    def scheduler(self) -> str:
        """The id of the scheduler instance that the task was submitted to."""
        return self._session_ref.scheduler

    @property
    def succeeded(self) -> bool:
        """Whether the result has arrived, and the task has ended with a value. Does not wait."""
        return self.ended and isinstance(record := self._record, TaskResult) and record.outcome == "ok"

    @property
    def ended(self) -> bool:
        """Whether the future is done. Does not wait."""
        return self._outcome is not None

    @property
    def engine(self) -> int | None:
        """The number of the engine that ran the task; None: it has not ended, or it never ran."""
        record = self._record
        return None if record is None or record.engine < 0 else record.engine

    @property
    def stdout(self) -> str:
        """The text that the task wrote to standard output; empty until it has ended."""
        return self._record.stdout if self._record is not None else ""

    @property
    def stderr(self) -> str:
        """The text that the task wrote to standard error; empty until it has ended."""
        return self._record.stderr if self._record is not None else ""

    @property
    def took_s(self) -> float | None:
        """The duration of the call in seconds; None: the task has not ended, or it never ran."""
        record = self._record
        return None if record is None or record.engine < 0 else record.took_s

    @property
    def _record(self) -> TaskResult | None:
        record = self._outcome
        if isinstance(record, FramedRecord):
            record = cast("TaskResult", record.record)
        return record if isinstance(record, TaskResult) else None

    def _decode(self) -> None:
        """Decode the outcome into `_value` and `_error`, once. Of two threads that do so at once, both see the result
        of the first."""
        if self._value is not UNDECODED:
            return
        value, exception = decode_outcome(self._outcome, self)
        with lock():
            if self._value is UNDECODED:
                self._error = exception
                self._value = value
                record = self._record
                if record is not None:
                    record.body = b""
                    self._outcome = record

    def __reduce__(self) -> Any:
        """Pickle an argument of a task (R9): the value, if it is known here; else an input that the scheduler inserts.

        :raises TypeError: the future is not being pickled as an argument.
        """
        if self.succeeded:
            self._decode()
            if self._error is not None:
                raise self._error
            return operator.getitem, ((self._value,), 0)
        return payload.collect(self)


# ---- decoding -------------------------------------------------------------------------------------------------------


def decode_outcome(outcome: Outcome | None, future: BaseFuture[Any]) -> tuple[Any, BaseException | None]:
    """Decode the outcome of a future that is done: (value, None) or (None, exception)."""
    if isinstance(outcome, BaseException):
        return None, outcome
    frames: Sequence[Frame] = ()
    if isinstance(outcome, FramedRecord):
        frames = outcome.frames
        outcome = cast("TaskResult", outcome.record)
    assert isinstance(outcome, TaskResult)
    if outcome.outcome == "ok":
        try:
            return decode_value(outcome, frames), None
        except KeyboardInterrupt:  # Ctrl-C during the unpickling; `result()` can be called again
            raise
        except BaseException as error:  # unpickling runs code of the value's classes
            failure = errors.ResultError(
                f"task {future.task_id} succeeded, but its result cannot be unpickled here: {describe_error(error)}"
            )
            failure.__cause__ = error
            return None, failure
    return None, decode_exception(outcome, frames, future.task_id)


def decode_value(result: TaskResult, frames: Sequence[Frame]) -> Any:
    """Decode the value of a successful task. Arrays in it are writable, as those of a local call are."""
    if result.codec == "msgpack":
        import msgspec

        return msgspec.msgpack.decode(result.body or frames[0])
    body, buffers = payload.unpack(result.body, frames)
    return payload.loads(body, [to_writable(buffer) for buffer in buffers])


def to_writable(buffer: Frame) -> Frame:
    """Return a writable buffer: the buffer itself, or a copy of a read-only one."""
    is_readonly = isinstance(buffer, bytes) or (isinstance(buffer, memoryview) and buffer.readonly)
    return bytearray(buffer) if is_readonly else buffer


def decode_exception(result: TaskResult, frames: Sequence[Frame], task_id: str) -> BaseException:
    """Decode the exception of a failed task."""
    remote = result.error
    if result.body or frames:
        try:
            body, buffers = payload.unpack(result.body, frames)
            exception: BaseException = payload.loads(body, buffers)
            if not isinstance(exception, BaseException):
                raise TypeError(f"{exception!r} is not an exception")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # unpickling runs code of the exception's class
            name, message = (remote.name, remote.message) if remote else ("an exception", "")
            exception = errors.ResultError(
                f"task {task_id} raised {name}: {message} (which cannot be unpickled here: {describe_error(error)})"
            )
    else:
        exception = _make_exception(result, task_id)
    if remote is not None and remote.traceback:
        exception.__cause__ = errors.RemoteTraceback(remote.traceback)
    return exception


def _make_exception(result: TaskResult, task_id: str) -> BaseException:
    """Make the exception of a result that has none: of the class of `trio_sched.errors` that the result names, or a
    ResultError for an exception that the engine could not pickle."""
    name = result.error.name if result.error else ""
    message = result.reason or (result.error.message if result.error else "")
    message = message or f"task {task_id} ended: {result.outcome}"
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, errors.TaskError):
        return kind(message)
    if result.outcome in ERROR_OF_OUTCOME:
        return ERROR_OF_OUTCOME[result.outcome](message)
    return errors.ResultError(f"task {task_id} raised {name or 'an exception'}: {message} (which could not be pickled)")


def describe_error(error: BaseException) -> str:
    """Return the type and the text of an exception, for messages."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
