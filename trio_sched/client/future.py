"""The future of blocking code: a `concurrent.futures.Future` at a seventh of the cost.

A million futures may wait in one client, and most are used only after they are done, or never. The standard
future creates a Condition, a lock and two lists (1,707 B, 6.4 us). This one creates its Condition when it is first
needed: to wait, to be watched (`wait`, `as_completed`, callbacks), or to cancel. The standard library accesses the
state of a future only under its `_condition`, so all of the library works with it.

Two locks guard the state. As long as a future has no Condition, the lock of all futures does, which also guards the
creation of Conditions; afterwards, its Condition does. So the client's thread resolves a whole batch of unwatched
futures under one lock, and the state of a watched future cannot change while a waiter is being added.

`cancel()` succeeds until the result has arrived: the future is cancelled at once, and a request goes to the scheduler
(R23). Engines do not report the start of a call, so `running()` is always False. A call that runs already continues on
its engine, and its result is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable
from concurrent import futures
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, LOGGER, PENDING
from typing import TYPE_CHECKING, Any, TypeVar

from trio_sched.client.functions import Function
from trio_sched.client.results import UNDECODED, BaseFuture, Outcome, SessionRef, lock
from trio_sched.wire.native import TaskResult

T = TypeVar("T")


class Future(BaseFuture[T], futures.Future[T]):
    """The future of a submitted task: a `concurrent.futures.Future` that also has `task_id`, `engine`, `stdout`,
    `stderr` and `took_s`. As an argument of `submit` it stands for its result (R9)."""

    __slots__ = ("_callback_list", "_condition_if_any", "_state", "_waiter_list")

    _state: str

    def __init__(self, session_ref: SessionRef, function: Function | None = None, number: int = 0) -> None:
        # without super().__init__(), which would create the Condition
        self._state = PENDING
        self._session_ref = session_ref
        self.function = function
        self.number = number
        self._value = UNDECODED
        self._outcome = None
        self._error = None
        self._condition_if_any: threading.Condition | None = None
        self._waiter_list: list[Any] | None = None
        self._callback_list: list[Callable[[futures.Future[T]], object]] | None = None

    # ---- attributes that the standard library uses ------------------------------------------------------------------

    if not TYPE_CHECKING:  # type checkers see the attributes of the standard class, which `as_completed` requires

        @property
        def _condition(self) -> threading.Condition:
            condition = self._condition_if_any
            if condition is None:
                with lock():
                    condition = self._condition_if_any
                    if condition is None:
                        condition = self._condition_if_any = threading.Condition()
            return condition

        @property
        def _waiters(self) -> list[Any]:
            if self._waiter_list is None:  # under the condition
                self._waiter_list = []
            return self._waiter_list

        @property
        def _done_callbacks(self) -> list[Callable[[futures.Future[T]], object]]:
            if self._callback_list is None:  # under the condition
                self._callback_list = []
            return self._callback_list

    # ---- state and result -------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether the future is done. Does not wait."""
        return self._state != PENDING

    def done(self) -> bool:
        """Return whether the task has ended or was cancelled."""
        return self._state != PENDING

    def cancelled(self) -> bool:
        """Return whether `cancel()` succeeded."""
        return self._state == CANCELLED_AND_NOTIFIED

    def running(self) -> bool:
        """Return False: engines do not report the start of a call."""
        return False

    def result(self, timeout: float | None = None) -> T:
        """Wait until the task has ended; return its value, or raise its exception.

        :raises concurrent.futures.CancelledError: the future was cancelled.
        :raises TimeoutError: the task did not end within `timeout` seconds.
        :raises RuntimeError: a callback waits for an unfinished task in the client's own thread.
        """
        try:
            self._wait(timeout)
            if self._error is not None:
                raise self._error
            return self._value
        finally:
            del self  # break the cycle of exception, traceback, frame and future, as the standard future does

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait until the task has ended; return the exception that it raised, or None. Otherwise raises as `result`."""
        self._wait(timeout)
        return self._error

    def _wait(self, timeout: float | None) -> None:
        if self._state == PENDING:
            if threading.get_ident() == self._session_ref.thread:
                raise RuntimeError("a callback runs in the client's thread, which cannot wait for a result there")
            condition = self._condition
            with condition:
                if self._state == PENDING:
                    condition.wait(timeout)
        if self._state == PENDING:
            raise TimeoutError(f"task {self.task_id} did not end within {timeout:g} s")
        if self._state == CANCELLED_AND_NOTIFIED:
            raise futures.CancelledError
        self._decode()

    def wait_if_ending(self, unfinished: Container[int]) -> None:
        """Wait until the future is done, if the task has ended: it is not among the counters of unfinished tasks."""
        if self.number not in unfinished and self._state == PENDING:
            condition = self._condition
            with condition:
                if self._state == PENDING:
                    condition.wait()

    def __repr__(self) -> str:
        if self._state == CANCELLED_AND_NOTIFIED:
            state = "cancelled"
        elif self._state == PENDING:
            state = "pending"
        else:
            state = self._record.outcome if self._record is not None else type(self._outcome).__name__
        return f"<{type(self).__name__} {self.task_id} {state}>"

    # ---- resolution -------------------------------------------------------------------------------------------------

    def cancel(self) -> bool:
        """Cancel the task (R23): the future is cancelled at once, and the scheduler is requested to cancel the task.

        A call that runs already is not interrupted; its result is dropped.

        :returns: False if the task had ended.
        """
        if not self.cancel_locally():
            return self._state == CANCELLED_AND_NOTIFIED
        self._session_ref.request_cancel(self.number)
        return True

    def cancel_locally(self) -> bool:
        """Cancel the future without a request to the scheduler. Returns False if the future was done."""
        with lock():
            if self._condition_if_any is None:  # unwatched: a Condition is not needed
                if self._state != PENDING:
                    return False
                self._state = CANCELLED_AND_NOTIFIED
                return True
        return self._finish(CANCELLED_AND_NOTIFIED, None)

    def set_result(self, result: T) -> None:
        """End with this value; for tests, as in the standard library."""
        self._set(TaskResult(self.number), result, None)

    def set_exception(self, exception: BaseException | None) -> None:
        """End with this exception; for tests, as in the standard library."""
        assert exception is not None
        self._set(exception, None, exception)

    def _set(self, outcome: Outcome, result: Any, exception: BaseException | None) -> None:
        with self._condition:
            if self._state != PENDING:
                raise futures.InvalidStateError(f"{self._state}: {self!r}")
            self._value, self._error = result, exception
        self._finish(FINISHED, outcome)

    def _finish(self, state: str, outcome: Outcome | None) -> bool:
        """Set the final state, notify the waiters, and run the callbacks. Returns False if the future was done."""
        condition = self._condition
        with condition:
            if self._state != PENDING:
                return False
            self._outcome = outcome
            self._state = state
            for waiter in self._waiter_list or ():
                if state == CANCELLED_AND_NOTIFIED:
                    waiter.add_cancelled(self)
                elif isinstance(outcome, BaseException) or not self.succeeded:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            condition.notify_all()
        for callback in self._callback_list or ():
            try:
                callback(self)
            except BaseException as error:
                if not isinstance(error, Exception) and threading.get_ident() != self._session_ref.thread:
                    raise  # the thread is the user's, which the exception may end
                LOGGER.exception("exception calling callback for %r", self)
        return True


def resolve(resolved: Iterable[tuple[Future[Any], Outcome]]) -> None:
    """Resolve these futures. A future that was cancelled here stays cancelled."""
    watched = []
    with lock():
        for future, outcome in resolved:
            if future._condition_if_any is not None:
                watched.append((future, outcome))
            elif future._state == PENDING:
                future._outcome = outcome
                future._state = FINISHED
    for future, outcome in watched:
        future._finish(FINISHED, outcome)
