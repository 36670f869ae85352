"""The blocking client's connection: one socket and one thread with a plain loop.

The thread is woken only while it sleeps. The first call of a burst of submissions is sent at once. While more than one
call is submitted between two messages, the thread sleeps half a millisecond before the next message, so that one
message has hundreds of calls, and the submitting thread is not interrupted. Futures are resolved in batches; the values
stay pickled until `result()` is called.

One lock guards the session. It is held for as long as it takes to queue a call, or to handle one message.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from concurrent import futures
from typing import TYPE_CHECKING, Any

from trio_sched.client import successor as successors
from trio_sched.client.base_connection import BaseConnection
from trio_sched.client.future import Future, resolve
from trio_sched.client.results import describe_error
from trio_sched.client.scheduler_watch import outcomes_of
from trio_sched.client.settings import ClientSettings
from trio_sched.errors import NoSchedulerError, SchedulerClosed, TrioSchedError
from trio_sched.transport.connection_info import ConnectionInfo
from trio_sched.transport.zmq_blocking import BlockingDealer
from trio_sched.wire import native

if TYPE_CHECKING:  # at run time only clients with a local cluster need `subprocess` and `tempfile`
    from trio_sched.client.local_cluster import LocalCluster

#: Seconds that the thread sleeps between two messages of a burst.
BURST_PAUSE_S = 0.0005
#: Seconds after which a waiting `submit` logs the reason, once for each client.
LOG_WAITING_AFTER_S = 3.0
#: The longest time, in seconds, that the interpreter's exit waits for submitted calls to be sent.
EXIT_FLUSH_S = 5.0
log = logging.getLogger("trio_sched.client")
_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


class Connection(BaseConnection[Future[Any]]):
    """A connection to a scheduler, with the thread that serves it. It remains after its Client was garbage collected,
    until the tasks have ended."""

    def __init__(self, settings: ClientSettings, info: ConnectionInfo, cluster: LocalCluster | None) -> None:
        super().__init__(settings, info, cluster)
        self.lock = threading.Lock()
        #: The process that made the connection; a fork cannot use it.
        self.pid = os.getpid()
        self._credit_returned = threading.Condition(self.lock)
        #: The number of threads in `wait_for_credit`.
        self._waiting_for_credit = 0
        self._wait_logged = False
        self._dealer = BlockingDealer(info)
        self._replies: dict[int, futures.Future[Any]] = {}
        #: Done when the session is ready for the first time.
        self._started: futures.Future[None] = futures.Future()
        self._leave_when_done = False
        self._leave_now = False
        self._cancel_on_leave = False
        self._in_burst = False
        self._thread = threading.Thread(target=self._run, name="trio_sched client", daemon=True)

    # ---- called by the user's threads -------------------------------------------------------------------------------

    def start(self, timeout_s: float) -> None:
        """Connect, and wait for the engines that are starting.

        :raises NoSchedulerError: the scheduler did not answer in time, or refused the client, or the engines of the
            local cluster did not join in time.
        """
        _connections.add(self)
        self._thread.start()
        try:
            if not futures.wait([self._started], timeout_s).done:
                with self.lock:
                    error = self.watch.startup_error(self.session, timeout_s)
                if error is not None:
                    raise error
            else:
                self._started.result()
        except BaseException:
            self.leave(now=True)
            self.join()
            raise

    def wake(self) -> None:
        """Wake the thread, which sends the queued calls and messages."""
        self._dealer.wake()

    def wait_for_credit(self) -> None:
        """Wait until the scheduler takes the calls that are queued for lack of credit in bytes.

        The caller holds the lock, which is released while waiting. Returns at once in the client's own thread, which
        runs callbacks: that thread sends the calls.

        :raises Exception: the submit error, if there is one.
        """
        if threading.current_thread() is self._thread:
            return
        self._waiting_for_credit += 1
        try:
            log_at = time.monotonic() + LOG_WAITING_AFTER_S
            while self.session.is_blocked:
                self.watch.check_can_submit()
                self._credit_returned.wait(None if self._wait_logged else max(0.0, log_at - time.monotonic()))
                if not self._wait_logged and time.monotonic() >= log_at:
                    self._wait_logged = True
                    log.warning(
                        "submit waits, and later calls may wait too: the scheduler holds as many bytes of unfinished "
                        "calls as its setting %s allows; submit continues as tasks end, which needs engines",
                        self.session.limiting_setting or "client_bytes",
                    )
            self.watch.check_can_submit()
        finally:
            self._waiting_for_credit -= 1

    def cancel(self, counter: int) -> None:
        with self.lock:
            self.session.cancel((counter,))
        self.wake()

    def query(self, what: str, task: int, timeout_s: float) -> Any:
        """Send a query, and wait for the reply's data.

        :raises TrioSchedError: the scheduler cannot answer the query, or did not reply within `timeout_s` seconds.
        :raises RuntimeError: this is the client's own thread, or the client is closed.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("a callback runs in the client's thread, which cannot wait for an answer there")
        reply: futures.Future[Any] = futures.Future()
        with self.lock:
            self.watch.check_can_query()
            self._replies[self.session.query(what, task)] = reply
        self.wake()
        try:
            return reply.result(timeout_s)
        except TimeoutError:
            raise NoSchedulerError(f"the scheduler did not answer within {timeout_s:g} s") from None

    def leave(self, *, now: bool, cancel: bool = False) -> None:
        """Refuse further submissions, and end the connection: `now`, or when every task has ended.

        With `cancel`, the tasks are cancelled, and the connection ends at once.
        """
        cancelled: list[Future[Any]] = []
        with self.lock:
            self.watch.stop_submissions(RuntimeError("cannot schedule new futures after shutdown"))
            if cancel:
                cancelled = list(self.session.tasks.values())
                self.session.drop_unsent()
            self._leave_when_done = True
            self._leave_now = self._leave_now or now or cancel
            self._cancel_on_leave = self._cancel_on_leave or cancel
            self._credit_returned.notify_all()
        for future in cancelled:
            future.cancel_locally()
        self.wake()

    def abandon(self) -> None:
        """End the connection when every task has ended, because the Client was garbage collected.

        The garbage collector may run at any point of any thread, so the lock is not taken. Takes effect within a
        heartbeat.
        """
        self._leave_when_done = True

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the thread has ended. Returns at once in that thread (in a callback)."""
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join(timeout_s)

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        error: TrioSchedError | None = None
        try:
            while (error := self._serve()) is not None and self._reconnect(error):
                pass
        except BaseException as bug:  # a defect of this package must not leave a caller waiting
            log.exception("the client's thread failed")
            error = SchedulerClosed(f"the client failed: {describe_error(bug)}")
        finally:
            try:
                self._fail(error or SchedulerClosed("the client was shut down before the task ended"))
            finally:
                self._dealer.close()
                if self._cluster is not None:
                    self._cluster.close()

    def _serve(self) -> TrioSchedError | None:
        """Serve the connection until it ends. Returns the error that ended it; None: the client left."""
        while True:
            now = time.monotonic()
            if self._send(now):
                return None
            if self._in_burst:
                time.sleep(BURST_PAUSE_S)
            else:
                with self.lock:
                    timeout_s = self.watch.idle_timeout_s(self.session, now)
                self._dealer.wait(timeout_s)
            for parts in self._dealer.drain():
                if (error := self._receive(parts)) is not None:
                    return error
            verdict = self._check_scheduler(time.monotonic())
            if isinstance(verdict, TrioSchedError):
                return verdict
            if verdict:
                self._reopen()

    def _send(self, now: float) -> bool:
        """Send the due messages. Returns whether the client left with them."""
        with self.lock:
            session = self.session
            sent_before = session.sent
            out = session.outgoing(now)
            if self._waiting_for_credit and not session.is_blocked:
                self._credit_returned.notify_all()
            self._in_burst = session.sent - sent_before > 1
            is_done = self._leave_now or (self._leave_when_done and session.open_count == 0)
            leaving = is_done and (self._cancel_on_leave or session.all_accepted or not session.is_welcomed)
        send, encode = self._dealer.send, native.encode
        for message, frames in out:
            send([encode(message), *frames])
        if leaving and session.is_welcomed:
            send([encode(native.Bye(cancel=self._cancel_on_leave))])
        return leaving

    def _receive(self, parts: Any) -> TrioSchedError | None:
        """Handle one message. Returns the error that ends the connection, if it does."""
        with self.lock:
            update, error = self._apply(parts, time.monotonic(), threading.get_ident())
            if self._waiting_for_credit and self.watch.submit_error is not None:
                self._credit_returned.notify_all()
            is_ready = self.session.is_ready
        if is_ready and not self._started.done():
            self._started.set_result(None)
        resolve(outcomes_of(update) if update.refused or update.lost else update.ended)
        for request, data, error_text in update.replies:
            reply = self._replies.pop(request, None)
            if reply is not None and not reply.done():
                if error_text:
                    reply.set_exception(TrioSchedError(error_text))
                else:
                    reply.set_result(data)
        if update.rejoin:
            self._reopen()
        return error

    def _reopen(self) -> None:
        """Open another socket to the same scheduler, and resume the session."""
        old = self._dealer
        self._dealer = BlockingDealer(self.info)
        old.close()
        with self.lock:
            self.session.connection_opened(time.monotonic())

    # ---- the end of a scheduler -------------------------------------------------------------------------------------

    def _reconnect(self, error: TrioSchedError) -> bool:
        """End the tasks of a scheduler that has ended, and wait for its successor. Returns whether it was found."""
        successor = self._successor
        if successor is None or not self._started.done():
            return False
        submit_error = successors.disconnected_error(error)
        self._end_unfinished(successors.lost_task_error(error), submit_error)
        log.warning("%s; waiting for another one", error)
        if self.watch.has_refused:
            successor.note_refusal(self.info, time.monotonic())
        while not self._leave_when_done:
            self._dealer.drain()  # late messages of the scheduler that has ended
            self._dealer.wait(successors.LOOKUP_PERIOD_S)
            if (found := successor.find(time.monotonic())) is not None:
                return self._connect_to(found, submit_error)
        return False

    def _connect_to(self, info: ConnectionInfo, submit_error: SchedulerClosed) -> bool:
        """Connect to another scheduler. Returns False if the client leaves meanwhile."""
        dealer = BlockingDealer(info)
        with self.lock:
            if self._leave_when_done:
                dealer.close()
                return False
            old, self._dealer = self._dealer, dealer
            self._begin_session(info, submit_error)
        old.close()
        return True

    def _fail(self, error: TrioSchedError) -> None:
        """End every task, query and `start` that waits."""
        self._end_unfinished(error, error)
        if not self._started.done():
            self._started.set_exception(error)

    def _end_unfinished(self, error: TrioSchedError, submit_error: TrioSchedError) -> None:
        """End the unfinished tasks and queries with `error`; from now on `submit` raises `submit_error`."""
        with self.lock:
            replace_earlier = not self._leave_when_done and self._successor is not None
            self.watch.stop_submissions(submit_error, replace=replace_earlier)
            unfinished = self.session.reset()
            self._credit_returned.notify_all()
        resolve((future, error) for future in unfinished)
        for reply in list(self._replies.values()):
            if not reply.done():
                reply.set_exception(error)
        self._replies.clear()

    # ---- forks ------------------------------------------------------------------------------------------------------

    def on_fork(self) -> None:
        """Disable the connection in a forked child, where its thread does not run and the socket is the parent's."""
        self.lock = threading.Lock()
        self._credit_returned = threading.Condition(self.lock)
        message = f"this Client was made in process {self.pid}, of which this one ({os.getpid()}) is a fork"
        self.watch.stop_submissions(RuntimeError(f"{message}; make one here"), replace=True)
        if self._cluster is not None:
            self._cluster.release_in_child()


def _at_exit() -> None:
    """Send the submitted calls before the interpreter exits, without waiting for the results."""
    connections = [connection for connection in _connections if connection.pid == os.getpid()]
    for connection in connections:
        connection.leave(now=True)
    deadline = time.monotonic() + EXIT_FLUSH_S
    for connection in connections:
        connection.join(max(0.0, deadline - time.monotonic()))


def _in_forked_child() -> None:
    for connection in list(_connections):
        connection.on_fork()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)
