"""What lies between the fronts and the actor: where messages are sorted, counted and handed on in batches.

    front --Hub.receive--> [clients' | engines' | strangers'] --intake, results, notifications--> Inbox --> actor

Everything here moves whole batches: one wake-up of the front, one channel send for each kind of sender, one wake-up
of the actor. The channels to the three readers are not bounded themselves: a front takes a bounded number of messages
and then passes a checkpoint, at which the readers empty them; what waits for the actor is bounded by credit
(submissions) and by hwm (results).
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

import trio

from trio_sched.logs import get_logger
from trio_sched.server.happenings import Event, Greeted, LinkLost
from trio_sched.server.identity import Identity
from trio_sched.server.links import Flush, Link, Outlet, Raw
from trio_sched.transport.connection_limits import ConnectionBounds, ConnectionLimits
from trio_sched.wire.native import Frame, FromPeer

log = get_logger(__name__)
INTERNAL_ERROR = "internal_error"
"""The counter of exceptions that nobody expected (R33)."""


class Inbox:
    """The actor's channels, one for each source, behind one bell.

    Trio cannot wait for three memory channels at once, so the batches lie in lists and one channel of capacity 1 says
    that there are some. The order in which they are taken is R31's: results, notifications, then a bounded slice of
    submissions.
    """

    def __init__(self, slice_: int) -> None:
        self._slice = slice_
        self._results: list[Event] = []
        self._notifications: list[Event] = []
        self._submissions: deque[list[Event]] = deque()
        self._ring, self._bell = trio.open_memory_channel[None](1)
        self._rings = False

    def _wake(self) -> None:
        if not self._rings:
            self._rings = True
            self._ring.send_nowait(None)

    def add_results(self, events: list[Event]) -> None:
        """What engines said, in the order in which each of them said it."""
        self._results += events
        self._wake()

    def add_notifications(self, events: Iterable[Event]) -> None:
        """Who came and went, and what the auditor found."""
        self._notifications += events
        self._wake()

    def add_submissions(self, events: list[Event]) -> None:
        """What clients said."""
        self._submissions.append(events)
        self._wake()

    async def wait(self) -> None:
        """Until there is something to take. Always a checkpoint."""
        await self._bell.receive()
        self._rings = False

    def take(self) -> list[Event]:
        """Everything urgent, and a slice of the submissions; rings again when some are left."""
        events = self._results
        events += self._notifications
        self._results = []
        self._notifications = []
        room = self._slice
        submissions = self._submissions
        while submissions:
            batch = submissions[0]
            if len(batch) > room:
                events += batch[:room]
                del batch[:room]
                self._wake()
                break
            room -= len(batch)
            events += submissions.popleft()
        return events


class Hub:
    """The fronts' side of the server."""

    def __init__(self, inbox: Inbox, identity: Identity, bounds: ConnectionBounds) -> None:
        self.inbox = inbox
        self.identity = identity
        self.counters: Counter[str] = Counter()
        """Messages dropped, by reason (R25), and other oddities."""
        self.connections = ConnectionLimits(bounds, self.note)
        """Those of all fronts: each counts what it accepts."""
        self._lanes: list[trio.MemorySendChannel[list[Raw]]] = []
        self.lanes: list[trio.MemoryReceiveChannel[list[Raw]]] = []
        """What clients, engines and strangers sent: to be read by intake, results and notifications."""
        for _ in range(3):
            send, receive = trio.open_memory_channel[list[Raw]](math.inf)
            self._lanes.append(send)
            self.lanes.append(receive)
        self._flushes: list[Flush] = []
        self.outlets: list[Outlet] = []
        """Fronts that own ids which are no session's."""
        self.stop: Callable[[str], None] = lambda _reason: None
        """Begin to shut down; the server puts its own here."""

    # ---- for fronts -------------------------------------------------------------------------------------------------

    def receive(self, messages: Sequence[Raw], now: float) -> None:
        """Sort what arrived by the kind of its sender and hand it on. Pass a checkpoint before the next call."""
        sorted_: tuple[list[Raw], list[Raw], list[Raw]] = ([], [], [])
        for message in messages:
            link = message[0]
            link.heard_at = now
            sorted_[link.lane].append(message)
        for lane, batch in zip(self._lanes, sorted_, strict=True):
            if batch:
                lane.send_nowait(batch)

    def gone(self, link: Link, reason: str) -> None:
        """A front knows that this link's peer is no longer there."""
        self.inbox.add_notifications([LinkLost(link, reason)])

    def on_flush(self, flush: Flush) -> None:
        """`flush` is to be called after each burst of sends."""
        self._flushes.append(flush)

    def flush(self) -> None:
        """A burst of sends is over."""
        for flush in self._flushes:
            flush()

    def forward(self, lane: int, link: Link, message: FromPeer | Greeted, frames: Sequence[Frame]) -> None:
        """Hand a decoded message on to the reader of another lane, behind what it has to read already."""
        self._lanes[lane].send_nowait([(link, [message, *frames])])

    def failed(self, what: str, error: Exception, **context: object) -> None:
        """Count an exception that nobody expected, and log it with its traceback (R33)."""
        self.counters[INTERNAL_ERROR] += 1
        log.exception("the scheduler failed, and goes on", error, what=what, **context)

    # ---- for readers ------------------------------------------------------------------------------------------------

    def note(self, reason: str, **context: object) -> None:
        """Count something odd, and log it the first, second, fourth, ... time: a flood must not become a flood of
        logs."""
        self.counters[reason] += 1
        count = self.counters[reason]
        if count & (count - 1) == 0:
            say = log.info if reason == "closing" else log.warning  # who comes while we go has done nothing odd
            say("dropped", reason=reason, count=count, **context)
