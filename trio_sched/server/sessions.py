"""Sessions: who a peer is, from its Hello until it leaves for good, over any number of links (R1, R15, R17, R27).

Clients, engines and nannies draw their numbers from one counter; an engine's number is its `EngineId`, a client's its
`ClientId`, so that a result counts only from the session to which its task was assigned. A secret, told once in the
Welcome, resumes a session over a new link. An unguessable number would do as well, but numbers are shown to people.
The secret is a MAC of the number, so that a session that was forgotten because nothing of it was left can be proved,
and renewed under its number, without a record of it.

Who may change what: the actor's turn makes and drops sessions and binds their links; what intake and results count
(`received`, `taken`) is theirs; the queues belong to the outbox. All of it runs in one thread, and between two awaits
nobody interferes.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import Counter, deque
from collections.abc import Iterator
from typing import Literal, TypeAlias

from msgspec import Struct

from trio_sched.core.events import TaskSpec
from trio_sched.server.links import CLIENTS, ENGINES, STRANGERS, Link
from trio_sched.wire.native import Attached, Call, Frame, Hello, Options, Place, Refused, TaskEnd

Role: TypeAlias = Literal["client", "engine", "nanny"]
_SECRET_BYTES = 16
REFUSALS_KEPT_BYTES = 16 << 20
"""Refusals of one client that are sent again when it comes back."""
REFUSAL_OVERHEAD_BYTES = 256
"""What each of them takes beside its reason."""
LANES = {"client": CLIENTS, "engine": ENGINES, "nanny": STRANGERS}


class Session:
    """What all three kinds have."""

    __slots__ = ("away_since", "given_up", "heard_at", "host", "link", "name", "number", "pid", "python", "secret")
    role: Role

    def __init__(self, number: int, secret: str, hello: Hello, now: float) -> None:
        self.number = number
        self.secret = secret
        self.link: Link | None = None
        self.given_up: Link | None = None
        """The last one that it had, while it has none."""
        self.heard_at = now
        """When it was last heard over a link that it no longer has; see `last_heard`."""
        self.away_since: float | None = None
        """Since when it has no link; None while it has one."""
        self.name = hello.name
        self.host = hello.host
        self.pid = hello.pid
        self.python = hello.python

    def last_heard(self) -> float:
        """When anything last arrived from it."""
        return max(self.heard_at, self.link.heard_at) if self.link is not None else self.heard_at

    def bind(self, link: Link) -> None:
        """It speaks over this link from now on; a former one is cut off."""
        self.unbind(link.heard_at)
        self.let_go()
        self.link = link
        self.away_since = None
        link.session = self
        link.lane = LANES[self.role]
        link.admitted()

    def unbind(self, now: float) -> None:
        """It has no link any more."""
        link, self.link = self.link, None
        if link is not None:
            self.heard_at = max(self.heard_at, link.heard_at)
            self.away_since = now
            link.session = None
            link.former = self
            link.lane = STRANGERS
            link.close()
            self.given_up = link

    def let_go(self) -> None:
        """What comes over the link that was given up means nothing any more."""
        if self.given_up is not None:
            self.given_up.former = None
            self.given_up = None


class Parcel(Struct, gc=False):
    """A message of results that its client has not acknowledged yet; kept to be sent again."""

    seq: int
    size: int
    ends: list[TaskEnd | Attached]


class ClientSession(Session):
    """A client: what it submitted, and what is on its way to it."""

    __slots__ = (
        "accepted",
        "accepted_told",
        "admin",
        "cancel_on_leave",
        "counted_ends",
        "credit_bytes",
        "departed_bytes",
        "ends",
        "flushed_at",
        "former_promise_bytes",
        "functions",
        "heard_watching",
        "highest_promise_bytes",
        "options",
        "paused",
        "payload_bytes",
        "payloads",
        "place",
        "promised_bytes",
        "received",
        "refusal_bytes",
        "refusals",
        "seq",
        "spec",
        "unacked",
        "unacked_bytes",
        "unfinished",
        "unread_bytes",
        "waiting_bytes",
        "watching",
        "weight",
    )
    role: Role = "client"

    def __init__(self, number: int, secret: str, hello: Hello, now: float) -> None:
        super().__init__(number, secret, hello, now)
        self.admin = hello.admin
        """Whether it asks and orders but submits nothing; the core does not know it."""
        self.weight = hello.weight
        self.cancel_on_leave = hello.cancel_on_leave
        self.place = Place(hello.cwd, hello.path)
        # intake's
        self.received = 0
        """Submissions that arrived; each will be accepted or refused."""
        self.functions: dict[bytes, bytes] = {}
        """Digests of functions that it has sent, each to the one object that all calls share."""
        self.options: Options | None = None
        """The last options seen, and what they mean: most of a client's tasks ask for the same."""
        self.spec: TaskSpec | None = None
        # the budget's
        self.payloads: dict[int | bytes, int] = {}
        """Bytes of large payloads by task, and of functions by digest."""
        self.payload_bytes = 0
        self.unread_bytes = 0
        """Of results that are not acknowledged."""
        self.waiting_bytes = 0
        """Of the first `counted_ends` of `ends`."""
        self.counted_ends = 0
        self.credit_bytes = 0
        """What it was told last."""
        self.promised_bytes = 0
        """What may be held for it by what it was told."""
        self.highest_promise_bytes = 0
        """The highest `promised_bytes` of the current period of recounts."""
        self.former_promise_bytes = 0
        """The same of the period before."""
        self.departed_bytes = 0
        """What it left behind, once it has left."""
        self.paused = False
        """Whether the core was told to pause it (R34)."""
        # the outbox's
        self.accepted = 0
        self.accepted_told = 0
        self.unfinished = 0
        """Accepted submissions whose results are not yet in `ends`: when there are none, nothing is worth waiting
        for."""
        self.ends: list[TaskEnd | Attached] = []
        """Results to be sent."""
        self.seq = 0
        self.unacked: deque[Parcel] = deque()
        self.unacked_bytes = 0
        self.refusals: deque[tuple[int, Refused]] = deque()
        """Refusals that may not have arrived, with the seq whose receipt will prove that they have."""
        self.refusal_bytes = 0
        """Of `refusals`, at most `REFUSALS_KEPT_BYTES`: the oldest are dropped."""
        self.flushed_at = float("-inf")
        self.watching = 0
        """Bytes of events sent since `heard_watching`, when it was last heard: all that tells how it keeps up."""
        self.heard_watching = 0.0

    def is_empty(self) -> bool:
        """Whether no task is unfinished, no submission unanswered and no result unacknowledged."""
        return not (self.unfinished or self.ends or self.unacked or self.received != self.accepted)

    def unread_tasks(self) -> tuple[int, ...]:
        """The tasks whose results are not acknowledged."""
        ends = [end for parcel in self.unacked for end in parcel.ends] + self.ends
        return tuple([end.record.id if isinstance(end, Attached) else end.id for end in ends])

    def acknowledge(self, seq: int) -> tuple[int, ...]:
        """The client has every message of results up to `seq`: the tasks whose results need not be kept for it."""
        unacked = self.unacked
        tasks: list[int] = []
        while unacked and unacked[0].seq <= seq:
            parcel = unacked.popleft()
            self.unacked_bytes -= parcel.size
            tasks += [end.record.id if isinstance(end, Attached) else end.id for end in parcel.ends]
        while self.refusals and self.refusals[0][0] <= seq:
            self._drop_refusal()
        return tuple(tasks)

    def keep_refusal(self, refused: Refused) -> None:
        """Keep a refusal, to send it again if the client comes back without it."""
        self.refusals.append((self.seq + 1, refused))
        self.refusal_bytes += _refusal_bytes(refused)
        while self.refusal_bytes > REFUSALS_KEPT_BYTES:
            self._drop_refusal()

    def _drop_refusal(self) -> None:
        _, refused = self.refusals.popleft()
        self.refusal_bytes -= _refusal_bytes(refused)


