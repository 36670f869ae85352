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
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread

from trio_sched.client.async_connection import AsyncConnection
from trio_sched.client.async_future import AsyncFuture
from trio_sched.client.async_submit import AsyncSubmitter
from trio_sched.client.group import AsyncTaskGroup, task_group
from trio_sched.client.options import TaskRef, task_number
from trio_sched.client.settings import ClientSettings, takes_settings
from trio_sched.transport.connection_info import ConnectionInfo, find_connection

if TYPE_CHECKING:  # at run time only clients with a local cluster need `subprocess` and `tempfile`
    from trio_sched.client.local_cluster import LocalCluster

T = TypeVar("T")

#: The default of `cancel_timeout`, in seconds.
CANCEL_TIMEOUT_S = 5.0


class AsyncClient(AsyncSubmitter):
    """A client within one event loop; made by `open_client`."""

    @property
    def session(self) -> int:
        """The number of this client's session, which is the first part of its tasks' ids."""
        return self._connection.session.number

    def open_task_group(
        self, *, cancel_timeout: float = CANCEL_TIMEOUT_S
    ) -> AbstractAsyncContextManager[AsyncTaskGroup]:
        """Open a block whose tasks end with it.

        Leaving the block waits for its tasks. If one of them fails, the block raises, or its scope is cancelled, the
        other tasks are cancelled on the scheduler, and leaving waits up to `cancel_timeout` seconds until their engines
        have stopped them. Errors are raised in an ExceptionGroup, as by a Trio nursery.
        """
        return task_group(self, cancel_timeout)

    async def gather(self, *futures: AsyncFuture[T] | Iterable[AsyncFuture[T]]) -> list[T]:
        """Return the results of these futures, or of the futures in these iterables, in order.

        :raises Exception: that of the first failed future; the errors of the others then count as seen.
        """
        given = [future for one in futures for future in ((one,) if isinstance(one, AsyncFuture) else one)]
        try:
            return [await future for future in given]
        except Exception:
            for future in given:
                future.mark_seen()
            raise

    async def status(self) -> dict[str, Any]:
        """Return the scheduler's status: tasks by state, clients, engines with their load, counters.

        :raises TrioSchedError: the scheduler has ended.
        """
        status: dict[str, Any] = await self._connection.query("status", 0)
        return status

    async def engines(self) -> list[dict[str, Any]]:
        """Return the connected engines: number, host, Python, load, resources. Raises as `status`."""
        engines: list[dict[str, Any]] = await self._connection.query("engines", 0)
        return engines

    async def explain(self, task: TaskRef) -> str:
        """Return the reason why a task is not running now. Raises as `status`.

        :raises ValueError: `task` is not a task of this scheduler.
        """
        return str(await self._connection.query("explain", self._number(task)))

    async def story(self, task: TaskRef) -> list[tuple[float, str]]:
        """Return the history of a task: (seconds, text) of each event, in order. Raises as `explain`."""
        return [(when, what) for when, what in await self._connection.query("story", self._number(task))]

    def cancel(self, *tasks: TaskRef) -> None:
        """Cancel tasks of any client of this scheduler, given as futures or ids (R23).

        :raises ValueError: one of these is not a task of this scheduler.
        """
        for task in tasks:
            number = task_number(task, self._connection.session_ref.scheduler, "cancel it with its own cancel()")
            if isinstance(task, AsyncFuture) and task.session == self.session:
                task.cancel()
            else:
                self._connection.cancel(number)

    def _number(self, task: TaskRef) -> int:
        return task_number(task, self._connection.session_ref.scheduler)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.session} of {self._connection.info.name!r}>"


@takes_settings
@asynccontextmanager
async def open_client(settings: ClientSettings) -> AsyncIterator[AsyncClient]:
    """Open a client for the block, under trio or asyncio. The parameters are those of `Client`.

    Leaving the block waits for all tasks. Then it raises the error of a task that has failed and whose error was not
    seen (by awaiting it, `value` or `error`); the errors of several such tasks are raised in an ExceptionGroup. Task
    groups raise the errors of their own tasks. If the block raises or is cancelled, its tasks are cancelled on the
    scheduler, and the error of the block is raised.

    :raises NoSchedulerError: there is no scheduler, several match, it does not answer, or the engines of the local
        cluster have not all joined, within `connect_timeout` seconds.
    :raises ConnectionFileError: the given connection file cannot be used.
    :raises TypeError: an argument has a wrong name or type, or arguments contradict each other.
    :raises ValueError: an argument's value is not valid.
    """
    async with _open_cluster(settings) as (cluster, info):
        connection = AsyncConnection(settings, info, cluster)
        try:
            async with anyio.create_task_group() as tasks:
                try:
                    await connection.start(tasks, settings.connect_timeout)
                    yield AsyncClient(connection, {}, connection.failures)
                    await connection.all_ended()
                    unseen = connection.failures.error()
                finally:
                    with anyio.CancelScope(shield=True):
                        await connection.leave(cancel=connection.session.open_count > 0)
                    connection.close()
                    tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            if len(group.exceptions) > 1:
                raise
            error = group.exceptions[0]  # that of the block: the connection's own tasks raise none
            raise error from error.__cause__
        if unseen is not None:
            raise unseen


@asynccontextmanager
async def _open_cluster(settings: ClientSettings) -> AsyncIterator[tuple[LocalCluster | None, ConnectionInfo]]:
    """Yield the local cluster, if the settings ask for one, and the connection of the scheduler; close the cluster."""
    where = settings.where
    if settings.engines is None:
        yield None, where if isinstance(where, ConnectionInfo) else find_connection(where, "client")
        return
    from trio_sched.client.local_cluster import LocalCluster

    cluster = LocalCluster(settings.engines, hwm=settings.hwm, scheme=settings.scheme)
    try:
        yield cluster, await anyio.to_thread.run_sync(cluster.connection)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(cluster.close)
