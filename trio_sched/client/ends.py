"""How a task ended, as its client sees it: a value, or an exception; and what both kinds of future have in common.

Results are unpickled when somebody looks, not when they arrive: in the thread that asked, at its expense, and never if
nobody asks. A remote exception comes back as its own type, with the remote traceback as its `__cause__`; an end that
the scheduler decided as the class of `trio_sched.errors` that it names.
"""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Sequence
from typing import Any, Generic, NoReturn, TypeAlias, TypeVar

from trio_sched import errors
from trio_sched.client.functions import Function
from trio_sched.wire import payload
from trio_sched.wire.native import Attached, Frame, TaskEnd

T = TypeVar("T")

ERROR_OF_OUTCOME: dict[str, type[errors.TaskError]] = {
    "unreachable": errors.ImpossibleDependency,
    "timeout": errors.TaskTimeout,
    "lost": errors.EngineError,
    "cancelled": errors.TaskCancelled,
    "unmet": errors.UnmetDependency,
}
"""For ends that the scheduler made and did not name more exactly."""


_lock = threading.Lock()


def lock() -> threading.Lock:
    """Guards the short moments in which a future of any client changes what other threads may look at."""
    return _lock


def _renew_lock() -> None:
    """In a forked child, where the thread that held it is gone."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class Origin:
    """Where tasks come from: one session of one client with one scheduler. Shared by all of its futures."""

    __slots__ = ("canceller", "scheduler", "session", "thread")

    def __init__(self, session: int, canceller: Any, thread: int = 0, scheduler: str = "") -> None:
        self.session = session
        self.scheduler = scheduler
        """The scheduler instance: another one has tasks of the same numbers."""
        self.thread = thread
        """The ident of the client's own thread, in which callbacks run; 0: it has none."""
        self.canceller = canceller
        """What `cancel()` asks: called with the counter of a task."""


def cannot_be_sent() -> NoReturn:
    """For the `__reduce__` of what belongs to a client."""
    raise TypeError("a client cannot be sent; a task that needs one makes its own, with Client()")


class Undecoded:
    """Stands where the value will be."""

    __slots__ = ()


UNDECODED: Any = Undecoded()
Ended: TypeAlias = TaskEnd | Attached | BaseException
"""What a future is given at its end: the scheduler's record, or what went wrong here."""


class BaseFuture(Generic[T]):
    """A task of ours: its id, and once it has ended, how. The base of both faces' futures."""

    __slots__ = ("_end", "_error", "_origin", "_value", "function", "number")

    _end: Ended | None
    _error: BaseException | None
    _value: T
    number: int
    """The task's counter within its session."""
    function: Function | None
    _origin: Origin

    @property
    def task_id(self) -> str:
        """The task's id as shown everywhere: session and counter, "3-17"."""
        return f"{self._origin.session}-{self.number}"

    @property
    def full_id(self) -> int:
        """The task's id as one number, as the scheduler counts."""
        return self._origin.session << 32 | self.number

    @property
    def session(self) -> int:
        """The number of the session that submitted it."""
        return self._origin.session

    @property
    def scheduler(self) -> str:
        """The scheduler instance that it was submitted to."""
        return self._origin.scheduler

    @property
    def succeeded(self) -> bool:
        """Whether it is known here that the task ended well. Does not wait."""
        return self.ended and isinstance(record := self._record, TaskEnd) and record.outcome == "ok"

    @property
    def ended(self) -> bool:
        """Whether the future is done. Does not wait."""
        return self._end is not None

    @property
    def engine(self) -> int | None:
        """The number of the engine on which the task ran; None while it has not ended, or if it never ran."""
        record = self._record
        return None if record is None or record.engine < 0 else record.engine

    @property
    def stdout(self) -> str:
        """What the task printed, once it has ended."""
        return self._record.stdout if self._record is not None else ""

    @property
    def stderr(self) -> str:
        """What the task wrote to standard error, once it has ended."""
        return self._record.stderr if self._record is not None else ""

    @property
    def took_s(self) -> float | None:
        """How long the call itself ran, in seconds; None while it has not ended, or if it never ran."""
        record = self._record
        return None if record is None or record.engine < 0 else record.took_s

    @property
    def _record(self) -> TaskEnd | None:
        end = self._end
        if isinstance(end, Attached):
            return end.record  # type: ignore[return-value]  # the record of an end is a TaskEnd
        return end if isinstance(end, TaskEnd) else None

    def _decode(self) -> None:
        """Turn the end into `_value` and `_error`, once. Two threads may do it at once; both see the first's."""
        if self._value is not UNDECODED:
            return
        value, exception = decoded(self._end, self)
        with lock():
            if self._value is UNDECODED:
                self._error = exception
                self._value = value
                record = self._record
                if record is not None:
                    record.body = b""
                    self._end = record

    def __reduce__(self) -> Any:
        """As an argument of a task (R9): by value if it is here, else as an input that the scheduler fills in."""
        if self.succeeded:
            self._decode()
            if self._error is not None:
                raise self._error
            return operator.getitem, ((self._value,), 0)
        return payload.met(self)