def _refusal_bytes(refused: Refused) -> int:
    return REFUSAL_OVERHEAD_BYTES + len(refused.reason)


class EngineSession(Session):
    """An engine: what it was told, and what is on its way to it."""

    __slots__ = (
        "acked_told",
        "calls",
        "drops",
        "functions",
        "hwm",
        "lost",
        "nanny",
        "places",
        "probed_at",
        "recalls",
        "resources",
        "sizes",
        "slots",
        "taken",
        "unanswered_bytes",
        "untold_bytes",
    )
    role: Role = "engine"

    def __init__(self, number: int, secret: str, hello: Hello, now: float) -> None:
        super().__init__(number, secret, hello, now)
        self.nanny = hello.nanny
        self.slots = hello.slots
        self.hwm = hello.hwm
        self.resources = hello.resources
        self.probed_at = now
        self.lost = False
        """The core was told that it is lost, and it has not returned."""
        # results'
        self.taken = 0
        """Results that arrived, each counted once for `acked`."""
        self.untold_bytes = 0
        # the outbox's
        self.acked_told = 0
        self.calls: list[tuple[Call, tuple[Frame, ...]]] = []
        """Assignments to be sent."""
        self.recalls: list[int] = []
        self.functions: set[bytes] = set()
        """Digests of the functions that it has."""
        self.drops: list[bytes] = []
        self.places: set[int] = set()
        """Clients whose place it knows."""
        self.sizes: deque[int] = deque()
        """Bytes of each call that it was sent and has not answered, oldest first. Answers are taken off in this
        order, which is nearly theirs and adds up the same."""
        self.unanswered_bytes = 0

    def begin_anew(self) -> None:
        """It is back on a new link: what was queued for the old one is void, for the core gives it again, and
        whatever else was on that link may not have come through."""
        self.calls.clear()
        self.recalls.clear()
        self.sizes.clear()
        self.unanswered_bytes = 0
        self.functions.clear()
        self.places.clear()

    def answered(self, count: int) -> None:
        """It answered for so many calls: they are no longer in its window."""
        sizes = self.sizes
        for _ in range(min(count, len(sizes))):
            self.unanswered_bytes -= sizes.popleft()


