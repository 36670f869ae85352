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
import warnings
import weakref
from concurrent import futures
from typing import Any, Protocol

from trio_sched.client.ends import Origin, described
from trio_sched.client.functions import Functions
from trio_sched.client.future import Future, settle
from trio_sched.client.greeting import version_problem
from trio_sched.client.session import News, Session
from trio_sched.errors import (
    NoSchedulerError,
    SchedulerClosed,
    SubmissionRefused,
    TrioSchedError,
    VersionMismatch,
    WireError,
)
from trio_sched.transport.connection import Connection, is_stale
from trio_sched.transport.zmq_blocking import BlockingDealer
from trio_sched.wire import native

GATHER_S = 0.0005
CLOSING_LOOK_S = 0.2
"""How often to look whether a scheduler that said it closes has gone."""
EXIT_FLUSH_S = 5.0
"""How long the interpreter's exit may wait for calls to be handed over."""
log = logging.getLogger("trio_sched.client")
_lines: weakref.WeakSet[Line] = weakref.WeakSet()


class Companion(Protocol):
    """A scheduler of our own, which goes when we go."""

    def is_gone(self) -> bool: ...
    def close(self) -> None: ...
    def let_go(self) -> None: ...


class Line:
    """A connection to a scheduler, with the thread that serves it. Outlives the Client until its work is done."""

    def __init__(
        self, connection: Connection, hello: native.Hello, *, reconnect_s: float, companion: Companion | None
    ) -> None:
        self.functions = Functions()
        self.session: Session[Future[Any]] = Session(hello, self.functions)
        self.lock = threading.Lock()
        self.origin = Origin(0, self.cancel)
        self.trouble: Exception | None = None
        """Why nothing can be submitted; raised by submit."""
        self.warning = ""
        """Something to warn the user of, in a thread of the user's."""
        self._warned: set[str] = set()
        self.pid = os.getpid()
        self.connection = connection
        self._python = hello.python
        self._reconnect_s = reconnect_s
        self._companion = companion
        self._dealer = BlockingDealer(connection)
        self._answers: dict[int, futures.Future[Any]] = {}
        self._begun: futures.Future[None] = futures.Future()
        """Done at the first Welcome."""
        self._leave_when_done = False
        self._leave_now = False
        self._leave_cancelling = False
        self._burst = False
        self._unheard_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="trio_sched client", daemon=True)

    # ---- from the user's threads ------------------------------------------------------------------------------------

    def start(self, timeout_s: float) -> None:
        """Connect.

        :raises NoSchedulerError: nobody answered in time, or the answer was no.
        """
        _lines.add(self)
        self._thread.start()
        try:
            self._begun.result(timeout_s)
        except BaseException as error:
            self.leave(now=True)
            self.join()
            if isinstance(error, TimeoutError):
                raise NoSchedulerError(
                    f"the scheduler {self.connection.name!r} at {self.connection.address} did not answer within "
                    f"{timeout_s} s"
                ) from None
            raise

    def warn(self) -> None:
        """Tell the user what is wrong, but not so much that nothing works; once for each cause."""
        warning, self.warning = self.warning, ""
        if warning not in self._warned:
            self._warned.add(warning)
            warnings.warn(warning, RuntimeWarning, stacklevel=4)  # where submit was called

    def wake(self) -> None:
        self._dealer.wake()

    def cancel(self, counter: int) -> None:
        """Ask for a task to be cancelled. `Origin.canceller` of our futures."""
        with self.lock:
            self.session.cancel((counter,))
        self.wake()

    def ask(self, what: str, task: int, timeout_s: float) -> Any:
        """A view of the scheduler's.

        :raises TrioSchedError: it cannot say, or does not answer.
        """
        answer: futures.Future[Any] = futures.Future()
        with self.lock:
            self.raise_trouble(closing=False)
            self._answers[self.session.ask(what, task)] = answer
        self.wake()
        try:
            return answer.result(timeout_s)
        except TimeoutError:
            raise NoSchedulerError(f"the scheduler did not answer within {timeout_s} s") from None

    def say(self, message: native.FromClient) -> None:
        """Send a message."""
        with self.lock:
            self.session.say(message)
        self.wake()

    def raise_trouble(self, *, closing: bool = True) -> None:
        """:raises: what keeps us from talking; with `closing`, a scheduler that takes no more is trouble, too."""
        if self.trouble is not None and (closing or not isinstance(self.trouble, VersionMismatch)):
            raise self.trouble.with_traceback(None)

    def leave(self, *, now: bool, cancel: bool = False) -> None:
        """Take nothing more, and go: `now`, or when every task has ended. With `cancel` the tasks end with us."""
        cancelled: list[Future[Any]] = []
        with self.lock:
            if not isinstance(self.trouble, TrioSchedError) or isinstance(self.trouble, VersionMismatch):
                self.trouble = RuntimeError("cannot schedule new futures after shutdown")
            if cancel:
                cancelled = list(self.session.tasks.values())
                self.session.forget_unsent()
            self._leave_when_done = True
            self._leave_now = self._leave_now or now or cancel
            self._leave_cancelling = self._leave_cancelling or cancel
        for future in cancelled:
            future.cancel_here()
        self.wake()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the thread has ended, unless this is the thread (a callback)."""
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join(timeout_s)

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        why: TrioSchedError = SchedulerClosed("the client was shut down before the task ended")
        try:
            why = self._loop() or why
        except Exception as error:  # a bug of ours must not leave anybody waiting
            log.exception("the client's thread failed")
            why = SchedulerClosed(f"the client failed: {described(error)}")
        finally:
            try:
                self._fail(why)
            finally:
                self._dealer.close()
                if self._companion is not None:
                    self._companion.close()

    def _loop(self) -> TrioSchedError | None:
        """Serve the line; returns why it ended if that was not asked for."""
        while True:
            now = time.monotonic()
            leaving = self._send(now)
            if leaving:
                return None
            if self._burst:
                time.sleep(GATHER_S)
            else:
                self._dealer.wait(self._patience_s(now))
            for parts in self._dealer.drain():
                if (failure := self._take(parts)) is not None:
                    return failure
            if (failure := self._look_after(time.monotonic())) is not None:
                return failure

    def _send(self, now: float) -> bool:
        """Send what is due. True: that was the last of it."""
        with self.lock:
            session = self.session
            sent_before = session.sent
            out = session.outgoing(now)
            self._burst = session.sent - sent_before > 1
            done = self._leave_now or (self._leave_when_done and session.waiting == 0)
            leaving = done and (self._leave_cancelling or not session.unsent or not session.welcomed)
        send, encode = self._dealer.send, native.encode
        for message, frames in out:
            send([encode(message), *frames])
        if leaving and session.welcomed:
            send([encode(native.Bye(cancel=self._leave_cancelling))])
        return leaving

    def _patience_s(self, now: float) -> float:
        """How long to sleep at most."""
        with self.lock:
            if self.session.busy:
                return 0.0
            if self.session.closing is not None:
                return CLOSING_LOOK_S
            ping_at = self.session.next_ping_at()
            return (
                self.session.heartbeat_s if ping_at is None else max(0.0, min(ping_at - now, self.session.heartbeat_s))
            )

    def _take(self, parts: Any) -> TrioSchedError | None:
        """Handle a message; returns why the line is over, if it is."""
        with self.lock:
            try:
                news: News[Future[Any]] = self.session.receive(parts, time.monotonic())
            except WireError as error:
                log.error("a message from the scheduler was not understood: %s", error)
                return None
            if news.welcomed:
                self._welcome()
            self._note_versions()
        if news.ended:
            settle(news.ended)
        if news.refused:
            settle((future, SubmissionRefused(reason)) for future, reason in news.refused)
        if news.lost:
            why = SchedulerClosed("the scheduler was replaced by one that does not know this task")
            settle((future, why) for future in news.lost)
        for request, data, complaint in news.answers:
            self._answer(request, data, complaint)
        if news.complaint:
            log.error("the scheduler did not take a message: %s", news.complaint)
        if news.closing is not None:
            self.trouble = self.trouble or SchedulerClosed(f"the scheduler shuts down: {news.closing}")
        if news.rejoin:
            self._reopen()
        if news.rejected:
            kind = SchedulerClosed if self._begun.done() else NoSchedulerError
            return kind(f"the scheduler refuses this client: {news.rejected}")
        return None

    def _welcome(self) -> None:
        self._unheard_since = None
        if self.origin.session != self.session.number:
            self.origin = Origin(self.session.number, self.cancel)
        if not self._begun.done():
            self._begun.set_result(None)

    def _note_versions(self) -> None:
        problem, warning = version_problem(self._python, self.session.pythons)
        if problem and self.trouble is None:
            self.trouble = VersionMismatch(problem)
        elif not problem and isinstance(self.trouble, VersionMismatch):
            self.trouble = None
        self.warning = warning

    def _answer(self, request: int, data: Any, error: str) -> None:
        answer = self._answers.pop(request, None)
        if answer is not None and not answer.done():
            if error:
                answer.set_exception(TrioSchedError(error))
            else:
                answer.set_result(data)

    # ---- when the scheduler is gone ---------------------------------------------------------------------------------

    def _look_after(self, now: float) -> TrioSchedError | None:
        """Open the line anew when it is broken; returns why it is over when there is nobody left at its other end."""
        session = self.session
        quiet = session.quiet_s(now) > 1.5 * session.heartbeat_s
        if (quiet or session.closing is not None) and self._is_gone():
            reason = f": {session.closing}" if session.closing else f" (process {self.connection.pid})"
            return SchedulerClosed(f"the scheduler {self.connection.name!r} is gone{reason}")
        if session.silent(now):
            if session.closing is not None:
                return SchedulerClosed(f"the scheduler {self.connection.name!r} shut down: {session.closing}")
            self._unheard_since = self._unheard_since or now
            if now - self._unheard_since > self._reconnect_s:
                return SchedulerClosed(
                    f"the scheduler {self.connection.name!r} at {self.connection.address} was not heard of for "
                    f"{self._reconnect_s:.0f} s"
                )
            self._reopen()
        return None

    def _is_gone(self) -> bool:
        return is_stale(self.connection) or (self._companion is not None and self._companion.is_gone())

    def _reopen(self) -> None:
        old = self._dealer
        self._dealer = BlockingDealer(self.connection)
        old.close()
        with self.lock:
            self.session.opened(time.monotonic())

    def _fail(self, why: TrioSchedError) -> None:
        """End everything that still waits for something."""
        with self.lock:
            if self.trouble is None or isinstance(self.trouble, VersionMismatch):
                self.trouble = why
            unfinished = list(self.session.tasks.values())
            self.session.tasks.clear()
        settle((future, why) for future in unfinished)
        for answer in list(self._answers.values()):
            if not answer.done():
                answer.set_exception(why)
        if not self._begun.done():
            self._begun.set_exception(why)

    # ---- forks ------------------------------------------------------------------------------------------------------

    def forked(self) -> None:
        """In a forked child: the thread is not here, and the socket is the parent's."""
        self.lock = threading.Lock()
        self.trouble = RuntimeError(
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
