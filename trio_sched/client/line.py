"""The blocking client's thread: one socket, one plain loop, no event loop.

The thread is woken only when it sleeps, and it lets a burst of submissions gather: the first one goes out at once;
while more come in than one at a time, it naps half a millisecond between two messages, so that one message carries
hundreds of tasks and the submitting thread keeps the interpreter to itself. Results are handed to futures in batches,
undecoded.

One lock guards the session; it is held for as long as it takes to queue a call, or to handle one message.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from concurrent import futures
from typing import Any, NoReturn

from msgspec.structs import replace

from trio_sched.client import successor as successors
from trio_sched.client.ends import Origin, cannot_be_sent, described
from trio_sched.client.functions import Functions
from trio_sched.client.future import Future, settle
from trio_sched.client.lookout import Companion, Lookout, ends_of
from trio_sched.client.session import Session
from trio_sched.client.successor import Successor
from trio_sched.errors import NoSchedulerError, SchedulerClosed, TrioSchedError, WireError
from trio_sched.transport.connection import Connection
from trio_sched.transport.zmq_blocking import BlockingDealer
from trio_sched.wire import native

GATHER_S = 0.0005
SAY_WAITING_AFTER_S = 3.0
"""A submit that waits for so long says why in the log, the first time."""
EXIT_FLUSH_S = 5.0
"""How long the interpreter's exit may wait for calls to be handed over."""
log = logging.getLogger("trio_sched.client")
_lines: weakref.WeakSet[Line] = weakref.WeakSet()