class NannySession(Session):
    """A nanny: its beats count for the engines that name it."""

    __slots__ = ()
    role: Role = "nanny"


_KINDS: dict[str, type[Session]] = {"client": ClientSession, "engine": EngineSession, "nanny": NannySession}


class Sessions:
    """All sessions by number, each kind also by itself."""

    def __init__(self) -> None:
        self.clients: dict[int, ClientSession] = {}
        self.engines: dict[int, EngineSession] = {}
        self.nannies: dict[int, NannySession] = {}
        self.departed: dict[int, ClientSession] = {}
        """Clients that left while their tasks go on: engines still need their functions and places."""
        self.lost: dict[int, EngineSession] = {}
        """Engines that may return."""
        self.expected_engines = 0
        """Engines that are being started with the scheduler, those that have joined among them; 0: all joined once, or
        took too long."""
        self.admins: dict[int, ClientSession] = {}
        """Those of the clients that submit nothing."""
        self._last_number = 0
        self._key = secrets.token_bytes(_SECRET_BYTES)
        self._here: Counter[str] = Counter()
        """Engines that are here, by Python version; counted, because thousands may join one by one."""

    def __iter__(self) -> Iterator[Session]:
        yield from self.clients.values()
        yield from self.engines.values()
        yield from self.nannies.values()

    def _table(self, role: Role) -> dict[int, Session]:
        return {"client": self.clients, "engine": self.engines, "nanny": self.nannies}[role]  # type: ignore[return-value]
        # dict is invariant; each table holds only its own kind, which `open` sees to

    def open(self, hello: Hello, now: float) -> Session:
        """A new session."""
        self._last_number += 1
        return self._add(self._last_number, hello, now)

    def _add(self, number: int, hello: Hello, now: float) -> Session:
        session = _KINDS[hello.role](number, self._secret_of(hello.role, number), hello, now)
        self._table(hello.role)[number] = session
        if isinstance(session, EngineSession):
            self._here[session.python] += 1
            if not self.engines_starting():
                self.expected_engines = 0
        elif isinstance(session, ClientSession) and session.admin:
            self.admins[number] = session
        return session

    def _secret_of(self, role: Role, number: int) -> str:
        mac = hashlib.blake2b(f"{role} {number}".encode(), key=self._key, digest_size=_SECRET_BYTES)
        return mac.hexdigest()

    def renew(self, hello: Hello, now: float) -> ClientSession | None:
        """The session that this Hello names, begun again under its number where it was forgotten; None if it cannot
        be: the secret is wrong, its tasks still run, or the client does not say how far it was."""
        number = hello.session
        if hello.role != "client" or hello.admin or hello.accepted < 0 or not 0 < number <= self._last_number:
            return None
        if number in self.clients or number in self.departed:
            return None
        if not hmac.compare_digest(self._secret_of("client", number).encode(), hello.secret.encode()):
            return None
        session = self._add(number, hello, now)
        if not isinstance(session, ClientSession):
            raise AssertionError("a client's Hello opened another kind of session")
        session.received = session.accepted = session.accepted_told = hello.accepted
        session.seq = hello.received
        return session

    def ordinary_clients(self) -> int:
        """How many clients there are that may submit."""
        return len(self.clients) - len(self.admins)

    def find(self, hello: Hello) -> Session | None:
        """The session that this Hello may resume."""
        if not hello.session:
            return None
        session = self._table(hello.role).get(hello.session)
        if session is None or not hmac.compare_digest(session.secret.encode(), hello.secret.encode()):
            return None
        return session

    def drop(self, session: Session, now: float) -> None:
        """It ended for good."""
        session.unbind(now)
        session.let_go()
        self.admins.pop(session.number, None)
        if self._table(session.role).pop(session.number, None) is not None and isinstance(session, EngineSession):
            self.set_lost(session, True)
            self.lost.pop(session.number, None)

    def set_lost(self, engine: EngineSession, lost: bool) -> None:
        """An engine is lost, or back."""
        if lost != engine.lost:
            engine.lost = lost
            if lost and engine.number in self.engines:
                self.lost[engine.number] = engine
            else:
                self.lost.pop(engine.number, None)
            self._here[engine.python] += -1 if lost else 1

    def engine_of(self, nanny: NannySession, pid: int) -> EngineSession | None:
        """The engine that is this process of this nanny's."""
        for engine in self.engines.values():
            if engine.pid == pid and engine.nanny == nanny.number:
                return engine
        return None

    def pythons(self) -> list[str]:
        """The Python versions of the engines that are here."""
        return sorted(python for python, count in self._here.items() if python and count)

    def engines_starting(self) -> int:
        """How many of the expected engines have not joined yet."""
        return max(0, self.expected_engines - self.engines_here())

    def engines_here(self) -> int:
        """How many engines are here, and not lost."""
        return self._here.total()
