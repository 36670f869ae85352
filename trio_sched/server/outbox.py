"""The outbox: effects in, messages out. The actor never waits for a peer, because this never does.

A turn's effects are dealt into queues by peer; after the turn each peer with something in its queue gets one message
with all of it.

* To an engine at once: what it waits for, the client waits for, too.
* To a client at once when the line was quiet, or nothing more is to come; else gathered for at most `gather_s`: one
  message with 50 results costs a client a third of 50 messages. Counts of accepted submissions ride along with
  results, or go by themselves when they are worth it.
* A peer has a window in bytes: results that it has not acknowledged, calls that it has not answered. When it is full
  the rest waits here, in this peer's queue and nobody else's (libzmq would drop silently at its high-water mark, so
  it has none).
* A send that fails means that the link is gone. What was on it is kept: results until acknowledged, and calls the
  core gives again.
"""

from __future__ import annotations

from collections.abc import Callable
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
from trio_sched.core.events import SESSION_SHIFT, RecallAnswered
from trio_sched.logs import get_logger
from trio_sched.server.alarm import Alarm
from trio_sched.server.budget import ByteBudget, end_bytes
from trio_sched.server.config import Config
from trio_sched.server.functions import Functions
from trio_sched.server.happenings import Decline, Effect, LinkLost, Tell, TellEngines, Welcomed
from trio_sched.server.hub import Hub
from trio_sched.server.parcels import chunks, end_of, with_inputs
from trio_sched.server.sessions import ClientSession, EngineSession, Parcel, Session, Sessions
from trio_sched.wire.native import (
    Accepted,
    Acked,
    Assign,
    Attached,
    Call,
    Engines,
    Error,
    Events,
    Frame,
    Happened,
    Place,
    Pong,
    Recall,
    Refused,
    Results,
    TaskEnd,
    Welcome,
)

log = get_logger(__name__)
CALLS_PER_MESSAGE = 256
CREDIT_STEPS = 8
"""Credit goes back by itself when an eighth of it has gathered."""
LAZY_S = 0.02
"""Longest that a count of accepted submissions waits for results to ride along with."""
LONE_ACK_BYTES = 1 << 20
"""An engine is told by itself that its results arrived when it holds so many bytes of them for nothing."""
CALL_OVERHEAD_BYTES = 64
MOST_REASON = 1_000
"""Characters of the reason of a refusal."""


