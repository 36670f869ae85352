"""The way from the fronts to the actor: messages are sorted by sender, read by three tasks, and kept in order.

    front --Ingress.receive--> Burst --> [engines | nannies, others | clients] --> results, notifications, intake
                             |                                                             |
                             +------------------------> Inbox <----------------------------+--> actor

A *burst* is the messages that a front received together. The three readers get the messages over memory channels, and
put their events into the same burst. The actor takes bursts in the order of their arrival, and only when all of their
readers are done. So the messages of one peer keep their order, and so do the results of an engine and the report of its
death by the nanny, whichever reader runs first (R31).

Everything here moves whole batches: one wake-up of the front, one channel send for each kind of sender, one wake-up of
the actor. The channels are not bounded: a front takes a bounded number of messages and then passes a checkpoint, at
which the readers empty them.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias

import trio

from trio_sched.core.effects import (
    Accept,
    AssignTask,
    DeliverResult,
    ForgetEngine,
    ForgetSession,
    RecallTask,
    Refuse,
)
from trio_sched.logs import get_logger
from trio_sched.server.events import ConnectionAlive, ConnectionLost, Event, StopRequested
from trio_sched.server.identity import Identity
from trio_sched.server.peer_connection import PeerConnection, PeerRole, RawMessage
from trio_sched.transport.connection_limits import ConnectionBounds, ConnectionLimits

log = get_logger(__name__)
#: The counter of unexpected exceptions (R33).
INTERNAL_ERROR = "internal_error"
#: The readers' channels, by sender, in the order in which the actor handles the events of a burst (R31).
ENGINES, NOTIFICATIONS, CLIENTS = range(3)
_CHANNELS: dict[PeerRole | None, int] = {
    "engine": ENGINES,
    "nanny": NOTIFICATIONS,
    None: NOTIFICATIONS,
    "client": CLIENTS,
}


class Burst:
    """Messages that were received at once, and the events that the readers make of them."""

    __slots__ = ("events", "messages", "received_at", "unread_count")

    def __init__(self, received_at: float = 0.0) -> None:
        self.received_at = received_at
        #: By channel.
        self.messages: tuple[list[RawMessage], list[RawMessage], list[RawMessage]] = ([], [], [])
        self.events: list[Sequence[Event]] = [(), (), ()]
        #: How many channels have messages that no reader has read.
        self.unread_count = 0


class Inbox:
    """The actor's mailbox: bursts in the order of arrival, and a memory channel that wakes the actor."""

    def __init__(self) -> None:
        self._bursts: deque[Burst] = deque()
        self._wake_send, self._wake_receive = trio.open_memory_channel[None](1)
        self._is_awake = False

    def wake(self) -> None:
        """Have the actor take a turn."""
        if not self._is_awake:
            self._is_awake = True
            self._wake_send.send_nowait(None)

    def expect(self, burst: Burst) -> None:
        """Add a burst whose messages the readers have not read yet, behind all earlier ones."""
        self._bursts.append(burst)

    def deliver(self, burst: Burst, channel: int, events: list[Event]) -> None:
        """Put the events that a reader made of its messages into the burst."""
        burst.events[channel] = events
        burst.unread_count -= 1
        if not self._bursts[0].unread_count:
            self.wake()

    def _add(self, channel: int, events: Iterable[Event]) -> None:
        burst = Burst()
        burst.events[channel] = list(events)
        self._bursts.append(burst)
        self.wake()

    def add_engine_events(self, events: Iterable[Event]) -> None:
        """Add events of engines, behind all earlier bursts."""
        self._add(ENGINES, events)

    def add_notifications(self, events: Iterable[Event]) -> None:
        """Add joins, losses, deadlines and requests to stop, behind all earlier bursts."""
        self._add(NOTIFICATIONS, events)

    def add_client_events(self, events: Iterable[Event]) -> None:
        """Add events that a step handles after those of engines and nannies: client events and audits."""
        self._add(CLIENTS, events)

    async def wait(self) -> None:
        """Wait until there is something to take. Always a checkpoint."""
        await self._wake_receive.receive()
        self._is_awake = False

    def take(self) -> tuple[list[Event], list[Event]]:
        """Take all bursts up to the first that a reader has not finished.

        Returns the events of engines followed by the notifications, and the events of clients.
        """
        bursts = self._bursts
        urgent: list[Event] = []
        notifications: list[Event] = []
        client_events: list[Event] = []
        while bursts and not bursts[0].unread_count:
            events = bursts.popleft().events
            urgent += events[ENGINES]
            notifications += events[NOTIFICATIONS]
            client_events += events[CLIENTS]
        urgent += notifications
        return urgent, client_events


