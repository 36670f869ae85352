"""The future of asynchronous code: awaitable under trio and asyncio, and an argument of tasks (R9)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol, TypeVar

import anyio
import anyio.lowlevel

from trio_sched.client.functions import Function
from trio_sched.client.results import UNDECODED, BaseFuture, Outcome, SessionRef
from trio_sched.errors import ImpossibleDependency, TaskCancelled

T = TypeVar("T")

#: The most failed tasks that a client keeps to raise their errors. A client that looks at none keeps the first ones.
MAX_UNSEEN_FAILURES = 1000


class FutureOwner(Protocol):
    """The block that tasks are submitted in, and that raises the errors of those that fail: a task group, or the client
    for tasks outside of groups."""

    def check_open(self) -> None:
        """Refuse a submission after the end of the block.

        :raises RuntimeError: the block was left.
        """

    def on_submitted(self, future: AsyncFuture[Any]) -> None:
        """Note that a task was submitted."""

    def on_ended(self, future: AsyncFuture[Any]) -> None:
        """Note that a task has ended."""

    def on_seen(self, future: AsyncFuture[Any]) -> None:
        """Note that the caller has seen the error of a task, or does not want to."""


class AsyncFuture(BaseFuture[T]):
    """The future of a task that asynchronous code submitted. Any number of tasks may `await` it for its result.

    A cancelled `await` only stops waiting; the task itself is cancelled by `cancel()`, or with its task group. Made by
    `submit`. Belongs to one event loop, and is not thread-safe.
    """

    __slots__ = ("_event", "_owner", "seen")

    def __init__(
        self,
        session_ref: SessionRef,
        function: Function | None = None,
        number: int = 0,
        owner: FutureOwner | None = None,
    ) -> None:
        self._session_ref = session_ref
        self.function = function
        self.number = number
        self._value = UNDECODED
        self._error = None
        self._outcome = None
        self._event: anyio.Event | None = None
        self._owner = owner
        #: Whether the caller has seen the error of the task, or does not want to.
        self.seen = False

    def done(self) -> bool:
        """Return whether the task has ended or was cancelled."""
        return self._outcome is not None

    def cancelled(self) -> bool:
        """Return whether the task was cancelled."""
        record = self._record
        return isinstance(self._outcome, TaskCancelled) if record is None else record.outcome == "cancelled"

    @property
    def value(self) -> T:
        """The result of a task that has ended; the exception of a failed task is raised.

        :raises RuntimeError: the task has not ended; `await` the future instead.
        """
        if self._outcome is None:
            raise RuntimeError(f"task {self.task_id} has not ended; await it, or leave its task group first")
        if (error := self.error) is not None:
            raise error
        return self._value

    @property
    def error(self) -> BaseException | None:
        """The exception of a failed task; None: the task succeeded, or has not ended."""
        if self._outcome is None:
            return None
        self._decode()
        if self._error is not None:
            self.mark_seen()
        return self._error

    def mark_seen(self) -> None:
        """Keep the client's block from raising the error of this task, if the task fails or has failed."""
        self.seen = True
        if self._owner is not None:
            self._owner.on_seen(self)

    async def wait(self) -> None:
        """Wait until the task has ended, successfully or not."""
        if self._outcome is None:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()
        else:
            await anyio.lowlevel.checkpoint()

    async def result(self) -> T:
        """Wait until the task has ended, as `await future` does; return its value, or raise its exception."""
        await self.wait()
        return self.value

    def __await__(self) -> Generator[Any, Any, T]:
        return self.result().__await__()

    def cancel(self) -> bool:
        """Cancel the task (R23): the future ends at once with TaskCancelled, and the scheduler is
        requested to cancel the task.

        :returns: False if the task had ended.
        """
        if self._outcome is not None:
            return False
        self._session_ref.request_cancel(self.number)
        self.resolve(TaskCancelled(f"task {self.task_id} was cancelled by its client"))
        return True

    def resolve(self, outcome: Outcome) -> None:
        """End the future with this outcome, unless it has ended."""
        if self._outcome is None:
            self._outcome = outcome
            if self._event is not None:
                self._event.set()
            if self._owner is not None:
                self._owner.on_ended(self)

    def __repr__(self) -> str:
        record, outcome = self._record, self._outcome
        state = record.outcome if record is not None else "pending" if outcome is None else type(outcome).__name__
        return f"<{type(self).__name__} {self.task_id} {state}>"


# ---- errors that leaving a block raises -----------------------------------------------------------------------------


class UnseenFailures:
    """Failed tasks of one client whose errors the caller has not seen: leaving the client's block raises them.

    A task group raises the errors of its own tasks; this class owns the tasks outside of groups. An error counts as
    seen when `await future`, `future.result()` or `future.value` raised it, or `future.error` returned it; when `map`
    or `gather` raised another error in its place; or when the task was cancelled.
    """

    def __init__(self) -> None:
        self._failed: dict[AsyncFuture[Any], None] = {}

    def check_open(self) -> None:
        """Accept every submission: the submit error refuses those after the end of the client."""

    def on_submitted(self, future: AsyncFuture[Any]) -> None:
        """Ignore a task that has not ended."""

    def on_ended(self, future: AsyncFuture[Any]) -> None:
        """Keep a task that has failed and was not cancelled."""
        has_failed = not future.succeeded and not future.cancelled()
        if has_failed and not future.seen and len(self._failed) < MAX_UNSEEN_FAILURES:
            self._failed[future] = None

    def on_seen(self, future: AsyncFuture[Any]) -> None:
        """Forget a task whose error was seen."""
        self._failed.pop(future, None)

    def error(self) -> BaseException | None:
        """Return the error that leaving the block raises: that of the only failed task, a group of the errors of
        several, or None.

        Errors that only follow from other errors are left out.
        """
        errors = root_causes([], list(self._failed))
        if len(errors) > 1:
            return BaseExceptionGroup("tasks of the client failed, and their errors were not looked at", errors)
        return errors[0] if errors else None


def root_causes(raised: list[BaseException], failed: list[AsyncFuture[Any]]) -> list[BaseException]:
    """Return the errors that a block raised and those of its failed tasks, each once, without the errors of tasks that
    failed only because an input failed."""
    errors = [future.error for future in failed if future.error is not None]
    has_cause = any(not isinstance(error, ImpossibleDependency) for error in errors)
    consequences = {id(error) for error in errors if has_cause and isinstance(error, ImpossibleDependency)}
    return list({id(error): error for error in [*raised, *errors] if id(error) not in consequences}.values())