class Outbox:
    """All queues to peers."""

    def __init__(
        self,
        hub: Hub,
        config: Config,
        sessions: Sessions,
        functions: Functions,
        budget: ByteBudget,
        instance: str,
    ) -> None:
        self._hub = hub
        self._config = config
        self._sessions = sessions
        self._functions = functions
        self._budget = budget
        self._instance = instance
        self._clients: dict[int, ClientSession] = {}
        """Those with something to be sent, by number."""
        self._engines: dict[int, EngineSession] = {}
        self._gathering: dict[int, ClientSession] = {}
        """Those whose results, or accepted count, wait for the alarm."""
        self._without_credit: dict[int, ClientSession] = {}
        """Those that were told that they may submit nothing."""
        self._released_bytes = 0
        """Of the budget, when those were last looked at."""
        self._engines_changed = False
        self._happened: list[Happened] = []
        self.watchers: dict[int, ClientSession] = {}
        self.alarm = Alarm(self.flush_gathered)
        self._credit_step = max(1, config.credit // CREDIT_STEPS)
        self._handlers: dict[type, Callable[[Any], None]] = {
            AssignTask: self._assign,
            DeliverResult: self._deliver,
            Accept: self._accept,
            Refuse: self._refuse,
            RecallTask: self._recall,
            Publish: self._publish,
            ForgetEngine: self._ignore,
            ForgetSession: self._ignore,
            Welcomed: self._welcome,
            Decline: self._decline,
            Tell: self._tell,
            TellEngines: self._tell_engines,
        }

    # ---- taking effects ---------------------------------------------------------------------------------------------

    def take(self, effects: list[Effect]) -> None:
        """Deal the effects of a turn into the peers' queues."""
        handlers = self._handlers
        remaining = iter(effects)
        effect: Effect | None = None
        while True:
            try:
                for effect in remaining:
                    handlers[type(effect)](effect)
                return
            except Exception as error:
                self._hub.failed("effect", error, effect_type=type(effect).__name__)

    def touch(self, client: ClientSession) -> None:
        """Look after this client's queue at the next flush."""
        self._clients[client.number] = client

    def touch_engine(self, engine: EngineSession) -> None:
        """Look after this engine's queue at the next flush."""
        self._engines[engine.number] = engine

    def _assign(self, effect: AssignTask) -> None:
        engine = self._sessions.engines.get(effect.engine)  # type: ignore[arg-type]
        if engine is None:
            self._elsewhere(effect)  # or its Bye is on its way to the core, which then gives the task to another
            return
        payload = effect.payload
        frames: tuple[Frame, ...] = ()
        if type(payload) is Attached:
            frames = payload.frames
            payload = payload.record
        if effect.inputs:
            payload, frames = with_inputs(payload, frames, effect.inputs)
        payload.attempt = effect.attempt
        engine.calls.append((payload, frames))
        self._engines[engine.number] = engine

    def _deliver(self, effect: DeliverResult) -> None:
        client = self._sessions.clients.get(effect.client)  # type: ignore[arg-type]
        if client is not None:
            client.ends.append(end_of(effect))
            client.unfinished -= 1
            if client.payloads:
                self._budget.release(client, effect.task)  # type: ignore[arg-type]
            self._clients[client.number] = client
        else:
            self._elsewhere(effect)

    def _accept(self, effect: Accept) -> None:
        client = self._sessions.clients.get(effect.client)  # type: ignore[arg-type]
        if client is not None:
            client.accepted += 1
            client.unfinished += 1
            self._clients[client.number] = client
        else:
            self._elsewhere(effect)

    def _refuse(self, effect: Refuse) -> None:
        client = self._sessions.clients.get(effect.client)  # type: ignore[arg-type]
        if client is None:
            self._elsewhere(effect)
            return
        client.accepted += 1
        self._budget.release(client, effect.task)  # type: ignore[arg-type]
        self._clients[client.number] = client
        refused = Refused(effect.task, effect.reason[:MOST_REASON])  # type: ignore[arg-type]
        client.keep_refusal(refused)
        self._send(client, refused)

    def _recall(self, effect: RecallTask) -> None:
        engine = self._sessions.engines.get(effect.engine)  # type: ignore[arg-type]
        if engine is None:
            self._elsewhere(effect)
            return
        for at, (call, _) in enumerate(engine.calls):
            if call.id == effect.task:  # never sent, so the engine cannot answer for it
                del engine.calls[at]
                self._hub.inbox.add_notifications([RecallAnswered(effect.engine, effect.task, True, effect.attempt)])
                return
        engine.recalls.append(effect.task)  # type: ignore[arg-type]
        self._engines[engine.number] = engine

    def _publish(self, effect: Publish) -> None:
        self._happened.append(
            Happened(effect.what, effect.task, effect.engine, effect.client, effect.outcome)  # type: ignore[arg-type]
        )

    def _ignore(self, effect: ForgetEngine | ForgetSession) -> None:
        """The server looks for removed engines and ended sessions itself."""

    def _elsewhere(self, effect: Accept | Refuse | AssignTask | DeliverResult | RecallTask) -> None:
        """No session of ours: a front's own peer, or one that has left."""
        for outlet in self._hub.outlets:
            if outlet.take(effect):
                return

    def drop_function(self, digest: bytes) -> None:
        """Nobody will name this function any more: the engines that have it are told with their next calls."""
        for engine in self._sessions.engines.values():
            if digest in engine.functions:
                engine.functions.discard(digest)
                engine.drops.append(digest)

    # ---- comings ----------------------------------------------------------------------------------------------------

    def _welcome(self, effect: Welcomed) -> None:
        session = effect.session
        if session.link is not effect.link:
            return  # it said Hello on yet another link meanwhile, and will be answered there
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
            engines=self._sessions.engines_here(),
            starting=self._sessions.engines_starting(),
        )
        if isinstance(session, ClientSession):
            welcome.credit = config.credit
            welcome.credit_bytes = self._grant(session)
            welcome.accepted = session.received  # what arrived will be answered, so it need not be sent again
        elif isinstance(session, EngineSession):
            session.begin_anew()  # here, in the order of effects: calls of this very turn may be queued already
            welcome.accepted = session.acked_told = session.taken
            session.untold_bytes = 0
        if self._send(session, welcome) and isinstance(session, ClientSession) and effect.resumed:
            self._send_again(session, effect.received)

    def _decline(self, effect: Decline) -> None:
        self._hub.note(effect.kind, why=effect.message)
        effect.link.send(Error(effect.kind, effect.message))

    def reaches(self, client: ClientSession) -> bool:
        """Send something harmless: whether it is still connected, as far as its transport can tell."""
        client.accepted_told = client.accepted
        return client.link is not None and client.link.send(Pong(client.accepted)) > 0

    def _send_again(self, client: ClientSession, received: int) -> None:
        """After a resumption: what the client has not got. (What it has, `acknowledge` took off already.)"""
        for _, refused in client.refusals:
            self._send(client, refused)
        for parcel in client.unacked:
            if parcel.seq > received:
                records, frames = _split(parcel.ends)
                self._send(client, Results(parcel.seq, records, client.accepted), frames)
        client.accepted_told = min(client.accepted_told, client.received)
        self._clients[client.number] = client

    def _tell(self, effect: Tell) -> None:
        if isinstance(effect.session, EngineSession):
            self._flush_engine(effect.session)  # in order: it answers a Recall before it heeds a Closing
        self._send(effect.session, effect.message, effect.frames)

    def _tell_engines(self, _effect: TellEngines) -> None:
        self._engines_changed = True

    def _send(self, session: Session, message: Any, frames: tuple[Frame, ...] = ()) -> int:
        """Send now. 0: it is not there."""
        link = session.link
        if link is None:
            return 0
        size = link.send(message, frames)
        if not size:
            self._hub.inbox.add_notifications([LinkLost(link, "its connection is gone")])
        return size

    # ---- flushing ---------------------------------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Send what there is, as far as windows and gathering allow."""
        if self._engines:
            for engine in self._engines.values():
                try:
                    self._flush_engine(engine)
                except Exception as error:
                    self._cut_off(engine, error)
            self._engines.clear()
        if self._clients:
            for client in self._clients.values():
                try:
                    self._flush_client(client, now)
                    self._tell_credit(client)
                except Exception as error:
                    self._cut_off(client, error)
            self._clients.clear()
        if self._without_credit and self._released_bytes != self._budget.released_bytes:
            self.tell_credit()
        if self._engines_changed:
            self._engines_changed = False
            message = Engines(self._sessions.pythons(), self._sessions.engines_here())
            for client in self._sessions.clients.values():
                self._send(client, message)
        if self._happened:
            self._flush_events()
        self._hub.flush()

    def _cut_off(self, session: Session, error: Exception) -> None:
        """What is queued for a peer cannot be sent (R33): its connection ends, and nobody else's."""
        self._hub.failed("flush", error, session=session.number)
        if session.link is not None:
            self._hub.inbox.add_notifications([LinkLost(session.link, "what was queued for it could not be sent")])

    def _flush_client(self, client: ClientSession, now: float) -> None:
        if client.ends:
            due = client.flushed_at + self._config.gather_s
            if now >= due or not client.unfinished:
                self._send_ends(client, now)
                return
        else:
            untold = client.accepted - client.accepted_told
            if untold >= self._credit_step:
                self._send_accepted(client)
                return
            due = now + LAZY_S
        if client.number not in self._gathering:
            self._gathering[client.number] = client
        self.alarm.set(due)

    def flush_gathered(self, now: float) -> None:
        """The alarm went off: what was gathered goes out."""
        gathering, self._gathering = self._gathering, {}
        for client in gathering.values():
            if client.ends:
                self._send_ends(client, now)
            elif client.accepted != client.accepted_told:
                self._send_accepted(client)
        self._hub.flush()

    def _send_accepted(self, client: ClientSession) -> None:
        client.accepted_told = client.accepted
        self._send(client, Accepted(client.accepted))

    def _grant(self, client: ClientSession) -> int:
        credit = client.credit_bytes = self._budget.credit_of(client)
        self._budget.promise(client)
        if credit:
            self._without_credit.pop(client.number, None)
        else:
            self._without_credit[client.number] = client
        return credit

    def _tell_credit(self, client: ClientSession) -> None:
        if client.link is None:
            return
        if not self._budget.worth_telling(client, self._budget.credit_of(client)):
            self._budget.promise(client)
        else:
            credit = self._grant(client)
            client.accepted_told = client.accepted
            self._send(client, Accepted(client.accepted, credit, self._budget.limit_name(client)))

    def tell_credit(self) -> None:
        """Those without credit may have some now, because others released memory."""
        self._released_bytes = self._budget.released_bytes
        for client in list(self._without_credit.values()):
            if client.number in self._sessions.clients:
                self._tell_credit(client)
            else:
                del self._without_credit[client.number]

    def count_unread(self, client: ClientSession) -> None:
        """The results that a client has not read are more or fewer: perhaps it is paused or resumed (R34)."""
        event = self._budget.count_unread(client)
        if event is not None:
            log.info("paused" if client.paused else "resumed", client=client.number, unread_bytes=client.unread_bytes)
            self._hub.inbox.add_notifications([event])

    def _send_ends(self, client: ClientSession, now: float) -> None:
        """Results, in messages of a bounded size, while the window has room."""
        if client.link is None:
            self.count_unread(client)
            return
        window = self._config.window_bytes
        sent = 0
        for chunk, records, frames in chunks(client.ends):
            if client.unacked_bytes >= window:
                break
            client.seq += 1
            size = self._send(client, Results(client.seq, records, client.accepted), frames)
            parcel = Parcel(client.seq, size or sum(map(end_bytes, chunk)), chunk)
            client.unacked.append(parcel)
            client.unacked_bytes += parcel.size
            sent += len(chunk)
            if not size:
                break
        if client.counted_ends:
            counted = min(sent, client.counted_ends)
            client.waiting_bytes -= sum([end_bytes(end) for end in client.ends[:counted]])
            client.counted_ends -= counted
        del client.ends[:sent]
        self.count_unread(client)
        client.accepted_told = client.accepted
        client.flushed_at = now

    def _flush_engine(self, engine: EngineSession) -> None:
        if engine.link is None:
            engine.calls.clear()  # the core gives them again when it returns
            engine.recalls.clear()
            return
        if engine.calls:
            self._send_calls(engine)
        if engine.recalls:
            recalls, engine.recalls = engine.recalls, []
            self._send(engine, Recall(recalls, self._ack(engine)))
        if engine.untold_bytes > LONE_ACK_BYTES:
            self.acknowledge(engine)

    def _send_calls(self, engine: EngineSession) -> None:
        window = self._config.window_bytes
        while engine.calls and engine.unanswered_bytes < window:
            calls: list[Call] = []
            frames: list[Frame] = []
            functions: dict[bytes, bytes] = {}
            places: dict[int, Place] = {}
            for call, attached in engine.calls[:CALLS_PER_MESSAGE]:
                size = CALL_OVERHEAD_BYTES + len(call.body)
                if attached:
                    frames += attached
                    size += sum([len(frame) for frame in attached])
                engine.sizes.append(size)
                engine.unanswered_bytes += size
                calls.append(call)
                if call.fn and call.fn not in engine.functions:
                    self._add_function(engine, call.fn, functions)
                client = call.id >> SESSION_SHIFT
                if client not in engine.places:
                    self._add_place(engine, client, places)
                if engine.unanswered_bytes >= window:
                    break
            del engine.calls[: len(calls)]
            drops, engine.drops = engine.drops, []
            message = Assign(calls, functions, drops, places, self._ack(engine))
            if not self._send(engine, message, tuple(frames)):
                return

    def _add_function(self, engine: EngineSession, digest: bytes, functions: dict[bytes, bytes]) -> None:
        body = self._functions.bodies.get(digest)
        if body is not None:
            functions[digest] = body
            engine.functions.add(digest)
            if digest in engine.drops:
                engine.drops.remove(digest)

    def _add_place(self, engine: EngineSession, number: int, places: dict[int, Place]) -> None:
        engine.places.add(number)
        client = self._sessions.clients.get(number) or self._sessions.departed.get(number)
        if client is not None:
            places[number] = client.place

    # ---- acknowledging engines --------------------------------------------------------------------------------------

    def _ack(self, engine: EngineSession) -> int:
        engine.untold_bytes = 0
        engine.acked_told = engine.taken
        return engine.taken

    def acknowledge(self, engine: EngineSession) -> None:
        """Tell an engine by itself what arrived, if it does not know."""
        if engine.acked_told != engine.taken:
            self._send(engine, Acked(self._ack(engine)))

    def probe(self, engine: EngineSession) -> None:
        """Send something harmless, to learn whether it is still connected: a dead process cannot be sent to."""
        self._send(engine, Acked(self._ack(engine)))

    # ---- monitors ---------------------------------------------------------------------------------------------------

    def _flush_events(self) -> None:
        """What happened, to those who listen; one that does not keep up misses events rather than fill our memory."""
        events, self._happened = self._happened, []
        message = Events(events)
        for client in self.watchers.values():
            link = client.link
            if link is None:
                continue
            if link.heard_at > client.heard_watching:
                client.heard_watching, client.watching = link.heard_at, 0
            if client.watching > self._config.window_bytes:
                self._hub.counters["events_missed"] += len(events)
                continue
            client.watching += self._send(client, message)


def _split(ends: list[TaskEnd | Attached]) -> tuple[list[TaskEnd], tuple[Frame, ...]]:
    """The records of some ends, and their frames in order."""
    for _, records, frames in chunks(ends, len(ends), None):
        return records, frames
    return [], ()
