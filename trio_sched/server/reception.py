"""Reception: what the server's own events mean. Who comes, who goes, who is away; the synchronous part of the actor
that knows sessions, as the core knows tasks.

Away is not gone. A client without a link keeps its tasks, and results wait for it (R27) for `keep_results_s`; with
neither it is forgotten after `keep_idle_s`, or earlier when a newcomer needs the place, and goes on under its number
should it come back. An engine without a link is lost to the core, which keeps its tasks for the grace period (R20); if
it is back by then it is the same engine. A death that its nanny saw, or a Bye, is for good.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trio_sched.core.effects import Refuse
from trio_sched.core.events import (
    ClientJoined,
    ClientLeft,
    DrainRequested,
    EngineJoined,
    EngineLost,
    EngineReturned,
    ResultsReceived,
)
from trio_sched.logs import get_logger
from trio_sched.server.budget import ByteBudget
from trio_sched.server.config import Config
from trio_sched.server.functions import Functions
from trio_sched.server.happenings import (
    Asked,
    Decline,
    Effect,
    Greeted,
    Left,
    LinkLost,
    Pinged,
    Rejected,
    ShutdownBegan,
    Tell,
    TellEngines,
    Watched,
    Welcomed,
    WorkerDied,
)
from trio_sched.server.hub import INTERNAL_ERROR, Hub
from trio_sched.server.intake import amounts
from trio_sched.server.links import Link
from trio_sched.server.outbox import Outbox
from trio_sched.server.queries import Queries
from trio_sched.server.recovery import GuardedScheduler
from trio_sched.server.sessions import ClientSession, EngineSession, Session, Sessions
from trio_sched.wire.native import Closing, Error, Hello, Place, Pong, Reply

FAILED = "the scheduler failed while it handled this; its log has the traceback"
log = get_logger(__name__)
PROBE_EVERY_S = 1.0
"""How often a full table of clients is searched for one that is dead."""


class Reception:
    """Handlers of the server's own events; each returns effects, those of the core among them."""

    def __init__(
        self,
        config: Config,
        guarded: GuardedScheduler,
        hub: Hub,
        sessions: Sessions,
        functions: Functions,
        outbox: Outbox,
        budget: ByteBudget,
        queries: Queries,
    ) -> None:
        self._config = config
        self._hub = hub
        self._guarded = guarded
        self._scheduler = guarded.scheduler
        self._sessions = sessions
        self._functions = functions
        self._outbox = outbox
        self._budget = budget
        self._queries = queries
        self._closing: Closing | None = None
        self._search_again_at = float("-inf")
        """Before then no client gives way: a search found none."""
        self._waiting_for: dict[int, int] = {}
        """By departed client: an unfinished task of it."""
        self.handlers: dict[type, Callable[[Any, float], list[Effect]]] = {
            Greeted: self._greeted,
            LinkLost: self._link_lost,
            Left: self._left,
            WorkerDied: self._worker_died,
            Rejected: self._rejected,
            Pinged: self._pinged,
            Asked: self._asked,
            Watched: self._watched,
            ShutdownBegan: self._shutdown_began,
        }

    def _core(self, event: Any, now: float) -> list[Effect]:
        return self._guarded.handle(event, now)

    # ---- after an exception ---------------------------------------------------------------------------------------

    def failed(self, event: Any, error: Exception) -> list[Effect]:
        """A handler of ours raised (R33): the event is dropped, and a peer that waits for an answer is told."""
        self._hub.failed(type(event).__name__, error)
        if isinstance(event, Greeted) and event.link.session is None:
            event.link.send(Error(INTERNAL_ERROR, FAILED))
        elif isinstance(event, Asked):
            return [Tell(event.client, Reply(event.request, error=FAILED))]
        return []

    def reconcile(self, now: float) -> list[Effect]:
        """The core recovered: sessions that it has given up are dropped, and their peers say Hello again."""
        self._guarded.recovered = False
        lost: list[Session] = [
            *(one for one in self._sessions.engines.values() if one.number not in self._scheduler.engines),
            *(
                one
                for one in self._sessions.clients.values()
                if one.number not in self._scheduler.clients and not one.admin
            ),
        ]
        for session in lost:
            link = session.link
            if link is not None:
                link.send(Error("unknown_peer", FAILED))
            self._sessions.drop(session, now)
            if isinstance(session, ClientSession):
                self._budget.release_results(session)
                self._release_functions(session)
        return [TellEngines()] if lost else []

    # ---- coming -----------------------------------------------------------------------------------------------------

    def _greeted(self, event: Greeted, now: float) -> list[Effect]:
        link, hello = event.link, event.hello
        if link.session is not None and hello.session != link.session.number:
            return []  # it lost patience, but its Welcome is on its way
        session = self._sessions.find(hello)
        if isinstance(session, EngineSession) and session.number not in self._scheduler.engines:
            session = None  # its grace period is over: what it had was given to others
        if session is None:
            return self._came(link, hello, now)
        session.bind(link)
        effects = [Welcomed(session, link, True, hello.received), *self._returned(session, hello, now)]
        if self._closing is not None:
            effects.append(Tell(session, self._closing))
        return effects

    def _came(self, link: Link, hello: Hello, now: float) -> list[Effect]:
        """A peer without a session: it gets one, if there is room or room can be made."""
        effects: list[Effect] = []
        if hello.role == "client":
            limit, name = (
                (self._config.max_admins, "max_admins") if hello.admin else (self._config.max_clients, "max_clients")
            )
            departed = len(self._sessions.departed)
            if departed >= limit and not hello.admin:
                why = f"{departed} clients left while their tasks go on; {name} is {limit}"
                return [Decline(link, "too_many", why)]
            count = len(self._sessions.admins) if hello.admin else self._sessions.ordinary_clients()
            if count >= limit:
                idle = self._idlest_admin() if hello.admin else self._idlest_client(now)
                if idle is None:
                    return [Decline(link, "too_many", f"there are {count} clients already; {name} is {limit}")]
                effects += self._left(Left(idle, "it gave way to a newcomer"), now)
        renewed = self._sessions.renew(hello, now)
        session = renewed or self._sessions.open(hello, now)
        session.bind(link)
        welcomed = Welcomed(session, link, renewed is not None, hello.received, renewed=renewed is not None)
        return [*effects, welcomed, *self._joined(session, hello, now)]

    def _idlest_admin(self) -> ClientSession:
        return min(self._sessions.admins.values(), key=ClientSession.last_heard)

    def _idlest_client(self, now: float) -> ClientSession | None:
        """The client that was not heard for longest among those that nothing is lost with and that are not there: away,
        silent for half of the time after which they would be, or not to be sent to."""
        if now < self._search_again_at:
            return None
        silent_s = self._config.heartbeat_s * self._config.missed_heartbeats / 2
        empty = [client for client in self._sessions.clients.values() if client.is_empty() and not client.admin]
        for client in sorted(empty, key=ClientSession.last_heard):
            if client.link is None or now - client.last_heard() > silent_s or not self._outbox.reaches(client):
                return client
        self._search_again_at = now + PROBE_EVERY_S
        return None

    def _joined(self, session: Session, hello: Hello, now: float) -> list[Effect]:
        log.debug("joined", role=session.role, number=session.number, name=session.name, host=session.host)
        if isinstance(session, ClientSession):
            if session.admin:
                return []
            return self._core(ClientJoined(session.number, session.weight), now)
        if isinstance(session, EngineSession):
            joined = EngineJoined(session.number, hello.slots, hello.hwm, amounts(hello.resources))
            return [TellEngines(), *self._core(joined, now)]
        return []

    def _returned(self, session: Session, hello: Hello, now: float) -> list[Effect]:
        if isinstance(session, ClientSession):
            tasks = session.acknowledge(hello.received)
            self._outbox.count_unread(session)
            self._move(session, Place(hello.cwd, hello.path))
            return self._core(ResultsReceived(session.number, tasks), now) if tasks else []
        if not isinstance(session, EngineSession):
            return []
        session.nanny = hello.nanny
        self._sessions.set_lost(session, False)
        return [*self._core(EngineReturned(session.number, frozenset(hello.holding)), now), TellEngines()]

    def _move(self, client: ClientSession, place: Place) -> None:
        """A client came back from another working directory: engines must hear of it."""
        if place != client.place:
            client.place = place
            for engine in self._sessions.engines.values():
                engine.places.discard(client.number)

    # ---- going ------------------------------------------------------------------------------------------------------

    def _link_lost(self, event: LinkLost, now: float) -> list[Effect]:
        session = event.link.session
        if session is None:
            return []
        if isinstance(session, ClientSession) and session.admin:
            return self._left(Left(session, event.reason), now)
        session.unbind(now)
        log.info("away", role=session.role, number=session.number, name=session.name, reason=event.reason)
        if isinstance(session, EngineSession):
            return self.lose(session, event.reason, now)
        return []

    def lose(self, engine: EngineSession, reason: str, now: float) -> list[Effect]:
        """An engine is not there; perhaps it returns (R20)."""
        if engine.lost:
            return []
        self._sessions.set_lost(engine, True)
        return [TellEngines(), *self._core(EngineLost(engine.number, reason), now)]

    def _left(self, event: Left, now: float) -> list[Effect]:
        session = event.session
        if event.away_since is not None and (session.link is not None or session.away_since != event.away_since):
            return []  # it came back meanwhile
        self._sessions.drop(session, now)
        log.debug("left", role=session.role, number=session.number, name=session.name, reason=event.reason)
        if isinstance(session, EngineSession):
            lost = EngineLost(session.number, event.reason, confirmed=True)
            return [TellEngines(), *self._core(lost, now)]
        if isinstance(session, ClientSession):
            self._unwatch(session)
            if session.admin:
                return []
            self._budget.release_results(session)
            settled = not session.unfinished and session.received == session.accepted
            unread = session.unread_tasks() if settled else None
            effects = self._core(ClientLeft(session.number, event.cancel, unread), now)
            if settled:
                self._release_functions(session)
            else:
                self._sessions.departed[session.number] = session
                self._budget.depart(session)
                self.sweep_departed()
            return effects
        return []

    def _worker_died(self, event: WorkerDied, now: float) -> list[Effect]:
        engine = event.engine
        self._sessions.drop(engine, now)
        log.warning("engine died", number=engine.number, host=engine.host, pid=engine.pid, reason=event.reason)
        lost = EngineLost(engine.number, event.reason, confirmed=True, running=event.running)
        return [TellEngines(), *self._core(lost, now)]

    def bury(self, now: float) -> None:
        """Drop the sessions of engines whose grace period is over: the core has given them up."""
        engines = self._scheduler.engines
        for engine in list(self._sessions.lost.values()):
            if engine.number not in engines:
                self._sessions.drop(engine, now)
                log.warning("engine did not return", number=engine.number, name=engine.name, host=engine.host)

    def sweep_departed(self) -> None:
        """Let go of the functions of departed clients whose last task has ended.

        Looks for one unfinished task of such a client, the newest first, and not again before that one has ended.
        """
        tasks = self._scheduler.tasks
        for number, client in list(self._sessions.departed.items()):
            if self._waiting_for.get(number) in tasks:
                continue
            unfinished = next((task for task in reversed(tasks) if tasks[task].client.id == number), None)
            if unfinished is not None:
                self._waiting_for[number] = unfinished  # type: ignore[assignment]  # ids are ints on this front
                continue
            del self._sessions.departed[number]
            self._waiting_for.pop(number, None)
            self._release_functions(client)

    def _release_functions(self, client: ClientSession) -> None:
        self._budget.release_all(client)
        for digest in client.functions:
            if self._functions.let_go(client.number, digest):
                self._outbox.drop_function(digest)

    # ---- asking -----------------------------------------------------------------------------------------------------

    def _rejected(self, event: Rejected, _now: float) -> list[Effect]:
        return [Refuse(event.client, event.task, event.reason)]

    def _pinged(self, event: Pinged, _now: float) -> list[Effect]:
        session = event.session
        if not isinstance(session, ClientSession):
            return [Tell(session, Pong())]
        session.accepted_told = session.accepted
        return [Tell(session, Pong(session.accepted))]

    def _asked(self, event: Asked, now: float) -> list[Effect]:
        try:
            reply = Reply(event.request, self._queries.answer(event.what, event.task, now))
        except LookupError as error:
            reply = Reply(event.request, error=str(error.args[0]))
        return [Tell(event.client, reply)]

    def _watched(self, event: Watched, _now: float) -> list[Effect]:
        if event.on and event.client.number in self._sessions.clients:
            self._outbox.watchers[event.client.number] = event.client
            self._scheduler.monitored = True
        else:
            self._unwatch(event.client)
        return []

    def _unwatch(self, client: ClientSession) -> None:
        self._outbox.watchers.pop(client.number, None)
        self._scheduler.monitored = bool(self._outbox.watchers)

    def _shutdown_began(self, event: ShutdownBegan, now: float) -> list[Effect]:
        effects = self._core(DrainRequested(), now)
        self._closing = Closing(event.reason)
        effects += [Tell(session, self._closing) for session in self._sessions]
        return effects
