"""The engine's side of the protocol: hello, assigned calls, results until they are acknowledged, recall, reconnection.

No assigned call and no result is lost on the way: a result is kept until the scheduler has counted it (`acked`), and
is sent again after a reconnection. Two events cause a reconnection. A scheduler without a session for this connection
answers the next message with the error "unknown_peer": the engine sends its hello again. When nothing is received for
MISSED_HEARTBEATS periods after a ping, the engine opens a new socket. A Welcome that does not resume the session comes
from another scheduler instance, or after the engine was removed: all calls and results are dropped, and so is the
result of a task that still runs.

A `SchedulerConnection` belongs to one thread at a time (the holder of the loop's lock); `wake` and `post` may be called
from any thread.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any, Protocol

from trio_sched.engine.control_messages import NannyJoined, SchedulerMoved, StartWorker
from trio_sched.engine.results import FramedResult
from trio_sched.engine.runner import CallRunner
from trio_sched.engine.worker_status import WorkerStatus
from trio_sched.errors import WireError
from trio_sched.transport.connection_info import ConnectionInfo, host_name
from trio_sched.wire.heartbeat import FIRST_PERIOD_S, MISSED_HEARTBEATS, Heartbeat
from trio_sched.wire.hello import NO_SESSION, SessionKey, build_hello
from trio_sched.wire.native import (
    Acked,
    Assign,
    Bye,
    Call,
    Closing,
    Draining,
    Error,
    Finished,
    Frame,
    Message,
    Ping,
    Pong,
    Recall,
    Recalled,
    TaskResult,
    Welcome,
    decode_to_engine,
    encode,
)

#: A `Finished` message is closed, and another one begun, at this many results or bytes.
BATCH_RESULTS, BATCH_BYTES = 256, 1 << 20
#: Kinds of errors after which another hello would be refused as well.
FATAL_ERRORS = ("unauthenticated", "unknown_version")


class BlockingSocket(Protocol):
    """The part of `transport.zmq_blocking.BlockingDealer` that a connection uses."""

    def send(self, frames: Sequence[Frame]) -> None: ...
    def drain(self, limit: int = ...) -> list[list[Frame]]: ...
    def wait(self, timeout_s: float | None = None) -> bool: ...
    def wake(self) -> None: ...
    def close(self) -> None: ...


def log_to_stderr(text: str) -> None:
    """Write a line to the worker's own standard error, not to the captured one; without one, do nothing."""
    with contextlib.suppress(OSError):
        os.write(2, f"trio_sched engine {os.getpid()}: {text}\n".encode())


