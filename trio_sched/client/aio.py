"""`open_client`: the client for trio and asyncio.

async with trio_sched.open_client() as client:
    async with client.open_task_group() as group:
        a = group.submit(load, path)
        b = group.submit(fit, a)
    print(b.value)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Never, TypeVar

import anyio
import anyio.to_thread

from trio_sched.client.async_future import AsyncFuture
from trio_sched.client.async_line import AsyncLine
from trio_sched.client.async_submit import AsyncSubmitter
from trio_sched.client.blocking import CONNECT_TIMEOUT_S, RECONNECT_S
from trio_sched.client.group import AsyncTaskGroup, task_group
from trio_sched.client.lookout import check_seconds, hello
from trio_sched.client.misuse import check_client_arguments
from trio_sched.client.options import TaskRef, task_number
from trio_sched.client.successor import Reconnect, Successor
from trio_sched.transport.connection import Connection, find

T = TypeVar("T")

CANCEL_TIMEOUT_S = 5.0


class AsyncClient(AsyncSubmitter):
    """A client within one event loop; made by `open_client`."""

    @property
    def session(self) -> int:
        """The number of this client's session: the first part of its tasks' ids."""
        return self._line.session.number

    def open_task_group(
        self, *, cancel_timeout: float = CANCEL_TIMEOUT_S
    ) -> AbstractAsyncContextManager[AsyncTaskGroup]:
        """A block whose tasks end with it.

        Leaving waits for them. An error in one of them or in the block, or a cancelled scope, cancels the others on the
        scheduler and waits up to `cancel_timeout` seconds for their engines to let go of them. Errors come out in an
        ExceptionGroup, as from a Trio nursery.
        """
        return task_group(self, cancel_timeout)

    async def gather(self, *futures: AsyncFuture[T] | Iterable[AsyncFuture[T]]) -> list[T]:
        """The results of these futures, or of the futures in these iterables, in order; or the exception of the first
        that failed, in place of all others."""
        given = [future for one in futures for future in ((one,) if isinstance(one, AsyncFuture) else one)]
        try:
            return [await future for future in given]
        except Exception:
            for future in given:
                future.see()
            raise

    async def status(self) -> dict[str, Any]:
        """The scheduler in numbers: tasks by state, clients, engines with their load, counters."""
        status: dict[str, Any] = await self._line.ask("status", 0)
        return status

    async def engines(self) -> list[dict[str, Any]]:
        """The engines that are here: number, host, Python, load, resources."""
        engines: list[dict[str, Any]] = await self._line.ask("engines", 0)
        return engines

    async def explain(self, task: TaskRef) -> str:
        """Why a task is not running now, in words."""
        return str(await self._line.ask("explain", self._number(task)))

    async def story(self, task: TaskRef) -> list[tuple[float, str]]:
        """What happened to a task, in order: (seconds, what)."""
        return [(when, what) for when, what in await self._line.ask("story", self._number(task))]

    def cancel(self, *tasks: TaskRef) -> None:
        """Cancel tasks of any client of this scheduler: futures, or ids."""
        for task in tasks:
            number = task_number(task, self._line.origin.scheduler, "cancel it with its own cancel()")
            if isinstance(task, AsyncFuture) and task.session == self.session:
                task.cancel()
            else:
                self._line.cancel(number)

    def _number(self, task: TaskRef) -> int:
        return task_number(task, self._line.origin.scheduler)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.session} of {self._line.connection.name!r}>"


@asynccontextmanager
async def open_client(
    where: str | Path | Connection | None = None,
    *,
    engines: int | None = None,
    hwm: int | None = None,
    scheme: str | None = None,
    name: str = "",
    weight: float = 1.0,
    cancel_on_leave: bool = False,
    connect_timeout: float = CONNECT_TIMEOUT_S,
    reconnect_s: float = RECONNECT_S,
    reconnect: Reconnect = "never",
    **misnamed: Never,
) -> AsyncIterator[AsyncClient]:
    """A client for the block; works under trio and under asyncio. The arguments are those of `Client`.

    Leaving waits for all tasks. Then it raises the error of a task that has failed and whose error nobody has looked at
    (by awaiting it, `value` or `error`); those of several in an ExceptionGroup. Task groups raise those of their own
    tasks. If the block raises or is cancelled, its tasks are cancelled on the scheduler, and its own error comes out.

    :raises NoSchedulerError: there is none, or several, or it does not answer, or the engines of its own have not all
        joined, within `connect_timeout` seconds.
    :raises ConnectionFileError: the file that was named cannot be used.
    """
    check_client_arguments(open_client, where, misnamed)
    check_seconds(connect_timeout=connect_timeout, reconnect_s=reconnect_s)
    async with _scheduler(where, engines, hwm, scheme) as (connection, own):
        greeting = hello(connection, name=name, weight=weight, cancel_on_leave=cancel_on_leave)
        successor = Successor.if_asked(reconnect, where, connection, own=own is not None)
        line = AsyncLine(connection, greeting, reconnect_s=reconnect_s, companion=own, successor=successor)
        try:
            async with anyio.create_task_group() as tasks:
                try:
                    await line.start(tasks, connect_timeout)
                    yield AsyncClient(line, {}, None)
                    await line.all_ended()
                    unseen = line.failures.error()
                finally:
                    with anyio.CancelScope(shield=True):
                        await line.leave(cancel=line.session.waiting > 0)
                    line.close()
                    tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            if len(group.exceptions) > 1:
                raise
            error = group.exceptions[0]  # the block's own: our tasks raise nothing
            raise error from error.__cause__
        if unseen is not None:
            raise unseen


@asynccontextmanager
async def _scheduler(
    where: str | Path | Connection | None, engines: int | None, hwm: int | None, scheme: str | None
) -> AsyncIterator[tuple[Connection, Any]]:
    """The scheduler to talk to, and if it is one of our own, its processes."""
    from trio_sched.client.own import OwnScheduler

    own = OwnScheduler.if_asked(where, engines, hwm=hwm, scheme=scheme)
    if own is None:
        yield where if isinstance(where, Connection) else find(where, "client"), None
        return
    try:
        yield await anyio.to_thread.run_sync(own.connection), own
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(own.close)