# ---- from the wire --------------------------------------------------------------------------------------------------


def decoded(end: Ended | None, future: BaseFuture[Any]) -> tuple[Any, BaseException | None]:
    """(value, None) or (None, exception)."""
    if isinstance(end, BaseException):
        return None, end
    frames: Sequence[Frame] = ()
    if isinstance(end, Attached):
        end, frames = end.record, end.frames  # type: ignore[assignment]  # the record of an end is a TaskEnd
    assert isinstance(end, TaskEnd)
    if end.outcome == "ok":
        try:
            return value_of(end, frames), None
        except KeyboardInterrupt:  # the user's, while this went on
            raise
        except BaseException as error:  # unpickling runs anybody's code
            failure = errors.ResultError(
                f"task {future.task_id} ended well, but its result cannot be unpickled here: {described(error)}"
            )
            failure.__cause__ = error
            return None, failure
    return None, exception_of(end, frames, future.task_id)


def value_of(end: TaskEnd, frames: Sequence[Frame]) -> Any:
    """The value in a result. Arrays in it can be written to, as those of a local call could."""
    if end.codec == "msgpack":
        import msgspec

        return msgspec.msgpack.decode(end.body or frames[0])
    body, buffers = payload.unpack(end.body, frames)
    return payload.loads(body, [writable(buffer) for buffer in buffers])


def writable(buffer: Frame) -> Frame:
    """A buffer that may be written to: itself, or a copy."""
    return (
        bytearray(buffer)
        if isinstance(buffer, bytes) or (isinstance(buffer, memoryview) and buffer.readonly)
        else buffer
    )


def exception_of(end: TaskEnd, frames: Sequence[Frame], task_id: str) -> BaseException:
    """What a failed task raises here."""
    remote = end.error
    if end.body or frames:
        try:
            body, buffers = payload.unpack(end.body, frames)
            exception: BaseException = payload.loads(body, buffers)
            if not isinstance(exception, BaseException):
                raise TypeError(f"{exception!r} is no exception")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the remote exception's class may be anything
            name, message = (remote.name, remote.message) if remote else ("an exception", "")
            exception = errors.ResultError(
                f"task {task_id} raised {name}: {message} (which cannot be unpickled here: {described(error)})"
            )
    else:
        exception = _scheduler_made(end, task_id)
    if remote is not None and remote.traceback:
        exception.__cause__ = errors.RemoteTraceback(remote.traceback)
    return exception


def _scheduler_made(end: TaskEnd, task_id: str) -> BaseException:
    """The class of trio_sched.errors that the end names; for an exception that could not be pickled, ResultError."""
    name = end.error.name if end.error else ""
    message = end.reason or (end.error.message if end.error else "") or f"task {task_id} ended: {end.outcome}"
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, errors.TaskError):
        return kind(message)
    if end.outcome in ERROR_OF_OUTCOME:
        return ERROR_OF_OUTCOME[end.outcome](message)
    return errors.ResultError(f"task {task_id} raised {name or 'an exception'}: {message} (which could not be pickled)")


def described(error: BaseException) -> str:
    """An exception in one line, for messages."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
