"""The outbox: effects in, messages out. It never waits for a peer, so that the actor never does.

The effects of a turn are put into one queue for each peer; after the turn each peer gets one message with the contents
of its queue.

* Messages to engines are sent at once: an engine that waits for a call also delays a client.
* Results are sent to a client at once when none was sent within `gather_s`, or when the client has no other unfinished
  task. Otherwise they are collected for at most `gather_s`: one message with 50 results costs a client a third of 50
  messages. Counts of accepted submissions are sent with results, or as messages of their own: at an eighth of the
  credit, or after `ACCEPTED_DELAY_S`.
* A peer has a window in bytes: results that it has not acknowledged, calls that it has not answered. When the window
  is full, the rest waits in the queue of this peer alone. The ROUTER socket has no high-water mark, at which libzmq
  would drop messages silently.
* A send that fails means that the connection ended. Sent results are kept until they are acknowledged; sent calls are
  kept by the core, which assigns them again.
* An effect for a foreign id is passed to the front that made the id.

A failed send, the recall of a call that was never sent, and a change of a client's memory become events, which the
actor handles in the same step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from trio_sched.core.effects import (
    Accept,
    AssignTask,
    DeliverResult,
    ForgetEngine,
    ForgetSession,
    Publish,
    RecallTask,
    Refuse,
)
from trio_sched.core.events import RecallAnswered
from trio_sched.core.ids import is_foreign, is_native, session_of
from trio_sched.logs import get_logger
from trio_sched.server.batching import chunks, native_number, result_of, with_inputs
from trio_sched.server.budget import ByteBudget, result_bytes
from trio_sched.server.config import Config
from trio_sched.server.events import (
    ConnectionLost,
    Effect,
    Event,
    SendEngineCount,
    SendError,
    SendMessage,
    SendWelcome,
)
from trio_sched.server.ingress import EffectHandler, Front, Ingress, TaskEffect
from trio_sched.server.sessions import ClientSession, EngineSession, FunctionCache, Session, Sessions, UnackedBatch
from trio_sched.wire.native import (
    Accepted,
    Acked,
    Assign,
    Call,
    ClientEnvironment,
    Engines,
    Error,
    Events,
    Frame,
    FramedRecord,
    MonitorEvent,
    Pong,
    Recall,
    Refused,
    Results,
    TaskResult,
    Welcome,
)

log = get_logger(__name__)
CALLS_PER_MESSAGE = 256
#: An `Accepted` message is sent when one part of this many of the credit has been used and not yet returned.
CREDIT_STEPS = 8
#: The longest time, in seconds, for which a count of accepted submissions waits for results of the same client.
ACCEPTED_DELAY_S = 0.02
#: An `Acked` message is sent when an engine keeps more than this many bytes of answers that have arrived; otherwise
#: calls, recalls and audits carry the acknowledgement.
LONE_ACK_BYTES = 1 << 20
CALL_OVERHEAD_BYTES = 64
#: The most characters of the reason of a refusal.
MAX_REFUSAL_CHARACTERS = 1_000
FAILURE_TEXT = "the scheduler failed while it handled this; its log has the traceback"
#: The explanation for a peer whose session has ended while it was connected; the peer sends a Hello again.
FORGOTTEN_TEXT = "the scheduler has ended this session"


class Outbox:
    """The queues to all peers."""

    def __init__(
        self,
        ingress: Ingress,
        config: Config,
        sessions: Sessions,
        functions: FunctionCache,
        budget: ByteBudget,
        instance: str,
        fronts: Sequence[Front],
    ) -> None:
        """Send through the connections of these fronts.

        :raises ValueError: more than one front has an effect handler.
        """
        self._ingress = ingress
        self._config = config
        self._sessions = sessions
        self._functions = functions
        self._budget = budget
        self._instance = instance
        self._flushes = tuple(front.flush for front in fronts)
        self._effect_handler = _only_effect_handler(fronts)
        #: Peers whose queues the next flush sends, by number.
        self._dirty_clients: dict[int, ClientSession] = {}
        self._dirty_engines: dict[int, EngineSession] = {}
        #: Clients whose results, or count of accepted submissions, wait until `flush_at`.
        self._gathering: dict[int, ClientSession] = {}
        #: When `flush` is to be called again at the latest.
        self.flush_at = math.inf
        #: Clients whose last credit in bytes was 0.
        self._without_credit: dict[int, ClientSession] = {}
        #: The budget's `released_bytes` when the credit of these clients was last computed.
        self._released_bytes = 0
        self._engines_changed = False
        self._monitor_events: list[MonitorEvent] = []
        #: Clients that watch events (R28), by number.
        self.watchers: dict[int, ClientSession] = {}
        self._events: list[Event] = []
        #: The time of the current turn.
        self._now = 0.0
        self._credit_step = max(1, config.credit // CREDIT_STEPS)
        self._handlers: dict[type, Callable[[Any], None]] = {
            AssignTask: self._assign,
            DeliverResult: self._deliver,
            Accept: self._accept,
            Refuse: self._refuse,
            RecallTask: self._recall,
            Publish: self._publish,
            ForgetEngine: self._forget_engine,
            ForgetSession: self._forget_session,
            SendWelcome: self._welcome,
            SendError: self._send_error,
            SendMessage: self._send_message,
            SendEngineCount: self._send_engine_count,
        }

    # ---- carrying out effects ----------------------------------------------------------------------------------------

    def take(self, effects: list[Effect], now: float) -> None:
        """Carry out the effects of a turn: change the sessions, and queue what is to be sent."""
        self._now = now
        handlers = self._handlers
        remaining = iter(effects)
        effect: Effect | None = None
        while True:
            try:
                for effect in remaining:
                    handlers[type(effect)](effect)
                return
            except Exception as error:
                self._ingress.report_error("effect", error, effect_type=type(effect).__name__)

    def take_events(self) -> list[Event]:
        """Take the events that the outbox made since the last call."""
        events, self._events = self._events, []
        return events

    def mark_dirty(self, client: ClientSession) -> None:
        """Have the next flush send this client's queue."""
        self._dirty_clients[client.number] = client

    def mark_engine_dirty(self, engine: EngineSession) -> None:
        """Have the next flush send this engine's queue."""
        self._dirty_engines[engine.number] = engine

    def _pass_on(self, effect: TaskEffect, owner: int | str) -> None:
        """Pass an effect for a peer without a session to the front that made the id, if `owner` is a foreign id."""
        if is_foreign(owner) and self._effect_handler is not None:
            self._effect_handler.take(effect)

    def _assign(self, effect: AssignTask) -> None:
        engine = self._sessions.engines.get(effect.engine)
        if engine is None:
            self._pass_on(effect, effect.engine)  # a native engine left in this turn; the core assigns the task again
            return
        payload = effect.payload
        frames: tuple[Frame, ...] = ()
        if type(payload) is FramedRecord:
            frames = payload.frames
            payload = payload.record
        if effect.inputs:
            payload, frames = with_inputs(payload, frames, effect.inputs)
        payload.attempt = effect.attempt
        engine.queued_calls.append((payload, frames))
        self._dirty_engines[engine.number] = engine

    def _deliver(self, effect: DeliverResult) -> None:
        client = self._sessions.clients.get(effect.client)
        if client is None:
            self._pass_on(effect, effect.client)
            return
        client.queued_results.append(result_of(effect))
        client.unfinished_count -= 1
        if client.payloads:
            self._budget.release(client, effect.task)
        self._dirty_clients[client.number] = client

    def _accept(self, effect: Accept) -> None:
        client = self._sessions.clients.get(effect.client)
        if client is None:
            self._pass_on(effect, effect.client)
            return
        client.accepted_count += 1
        client.unfinished_count += 1
        self._dirty_clients[client.number] = client

    def _refuse(self, effect: Refuse) -> None:
        client = self._sessions.clients.get(effect.client)
        if client is None:
            self._pass_on(effect, effect.client)
            return
        client.accepted_count += 1
        self._budget.release(client, effect.task)
        self._dirty_clients[client.number] = client
        refused = Refused(native_number(effect.task), effect.reason[:MAX_REFUSAL_CHARACTERS])
        client.keep_refusal(refused)
        self._send(client, refused)

    def _recall(self, effect: RecallTask) -> None:
        engine = self._sessions.engines.get(effect.engine)
        if engine is None:
            self._pass_on(effect, effect.engine)
            return
        for at, (call, _) in enumerate(engine.queued_calls):
            if call.id == effect.task:  # never sent, so the engine cannot answer for it
                del engine.queued_calls[at]
                self._events.append(RecallAnswered(effect.engine, effect.task, True, effect.attempt))
                return
        engine.queued_recalls.append(native_number(effect.task))
        self._dirty_engines[engine.number] = engine

    def _publish(self, effect: Publish) -> None:
        task, engine, client = map(_native_or_none, (effect.task, effect.engine, effect.client))
        self._monitor_events.append(MonitorEvent(effect.what, task, engine, client, effect.outcome))

    def _forget_engine(self, effect: ForgetEngine) -> None:
        engine = self._sessions.engines.get(effect.engine)
        if engine is not None:
            log.warning("engine forgotten after a failure", number=engine.number, name=engine.name, host=engine.host)
            self._drop(engine)
            self._engines_changed = True
        else:
            self._pass_on(effect, effect.engine)

    def _forget_session(self, effect: ForgetSession) -> None:
        departed = self._sessions.departed.pop(effect.client, None)
        if departed is not None:
            self.release_all(departed)
            return
        client = self._sessions.clients.get(effect.client)
        if client is None:
            self._pass_on(effect, effect.client)
        elif client.welcomed:  # else: for an earlier session, closed and renewed in this turn
            self._drop(client)
            self._budget.release_results(client)
            self.release_all(client)

    def _drop(self, session: Session) -> None:
        """Remove a session that the core has removed. A peer that is connected must send another Hello."""
        if session.connection is not None:
            session.connection.send(Error("unknown_peer", FORGOTTEN_TEXT))
        self._sessions.remove(session, self._now)

    def release_all(self, client: ClientSession) -> None:
        """Release the memory and the functions of a client that left for good."""
        self._budget.release_all(client)
        for digest in client.functions:
            if self._functions.release(client.number, digest):
                self.drop_function(digest)

    def drop_function(self, digest: bytes) -> None:
        """Queue a request to drop a function, which no later task will name, for the next `Assign` of each engine."""
        for engine in self._sessions.engines.values():
            if digest in engine.known_functions:
                engine.known_functions.discard(digest)
                engine.queued_drops.append(digest)

    # ---- joining -----------------------------------------------------------------------------------------------------

    def _welcome(self, effect: SendWelcome) -> None:
        session = effect.session
        if isinstance(session, ClientSession):
            session.welcomed = True
        if session.connection is not effect.connection:
            return  # the peer has sent another Hello over another connection, and is answered there
        config = self._config
        welcome = Welcome(
            session.number,
            session.secret,
            self._instance,
            resumed=effect.resumed,
            renewed=effect.renewed,
            heartbeat_s=config.heartbeat_s,
            max_message_bytes=config.max_message_bytes,
            pythons=self._sessions.pythons(),
            engines=self._sessions.connected_engine_count(),
            starting=self._sessions.starting_engine_count(),
        )
        if isinstance(session, ClientSession):
            welcome.credit = config.credit
            welcome.credit_bytes = self._grant(session)
            welcome.accepted = session.submission_count  # these will be answered, and need not be sent again
        elif isinstance(session, EngineSession):
            session.reset_queues()  # here, in the order of effects: later ones queue calls
            welcome.accepted = self._ack(session)
        if self._send(session, welcome) and isinstance(session, ClientSession) and effect.resumed:
            self._send_again(session, effect.received)

    def _send_again(self, client: ClientSession, received: int) -> None:
        """After a resumption, send the refusals and results that the client has not received."""
        for _, refused in client.refusals:
            self._send(client, refused)
        for batch in client.unacked:
            if batch.seq > received:
                records, frames = _split(batch.results)
                self._send(client, Results(batch.seq, records, client.accepted_count), frames)
        client.accepted_sent_count = min(client.accepted_sent_count, client.submission_count)
        self._dirty_clients[client.number] = client

    def reaches(self, client: ClientSession) -> bool:
        """Send the client a count that it may have already. Returns whether the transport has its connection."""
        client.accepted_sent_count = client.accepted_count
        return client.connection is not None and client.connection.send(Pong(client.accepted_count)) > 0

    # ---- messages ----------------------------------------------------------------------------------------------------

    def _send_error(self, effect: SendError) -> None:
        effect.connection.send(Error(effect.kind, effect.reason))

    def _send_message(self, effect: SendMessage) -> None:
        if isinstance(effect.session, EngineSession):
            self._flush_engine(effect.session)  # in order: the engine answers a Recall before a Closing
        self._send(effect.session, effect.message, effect.frames)

    def _send_engine_count(self, _effect: SendEngineCount) -> None:
        self._engines_changed = True

    def _send(self, session: Session, message: Any, frames: tuple[Frame, ...] = ()) -> int:
        """Send now. Returns the size of the message, 0 if the peer is not connected."""
        connection = session.connection
        if connection is None:
            return 0
        size = connection.send(message, frames)
        if not size:
            self._events.append(ConnectionLost(connection, "its connection is gone"))
        return size

    # ---- flushing ----------------------------------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Send the queues, as far as the windows and `gather_s` allow."""
        if self._dirty_engines:
            engines, self._dirty_engines = self._dirty_engines, {}
            for engine in engines.values():
                try:
                    self._flush_engine(engine)
                except Exception as error:
                    self._end_connection(engine, error)
        if self._dirty_clients:
            clients, self._dirty_clients = self._dirty_clients, {}
            for client in clients.values():
                try:
                    self._flush_client(client, now)
                    self._send_credit(client)
                except Exception as error:
                    self._end_connection(client, error)
        if now >= self.flush_at:
            self._flush_gathered(now)
        if self._without_credit and self._released_bytes != self._budget.released_bytes:
            self.send_credit()
        if self._engines_changed:
            self._engines_changed = False
            message = Engines(self._sessions.pythons(), self._sessions.connected_engine_count())
            for client in self._sessions.clients.values():
                self._send(client, message)
        if self._monitor_events:
            self._flush_monitor_events()
        for flush in self._flushes:
            flush()

    def flush_all(self, now: float) -> None:
        """Send the collected results, too; for the last turn."""
        self.flush_at = now
        self.flush(now)

    def _end_connection(self, session: Session, error: Exception) -> None:
        """Report the connection of a peer whose queue cannot be sent as lost (R33); other peers are not affected."""
        self._ingress.report_error("flush", error, session=session.number)
        if session.connection is not None:
            why = "what was queued for it could not be sent"
            self._events.append(ConnectionLost(session.connection, why))

    def _flush_client(self, client: ClientSession, now: float) -> None:
        if client.queued_results:
            due = client.flushed_at + self._config.gather_s
            if now >= due or not client.unfinished_count:
                self._send_results(client, now)
                return
        else:
            if client.accepted_count - client.accepted_sent_count >= self._credit_step:
                self._send_accepted(client)
                return
            due = now + ACCEPTED_DELAY_S
        if client.number not in self._gathering:
            self._gathering[client.number] = client
        if due < self.flush_at:
            self.flush_at = due

    def _flush_gathered(self, now: float) -> None:
        self.flush_at = math.inf
        gathering, self._gathering = self._gathering, {}
        for client in gathering.values():
            try:
                if client.queued_results:
                    self._send_results(client, now)
                elif client.accepted_count != client.accepted_sent_count:
                    self._send_accepted(client)
            except Exception as error:
                self._end_connection(client, error)

    def _send_accepted(self, client: ClientSession) -> None:
        client.accepted_sent_count = client.accepted_count
        self._send(client, Accepted(client.accepted_count))

    def _send_results(self, client: ClientSession, now: float) -> None:
        """Send results, in messages of a bounded size, while the window has room."""
        if client.connection is None:
            self.count_unread(client)
            return
        window = self._config.window_bytes
        sent = 0
        for chunk, records, frames in chunks(client.queued_results):
            if client.unacked_bytes >= window:
                break
            client.seq += 1
            size = self._send(client, Results(client.seq, records, client.accepted_count), frames)
            batch = UnackedBatch(client.seq, size or sum(map(result_bytes, chunk)), chunk)
            client.unacked.append(batch)
            client.unacked_bytes += batch.size
            sent += len(chunk)
            if not size:
                break
        if client.counted_results:
            counted = min(sent, client.counted_results)
            client.waiting_bytes -= sum([result_bytes(result) for result in client.queued_results[:counted]])
            client.counted_results -= counted
        del client.queued_results[:sent]
        self.count_unread(client)
        client.accepted_sent_count = client.accepted_count
        client.flushed_at = now

    # ---- credit ------------------------------------------------------------------------------------------------------

    def _grant(self, client: ClientSession) -> int:
        credit = client.credit_bytes = self._budget.credit_of(client)
        self._budget.promise(client)
        if credit:
            self._without_credit.pop(client.number, None)
        else:
            self._without_credit[client.number] = client
        return credit

    def _send_credit(self, client: ClientSession) -> None:
        if client.connection is None:
            return
        if not self._budget.has_changed_enough(client, self._budget.credit_of(client)):
            self._budget.promise(client)
        else:
            credit = self._grant(client)
            client.accepted_sent_count = client.accepted_count
            self._send(client, Accepted(client.accepted_count, credit, self._budget.limit_name(client)))

    def send_credit(self) -> None:
        """Send the clients without credit their present credit: other clients have released memory."""
        self._released_bytes = self._budget.released_bytes
        for client in list(self._without_credit.values()):
            if client.number in self._sessions.clients:
                self._send_credit(client)
            else:
                del self._without_credit[client.number]

    def count_unread(self, client: ClientSession) -> None:
        """Count the results that a client has not read; add an event if the client is to be paused or resumed (R34)."""
        event = self._budget.count_unread(client)
        if event is not None:
            log.info("paused" if client.paused else "resumed", client=client.number, unread_bytes=client.unread_bytes)
            self._events.append(event)

    # ---- engines -----------------------------------------------------------------------------------------------------

    def _flush_engine(self, engine: EngineSession) -> None:
        if engine.connection is None:
            engine.queued_calls.clear()  # the core assigns them again when the engine returns
            engine.queued_recalls.clear()
            return
        if engine.queued_calls:
            self._send_calls(engine)
        if engine.queued_recalls:
            recalls, engine.queued_recalls = engine.queued_recalls, []
            self._send(engine, Recall(recalls, self._ack(engine)))
        if engine.unacked_bytes > LONE_ACK_BYTES:
            self.acknowledge(engine)

    def _send_calls(self, engine: EngineSession) -> None:
        window = self._config.window_bytes
        while engine.queued_calls and engine.unanswered_bytes < window:
            calls: list[Call] = []
            frames: list[Frame] = []
            functions: dict[bytes, bytes] = {}
            environments: dict[int, ClientEnvironment] = {}
            for call, attached in engine.queued_calls[:CALLS_PER_MESSAGE]:
                size = CALL_OVERHEAD_BYTES + len(call.body)
                if attached:
                    frames += attached
                    size += sum([len(frame) for frame in attached])
                engine.call_sizes.append(size)
                engine.unanswered_bytes += size
                calls.append(call)
                if call.fn and call.fn not in engine.known_functions:
                    self._add_function(engine, call.fn, functions)
                client = session_of(call.id)
                if client not in engine.known_environments:
                    self._add_environment(engine, client, environments)
                if engine.unanswered_bytes >= window:
                    break
            del engine.queued_calls[: len(calls)]
            drops, engine.queued_drops = engine.queued_drops, []
            message = Assign(calls, functions, drops, environments, self._ack(engine))
            if not self._send(engine, message, tuple(frames)):
                return

    def _add_function(self, engine: EngineSession, digest: bytes, functions: dict[bytes, bytes]) -> None:
        body = self._functions.bodies.get(digest)
        if body is not None:
            functions[digest] = body
            engine.known_functions.add(digest)
            if digest in engine.queued_drops:
                engine.queued_drops.remove(digest)

    def _add_environment(self, engine: EngineSession, number: int, environments: dict[int, ClientEnvironment]) -> None:
        engine.known_environments.add(number)
        client = self._sessions.clients.get(number) or self._sessions.departed.get(number)
        if client is not None:
            environments[number] = client.environment

    def _ack(self, engine: EngineSession) -> int:
        engine.unacked_bytes = 0
        engine.acked_count = engine.answer_count
        return engine.answer_count

    def acknowledge(self, engine: EngineSession) -> None:
        """Send an engine the count of its answers, if the last count that was sent is smaller."""
        if engine.acked_count != engine.answer_count:
            self._send(engine, Acked(self._ack(engine)))

    def probe(self, engine: EngineSession) -> None:
        """Send the engine a count that it may have already: a failed send shows that the engine is not connected."""
        self._send(engine, Acked(self._ack(engine)))

    # ---- monitors ----------------------------------------------------------------------------------------------------

    def _flush_monitor_events(self) -> None:
        """Send the watchers the events of this turn. Without a message of the watcher, at most `window_bytes` of events
        are sent to it; further ones are dropped."""
        events, self._monitor_events = self._monitor_events, []
        message = Events(events)
        for client in self.watchers.values():
            if client.connection is None:
                continue
            if client.last_received_at > client.events_counted_from:
                client.events_counted_from, client.events_bytes = client.last_received_at, 0
            if client.events_bytes > self._config.window_bytes:
                self._ingress.counters["events_missed"] += len(events)
                continue
            client.events_bytes += self._send(client, message)


def _only_effect_handler(fronts: Iterable[Front]) -> EffectHandler | None:
    handlers = [handler for front in fronts if (handler := front.effect_handler) is not None]
    if len(handlers) > 1:
        raise ValueError("only one of the fronts may carry out the effects for foreign ids")
    return handlers[0] if handlers else None


def _native_or_none(any_id: int | str | None) -> int | None:
    """Return the id as monitor events have it: None for a foreign id, which is not a number."""
    return any_id if any_id is not None and is_native(any_id) else None


def _split(results: list[TaskResult | FramedRecord]) -> tuple[list[TaskResult], tuple[Frame, ...]]:
    """Return the records of results, and their frames in order."""
    for _, records, frames in chunks(results, len(results), None):
        return records, frames
    return [], ()
