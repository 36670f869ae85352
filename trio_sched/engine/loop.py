"""What the two loops of a worker share: the wait of the main thread, and how a signal or the nanny's exit ends it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from trio_sched.engine.scheduler_connection import SchedulerConnection

#: How long a result waits, at most, for others that are sent with it while short tasks run.
BATCH_DELAY_S = 0.001


class _WaitEnded(BaseException):
    """Raised by a signal handler in the main thread to end its wait."""


class WorkerLoop(ABC):
    """Runs the assigned calls of one connection until the connection has a `leave_reason`."""

    def __init__(self, connection: SchedulerConnection) -> None:
        self._connection = connection
        #: Whether the main thread is in `_wait`, where a signal handler may raise `_WaitEnded`.
        self._waiting = False

    @abstractmethod
    def run(self) -> None:
        """Run calls in, or from, the main thread; returns when the worker is to end."""

    @abstractmethod
    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the task of the main thread, if one runs there. For a signal handler there."""

    @abstractmethod
    def abandon(self, reason: str, timeout_s: float) -> None:
        """Have the connection closed even if tasks run; returns after at most `timeout_s`. From another thread; the
        caller then ends the process.
        """

    @abstractmethod
    def _must_not_wait(self) -> bool:
        """Whether the main thread has something to do at once, so that it must not wait."""

    def leave(self, reason: str) -> None:
        """End after the tasks that run. For a signal handler in the main thread."""
        self._connection.leave(reason)
        if self._waiting:
            self._waiting = False
            raise _WaitEnded
        self._connection.wake()  # whichever thread waits, to send `Draining`

    def _wait(self) -> None:
        """Wait in the main thread, until the connection's `wait` ends or a signal handler calls `leave`."""
        try:
            self._waiting = True
            if not self._must_not_wait():
                self._connection.wait()
            self._waiting = False
        except _WaitEnded:
            pass
