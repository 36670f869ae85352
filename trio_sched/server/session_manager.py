"""The session manager: the handlers of the server's own events. It finds the session of each message, and opens,
resumes, disconnects and closes sessions.

The session of a disconnected client is kept for `keep_results_s`: its tasks continue, and its results wait (R27). A
session with neither tasks nor results is removed after `keep_idle_s`, or earlier if another client connects while
`max_clients` is reached; it is renewed under its number when its client reconnects. For a disconnected engine the core
gets an `EngineLost` and keeps the engine's tasks for the grace period (R20); an engine that reconnects in that time
resumes its session. A Bye, or the death of an engine that its nanny reports, ends the session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, TypeAlias

from trio_sched.core.effects import ForgetEngine, Refuse
from trio_sched.core.events import (
    ClientJoined,
    ClientLeft,
    DrainRequested,
    EngineJoined,
    EngineLost,
    EngineReturned,
    ResultsReceived,
    TimePassed,
)
from trio_sched.errors import WireError
from trio_sched.logs import get_logger
from trio_sched.server.budget import ByteBudget
from trio_sched.server.client_messages import ClientMessages
from trio_sched.server.config import Config
from trio_sched.server.engine_messages import EngineMessages, answer_heartbeat
from trio_sched.server.events import (
    AnswersReceived,
    CancelReceived,
    ConnectionAlive,
    ConnectionLost,
    DeathReported,
    DrainReceived,
    Effect,
    EnginesExpected,
    HeartbeatReceived,
    HelloReceived,
    MessageBeforeHello,
    MessageRejected,
    PeerEvent,
    QueryReceived,
    RecallAnswersReceived,
    SendEngineCount,
    SendError,
    SendMessage,
    SendWelcome,
    SessionClosed,
    StopReceived,
    StopRequested,
    SubmissionRejected,
    SubmissionsReceived,
    WatchChanged,
)
from trio_sched.server.ingress import INTERNAL_ERROR, Ingress
from trio_sched.server.outbox import FAILURE_TEXT, Outbox
from trio_sched.server.peer_connection import PeerConnection, PeerRole
from trio_sched.server.reader import Reader, rejected
from trio_sched.server.sessions import ClientSession, EngineSession, NannySession, Session, Sessions
from trio_sched.server.shutdown import Shutdown
from trio_sched.server.task_specs import amounts
from trio_sched.wire.native import ClientEnvironment, Hello, Reply

log = get_logger(__name__)
#: The least time, in seconds, between two searches for an idle client that can be closed for a new one.
SEARCH_INTERVAL_S = 1.0
#: The events of messages that only a peer with a session may send.
_PEER_MESSAGES = (
    AnswersReceived, CancelReceived, DrainReceived, HeartbeatReceived, QueryReceived, RecallAnswersReceived,
    SessionClosed, StopReceived, SubmissionsReceived, WatchChanged, DeathReported,
)  # fmt: skip
Handler: TypeAlias = Callable[[Any, float], list[Effect]]


class SessionManager:
    """Handlers of the server's own events. Each returns effects, those of the core among them."""

    def __init__(
        self,
        config: Config,
        ingress: Ingress,
        core: Handler,
        sessions: Sessions,
        outbox: Outbox,
        budget: ByteBudget,
        clients: ClientMessages,
        engines: EngineMessages,
        readers: Mapping[PeerRole, Reader],
        shutdown: Shutdown,
    ) -> None:
        self._config = config
        self._ingress = ingress
        self._core = core
        self._sessions = sessions
        self._outbox = outbox
        self._budget = budget
        self._clients = clients
        self._readers = readers
        self._shutdown = shutdown
        #: When the next search for an idle client may be made; the last one found none.
        self._next_search_at = float("-inf")
        self._by_role: dict[PeerRole, dict[type, Callable[[Any, Any, float], list[Effect]]]] = {
            "client": {**clients.handlers, SessionClosed: self._session_closed, StopReceived: self._stop_received},
            "engine": {**engines.handlers, SessionClosed: self._session_closed},
            "nanny": {
                HeartbeatReceived: answer_heartbeat,
                SessionClosed: self._session_closed,
                DeathReported: self._death_reported,
            },
        }
        #: (event, now) -> effects, by the type of the event.
        self.handlers: dict[type, Handler] = {
            **dict.fromkeys(_PEER_MESSAGES, self._handle_message),
            MessageBeforeHello: self._message_before_hello,
            MessageRejected: self._message_rejected,
            ConnectionAlive: self._connection_alive,
            HelloReceived: self._hello_received,
            ConnectionLost: self._connection_lost,
            SubmissionRejected: self._submission_rejected,
            EnginesExpected: self._engines_expected,
            StopRequested: self._stop_requested,
            TimePassed: self._time_passed,
        }

    def report_failure(self, event: Any, error: Exception) -> list[Effect]:
        """Report an event whose handler raised (R33). Returns the error message for a peer that waits for an answer."""
        self._ingress.report_error(type(event).__name__, error)
        if isinstance(event, HelloReceived) and self._sessions.of(event.connection) is None:
            return [SendError(event.connection, INTERNAL_ERROR, FAILURE_TEXT)]
        session = self._sessions.of(event.connection) if isinstance(event, PeerEvent) else None
        if isinstance(event, QueryReceived) and session is not None:
            return [SendMessage(session, Reply(event.request, error=FAILURE_TEXT))]
        if isinstance(event, SubmissionsReceived) and session is not None:
            return [SendError(event.connection, INTERNAL_ERROR, FAILURE_TEXT)]
        return []

    # ---- messages of peers -------------------------------------------------------------------------------------------

    def _handle_message(self, event: PeerEvent, now: float) -> list[Effect]:
        """Handle a message of a peer that has a session.

        A message over the former connection of a session counts, because it may have been sent before the connection
        was closed. Its sender gets an "unknown_peer" error, in case that it still uses the former connection.
        """
        connection = event.connection
        session = self._sessions.of(connection)
        if session is None:
            self._ingress.note("unknown_peer")
            return [_request_hello(connection)]
        effects = [] if session.connection is connection else [_request_hello(connection)]
        session.last_received_at = event.received_at
        handler = self._by_role[session.role].get(type(event))
        try:
            if handler is None:
                raise WireError(f"a {session.role} cannot send this message", "unexpected")
            effects += handler(session, event, now)
        except WireError as error:
            effects += self._message_rejected(rejected(connection, event.received_at, error), now)
        return effects

    def _message_before_hello(self, event: MessageBeforeHello, now: float) -> list[Effect]:
        """Handle a message that was read before the connection had a role. A Hello may have given it one since."""
        connection, received_at = event.connection, event.received_at
        session = self._sessions.of(connection)
        if session is None:
            return self._handle_message(event, now)
        try:
            read = self._readers[session.role].validate(connection, received_at, event.message, event.frames)
        except WireError as error:
            return self._message_rejected(rejected(connection, received_at, error), now)
        if isinstance(session, ClientSession) and not isinstance(read, SubmissionsReceived):
            return self._clients.add(read, now)
        return self.handlers[type(read)](read, now)

    def _message_rejected(self, event: MessageRejected, _now: float) -> list[Effect]:
        connection = event.connection
        session = self._sessions.of(connection)
        is_current = session is not None and session.connection is connection
        context = {"session": session.number} if session is not None and is_current else {}
        if event.kind != INTERNAL_ERROR:  # an internal error was counted when it happened
            self._ingress.note(event.kind, why=event.reason, **context)
        if session is not None and is_current:
            session.last_received_at = event.received_at
        return [SendError(connection, event.kind, event.reason)] if is_current or event.is_hello else []

    def _connection_alive(self, event: ConnectionAlive, _now: float) -> list[Effect]:
        session = self._sessions.of(event.connection)
        if session is not None and session.connection is event.connection:
            session.last_received_at = event.received_at
        return []

    def _submission_rejected(self, event: SubmissionRejected, _now: float) -> list[Effect]:
        return [Refuse(event.client, event.task, event.reason)]

    # ---- joining -----------------------------------------------------------------------------------------------------

    def _hello_received(self, event: HelloReceived, now: float) -> list[Effect]:
        connection, hello = event.connection, event.hello
        current = self._sessions.of(connection)
        if current is not None and current.connection is connection and hello.session != current.number:
            return []  # a repeated Hello, whose Welcome is on its way
        if connection.role not in (None, hello.role):
            why = f"this connection is that of a {connection.role}; open another one as a {hello.role}"
            return self._decline(connection, "unexpected", why)
        session = self._sessions.find(hello)
        if session is None:
            return self._join(event, now)
        self._sessions.bind(session, connection, event.received_at)
        effects = [SendWelcome(session, connection, True, hello.received), *self._resume(session, hello, now)]
        if self._shutdown.closing is not None:
            effects.append(SendMessage(session, self._shutdown.closing))
        return effects

    def _decline(self, connection: PeerConnection, kind: str, why: str) -> list[Effect]:
        self._ingress.note(kind, why=why)
        return [SendError(connection, kind, why)]

    def _join(self, event: HelloReceived, now: float) -> list[Effect]:
        """Open a session for a peer without one, if there is room or room can be made."""
        connection, hello = event.connection, event.hello
        if self._shutdown.closing is not None:  # a peer with a session may resume it, for results or with them
            return self._decline(connection, "closing", "the scheduler is shutting down")
        effects: list[Effect] = []
        if hello.role == "client":
            departed, count, limit, name = self._client_counts(hello)
            if departed >= limit and not hello.admin:
                why = f"{departed} clients left while their tasks go on; {name} is {limit}"
                return self._decline(connection, "too_many", why)
            if count >= limit:
                idle = self._idlest_admin() if hello.admin else self._idlest_client(now)
                if idle is None:
                    why = f"there are {count} clients already; {name} is {limit}"
                    return self._decline(connection, "too_many", why)
                effects += self.close(idle, "its place was needed for another client", now)
        elif self._sessions.of(connection) is None:
            count, limit = max(len(self._sessions.engines), len(self._sessions.nannies)), self._config.max_engines
            if count >= limit:
                why = f"there are {count} of your kind already; max_engines is {limit}"
                return self._decline(connection, "too_many", why)
        renewed = self._sessions.renew(hello, now)
        session = renewed or self._sessions.open(hello, now)
        self._sessions.bind(session, connection, event.received_at)
        effects.append(
            SendWelcome(session, connection, renewed is not None, hello.received, renewed=renewed is not None)
        )
        log.debug("joined", role=session.role, number=session.number, name=session.name, host=session.host)
        if isinstance(session, ClientSession) and not session.admin:
            effects += self._core(ClientJoined(session.number, session.weight), now)
        elif isinstance(session, EngineSession):
            effects.append(SendEngineCount())
            joined = EngineJoined(session.number, hello.slots, hello.hwm, amounts(hello.resources))
            effects += self._core(joined, now)
        return effects

    def _client_counts(self, hello: Hello) -> tuple[int, int, int, str]:
        """Return the counts of departed clients and of open sessions, the limit of both, and the name of the limit."""
        departed = len(self._sessions.departed)
        if hello.admin:
            return departed, len(self._sessions.admins), self._config.max_admins, "max_admins"
        return departed, self._sessions.ordinary_client_count(), self._config.max_clients, "max_clients"

    def _idlest_admin(self) -> ClientSession:
        return min(self._sessions.admins.values(), key=attrgetter("last_received_at"))

    def _idlest_client(self, now: float) -> ClientSession | None:
        """Return the client whose session may be closed for a new client; None if there is none.

        A candidate has neither tasks nor results. It is disconnected, has been silent for half of the time that ends a
        connection, or cannot be reached. Of these it is the one whose last message is the oldest.
        """
        if now < self._next_search_at:
            return None
        silent_s = self._config.heartbeat_s * self._config.missed_heartbeats / 2
        empty = [client for client in self._sessions.clients.values() if client.is_empty() and not client.admin]
        for client in sorted(empty, key=attrgetter("last_received_at")):
            if (
                client.connection is None
                or now - client.last_received_at > silent_s
                or not self._outbox.reaches(client)
            ):
                return client
        self._next_search_at = now + SEARCH_INTERVAL_S
        return None

    def _resume(self, session: Session, hello: Hello, now: float) -> list[Effect]:
        if isinstance(session, ClientSession):
            tasks = session.acknowledge(hello.received)
            self._outbox.count_unread(session)
            self._set_environment(session, ClientEnvironment(hello.cwd, hello.path))
            return self._core(ResultsReceived(session.number, tasks), now) if tasks else []
        if not isinstance(session, EngineSession):
            return []
        session.nanny = hello.nanny
        self._sessions.set_lost(session, False)
        return [*self._core(EngineReturned(session.number, frozenset(hello.holding)), now), SendEngineCount()]

    def _set_environment(self, client: ClientSession, environment: ClientEnvironment) -> None:
        """Set the environment of a client that has resumed its session; the engines get it with their next calls."""
        if environment != client.environment:
            client.environment = environment
            for engine in self._sessions.engines.values():
                engine.known_environments.discard(client.number)

    def _engines_expected(self, event: EnginesExpected, _now: float) -> list[Effect]:
        self._sessions.expected_engines = event.count
        return []

    # ---- leaving -----------------------------------------------------------------------------------------------------

    def _connection_lost(self, event: ConnectionLost, now: float) -> list[Effect]:
        session = self._sessions.of(event.connection)
        if session is None or session.connection is not event.connection:
            return []
        return self.disconnect(session, event.reason, now)

    def disconnect(self, session: Session, reason: str, now: float) -> list[Effect]:
        """Close the connection of a session. Clients and engines may reconnect and resume it."""
        if isinstance(session, ClientSession) and session.admin:
            return self.close(session, reason, now)
        self._sessions.detach(session, now)
        log.info("away", role=session.role, number=session.number, name=session.name, reason=reason)
        if isinstance(session, EngineSession) and not session.lost:
            self._sessions.set_lost(session, True)
            return [SendEngineCount(), *self._core(EngineLost(session.number, reason), now)]
        return []

    def _time_passed(self, event: TimePassed, now: float) -> list[Effect]:
        """End the sessions of engines whose grace period is over: a Hello later in this turn does not resume them."""
        effects = self._core(event, now)
        removed = [self._sessions.engines.get(effect.engine) for effect in effects if isinstance(effect, ForgetEngine)]
        for engine in removed:
            if engine is not None:
                log.warning("engine did not return", number=engine.number, name=engine.name, host=engine.host)
                self._sessions.remove(engine, now)
                effects.append(SendEngineCount())
        return effects

    def _session_closed(self, session: Session, event: SessionClosed, now: float) -> list[Effect]:
        cancel = event.cancel or (isinstance(session, ClientSession) and session.cancel_on_leave)
        return self.close(session, event.reason, now, cancel=cancel)

    def close(self, session: Session, reason: str, now: float, *, cancel: bool = False) -> list[Effect]:
        """End a session for good. `cancel`: the unfinished tasks of a client are cancelled, too."""
        self._sessions.remove(session, now)
        log.debug("left", role=session.role, number=session.number, name=session.name, reason=reason)
        if isinstance(session, EngineSession):
            lost = EngineLost(session.number, reason, confirmed=True)
            return [SendEngineCount(), *self._core(lost, now)]
        if isinstance(session, ClientSession):
            effects = self._clients.set_watching(session, False, now)
            return effects if session.admin else effects + self._close_client(session, cancel, now)
        return []

    def _close_client(self, client: ClientSession, cancel: bool, now: float) -> list[Effect]:
        self._budget.release_results(client)
        is_settled = not client.unfinished_count and client.submission_count == client.accepted_count
        if is_settled:
            self._outbox.release_all(client)
        else:
            self._sessions.departed[client.number] = client  # until the core forgets it
            self._budget.depart(client)
        unread = client.unread_tasks() if is_settled else None
        return self._core(ClientLeft(client.number, cancel, unread), now)

    def _death_reported(self, nanny: NannySession, event: DeathReported, now: float) -> list[Effect]:
        engine = self._sessions.engines.get(event.engine)
        if engine is None and event.pid and not event.engine:
            engine = self._sessions.engine_of(nanny, event.pid)
        if engine is None or engine.nanny != nanny.number:
            if event.engine:  # else it died before it joined
                self._ingress.note("death_of_unknown", engine=event.engine, nanny=nanny.number)
            return []
        self._sessions.remove(engine, now)
        log.warning("engine died", number=engine.number, host=engine.host, pid=engine.pid, reason=event.reason)
        lost = EngineLost(engine.number, event.reason, confirmed=True, running=event.running)
        return [SendEngineCount(), *self._core(lost, now)]

    # ---- shutting down -----------------------------------------------------------------------------------------------

    def _stop_received(self, client: ClientSession, event: StopReceived, now: float) -> list[Effect]:
        return self._stop_requested(StopRequested(event.reason or f"client {client.number} asked for it"), now)

    def _stop_requested(self, event: StopRequested, now: float) -> list[Effect]:
        if not self._shutdown.begin(event.reason):
            return []
        effects = self._core(DrainRequested(), now)
        closing = self._shutdown.closing
        if closing is not None:
            effects += [SendMessage(session, closing) for session in self._sessions]
        return effects


def _request_hello(connection: PeerConnection) -> Effect:
    return SendError(connection, "unknown_peer", "say Hello first")