class SchedulerConnection:
    """The connection of a worker to its scheduler, with the queue of assigned calls and the unacknowledged results."""

    def __init__(
        self,
        start: StartWorker,
        runner: CallRunner,
        status: WorkerStatus,
        open_socket: Callable[[ConnectionInfo], BlockingSocket],
    ) -> None:
        self._start = start
        self._runner = runner
        self._status = status
        self._open_socket = open_socket
        self._connection_info = start.connection
        self._socket = open_socket(start.connection)
        #: Calls that were assigned and have not begun, with their frames.
        self.queue: deque[tuple[Call, Sequence[Frame]]] = deque()
        #: Full ids of the calls of this generation that have begun and whose results were not added yet.
        self.running: set[int] = set()
        #: The number of sessions that were not resumed. The results of calls that began in an earlier generation are
        #: dropped.
        self.generation = 0
        #: Why the worker begins no more calls and ends; "": it does not end.
        self.leave_reason = ""
        #: Whether `Draining` must be sent.
        self._draining_due = False
        self._posted: deque[NannyJoined | SchedulerMoved] = deque()
        self._nanny_joined: NannyJoined | None = None
        # the session
        self._session = NO_SESSION
        #: The nanny's session that the last hello named; 0: none.
        self._hello_nanny = 0
        self._welcomed = self._refused = False
        self._heartbeat_s = FIRST_PERIOD_S
        # results
        self._unsent: list[FramedResult] = []
        #: When the first of the unsent results was added, on the clock of `keep`'s caller.
        self.unsent_since = 0.0
        self._unacked: deque[FramedResult] = deque()
        self._acked = 0
        # times
        self._hello_at = monotonic()
        self._heartbeat = Heartbeat(self._hello_at)
        #: When the first ping was sent after which nothing has been received; None: no ping is unanswered.
        self._unanswered_since: float | None = None
        self._pings_unanswered = 0

    # ---- results ----------------------------------------------------------------------------------------------------

    def add_result(self, result: FramedResult, generation: int, now: float) -> None:
        """Take the result of a call that began in `generation`; the next `flush` sends it."""
        if generation != self.generation:
            return
        self.running.discard(result[0].id)
        if not self._unsent:
            self.unsent_since = now
        self._unsent.append(result)

    def flush(self) -> None:
        """Send the unsent results; while the connection is broken, keep them."""
        if not self._unsent or not self._welcomed:
            return
        batch = self._unsent
        self._unsent = []
        if len(batch) > 1:
            for part in split_results(batch):
                self._send_results(part)
        else:
            self._send_results(batch)
        self._unacked.extend(batch)

    def _send_results(self, batch: Sequence[FramedResult]) -> None:
        message = encode(Finished([result for result, _ in batch]))
        self._socket.send([message, *(frame for _, frames in batch for frame in frames)])

    @property
    def is_flushed(self) -> bool:
        """Whether every result was sent."""
        return not self._unsent

    def _discard_acked(self, acked: int) -> None:
        for _ in range(min(acked - self._acked, len(self._unacked))):
            self._unacked.popleft()
        self._acked = max(self._acked, acked)

    # ---- the end ----------------------------------------------------------------------------------------------------

    def leave(self, reason: str) -> None:
        """Begin no more calls; the next `receive` sends `Draining`. May be called in a signal handler."""
        self.leave_reason = self.leave_reason or reason
        self._draining_due = True

    def leave_at_once(self, reason: str) -> None:
        """Begin no more calls, and do not wait for those that run. May be called from any thread."""
        self.leave_reason = reason
        self.wake()

    # ---- incoming messages ------------------------------------------------------------------------------------------

    def receive(self) -> bool:
        """Handle the messages that have arrived; returns whether there were any."""
        if self._draining_due and self._welcomed:
            self._draining_due = False
            self._send(Draining(self.leave_reason))
        if self._posted:
            if self._read_posted():
                self._reopen()
            else:
                self._announce_nanny()
        messages = self._socket.drain()
        for frames in messages:
            try:
                message = decode_to_engine(frames[0])
            except WireError as error:
                log_to_stderr(f"a message from the scheduler cannot be decoded: {error}")
                continue
            handle = _HANDLERS.get(type(message))
            if handle is not None:
                handle(self, message, frames)
        if messages:
            self._unanswered_since = None
        return bool(messages)

    def _on_assign(self, assign: Assign, frames: list[Frame]) -> None:
        if assign.functions or assign.drop or assign.places:
            self._runner.update(assign.functions, assign.drop, assign.places)
        if assign.acked > self._acked:
            self._discard_acked(assign.acked)
        if len(frames) == 1:
            self.queue.extend([(call, ()) for call in assign.tasks])
            return
        at = 1
        for call in assign.tasks:
            self.queue.append((call, frames[at : at + call.frames]))
            at += call.frames
        if at != len(frames):
            log_to_stderr(f"{len(frames) - 1} frames were received with calls that name {at - 1}")

    def _on_recall(self, recall: Recall, frames: list[Frame]) -> None:
        self._discard_acked(recall.acked)
        kept = set(recall.tasks)
        given = [call.id for call, _ in self.queue if call.id in kept]
        if given:
            kept.difference_update(given)
            removed = set(given)
            self.queue = deque(item for item in self.queue if item[0].id not in removed)
        self.flush()  # before the answer: among the kept tasks may be ended ones
        self._send(Recalled(given, sorted(kept)))

    def _on_acked(self, acked: Acked, frames: list[Frame]) -> None:
        self._discard_acked(acked.acked)

    def _on_welcome(self, welcome: Welcome, frames: list[Frame]) -> None:
        if not welcome.resumed and self._session.number:
            self._begin_generation()
        self._session = SessionKey(welcome.session, welcome.secret, welcome.scheduler)
        self._welcomed = True
        self._draining_due = bool(self.leave_reason)
        self._heartbeat_s = welcome.heartbeat_s
        self._runner.join(welcome.session, welcome.max_message_bytes)
        self._status.mark_joined(welcome.scheduler, welcome.session)
        if welcome.resumed:
            self._discard_acked(welcome.accepted)
            self._unsent = [*self._unacked, *self._unsent]
            self._unacked.clear()
            self.flush()
        self._heartbeat.make_due()
        self._announce_nanny()

    def _begin_generation(self) -> None:
        """Drop all calls and results: they belong to a session that was not resumed."""
        self.generation += 1
        self.queue.clear()
        self.running.clear()
        self._unsent.clear()
        self._unacked.clear()
        self._acked = 0
        self._runner.reset()
        self._status.clear_slots()

    def _on_closing(self, closing: Closing, frames: list[Frame]) -> None:
        self.queue.clear()
        self.leave_reason = closing.reason or "the scheduler shuts down"

    def _on_error(self, error: Error, frames: list[Frame]) -> None:
        if error.kind == "unknown_peer":
            if self._welcomed or monotonic() - self._hello_at > self._heartbeat_s:
                self.send_hello()
        elif error.kind == "unauthenticated" and self._start.nanny:
            self._welcomed = False  # the scheduler was restarted: the nanny will send its new token
        elif error.kind in FATAL_ERRORS:
            self._refused = True
            self.leave_reason = f"the scheduler refuses this engine: {error.message}"
            log_to_stderr(self.leave_reason)
        else:
            log_to_stderr(f"the scheduler reports: {error.message} ({error.kind})")

    def _on_pong(self, pong: Pong, frames: list[Frame]) -> None:
        self._pings_unanswered -= 1

    # ---- hello ------------------------------------------------------------------------------------------------------

    def send_hello(self) -> None:
        """Send the hello; with a session, resume it."""
        if self._read_posted():
            self._replace_socket()
        self._welcomed = False
        self._hello_at = monotonic()
        self._pings_unanswered = 0
        self._hello_nanny = self._nanny_joined.nanny if self._nanny_joined else 0
        self._send(
            build_hello(
                "engine",
                self._connection_info.token,
                host=host_name(),
                name=self._start.name,
                session=self._session,
                nanny=self._hello_nanny,
                slots=self._start.slots,
                hwm=self._start.hwm,
                resources=self._start.resources,
                holding=self._held_tasks(),
            )
        )

    def _held_tasks(self) -> list[int]:
        queued = (call.id for call, _ in self.queue)
        ended = (result.id for result, _ in (*self._unacked, *self._unsent))
        return [*self.running, *queued, *ended]

    def post(self, message: NannyJoined | SchedulerMoved) -> None:
        """Take a control message of the nanny. May be called from any thread."""
        self._posted.append(message)
        self.wake()

    def _read_posted(self) -> bool:
        """Handle the posted control messages; returns whether the scheduler has moved."""
        has_moved = False
        while self._posted:
            message = self._posted.popleft()
            if isinstance(message, SchedulerMoved):
                self._connection_info, has_moved = message.connection, True
            else:
                self._nanny_joined = message
        return has_moved

    @property
    def _nanny_sends_heartbeats(self) -> bool:
        """Whether the nanny's heartbeats count for this engine."""
        joined = self._nanny_joined
        return joined is not None and (joined.nanny, joined.scheduler) == (self._hello_nanny, self._session.scheduler)

    def _announce_nanny(self) -> None:
        """Send another hello when the last one did not name the nanny's session: after a restart of the scheduler the
        engine may reconnect before its nanny. A new socket is needed: over a welcomed one another hello is ignored.
        """
        joined = self._nanny_joined
        if (
            self._welcomed
            and joined is not None
            and joined.scheduler == self._session.scheduler
            and not self._nanny_sends_heartbeats
        ):
            self._reopen()

    # ---- heartbeats -------------------------------------------------------------------------------------------------

    @property
    def next_tick_at(self) -> float:
        """When to call `tick`, on the clock of `time.monotonic`."""
        return self._heartbeat.due_at

    def tick(self) -> None:
        """Send a heartbeat, or reconnect to a silent scheduler. Call it at `next_tick_at`, after `receive`.

        The period is doubled when the nanny sends heartbeats for this engine.
        """
        now = monotonic()
        heartbeat = self._heartbeat
        heartbeat.period_s = 2 * self._heartbeat_s if self._nanny_sends_heartbeats else self._heartbeat_s
        heartbeat.tick(now)
        heartbeat.sent(now)
        asked_at = self._unanswered_since if self._welcomed else self._hello_at
        if asked_at is not None and heartbeat.silence_s(asked_at, now) > MISSED_HEARTBEATS * self._heartbeat_s:
            self._reopen()
        elif self._welcomed:
            self._ping()
            if self._unanswered_since is None:
                self._unanswered_since = now

    def _ping(self) -> None:
        self._pings_unanswered += 1
        self._send(Ping())

    def _reopen(self) -> None:
        self._replace_socket()
        self.send_hello()

    def _replace_socket(self) -> None:
        self._socket.close()
        self._socket = self._open_socket(self._connection_info)
        self._unanswered_since = None

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until a message arrives, `wake` is called, or the next tick is due."""
        left_s = max(0.0, self.next_tick_at - monotonic())
        self._socket.wait(left_s if timeout_s is None else min(left_s, timeout_s))

    def wake(self) -> None:
        """End the `wait`. May be called from any thread, and in a signal handler."""
        self._socket.wake()

    def close(self, timeout_s: float) -> None:
        """Send the unsent results and a Bye, and close the socket.

        Waits at most `timeout_s` for the answer to a hello, and for the results to arrive: the answer to a ping shows
        that the scheduler has received all messages before the ping.
        """
        until = monotonic() + timeout_s
        self.flush()
        if self._unacked and self._welcomed:
            self._ping()
        while not self._refused and (not self._welcomed or (self._unacked and self._pings_unanswered)):
            if (left_s := until - monotonic()) <= 0:
                break
            self._socket.wait(left_s)
            self.receive()
        if self._session.number:
            self._send(Bye(reason=self.leave_reason))
        self._socket.close()

    def _send(self, message: Message) -> None:
        self._socket.send([encode(message)])


_HANDLERS: dict[type, Callable[[SchedulerConnection, Any, list[Frame]], None]] = {
    Assign: SchedulerConnection._on_assign,
    Recall: SchedulerConnection._on_recall,
    Acked: SchedulerConnection._on_acked,
    Welcome: SchedulerConnection._on_welcome,
    Closing: SchedulerConnection._on_closing,
    Error: SchedulerConnection._on_error,
    Pong: SchedulerConnection._on_pong,
}


def split_results(batch: Sequence[FramedResult]) -> Iterable[Sequence[FramedResult]]:
    """Split into parts of at most BATCH_RESULTS results and BATCH_BYTES, frames not counted; a result that is larger
    than that is a part by itself.
    """
    begin = size = 0
    for index, (result, _) in enumerate(batch):
        result_bytes = _size(result)
        if index > begin and (size + result_bytes > BATCH_BYTES or index - begin >= BATCH_RESULTS):
            yield batch[begin:index]
            begin, size = index, 0
        size += result_bytes
    yield batch[begin:]


def _size(result: TaskResult) -> int:
    size = len(result.body) + len(result.stdout) + len(result.stderr)
    if result.error is not None:
        size += len(result.error.message) + len(result.error.traceback)
    return size
