"""The engine's side of the protocol: who we are to the scheduler, what we have to do, what we have to tell it.

Nothing that the scheduler assigned and nothing that came of it gets lost on the way: a result is kept until the
scheduler has counted it (`acked`), and sent again after a reconnection. A reconnection is noticed in two ways. A
scheduler that was restarted, or whose socket forgot us, answers our next message with the error "unknown_peer": we
say hello again. One that does not answer at all for MISSED_HEARTBEATS gets a new socket. A scheduler that does not
know our session any more is another one: all that we held for the former one is dropped, the result of what still
runs included.

A link belongs to one thread at a time (whoever holds the loop's lock); `wake` alone may be called from any.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any, Protocol

from trio_sched.engine.board import Board
from trio_sched.engine.ends import Ended
from trio_sched.engine.orders import Moved, News, Start
from trio_sched.engine.runner import Runner
from trio_sched.errors import WireError
from trio_sched.transport.connection import Connection, host_name
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
    TaskEnd,
    Welcome,
    decode_to_engine,
    encode,
)

BATCH_RESULTS, BATCH_BYTES = 256, 1 << 20
"""Where a message of results is closed and another begun."""
FATAL = ("unauthenticated", "unknown_version")
"""Errors after which it is no use to go on asking."""


class Dealer(Protocol):
    """What a link needs of transport.zmq_blocking.BlockingDealer."""

    def send(self, frames: Sequence[Frame]) -> None: ...
    def drain(self, limit: int = ...) -> list[list[Frame]]: ...
    def wait(self, timeout_s: float | None = None) -> bool: ...
    def wake(self) -> None: ...
    def close(self) -> None: ...


def say(text: str) -> None:
    """A line on the worker's own standard error, past any capture; nothing where there is none."""
    with contextlib.suppress(OSError):
        os.write(2, f"trio_sched engine {os.getpid()}: {text}\n".encode())


