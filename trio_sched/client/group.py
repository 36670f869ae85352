"""Task groups: structured concurrency for remote tasks.

Leaving the block waits for every task that was submitted to the group. If one fails, or the block raises, or an outer
scope is cancelled, the other tasks of the group are cancelled on the scheduler, and leaving waits
(`cancel_timeout` seconds at most) until the scheduler says that they are gone, from the engines too. Errors come out as
in a Trio nursery: always in an ExceptionGroup, the tasks' own and the block's side by side.

What failed only because something else did is left out: an ImpossibleDependency beside the failure that made it so, and
the error of a task that was awaited in the block, which would otherwise be there twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from trio_sched.client.async_future import AsyncFuture
from trio_sched.client.async_submit import AsyncSubmitter
from trio_sched.client.failures import causes
from trio_sched.errors import TaskCancelled


class AsyncTaskGroup(AsyncSubmitter):
    """Submits tasks that end with the block; made by `client.open_task_group()`."""

    def __init__(self, submitter: AsyncSubmitter, cancel_timeout_s: float) -> None:
        super().__init__(submitter._line, submitter._asked, self)
        self._cancel_timeout_s = cancel_timeout_s
        self._open: dict[int, AsyncFuture[Any]] = {}
        self._failed: list[AsyncFuture[Any]] = []
        self._changed = anyio.Event()
        self._left = False
        self._cancelling = False

    def cancel(self) -> None:
        """Cancel the group's tasks that have not ended. Leaving the block then waits for their ends, and raises nothing
        because of them."""
        self._cancelling = True
        self._line.session.cancel(self._open)
        self._line.wake()

    def admit(self, future: AsyncFuture[Any]) -> None:
        """A task was submitted to the group."""
        self._open[future.number] = future
        if self._cancelling:
            self._line.session.cancel((future.number,))

    def check_open(self) -> None:
        """:raises RuntimeError: the block was left."""
        if self._left:
            raise RuntimeError("this task group was left; submit to the client, or open another one")

    def note_end(self, future: AsyncFuture[Any]) -> None:
        """A task of the group has ended."""
        self._open.pop(future.number, None)
        if not future.succeeded and not (self._cancelling and isinstance(future.error, TaskCancelled)):
            self._failed.append(future)
            self._changed.set()
        elif not self._open:
            self._changed.set()

    def note_seen(self, future: AsyncFuture[Any]) -> None:
        """The block raises the error of a task of the group whoever else has seen it."""

    async def _watch(self, scope: anyio.CancelScope) -> None:
        """Wait until the block was left and every task has ended; cancel the block as soon as one fails."""
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
        """Whatever happens outside: tell the scheduler, and wait for the ends."""
        self._left = True
        if not self._open:
            return
        self.cancel()
        with anyio.move_on_after(self._cancel_timeout_s, shield=True):
            while self._open:
                await self._changed.wait()
                self._changed = anyio.Event()
        for future in list(self._open.values()):
            future.finish(TaskCancelled(f"task {future.task_id} was cancelled; its engine has not let go of it yet"))


@asynccontextmanager
async def task_group(submitter: AsyncSubmitter, cancel_timeout_s: float) -> AsyncIterator[AsyncTaskGroup]:
    """See the top of this file."""
    group = AsyncTaskGroup(submitter, cancel_timeout_s)
    failed: list[AsyncFuture[Any]] = []
    try:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(group._watch, tasks.cancel_scope, name="trio_sched task group")
                yield group
                group._leave()
        finally:
            failed = list(group._failed)  # what fails later, fails because we cancel
            await group._cancel_rest()
    except BaseExceptionGroup as raised:
        raise raised.derive(causes([*raised.exceptions], failed)).with_traceback(raised.__traceback__) from None
    except anyio.get_cancelled_exc_class():
        if not failed:
            raise
    if failed:
        raise BaseExceptionGroup("tasks of the group failed", causes([], failed))
