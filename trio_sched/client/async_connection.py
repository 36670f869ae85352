"""The asynchronous client's connection: two Trio or asyncio tasks around one session, one to receive and one to send.

`submit` queues a call and wakes the sending task, which runs when the submitting task next yields to the event loop:
all calls submitted until then are sent in one message. Neither task raises an exception into the user's block: an error
ends the futures that wait for the scheduler.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio.abc import TaskGroup

from trio_sched.client import successor as successors
from trio_sched.client.async_future import AsyncFuture, UnseenFailures
from trio_sched.client.base_connection import BaseConnection
from trio_sched.client.scheduler_watch import outcomes_of
from trio_sched.client.settings import ClientSettings
from trio_sched.client.successor import SuccessorFinder
from trio_sched.errors import SchedulerClosed, TrioSchedError
from trio_sched.transport.connection_info import ConnectionInfo
from trio_sched.transport.zmq_socket import ZmqSocket
from trio_sched.wire import native
from trio_sched.wire.native import Frame

if TYPE_CHECKING:  # at run time only clients with a local cluster need `subprocess` and `tempfile`
    from trio_sched.client.local_cluster import LocalCluster

log = logging.getLogger("trio_sched.client")
#: The longest time, in seconds, that leaving the client's block waits for submitted calls to be accepted.
FLUSH_TIMEOUT_S = 5.0


class AsyncConnection(BaseConnection[AsyncFuture[Any]]):
    """A connection to a scheduler within one event loop."""

    def __init__(self, settings: ClientSettings, info: ConnectionInfo, cluster: LocalCluster | None) -> None:
        super().__init__(settings, info, cluster)
        self.failures = UnseenFailures()
        self._socket = ZmqSocket.dealer(info)
        self._wake = anyio.Event()
        #: Set and replaced after each batch of messages and each round of the sending task, for tasks that wait for a
        #: condition.
        self._changed = anyio.Event()
        self._replies: dict[int, tuple[Any, str]] = {}
        #: The error that ended the connection.
        self._closed: TrioSchedError | None = None
        #: The submit error while the successor of a scheduler that has ended is looked up.
        self._disconnected: SchedulerClosed | None = None

    # ---- called by the user's tasks ---------------------------------------------------------------------------------

    async def start(self, tasks: TaskGroup, timeout_s: float) -> None:
        """Connect, and wait for the engines that are starting; the two tasks of the connection run in `tasks`.

        :raises NoSchedulerError: the scheduler did not answer in time, or refused the client, or the engines of the
            local cluster did not join in time.
        """
        tasks.start_soon(self._receive_all, name="trio_sched client: receive")
        tasks.start_soon(self._send_all, name="trio_sched client: send")
        with anyio.move_on_after(timeout_s):
            while not self.session.is_ready and self._closed is None:
                await self._changed.wait()
        if self._closed is not None:
            raise self._closed
        if not self.session.is_ready:
            error = await anyio.to_thread.run_sync(self.watch.startup_error, self.session, timeout_s)
            if error is not None:
                raise error

    def wake(self) -> None:
        """Wake the sending task."""
        self._wake.set()

    async def wait_for_credit(self) -> None:
        """Wait until every submitted call is sent.

        :raises TrioSchedError: the connection has ended.
        """
        await anyio.lowlevel.checkpoint()
        while self.session.has_unsent:
            if self._closed is not None:
                raise self._closed
            await self._changed.wait()

    def cancel(self, counter: int) -> None:
        self.session.cancel((counter,))
        self._wake.set()

    async def query(self, what: str, task: int) -> Any:
        """Send a query, and wait for the reply's data.

        :raises TrioSchedError: the scheduler cannot answer the query, or has ended.
        """
        self.watch.check_can_query()
        session = self.session
        request = session.query(what, task)
        self._wake.set()
        while request not in self._replies:
            if (error := self._closed or self._disconnected) is not None:
                raise error
            if self.session is not session:
                raise SchedulerClosed("the scheduler ended before it answered the query")
            await self._changed.wait()
        data, error_text = self._replies.pop(request)
        if error_text:
            raise TrioSchedError(error_text)
        return data

    async def all_ended(self) -> None:
        """Wait until every task has ended or was cancelled."""
        while self.session.open_count:
            await self._changed.wait()
        await anyio.lowlevel.checkpoint()  # tasks that await the last futures run first

    async def leave(self, *, cancel: bool) -> None:
        """Send the submitted calls, and Bye; with `cancel`, the scheduler cancels the tasks of the session."""
        self.watch.stop_submissions(RuntimeError("the client was closed"))
        if cancel:
            self.session.drop_unsent()
        with anyio.move_on_after(FLUSH_TIMEOUT_S):
            while self._closed is None and self.session.is_welcomed and not (cancel or self.session.all_accepted):
                await self._changed.wait()
        if self._closed is None and self.session.is_welcomed:
            self._send_due(anyio.current_time())
            self._socket.send_many([[native.encode(native.Bye(cancel=cancel))]])  # the last message of the session

    def close(self) -> None:
        """Close the socket, and end the tasks and queries that are unfinished."""
        self._close(SchedulerClosed("the client was closed before the task ended"))
        self._socket.close()

    # ---- the two tasks ----------------------------------------------------------------------------------------------

    async def _receive_all(self) -> None:
        while self._closed is None:
            socket = self._socket
            try:
                messages = await socket.receive()
            except anyio.ClosedResourceError:
                await anyio.lowlevel.checkpoint()  # another socket has replaced it, or the connection has ended
                continue
            for parts in messages:
                if socket is self._socket:  # else the remaining messages are of a socket that was replaced
                    self._receive(parts)
            self._notify_waiters()

    async def _send_all(self) -> None:
        while self._closed is None:
            if self._disconnected is not None and self._successor is not None:
                await self._look_up_successor(self._successor, self._disconnected)
                continue
            now = anyio.current_time()
            self._send_due(now)
            with anyio.move_on_after(self.watch.idle_timeout_s(self.session, now)):
                await self._wake.wait()
            self._wake = anyio.Event()
            verdict = self._check_scheduler(anyio.current_time())
            if isinstance(verdict, TrioSchedError):
                self._end_session(verdict)
            elif verdict:
                self._reopen()
            self._notify_waiters()

    def _send_due(self, now: float) -> None:
        out = self.session.outgoing(now)
        if out:
            self._socket.send_many([[native.encode(message), *frames] for message, frames in out])

    def _receive(self, parts: Sequence[Frame]) -> None:
        if self._disconnected is not None:
            return  # a late message of a scheduler that has ended
        update, error = self._apply(parts, anyio.current_time())
        for future, outcome in outcomes_of(update):
            future.resolve(outcome)
        for request, data, error_text in update.replies:
            self._replies[request] = (data, error_text)
        if update.rejoin:
            self._reopen()
        if self.session.is_busy:  # credit was returned, or a Hello is due
            self._wake.set()
        if error is not None:
            self._end_session(error)

    def _notify_waiters(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _reopen(self) -> None:
        """Open another socket to the same scheduler, and resume the session."""
        old, self._socket = self._socket, ZmqSocket.dealer(self.info)
        old.close()
        self.session.connection_opened(anyio.current_time())
        self._wake.set()

    # ---- the end of a scheduler -------------------------------------------------------------------------------------

    def _end_session(self, error: TrioSchedError) -> None:
        """End the tasks of a scheduler that has ended; then look up its successor, or end the connection."""
        if self._successor is None or not self.session_ref.session:
            self._close(error)
            return
        log.warning("%s; waiting for another one", error)
        if self.watch.has_refused:
            self._successor.note_refusal(self.info, anyio.current_time())
        self._disconnected = successors.disconnected_error(error)
        self.watch.stop_submissions(self._disconnected, replace=True)
        lost = successors.lost_task_error(error)  # one error for all tasks: leaving the client's block raises it once
        for future in self.session.reset():
            future.resolve(lost)
        self._wake.set()
        self._notify_waiters()

    async def _look_up_successor(self, successor: SuccessorFinder, submit_error: SchedulerClosed) -> None:
        """Wait for one lookup period, and connect to the successor if it runs then."""
        with anyio.move_on_after(successors.LOOKUP_PERIOD_S):
            await self._changed.wait()
        if (found := successor.find(anyio.current_time())) is not None:
            old, self._socket = self._socket, ZmqSocket.dealer(found)
            old.close()
            self._disconnected = None
            self._begin_session(found, submit_error)
            self._replies.clear()

    def _close(self, error: TrioSchedError) -> None:
        """End the connection, and every task and query that waits."""
        if self._closed is None:
            self._closed = error
            self.watch.stop_submissions(error)
        for future in self.session.reset():
            future.resolve(error)
        self._wake.set()
        self._notify_waiters()
