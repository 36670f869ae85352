"""The asynchronous client's connection: two tasks around one session, one that receives and one that sends.

`submit` queues and wakes the sender, which runs when the submitting task next lets go of the event loop: whatever was
submitted in between goes out in one message. Nothing here raises into the user's block: what goes wrong ends the
futures that wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NoReturn

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio.abc import TaskGroup
from msgspec.structs import replace

from trio_sched.client import successor as successors
from trio_sched.client.async_future import AsyncFuture
from trio_sched.client.ends import Origin, cannot_be_sent
from trio_sched.client.failures import UnseenFailures
from trio_sched.client.functions import Functions
from trio_sched.client.lookout import Companion, Lookout, ends_of
from trio_sched.client.session import Session
from trio_sched.client.successor import Successor
from trio_sched.errors import SchedulerClosed, TrioSchedError, WireError
from trio_sched.transport.connection import Connection
from trio_sched.transport.zmq_socket import ZmqSocket
from trio_sched.wire import native
from trio_sched.wire.native import Frame

log = logging.getLogger("trio_sched.client")
FLUSH_TIMEOUT_S = 5.0
"""How long leaving may take to hand over what was submitted."""


class AsyncLine:
    """A connection to a scheduler within one event loop."""

    def __init__(
        self,
        connection: Connection,
        hello: native.Hello,
        *,
        reconnect_s: float,
        companion: Companion | None,
        successor: Successor | None = None,
    ) -> None:
        self.functions = Functions()
        self.session: Session[AsyncFuture[Any]] = Session(hello, self.functions, companion.engines if companion else 0)
        self.origin = Origin(0, self.cancel)
        self.failures = UnseenFailures()
        self.lookout = Lookout(connection, hello.python, reconnect_s=reconnect_s, companion=companion)
        self.connection = connection
        self._socket = ZmqSocket.dealer(connection)
        self._wake = anyio.Event()
        self._turned = anyio.Event()
        """Set and replaced after each message and each turn of the sender: for those who wait for a condition."""
        self._answers: dict[int, tuple[Any, str]] = {}
        self._over: TrioSchedError | None = None
        self._hello = hello
        self._reconnect_s = reconnect_s
        self._successor = successor
        self._away: SchedulerClosed | None = None
        """Why nothing can be submitted, while the successor of a scheduler that is gone is looked for."""

    def __reduce__(self) -> NoReturn:
        cannot_be_sent()

    # ---- from the user's tasks --------------------------------------------------------------------------------------

    async def start(self, tasks: TaskGroup, timeout_s: float) -> None:
        """Connect, and wait for the engines that are being started; the two tasks run in `tasks`.

        :raises NoSchedulerError: nobody answered in time, or the answer was no, or own engines did not join in time.
        """
        tasks.start_soon(self._receive, name="trio_sched client: receive")
        tasks.start_soon(self._send, name="trio_sched client: send")
        with anyio.move_on_after(timeout_s):
            while not self.session.ready and self._over is None:
                await self._turned.wait()
        if self._over is not None:
            raise self._over
        if not self.session.ready:
            unready = await anyio.to_thread.run_sync(self.lookout.unready, self.session, timeout_s)
            if unready is not None:
                raise unready

    def wake(self) -> None:
        self._wake.set()

    async def wait_for_credit(self) -> None:
        """Wait until everything that was submitted is on its way to the scheduler.

        :raises TrioSchedError: the line is over.
        """
        await anyio.lowlevel.checkpoint()
        while self.session.unsent:
            if self._over is not None:
                raise self._over
            await self._turned.wait()

    def cancel(self, counter: int) -> None:
        """Ask for a task to be cancelled. `Origin.canceller` of our futures."""
        self.session.cancel((counter,))
        self._wake.set()

    async def ask(self, what: str, task: int) -> Any:
        """A view of the scheduler's.

        :raises TrioSchedError: it cannot say, or is gone.
        """
        self.lookout.check_talking()
        session = self.session
        request = session.ask(what, task)
        self._wake.set()
        while request not in self._answers:
            if (why := self._over or self._away) is not None:
                raise why
            if self.session is not session:
                raise SchedulerClosed("the scheduler that was asked is gone")
            await self._turned.wait()
        data, error = self._answers.pop(request)
        if error:
            raise TrioSchedError(error)
        return data

    async def all_ended(self) -> None:
        """Wait until every task has ended or was cancelled."""
        while self.session.waiting:
            await self._turned.wait()
        await anyio.lowlevel.checkpoint()  # those who wait for the last ones see them first

    async def leave(self, *, cancel: bool) -> None:
        """Say good-bye, having handed over what was submitted; with `cancel` the tasks end with us."""
        self.lookout.over(RuntimeError("the client was closed"))
        if cancel:
            self.session.forget_unsent()
        with anyio.move_on_after(FLUSH_TIMEOUT_S):
            while self._over is None and self.session.welcomed and not (cancel or self.session.handed_over):
                await self._turned.wait()
        if self._over is None and self.session.welcomed:
            self._send_now(anyio.current_time())
            self._socket.send_many([[native.encode(native.Bye(cancel=cancel))]])  # nothing may come behind it

    def close(self) -> None:
        """Close the socket; end what is left."""
        self._fail(SchedulerClosed("the client was closed before the task ended"))
        self._socket.close()

    # ---- the two tasks ----------------------------------------------------------------------------------------------

    async def _receive(self) -> None:
        while self._over is None:
            socket = self._socket
            try:
                messages = await socket.receive()
            except anyio.ClosedResourceError:
                await anyio.lowlevel.checkpoint()  # opened anew meanwhile, or over
                continue
            for parts in messages:
                if socket is self._socket:  # else the rest is of a connection that was given up
                    self._take(parts)
            self._turn()

    async def _send(self) -> None:
        while self._over is None:
            if self._away is not None and self._successor is not None:
                await self._follow(self._successor, self._away)
                continue
            now = anyio.current_time()
            self._send_now(now)
            with anyio.move_on_after(self.lookout.patience_s(self.session, now)):
                await self._wake.wait()
            self._wake = anyio.Event()
            verdict = self.lookout.look(self.session, anyio.current_time())
            if isinstance(verdict, TrioSchedError):
                self._end(verdict)
            elif verdict and self._successor is not None and self._successor.replaced(self.connection):
                self._end(SchedulerClosed(f"the scheduler {self.connection.name!r} was replaced by another one"))
            elif verdict:
                self._reopen()
            self._turn()

    def _send_now(self, now: float) -> None:
        out = self.session.outgoing(now)
        if out:
            self._socket.send_many([[native.encode(message), *frames] for message, frames in out])

    def _take(self, parts: Sequence[Frame]) -> None:
        if self._away is not None:
            return  # of a scheduler that is gone
        try:
            news = self.session.receive(parts, anyio.current_time())
        except WireError as error:
            if (why := self.lookout.misunderstood(error)) is not None:
                self._end(why)
            return
        why = self.lookout.note(self.session, news, begun=self.session.number != 0)
        session, origin = self.session, self.origin
        if news.welcomed and (origin.session, origin.scheduler) != (session.number, session.scheduler):
            self.origin = Origin(session.number, self.cancel, scheduler=session.scheduler)
        for future, end in ends_of(news):
            future.finish(end)
        for request, data, complaint in news.answers:
            self._answers[request] = (data, complaint)
        if news.rejoin:
            self._reopen()
        if self.session.busy:  # credit came back, or a greeting is due
            self._wake.set()
        if why is not None:
            self._end(why)

    def _turn(self) -> None:
        self._turned.set()
        self._turned = anyio.Event()

    def _reopen(self) -> None:
        old, self._socket = self._socket, ZmqSocket.dealer(self.connection)
        old.close()
        self.session.opened(anyio.current_time())
        self._wake.set()

    # ---- the end of a scheduler -------------------------------------------------------------------------------------

    def _end(self, why: TrioSchedError) -> None:
        """The scheduler is gone: end what it had, and if there may be a successor, look for that."""
        if self._successor is None or not self.origin.session:
            self._fail(why)
            return
        log.warning("%s; waiting for another one", why)
        if self.lookout.refused:
            self._successor.was_refused(self.connection, anyio.current_time())
        self._away = self.lookout.trouble = successors.away(why)
        lost = successors.lost(why)  # one for all, so that leaving the client's block raises it once
        for future in self.session.start_anew():
            future.finish(lost)
        self._wake.set()
        self._turn()

    async def _follow(self, successor: Successor, away: SchedulerClosed) -> None:
        """Wait for a moment, and connect to the successor if it is there then."""
        with anyio.move_on_after(successors.LOOK_UP_S):
            await self._turned.wait()
        if (found := successor.find(anyio.current_time())) is not None:
            old, self._socket = self._socket, ZmqSocket.dealer(found)
            old.close()
            self.connection, self._away = found, None
            self.session = Session(replace(self._hello, token=found.token), self.functions)
            self.lookout = Lookout(found, self._hello.python, reconnect_s=self._reconnect_s, companion=None, away=away)
            self._answers.clear()

    def _fail(self, why: TrioSchedError) -> None:
        """It is over: end everything that waits."""
        if self._over is None:
            self._over = why
            self.lookout.over(why)
        for future in self.session.start_anew():
            future.finish(why)
        self._wake.set()
        self._turn()
