"""The future of blocking code: a `concurrent.futures.Future`, at a seventh of its price.

A million of them wait in one client, and most are looked at after they are done, if at all. The standard one builds a
Condition, a lock and two lists at its birth (1,707 B, 6.4 us). This one builds its Condition when somebody first needs
it: to wait, to watch (`wait`, `as_completed`, callbacks), to cancel. Everything that the standard library does with a
future goes through `_condition`, so all of it works.

Who may change the state? While there is no Condition, whoever holds the module's lock, under which Conditions are built
too; once there is one, whoever holds it. So the client's thread settles a whole batch of unwatched futures under one
lock, and a watched one can be changed by nobody while a waiter is being installed.

`cancel()` succeeds until the end has arrived: the future is cancelled at once and the scheduler is told (R23). Whether
the task has begun is not known here, so `running()` is always false, and a call that runs already may go on for a while
on its engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable
from concurrent import futures
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, LOGGER, PENDING
from typing import TYPE_CHECKING, Any, TypeVar

from trio_sched.client.ends import UNDECODED, BaseFuture, Ended, Origin, lock
from trio_sched.client.functions import Function
from trio_sched.wire.native import TaskEnd

T = TypeVar("T")


class Future(BaseFuture[T], futures.Future[T]):
    """The future of a submitted task. Everything of `concurrent.futures.Future`, and `task_id`, `engine`, `stdout`,
    `stderr`, `took_s`. As an argument of `submit` it stands for its result (R9)."""

    __slots__ = ("_callback_list", "_condition_if_any", "_state", "_waiter_list")

    _state: str

    def __init__(self, origin: Origin, function: Function | None = None) -> None:
        # not super().__init__(): it would build what we put off
        self._state = PENDING
        self._origin = origin
        self.function = function
        self._value = UNDECODED
        self._end = None
        self._error = None
        self._condition_if_any: threading.Condition | None = None
        self._waiter_list: list[Any] | None = None
        self._callback_list: list[Callable[[futures.Future[T]], object]] | None = None
        self.number = 0

    # ---- what the standard library reaches for ----------------------------------------------------------------------

    if not TYPE_CHECKING:  # attributes there, built at once; type checkers see those, which `as_completed` asks for

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

    # ---- looking ----------------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether the future is done. Does not wait."""
        return self._state != PENDING

    def done(self) -> bool:
        """Whether the task ended or was cancelled."""
        return self._state != PENDING

    def cancelled(self) -> bool:
        """Whether `cancel()` succeeded."""
        return self._state == CANCELLED_AND_NOTIFIED

    def running(self) -> bool:
        """Always False: engines do not report what they begin."""
        return False

    def result(self, timeout: float | None = None) -> T:
        """Wait for the task's end; return its value or raise its exception.

        :raises concurrent.futures.CancelledError: the future was cancelled.
        :raises TimeoutError: it did not end within `timeout` seconds.
        """
        try:
            self._wait(timeout)
            if self._error is not None:
                raise self._error
            return self._value
        finally:
            del self  # break the cycle of exception, traceback, frame and future, as the standard one does

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the task's end; return the exception it raised, or None. Raises as `result` does otherwise."""
        self._wait(timeout)
        return self._error

    def _wait(self, timeout: float | None) -> None:
        if self._state == PENDING:
            if threading.get_ident() == self._origin.thread:
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
        """If the task has ended, wait for the moment until this future has."""
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
            state = self._record.outcome if self._record is not None else type(self._end).__name__
        return f"<{type(self).__name__} {self.task_id} {state}>"

    # ---- ending -----------------------------------------------------------------------------------------------------

    def cancel(self) -> bool:
        """Cancel the task: False if it has ended, else the future is cancelled now and the scheduler is told.

        A call that runs already is interrupted only if its engine can; its result is dropped in any case.
        """
        if not self.cancel_here():
            return self._state == CANCELLED_AND_NOTIFIED
        self._origin.canceller(self.number)
        return True

    def cancel_here(self) -> bool:
        """Cancel the future without telling the scheduler. False: it is done."""
        with lock():
            if self._condition_if_any is None:  # nobody watches: no need to build anything
                if self._state != PENDING:
                    return False
                self._state = CANCELLED_AND_NOTIFIED
                return True
        return self._change(CANCELLED_AND_NOTIFIED, None)

    def set_result(self, result: T) -> None:
        """For tests, as in the standard library: end with this value."""
        self._settle_here(TaskEnd(self.number), result, None)

    def set_exception(self, exception: BaseException | None) -> None:
        """For tests, as in the standard library: end with this exception."""
        assert exception is not None
        self._settle_here(exception, None, exception)

    def _settle_here(self, end: Ended, result: Any, exception: BaseException | None) -> None:
        with self._condition:
            if self._state != PENDING:
                raise futures.InvalidStateError(f"{self._state}: {self!r}")
            self._value, self._error = result, exception
        self._change(FINISHED, end)

    def _change(self, state: str, end: Ended | None) -> bool:
        """Leave PENDING, and tell everybody who watches. False: somebody else was first."""
        condition = self._condition
        with condition:
            if self._state != PENDING:
                return False
            self._end = end
            self._state = state
            for waiter in self._waiter_list or ():
                if state == CANCELLED_AND_NOTIFIED:
                    waiter.add_cancelled(self)
                elif isinstance(end, BaseException) or not self.succeeded:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            condition.notify_all()
        for callback in self._callback_list or ():
            try:
                callback(self)
            except BaseException as error:
                if not isinstance(error, Exception) and threading.get_ident() != self._origin.thread:
                    raise  # the thread is the user's, as is what ends it
                LOGGER.exception("exception calling callback for %r", self)
        return True


def settle(ended: Iterable[tuple[Future[Any], Ended]]) -> None:
    """End these futures. Those that were cancelled here stay so."""
    watched = []
    with lock():
        for future, end in ended:
            if future._condition_if_any is not None:
                watched.append((future, end))
            elif future._state == PENDING:
                future._end = end
                future._state = FINISHED
    for future, end in watched:
        future._change(FINISHED, end)