class Ingress:
    """The fronts' side of the server."""

    def __init__(self, inbox: Inbox, identity: Identity, bounds: ConnectionBounds) -> None:
        self.inbox = inbox
        self.identity = identity
        #: Counts of dropped messages and of other unusual cases, by reason (R25). Fronts, readers and the actor count
        #: here when something happens: these are statistics and not state, and no scheduling decision depends on them.
        self.counters: Counter[str] = Counter()
        #: The connections of all fronts; each front counts those that it accepts.
        self.connections = ConnectionLimits(bounds, self.note)
        pairs = [trio.open_memory_channel[Burst](math.inf) for _ in range(3)]
        self._channels = [send for send, _ in pairs]
        #: To be read by results, notifications and intake.
        self.channels = [receive for _, receive in pairs]

    # ---- for fronts --------------------------------------------------------------------------------------------------

    def receive(self, messages: Sequence[RawMessage], now: float) -> None:
        """Pass messages, received at the time `now`, to the readers. Pass a checkpoint before the next call."""
        burst = Burst(now)
        sorted_ = burst.messages
        for message in messages:
            sorted_[_CHANNELS[message[0].role]].append(message)
        self.inbox.expect(burst)
        for channel, batch in zip(self._channels, sorted_, strict=True):
            if batch:
                burst.unread_count += 1
                channel.send_nowait(burst)

    def connection_alive(self, connection: PeerConnection, now: float) -> None:
        """Report that the transport received something from the peer that is not a message."""
        self.inbox.add_notifications([ConnectionAlive(connection, now)])

    def connection_lost(self, connection: PeerConnection, reason: str) -> None:
        """Report that a connection ended."""
        self.inbox.add_notifications([ConnectionLost(connection, reason)])

    def stop(self, reason: str) -> None:
        """Shut the scheduler down (R29)."""
        self.inbox.add_notifications([StopRequested(reason)])

    # ---- for the server ----------------------------------------------------------------------------------------------

    def note(self, reason: str, **context: object) -> None:
        """Count an unusual case, and log its first, second, fourth, ... occurrence, so that a flood of messages causes
        few log events."""
        self.counters[reason] += 1
        count = self.counters[reason]
        if count & (count - 1) == 0:
            say = log.info if reason == "closing" else log.warning  # usual during a shutdown
            say("dropped", reason=reason, count=count, **context)

    def report_error(self, what: str, error: Exception, **context: object) -> None:
        """Count an unexpected exception, and log it with its traceback (R33)."""
        self.counters[INTERNAL_ERROR] += 1
        log.exception("the scheduler failed, and goes on", error, what=what, **context)


class Front(Protocol):
    """A way in: listens, makes connections and feeds the ingress until cancelled.

    A front is made before the server, which gets its fronts when it is made. Until the front listens, `flush` does
    nothing.
    """

    @property
    def effect_handler(self) -> EffectHandler | None:
        """What carries out the effects for foreign ids; None: the front adds no events with ids of its own."""

    def flush(self) -> None:
        """Have the peers get what was sent. Called after each burst of sends to the connections of all fronts."""

    async def run(self, ingress: Ingress, *, task_status: trio.TaskStatus[dict[str, str]]) -> Any:
        """Listen. `task_status.started` gets the addresses by name; "native" and "websocket" go into the connection
        files."""


TaskEffect: TypeAlias = Accept | Refuse | AssignTask | DeliverResult | RecallTask | ForgetEngine | ForgetSession


class EffectHandler(Protocol):
    """The part of a front whose peers have no sessions here. The front adds events of the core to the inbox, with ids
    of its own, which are strings, and its handler gets the effects for these ids."""

    def take(self, effect: TaskEffect) -> None:
        """Carry the effect out without waiting. A flush (`Front.flush`) follows."""