class Line:
    """A connection to a scheduler, with the thread that serves it. Outlives the Client until its work is done."""

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
        self.session: Session[Future[Any]] = Session(hello, self.functions, companion.engines if companion else 0)
        self.lock = threading.Lock()
        self._credit_returned = threading.Condition(self.lock)
        self._waiting_for_credit = 0
        """Threads that are."""
        self._waits_said = False
        self.origin = Origin(0, self.cancel)
        self.lookout = Lookout(connection, hello.python, reconnect_s=reconnect_s, companion=companion)
        self.connection = connection
        self.pid = os.getpid()
        self._hello = hello
        self._reconnect_s = reconnect_s
        self._companion = companion
        self._successor = successor
        self._dealer = BlockingDealer(connection)
        self._answers: dict[int, futures.Future[Any]] = {}
        self._begun: futures.Future[None] = futures.Future()
        """Done when the session is ready for the first time."""
        self._leave_when_done = False
        self._leave_now = False
        self._leave_cancelling = False
        self._burst = False
        self._thread = threading.Thread(target=self._run, name="trio_sched client", daemon=True)

    def __reduce__(self) -> NoReturn:
        cannot_be_sent()

    # ---- from the user's threads ------------------------------------------------------------------------------------

    def start(self, timeout_s: float) -> None:
        """Connect, and wait for the engines that are being started.

        :raises NoSchedulerError: nobody answered in time, or the answer was no, or own engines did not join in time.
        """
        _lines.add(self)
        self._thread.start()
        try:
            if not futures.wait([self._begun], timeout_s).done:
                with self.lock:
                    unready = self.lookout.unready(self.session, timeout_s)
                if unready is not None:
                    raise unready
            else:
                self._begun.result()
        except BaseException:
            self.leave(now=True)
            self.join()
            raise

    def wake(self) -> None:
        self._dealer.wake()

    def wait_for_credit(self) -> None:
        """Wait until the scheduler takes the calls that wait here for bytes to be released. To be called with the lock
        held, which is released meanwhile. In the client's own thread, where callbacks run, return at once: that is the
        thread which sends them.

        :raises: what keeps us from submitting.
        """
        if threading.current_thread() is self._thread:
            return
        self._waiting_for_credit += 1
        try:
            until = time.monotonic() + SAY_WAITING_AFTER_S
            while self.session.blocked:
                self.lookout.check()
                self._credit_returned.wait(None if self._waits_said else max(0.0, until - time.monotonic()))
                if not self._waits_said and time.monotonic() >= until:
                    self._waits_said = True
                    log.warning(
                        "submit waits, and will again: the scheduler holds as many bytes of calls that have not ended "
                        "as its setting %s allows; it goes on as tasks end, for which there must be engines",
                        self.session.limit or "client_bytes",
                    )
            self.lookout.check()
        finally:
            self._waiting_for_credit -= 1

    def cancel(self, counter: int) -> None:
        """Ask for a task to be cancelled. `Origin.canceller` of our futures."""
        with self.lock:
            self.session.cancel((counter,))
        self.wake()

    def ask(self, what: str, task: int, timeout_s: float) -> Any:
        """A view of the scheduler's.

        :raises TrioSchedError: it cannot say, or does not answer.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("a callback runs in the client's thread, which cannot wait for an answer there")
        answer: futures.Future[Any] = futures.Future()
        with self.lock:
            self.lookout.check_talking()
            self._answers[self.session.ask(what, task)] = answer
        self.wake()
        try:
            return answer.result(timeout_s)
        except TimeoutError:
            raise NoSchedulerError(f"the scheduler did not answer within {timeout_s:g} s") from None

    def say(self, message: native.FromClient) -> None:
        """Send a message."""
        with self.lock:
            self.session.say(message)
        self.wake()

    def leave(self, *, now: bool, cancel: bool = False) -> None:
        """Take nothing more, and go: `now`, or when every task has ended. With `cancel` the tasks end with us."""
        cancelled: list[Future[Any]] = []
        with self.lock:
            self.lookout.over(RuntimeError("cannot schedule new futures after shutdown"))
            if cancel:
                cancelled = list(self.session.tasks.values())
                self.session.forget_unsent()
            self._leave_when_done = True
            self._leave_now = self._leave_now or now or cancel
            self._leave_cancelling = self._leave_cancelling or cancel
            self._credit_returned.notify_all()
        for future in cancelled:
            future.cancel_here()
        self.wake()

    def abandon(self) -> None:
        """Nobody can submit any more: go when every task has ended. Called by the garbage collector, which may run in
        the middle of anything, so no lock is taken; noticed within a heartbeat."""
        self._leave_when_done = True

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the thread has ended, unless this is the thread (a callback)."""
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join(timeout_s)

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        why: TrioSchedError | None = None
        try:
            while (why := self._loop()) is not None and self._follow(why):
                pass
        except BaseException as error:  # a bug of ours must not leave anybody waiting
            log.exception("the client's thread failed")
            why = SchedulerClosed(f"the client failed: {described(error)}")
        finally:
            try:
                self._fail(why or SchedulerClosed("the client was shut down before the task ended"))
            finally:
                self._dealer.close()
                if self._companion is not None:
                    self._companion.close()

    def _loop(self) -> TrioSchedError | None:
        """Serve the line; returns why it ended if that was not asked for."""
        while True:
            now = time.monotonic()
            if self._send(now):
                return None
            if self._burst:
                time.sleep(GATHER_S)
            else:
                with self.lock:
                    patience_s = self.lookout.patience_s(self.session, now)
                self._dealer.wait(patience_s)
            for parts in self._dealer.drain():
                if (why := self._take(parts)) is not None:
                    return why
            verdict = self.lookout.look(self.session, time.monotonic())
            if isinstance(verdict, TrioSchedError):
                return verdict
            if verdict:
                if self._successor is not None and self._successor.replaced(self.connection):
                    return SchedulerClosed(f"the scheduler {self.connection.name!r} was replaced by another one")
                self._reopen()

    def _send(self, now: float) -> bool:
        """Send what is due. True: that was the last of it."""
        with self.lock:
            session = self.session
            sent_before = session.sent
            out = session.outgoing(now)
            if self._waiting_for_credit and not session.blocked:
                self._credit_returned.notify_all()
            self._burst = session.sent - sent_before > 1
            done = self._leave_now or (self._leave_when_done and session.waiting == 0)
            leaving = done and (self._leave_cancelling or session.handed_over or not session.welcomed)
        send, encode = self._dealer.send, native.encode
        for message, frames in out:
            send([encode(message), *frames])
        if leaving and session.welcomed:
            send([encode(native.Bye(cancel=self._leave_cancelling))])
        return leaving

    def _take(self, parts: Any) -> TrioSchedError | None:
        """Handle a message; returns why the line is over, if it is."""
        with self.lock:
            try:
                news = self.session.receive(parts, time.monotonic())
            except WireError as error:
                return self.lookout.misunderstood(error)
            why = self.lookout.note(self.session, news, begun=self.session.number != 0)
            ready = self.session.ready
            if self._waiting_for_credit and self.lookout.trouble is not None:
                self._credit_returned.notify_all()
            session, origin = self.session, self.origin
            if news.welcomed and (origin.session, origin.scheduler) != (session.number, session.scheduler):
                self.origin = Origin(session.number, self.cancel, threading.get_ident(), session.scheduler)
        if ready and not self._begun.done():
            self._begun.set_result(None)
        settle(ends_of(news) if news.refused or news.lost else news.ended)
        for request, data, complaint in news.answers:
            self._answer(request, data, complaint)
        if news.rejoin:
            self._reopen()
        return why

    def _answer(self, request: int, data: Any, error: str) -> None:
        answer = self._answers.pop(request, None)
        if answer is not None and not answer.done():
            if error:
                answer.set_exception(TrioSchedError(error))
            else:
                answer.set_result(data)

    def _reopen(self) -> None:
        old = self._dealer
        self._dealer = BlockingDealer(self.connection)
        old.close()
        with self.lock:
            self.session.opened(time.monotonic())

    # ---- the end of a scheduler -------------------------------------------------------------------------------------

    def _follow(self, why: TrioSchedError) -> bool:
        """The scheduler is gone: end what it had, and wait for its successor. False: there is nothing to wait for."""
        successor = self._successor
        if successor is None or not self._begun.done():
            return False
        away = successors.away(why)
        self._end_unfinished(successors.lost(why), away)
        log.warning("%s; waiting for another one", why)
        if self.lookout.refused:
            successor.was_refused(self.connection, time.monotonic())
        while not self._leave_when_done:
            self._dealer.drain()  # it may still have had something to say
            self._dealer.wait(successors.LOOK_UP_S)
            if (found := successor.find(time.monotonic())) is not None:
                return self._move(found, away)
        return False

    def _move(self, connection: Connection, away: SchedulerClosed) -> bool:
        """Connect to another scheduler. False: the client is to end."""
        dealer = BlockingDealer(connection)
        session: Session[Future[Any]] = Session(replace(self._hello, token=connection.token), self.functions)
        with self.lock:
            if self._leave_when_done:
                dealer.close()
                return False
            old, self._dealer = self._dealer, dealer
            self.connection, self.session = connection, session
            self.lookout = Lookout(
                connection, self._hello.python, reconnect_s=self._reconnect_s, companion=None, away=away
            )
        old.close()
        return True

    def _fail(self, why: TrioSchedError) -> None:
        """End everything that still waits for something."""
        self._end_unfinished(why, why)
        if not self._begun.done():
            self._begun.set_exception(why)

    def _end_unfinished(self, why: TrioSchedError, trouble: TrioSchedError) -> None:
        """End the tasks and questions that the scheduler has, or was to have. `trouble`: why nothing can be submitted
        from now on."""
        with self.lock:
            if not self._leave_when_done and self._successor is not None:
                self.lookout.trouble = trouble  # whatever it was before
            self.lookout.over(trouble)
            unfinished = self.session.start_anew()
            self._credit_returned.notify_all()
        settle((future, why) for future in unfinished)
        for answer in list(self._answers.values()):
            if not answer.done():
                answer.set_exception(why)
        self._answers.clear()

    # ---- forks ------------------------------------------------------------------------------------------------------

    def forked(self) -> None:
        """In a forked child: the thread is not here, and the socket is the parent's."""
        self.lock = threading.Lock()
        self._credit_returned = threading.Condition(self.lock)
        self.lookout.trouble = RuntimeError(
            f"this Client was made in process {self.pid}, of which this one ({os.getpid()}) is a fork; make one here"
        )
        if self._companion is not None:
            self._companion.let_go()


def _at_exit() -> None:
    """The interpreter ends: hand over what was submitted, without waiting for the results."""
    lines = [line for line in _lines if line.pid == os.getpid()]
    for line in lines:
        line.leave(now=True)
    until = time.monotonic() + EXIT_FLUSH_S
    for line in lines:
        line.join(max(0.0, until - time.monotonic()))


def _in_forked_child() -> None:
    for line in list(_lines):
        line.forked()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)
