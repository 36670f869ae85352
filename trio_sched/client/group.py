"""Task groups: structured concurrency for remote tasks.

Leaving the block waits for every task that was submitted to the group. If a task fails, the block raises, or an outer
scope is cancelled, the other tasks of the group are cancelled on the scheduler, and leaving waits up to
`cancel_timeout` seconds until the scheduler reports their results, when the engines have dropped them too. Errors are
raised as by a Trio nursery: always in an ExceptionGroup, those of the tasks and that of the block side by side.

Errors that only follow from another error are left out: an ImpossibleDependency whose cause is in the same group, and
the error of a task that was awaited in the block, which would otherwise be there twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from trio_sched.client.async_future import AsyncFuture, root_causes
from trio_sched.client.async_submit import AsyncSubmitter
from trio_sched.errors import TaskCancelled


class AsyncTaskGroup(AsyncSubmitter):
    """Submits tasks that end with the block; made by `client.open_task_group()`."""

    def __init__(self, submitter: AsyncSubmitter, cancel_timeout_s: float) -> None:
        super().__init__(submitter._connection, submitter._option_values, self)
        self._cancel_timeout_s = cancel_timeout_s
        self._open: dict[int, AsyncFuture[Any]] = {}
        self._failed: list[AsyncFuture[Any]] = []
        self._changed = anyio.Event()
        self._left = False
        self._cancelling = False

    def cancel(self) -> None:
        """Cancel the tasks of the group that have not ended, and those submitted later.

        Leaving the block then waits for their results, and does not raise because of them.
        """
        self._cancelling = True
        self._connection.session.cancel(self._open)
        self._connection.wake()

    # ---- as the owner of its tasks ----------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Refuse a submission after the end of the block.

        :raises RuntimeError: the block was left.
        """
        if self._left:
            raise RuntimeError("this task group was left; submit to the client, or open another task group")

    def on_submitted(self, future: AsyncFuture[Any]) -> None:
        """Add a task that was submitted to the group."""
        self._open[future.number] = future
        if self._cancelling:
            self._connection.session.cancel((future.number,))

    def on_ended(self, future: AsyncFuture[Any]) -> None:
        """Remove a task that has ended, and keep it if it has failed."""
        self._open.pop(future.number, None)
        if not future.succeeded and not (self._cancelling and isinstance(future.error, TaskCancelled)):
            self._failed.append(future)
            self._changed.set()
        elif not self._open:
            self._changed.set()

    def on_seen(self, future: AsyncFuture[Any]) -> None:
        """Ignore that an error was seen: the block raises it all the same."""

    # ---- the block --------------------------------------------------------------------------------------------------

    async def _watch(self, scope: anyio.CancelScope) -> None:
        """Wait until the block was left and every task has ended; cancel the block as soon as a task fails."""
        while not (self._left and not self._open):
            await self._changed.wait()
            self._changed = anyio.Event()
            if self._failed:
                scope.cancel()
                return

    def _leave(self) -> None:
        self._left = True
        self._changed.set()

    async def _cancel_rest(self) -> None:
        """Cancel the remaining tasks on the scheduler and wait for their results, shielded from outer cancellation."""
        self._left = True
        if not self._open:
            return
        self.cancel()
        with anyio.move_on_after(self._cancel_timeout_s, shield=True):
            while self._open:
                await self._changed.wait()
                self._changed = anyio.Event()
        for future in list(self._open.values()):
            future.resolve(TaskCancelled(f"task {future.task_id} was cancelled; its engine has not stopped it yet"))


@asynccontextmanager
async def task_group(submitter: AsyncSubmitter, cancel_timeout_s: float) -> AsyncIterator[AsyncTaskGroup]:
    """Open a task group whose tasks have the submitter's options."""
    group = AsyncTaskGroup(submitter, cancel_timeout_s)
    failed: list[AsyncFuture[Any]] = []
    try:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(group._watch, tasks.cancel_scope, name="trio_sched task group")
                yield group
                group._leave()
        finally:
            failed = list(group._failed)  # tasks that fail later fail because of the cancellation below
            await group._cancel_rest()
    except BaseExceptionGroup as raised:
        raise raised.derive(root_causes([*raised.exceptions], failed)).with_traceback(raised.__traceback__) from None
    except anyio.get_cancelled_exc_class():
        if not failed:
            raise
    if failed:
        raise BaseExceptionGroup("tasks of the group failed", root_causes([], failed))