class Link:
    """The connection of one worker to its scheduler, with what goes in (`queue`) and out (`keep`, `flush`)."""

    def __init__(self, start: Start, runner: Runner, board: Board, open_dealer: Callable[[Connection], Dealer]) -> None:
        self._start = start
        self._runner = runner
        self._board = board
        self._open_dealer = open_dealer
        self._connection = start.connection
        self._dealer = open_dealer(start.connection)
        self.queue: deque[tuple[Call, Sequence[Frame]]] = deque()
        """Assigned and not begun."""
        self.generation = 0
        """Rises when all that we held was dropped: what began before is of no interest to anybody."""
        self.leaving = ""
        """Why we are to end; empty: we are not."""
        self.running: Callable[[], list[int]] = board.tasks
        self._drain_due = False
        """The scheduler is to be told that we drain."""
        self._posted: deque[News | Moved] = deque()
        self._news: News | None = None
        # the session
        self._session = NO_SESSION
        self._told_nanny = 0
        self._welcomed = self._refused = False
        self._heartbeat_s = FIRST_PERIOD_S
        # results: waiting to be sent, and sent but not counted by the scheduler
        self._unsent: list[Ended] = []
        self.unsent_since = 0.0
        self._unacked: deque[Ended] = deque()
        self._acked = 0
        # times
        self._hello_at = monotonic()
        self._heartbeat = Heartbeat(self._hello_at)
        self._unanswered_since: float | None = None
        self._pings_unanswered = 0

    # ---- results ----------------------------------------------------------------------------------------------------

    def keep(self, ended: Ended, generation: int, now: float) -> None:
        """Take an answer, to be sent with the next `flush`."""
        if generation != self.generation:
            return
        if not self._unsent:
            self.unsent_since = now
        self._unsent.append(ended)

    def flush(self) -> None:
        """Send the answers that are waiting, unless nobody would hear them now."""
        if not self._unsent or not self._welcomed:
            return
        batch = self._unsent
        self._unsent = []
        if len(batch) > 1:
            for part in split(batch):
                self._send_results(part)
        else:
            self._send_results(batch)
        self._unacked.extend(batch)

    def _send_results(self, batch: Sequence[Ended]) -> None:
        message = encode(Finished([end for end, _ in batch]))
        self._dealer.send([message, *(frame for _, frames in batch for frame in frames)])

    @property
    def told(self) -> bool:
        """Whether no answer waits to be sent."""
        return not self._unsent

    def _count(self, acked: int) -> None:
        for _ in range(min(acked - self._acked, len(self._unacked))):
            self._unacked.popleft()
        self._acked = max(self._acked, acked)

    # ---- the end ----------------------------------------------------------------------------------------------------

    def leave(self, reason: str) -> None:
        """Begin nothing more, and tell the scheduler with the next `receive`. For signal handlers, too."""
        self.leaving = self.leaving or reason
        self._drain_due = True

    # ---- what comes in ----------------------------------------------------------------------------------------------

    def receive(self) -> bool:
        """Handle the messages that are there; False: there was none."""
        if self._drain_due and self._welcomed:
            self._drain_due = False
            self._send(Draining(self.leaving))
        if self._posted:
            if self._read_posted():
                self._reopen()
            else:
                self._introduce_nanny()
        messages = self._dealer.drain()
        for frames in messages:
            try:
                message = decode_to_engine(frames[0])
            except WireError as error:
                say(f"a message from the scheduler was not understood: {error}")
                continue
            handle = _HANDLERS.get(type(message))
            if handle is not None:
                handle(self, message, frames)
        if messages:
            self._unanswered_since = None
        return bool(messages)

    def _on_assign(self, assign: Assign, frames: list[Frame]) -> None:
        if assign.functions or assign.drop or assign.places:
            self._runner.learn(assign.functions, assign.drop, assign.places)
        if assign.acked > self._acked:
            self._count(assign.acked)
        if len(frames) == 1:
            self.queue.extend([(call, ()) for call in assign.tasks])
            return
        at = 1
        for call in assign.tasks:
            self.queue.append((call, frames[at : at + call.frames]))
            at += call.frames
        if at != len(frames):
            say(f"{len(frames) - 1} frames came with calls that name {at - 1}")

    def _on_recall(self, recall: Recall, frames: list[Frame]) -> None:
        self._count(recall.acked)
        wanted = set(recall.tasks)
        given = [call.id for call, _ in self.queue if call.id in wanted]
        if given:
            wanted.difference_update(given)
            gone = set(given)
            self.queue = deque(item for item in self.queue if item[0].id not in gone)
        self.flush()  # so that the ends of those kept are known before
        self._send(Recalled(given, sorted(wanted)))

    def _on_acked(self, acked: Acked, frames: list[Frame]) -> None:
        self._count(acked.acked)

    def _on_welcome(self, welcome: Welcome, frames: list[Frame]) -> None:
        if not welcome.resumed and self._session.number:
            self._drop_everything()
        self._session = SessionKey(welcome.session, welcome.secret, welcome.scheduler)
        self._welcomed = True
        self._drain_due = bool(self.leaving)
        self._heartbeat_s = welcome.heartbeat_s
        self._runner.limit_bytes = welcome.max_message_bytes
        self._runner.engine = welcome.session
        self._board.joined(welcome.scheduler, welcome.session)
        if welcome.resumed:
            self._count(welcome.accepted)
            self._unsent = [*self._unacked, *self._unsent]
            self._unacked.clear()
            self.flush()
        self._heartbeat.make_due()
        self._introduce_nanny()

    def _drop_everything(self) -> None:
        self.generation += 1
        self.queue.clear()
        self._unsent.clear()
        self._unacked.clear()
        self._acked = 0
        self._runner.forget()
        for slot in range(len(self._board.running)):
            self._board.running[slot] = 0

    def _on_closing(self, closing: Closing, frames: list[Frame]) -> None:
        self.queue.clear()
        self.leaving = closing.reason or "the scheduler shuts down"

    def _on_error(self, error: Error, frames: list[Frame]) -> None:
        if error.kind == "unknown_peer":
            if self._welcomed or monotonic() - self._hello_at > self._heartbeat_s:
                self.hello()
        elif error.kind == "unauthenticated" and self._start.nanny:
            self._welcomed = False  # a scheduler that was restarted: the nanny finds out how to convince it
        elif error.kind in FATAL:
            self._refused = True
            self.leaving = f"the scheduler refuses this engine: {error.message}"
            say(self.leaving)
        else:
            say(f"the scheduler reports: {error.message} ({error.kind})")

    def _on_pong(self, pong: Pong, frames: list[Frame]) -> None:
        self._pings_unanswered -= 1

    # ---- who we are -------------------------------------------------------------------------------------------------

    def hello(self) -> None:
        """Introduce ourselves, as who we were if we were somebody."""
        if self._read_posted():
            self._renew_dealer()
        self._welcomed = False
        self._hello_at = monotonic()
        self._pings_unanswered = 0
        self._told_nanny = self._news.nanny if self._news else 0
        self._send(
            build_hello(
                "engine",
                self._connection.token,
                host=host_name(),
                name=self._start.name,
                session=self._session,
                nanny=self._told_nanny,
                slots=self._start.slots,
                hwm=self._start.hwm,
                resources=self._start.resources,
                holding=self._holding(),
            )
        )

    def _holding(self) -> list[int]:
        queued = (call.id for call, _ in self.queue)
        ended = (end.id for end, _ in (*self._unacked, *self._unsent))
        return [*self.running(), *queued, *ended]

    def post(self, order: News | Moved) -> None:
        """From any thread: what the nanny says."""
        self._posted.append(order)
        self.wake()

    def _read_posted(self) -> bool:
        """Take the nanny's orders. True: the scheduler is to be reached in another way."""
        moved = False
        while self._posted:
            order = self._posted.popleft()
            if isinstance(order, Moved):
                self._connection, moved = order.connection, True
            else:
                self._news = order
        return moved

    @property
    def _watched(self) -> bool:
        """Whether the scheduler takes our nanny's beats for ours."""
        news = self._news
        return news is not None and (news.nanny, news.scheduler) == (self._told_nanny, self._session.scheduler)

    def _introduce_nanny(self) -> None:
        """The scheduler was restarted, and we were back before our nanny: say hello again now that we know its new
        number. Through a new socket, since one that is welcomed need not say hello."""
        news = self._news
        if self._welcomed and news is not None and news.scheduler == self._session.scheduler and not self._watched:
            self._reopen()

    # ---- staying in touch -------------------------------------------------------------------------------------------

    @property
    def next_tick_at(self) -> float:
        """When to call `tick`, on the clock of `time.monotonic`."""
        return self._heartbeat.due_at

    def tick(self) -> None:
        """At `next_tick_at`: send a heartbeat, and see whether the scheduler is still there. Call `receive` before.

        Without a nanny our beats are all that the scheduler hears while we work; with one, we ask only now and then.
        """
        now = monotonic()
        heartbeat = self._heartbeat
        heartbeat.period_s = 2 * self._heartbeat_s if self._watched else self._heartbeat_s
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
        self._renew_dealer()
        self.hello()

    def _renew_dealer(self) -> None:
        self._dealer.close()
        self._dealer = self._open_dealer(self._connection)
        self._unanswered_since = None

    def wait(self, timeout_s: float | None = None) -> None:
        """Until there is something to receive, `wake` is called, or the next tick is due."""
        left_s = max(0.0, self.next_tick_at - monotonic())
        self._dealer.wait(left_s if timeout_s is None else min(left_s, timeout_s))

    def wake(self) -> None:
        """From any thread: end the `wait`."""
        self._dealer.wake()

    def bye(self, patience_s: float) -> None:
        """Tell what there is to tell, say good-bye and close. Waits at most `patience_s` for the answer to a hello, and
        for our results to arrive: a scheduler that answers a beat has read what was sent before it."""
        until = monotonic() + patience_s
        self.flush()
        if self._unacked and self._welcomed:
            self._ping()
        while not self._refused and (not self._welcomed or (self._unacked and self._pings_unanswered)):
            if (left_s := until - monotonic()) <= 0:
                break
            self._dealer.wait(left_s)
            self.receive()
        if self._session.number:
            self._send(Bye(reason=self.leaving))
        self._dealer.close()

    def _send(self, message: Message) -> None:
        self._dealer.send([encode(message)])


_HANDLERS: dict[type, Callable[[Link, Any, list[Frame]], None]] = {
    Assign: Link._on_assign,
    Recall: Link._on_recall,
    Acked: Link._on_acked,
    Welcome: Link._on_welcome,
    Closing: Link._on_closing,
    Error: Link._on_error,
    Pong: Link._on_pong,
}


def split(batch: Sequence[Ended]) -> Iterable[Sequence[Ended]]:
    """Parts of at most BATCH_RESULTS answers and, unless a single one is larger, BATCH_BYTES outside of frames."""
    begin = size = 0
    for index, (end, _) in enumerate(batch):
        length = _length(end)
        if index > begin and (size + length > BATCH_BYTES or index - begin >= BATCH_RESULTS):
            yield batch[begin:index]
            begin, size = index, 0
        size += length
    yield batch[begin:]


def _length(end: TaskEnd) -> int:
    length = len(end.body) + len(end.stdout) + len(end.stderr)
    if end.error is not None:
        length += len(end.error.message) + len(end.error.traceback)
    return length
