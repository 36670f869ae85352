"""Sessions: the record of a peer from its Hello until it leaves for good, over any number of connections (R1, R15, R17,
R27).

The numbers of clients, engines and nannies come from one counter. An engine's number is its `EngineId`, a client's its
`ClientId`, so that a result counts only from the session to which its task was assigned. The Welcome has a secret, with
which the peer resumes its session over a new connection. The secret is a MAC of the number: a client whose session was
forgotten, because it had neither tasks nor results, proves with the secret that the number was its own, and the session
is renewed under that number without a record of it.

Everything in this module is state of the actor: it changes only in the actor's turn.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import Counter, deque
from collections.abc import Iterator

from msgspec import Struct

from trio_sched.core.events import TaskSpec
from trio_sched.core.ids import ClientId, EngineId, TaskId
from trio_sched.server.peer_connection import PeerConnection, PeerRole
from trio_sched.wire.native import Call, ClientEnvironment, Frame, FramedRecord, Hello, Options, Refused, TaskResult

_SECRET_BYTES = 16
#: The most bytes of refusals kept for one client, to be sent again when it reconnects; the oldest are dropped.
REFUSALS_KEPT_BYTES = 16 << 20
#: The bytes of a refusal in addition to those of its reason.
REFUSAL_OVERHEAD_BYTES = 256


class Session:
    """The attributes that the sessions of all three roles have."""

    __slots__ = (
        "connection",
        "disconnected_at",
        "former_connection",
        "host",
        "last_received_at",
        "name",
        "number",
        "pid",
        "python",
        "secret",
    )
    role: PeerRole

    def __init__(self, number: int, secret: str, hello: Hello, now: float) -> None:
        self.number = number
        self.secret = secret
        #: None while the peer is disconnected.
        self.connection: PeerConnection | None = None
        #: The last connection, while `connection` is None: messages that were sent over it may still arrive, and count.
        self.former_connection: PeerConnection | None = None
        #: When the last message of the peer, or other data such as the pong of a WebSocket, was received.
        self.last_received_at = now
        #: None while there is a connection.
        self.disconnected_at: float | None = None
        self.name = hello.name
        self.host = hello.host
        self.pid = hello.pid
        self.python = hello.python


class UnackedBatch(Struct, gc=False):
    """A message of results that its client has not acknowledged yet, kept to be sent again."""

    seq: int
    size: int
    results: list[TaskResult | FramedRecord]


class ClientSession(Session):
    """The session of a client: its submissions, its share of the byte budget, and the messages that are due to it."""

    __slots__ = (
        "accepted_count",
        "accepted_sent_count",
        "admin",
        "cancel_on_leave",
        "counted_results",
        "credit_bytes",
        "departed_bytes",
        "environment",
        "events_bytes",
        "events_counted_from",
        "flushed_at",
        "functions",
        "highest_promise_bytes",
        "options",
        "paused",
        "payload_bytes",
        "payloads",
        "previous_promise_bytes",
        "promised_bytes",
        "queued_results",
        "refusal_bytes",
        "refusals",
        "seq",
        "spec",
        "submission_count",
        "unacked",
        "unacked_bytes",
        "unfinished_count",
        "unread_bytes",
        "waiting_bytes",
        "weight",
        "welcomed",
    )
    role: PeerRole = "client"

    def __init__(self, number: int, secret: str, hello: Hello, now: float) -> None:
        super().__init__(number, secret, hello, now)
        #: Whether the client only sends queries and commands; such a session has no `ClientState` in the core.
        self.admin = hello.admin
        self.weight = hello.weight
        self.cancel_on_leave = hello.cancel_on_leave
        self.environment = ClientEnvironment(hello.cwd, hello.path)
        #: Whether the effect that answers its first Hello was carried out.
        self.welcomed = False
        # submissions
        #: The number of received submissions; each will be accepted or refused.
        self.submission_count = 0
        #: Digests of the functions that the client has sent, each to the one object that all calls share.
        self.functions: dict[bytes, bytes] = {}
        #: The last options and their spec, to be used again: most tasks of a client have the same options.
        self.options: Options | None = None
        self.spec: TaskSpec | None = None
        # the byte budget
        #: Bytes of large payloads by task, and of functions by digest.
        self.payloads: dict[TaskId | bytes, int] = {}
        self.payload_bytes = 0
        #: Bytes of results that are not acknowledged.
        self.unread_bytes = 0
        #: Bytes of the first `counted_results` of `queued_results`.
        self.waiting_bytes = 0
        self.counted_results = 0
        #: The credit in bytes that was last sent to the client.
        self.credit_bytes = 0
        #: The bytes that may be held for the client if it uses the credit that was last sent.
        self.promised_bytes = 0
        #: The highest `promised_bytes` of the current period of recounts, and of the period before.
        self.highest_promise_bytes = 0
        self.previous_promise_bytes = 0
        #: The bytes held for the client when it left for good.
        self.departed_bytes = 0
        #: Whether the core has paused the client, or has an event that does (R34).
        self.paused = False
        # messages to the client
        #: The number of submissions that were accepted or refused, and the same number as last sent to the client.
        self.accepted_count = 0
        self.accepted_sent_count = 0
        #: Accepted submissions whose results are not yet queued. At 0 a result need not wait for others.
        self.unfinished_count = 0
        self.queued_results: list[TaskResult | FramedRecord] = []
        #: The number of the last message of results.
        self.seq = 0
        self.unacked: deque[UnackedBatch] = deque()
        self.unacked_bytes = 0
        #: Refusals that may not have arrived, with the `seq` whose receipt proves that they have.
        self.refusals: deque[tuple[int, Refused]] = deque()
        #: Bytes of `refusals`.
        self.refusal_bytes = 0
        #: When results were last sent.
        self.flushed_at = float("-inf")
        #: Bytes of monitor events sent since `events_counted_from`, when a message of the client was received. Monitor
        #: events are not acknowledged, so only messages of the client show that it still reads.
        self.events_bytes = 0
        self.events_counted_from = 0.0

    def is_empty(self) -> bool:
        """Return whether no task is unfinished, no submission unanswered and no result unacknowledged."""
        return not (
            self.unfinished_count or self.queued_results or self.unacked or self.submission_count != self.accepted_count
        )

    def unread_tasks(self) -> tuple[int, ...]:
        """Return the tasks whose results are not acknowledged."""
        results = [result for batch in self.unacked for result in batch.results] + self.queued_results
        return tuple([task_id_of(result) for result in results])

    def acknowledge(self, seq: int) -> tuple[int, ...]:
        """Drop the messages of results up to `seq`, which the client has received.

        Returns their tasks, whose results need not be kept for the client any longer.
        """
        unacked = self.unacked
        tasks: list[int] = []
        while unacked and unacked[0].seq <= seq:
            batch = unacked.popleft()
            self.unacked_bytes -= batch.size
            tasks += [task_id_of(result) for result in batch.results]
        while self.refusals and self.refusals[0][0] <= seq:
            self._drop_refusal()
        return tuple(tasks)

    def keep_refusal(self, refused: Refused) -> None:
        """Keep a refusal, to be sent again if the client reconnects and has not received it."""
        self.refusals.append((self.seq + 1, refused))
        self.refusal_bytes += _refusal_bytes(refused)
        while self.refusal_bytes > REFUSALS_KEPT_BYTES:
            self._drop_refusal()

    def _drop_refusal(self) -> None:
        _, refused = self.refusals.popleft()
        self.refusal_bytes -= _refusal_bytes(refused)


def task_id_of(result: TaskResult | FramedRecord) -> int:
    """Return the id of the task that a result belongs to."""
    return result.record.id if isinstance(result, FramedRecord) else result.id


def _refusal_bytes(refused: Refused) -> int:
    return REFUSAL_OVERHEAD_BYTES + len(refused.reason)


class EngineSession(Session):
    """The session of an engine: its capacity, the functions that it has, and the messages that are due to it."""

    __slots__ = (
        "acked_count",
        "answer_count",
        "call_sizes",
        "hwm",
        "known_environments",
        "known_functions",
        "lost",
        "nanny",
        "probed_at",
        "queued_calls",
        "queued_drops",
        "queued_recalls",
        "resources",
        "slots",
        "unacked_bytes",
        "unanswered_bytes",
    )
    role: PeerRole = "engine"

    def __init__(self, number: int, secret: str, hello: Hello, now: float) -> None:
        super().__init__(number, secret, hello, now)
        self.nanny = hello.nanny
        self.slots = hello.slots
        self.hwm = hello.hwm
        self.resources = hello.resources
        self.probed_at = now
        #: Whether the core has got an `EngineLost` for the engine, which has not returned since.
        self.lost = False

        # results
        #: The number of answers that arrived, and the same number as last sent to the engine.
        self.answer_count = 0
        self.acked_count = 0
        #: Bytes of the frames of answers that arrived and are not acknowledged, so that the engine keeps them.
        self.unacked_bytes = 0

        # messages to the engine
        self.queued_calls: list[tuple[Call, tuple[Frame, ...]]] = []
        self.queued_recalls: list[int] = []
        #: Digests of functions that the engine is to drop.
        self.queued_drops: list[bytes] = []
        #: Digests of the functions that the engine has.
        self.known_functions: set[bytes] = set()
        #: Clients whose environment the engine has.
        self.known_environments: set[int] = set()
        #: Bytes of each call that was sent and not answered, oldest first. Each answer removes the oldest size: answers
        #: come nearly in this order, and the sum is right when all calls are answered.
        self.call_sizes: deque[int] = deque()
        self.unanswered_bytes = 0

    def reset_queues(self) -> None:
        """Clear the queues and the record of sent calls: the engine has a new connection, and the core assigns the
        tasks again that the engine does not have."""
        self.queued_calls.clear()
        self.queued_recalls.clear()
        self.call_sizes.clear()
        self.unanswered_bytes = 0
        self.known_functions.clear()
        self.known_environments.clear()

    def release_window(self, count: int) -> None:
        """Remove `count` calls, which the engine has answered, from its window."""
        sizes = self.call_sizes
        for _ in range(min(count, len(sizes))):
            self.unanswered_bytes -= sizes.popleft()


class NannySession(Session):
    """A nanny, whose heartbeats count for the engines that name it."""

    __slots__ = ()
    role: PeerRole = "nanny"


class Sessions:
    """All sessions by number, by role and by connection."""

    def __init__(self) -> None:
        self.clients: dict[ClientId, ClientSession] = {}
        self.engines: dict[EngineId, EngineSession] = {}
        self.nannies: dict[int, NannySession] = {}
        #: Clients that left for good and have unfinished tasks: engines need their functions and environments.
        self.departed: dict[ClientId, ClientSession] = {}
        #: The sessions of admin clients, which are in `clients`, too.
        self.admins: dict[int, ClientSession] = {}
        #: The number of engines that are started together with the scheduler, including those that have joined; 0: all
        #: have joined once, or are not expected any more.
        self.expected_engines = 0
        #: The session of each connection, current or former. The messages of a former connection still count.
        self._by_connection: dict[PeerConnection, Session] = {}
        #: Connected engines by Python version; counted, because thousands may join one by one.
        self._connected: Counter[str] = Counter()
        self._last_number = 0
        self._key = secrets.token_bytes(_SECRET_BYTES)

    def __iter__(self) -> Iterator[Session]:
        yield from self.clients.values()
        yield from self.engines.values()
        yield from self.nannies.values()

    # ---- opening and finding -----------------------------------------------------------------------------------------

    def open(self, hello: Hello, now: float) -> Session:
        """Open a new session."""
        self._last_number += 1
        return self._add(self._last_number, hello, now)

    def _add(self, number: int, hello: Hello, now: float) -> Session:
        secret = self._secret_of(hello.role, number)
        if hello.role == "client":
            client = self.clients[number] = ClientSession(number, secret, hello, now)
            if client.admin:
                self.admins[number] = client
            return client
        if hello.role == "nanny":
            nanny = self.nannies[number] = NannySession(number, secret, hello, now)
            return nanny
        engine = self.engines[number] = EngineSession(number, secret, hello, now)
        self._connected[engine.python] += 1
        if not self.starting_engine_count():
            self.expected_engines = 0
        return engine

    def _secret_of(self, role: PeerRole, number: int) -> str:
        mac = hashlib.blake2b(f"{role} {number}".encode(), key=self._key, digest_size=_SECRET_BYTES)
        return mac.hexdigest()

    def renew(self, hello: Hello, now: float) -> ClientSession | None:
        """Open the forgotten session that this Hello names, under its number.

        Returns None where that is impossible: the secret is wrong, the session has unfinished tasks, or the Hello does
        not have the number of accepted submissions.
        """
        number = hello.session
        if hello.role != "client" or hello.admin or hello.accepted < 0 or not 0 < number <= self._last_number:
            return None
        if number in self.clients or number in self.departed:
            return None
        if not hmac.compare_digest(self._secret_of("client", number).encode(), hello.secret.encode()):
            return None
        self._add(number, hello, now)
        session = self.clients[number]
        session.submission_count = session.accepted_count = session.accepted_sent_count = hello.accepted
        session.seq = hello.received
        return session

    def find(self, hello: Hello) -> Session | None:
        """Return the session that this Hello may resume."""
        session: Session | None
        if hello.role == "client":
            session = self.clients.get(hello.session)
        elif hello.role == "engine":
            session = self.engines.get(hello.session)
        else:
            session = self.nannies.get(hello.session)
        if session is None or not hmac.compare_digest(session.secret.encode(), hello.secret.encode()):
            return None
        return session

    def of(self, connection: PeerConnection) -> Session | None:
        """Return the session whose messages arrive over this connection."""
        return self._by_connection.get(connection)

    def engine_of(self, nanny: NannySession, pid: int) -> EngineSession | None:
        """Return the engine that is this process of this nanny."""
        for engine in self.engines.values():
            if engine.pid == pid and engine.nanny == nanny.number:
                return engine
        return None

    # ---- connections -------------------------------------------------------------------------------------------------

    def bind(self, session: Session, connection: PeerConnection, now: float) -> None:
        """Make this the connection of the session; a former one is closed."""
        if session.connection is not connection:
            self.detach(session, now)
            self._forget_former_connection(session)
        session.connection = connection
        session.disconnected_at = None
        session.last_received_at = max(session.last_received_at, now)
        other = self._by_connection.get(connection)
        if other is not None and other.former_connection is connection:  # a session that this connection served before
            other.former_connection = None
        self._by_connection[connection] = session
        connection.role = session.role
        connection.admitted()

    def detach(self, session: Session, now: float) -> None:
        """Close the connection of the session. Messages that the peer sent over it still count."""
        connection = session.connection
        if connection is not None:
            session.connection = None
            session.former_connection = connection
            session.disconnected_at = now
            connection.close()

    def remove(self, session: Session, now: float) -> None:
        """Remove a session that ended for good."""
        self.detach(session, now)
        self._forget_former_connection(session)
        if isinstance(session, ClientSession):
            self.admins.pop(session.number, None)
            self.clients.pop(session.number, None)
        elif isinstance(session, EngineSession):
            if self.engines.pop(session.number, None) is not None:
                self.set_lost(session, True)
        else:
            self.nannies.pop(session.number, None)

    def _forget_former_connection(self, session: Session) -> None:
        if session.former_connection is not None:
            del self._by_connection[session.former_connection]
            session.former_connection = None

    # ---- engines -----------------------------------------------------------------------------------------------------

    def set_lost(self, engine: EngineSession, lost: bool) -> None:
        """Record that an engine is lost, or that it has returned."""
        if lost != engine.lost:
            engine.lost = lost
            self._connected[engine.python] += -1 if lost else 1

    def pythons(self) -> list[str]:
        """Return the Python versions of the connected engines."""
        return sorted(python for python, count in self._connected.items() if python and count)

    def connected_engine_count(self) -> int:
        """Return how many engines have joined and are not lost."""
        return self._connected.total()

    def starting_engine_count(self) -> int:
        """Return how many of the expected engines have not joined yet."""
        return max(0, self.expected_engines - self.connected_engine_count())

    def ordinary_client_count(self) -> int:
        """Return how many clients may submit."""
        return len(self.clients) - len(self.admins)


class FunctionCache:
    """The functions that clients sent, by digest: a function is sent once by each client and once to each engine.

    A function is held by the sessions that sent it and have not dropped it. A client that left for good holds its
    functions until its tasks have ended (R27).
    """

    def __init__(self) -> None:
        self.bodies: dict[bytes, bytes] = {}
        self._holders: dict[bytes, set[int]] = {}

    def hold(self, session: int, digest: bytes, body: bytes) -> None:
        """Keep a function, whose digest was checked, for a session."""
        self.bodies.setdefault(digest, body)
        self._holders.setdefault(digest, set()).add(session)

    def release(self, session: int, digest: bytes) -> bool:
        """Remove a session from the holders of a function. Returns whether it was the last: the body is dropped."""
        holders = self._holders.get(digest)
        if holders is None or session not in holders:
            return False
        holders.discard(session)
        if holders:
            return False
        del self._holders[digest], self.bodies[digest]
        return True
