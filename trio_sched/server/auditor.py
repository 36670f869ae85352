"""The auditor: turns the passing of time into events.

The auditor's task sleeps until the next deadline of the core, or until the next heartbeat period is over, and adds an
event to the inbox. In the turn, `SessionAudit` then checks the sessions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from trio_sched.core.events import TimePassed
from trio_sched.server.budget import ByteBudget
from trio_sched.server.config import Config
from trio_sched.server.events import AuditDue, Effect
from trio_sched.server.ingress import Inbox, Ingress
from trio_sched.server.memory import BurstTrim
from trio_sched.server.outbox import Outbox
from trio_sched.server.session_manager import SessionManager
from trio_sched.server.sessions import ClientSession, EngineSession, Session, Sessions
from trio_sched.wire.heartbeat import Heartbeat


class Timer:
    """Calls a function at a time that can be changed without waking a task.

    Trio keeps the deadlines of cancel scopes in a heap of its own: moving one costs about 2 us, a task that wakes up to
    look at the clock 10 to 25.
    """

    def __init__(self, fire: Callable[[float], None]) -> None:
        self._fire = fire
        self._scope: trio.CancelScope | None = None
        #: When the function is called next.
        self.at = math.inf

    def set(self, at: float) -> None:
        """Fire at `at`, unless an earlier time is set."""
        if at < self.at:
            self.at = at
            if self._scope is not None:
                self._scope.deadline = at

    async def run(self) -> None:
        """Fire until cancelled."""
        while True:
            with trio.CancelScope(deadline=self.at) as self._scope:
                await trio.sleep_forever()
            self._scope = None
            self.fire(trio.current_time())

    def fire(self, now: float) -> None:
        """Call the function, which may set the timer again."""
        self.at = math.inf
        self._fire(now)


class Auditor:
    """Sends the actor a `TimePassed` at each deadline of the core, and an `AuditDue` in each heartbeat period."""

    def __init__(self, inbox: Inbox, heartbeat_s: float, now: float) -> None:
        self._inbox = inbox
        self._heartbeat_s = heartbeat_s
        self._next_audit_at = now + heartbeat_s
        self._deadline: float | None = None
        self.timer = Timer(self._fire)
        self.timer.set(self._next_audit_at)

    async def run(self) -> None:
        """Send events until cancelled."""
        await self.timer.run()

    def set_deadline(self, deadline: float | None) -> None:
        """Set the core's next deadline; None if nothing waits for time."""
        self._deadline = deadline
        if deadline is not None:
            self.timer.set(deadline)

    def _fire(self, now: float) -> None:
        if self._deadline is not None and self._deadline <= now:
            self._inbox.add_notifications([TimePassed()])
            self._deadline = None  # until the actor sets the next one
        if now >= self._next_audit_at:
            self._next_audit_at = now + self._heartbeat_s
            # after the events of messages that arrived before, so that their senders do not count as silent
            self._inbox.add_client_events([AuditDue()])
        if self._deadline is not None:
            self.timer.set(self._deadline)
        self.timer.set(self._next_audit_at)


class SessionAudit:
    """The handler of `AuditDue` in the actor's turn: checks every session once in a heartbeat period.

    * A peer from which nothing was received for `missed_heartbeats` periods is disconnected. The heartbeats of a nanny
      count for its engines.
    * The session of a disconnected client or nanny is closed after `keep_results_s`, or after `keep_idle_s` if the
      client has neither tasks nor results.
    * The answers of engines are acknowledged, and memory is counted.

    While this process is suspended, or the machine sleeps, no message can be received: afterwards each peer has the
    full time again.
    """

    def __init__(
        self,
        config: Config,
        ingress: Ingress,
        sessions: Sessions,
        manager: SessionManager,
        outbox: Outbox,
        budget: ByteBudget,
        now: float,
    ) -> None:
        self._config = config
        self._ingress = ingress
        self._sessions = sessions
        self._manager = manager
        self._outbox = outbox
        self._budget = budget
        self._burst_trim = BurstTrim()
        self._heartbeat = Heartbeat(now, period_s=config.heartbeat_s, missed=config.missed_heartbeats)
        self._silence_limit_s = config.heartbeat_s * config.missed_heartbeats

    def handle(self, _event: AuditDue, now: float) -> list[Effect]:
        """Check every session, acknowledge answers, and count memory."""
        self._heartbeat.tick(now)
        effects = [effect for session in list(self._sessions) for effect in self._check_session(session, now)]
        for engine in self._sessions.engines.values():
            self._outbox.acknowledge(engine)
        self._budget.recount()
        self._budget.trim()
        self._burst_trim.check(self._ingress.counters.total())
        for client in self._sessions.clients.values():
            if client.paused:
                self._outbox.count_unread(client)  # the limit may have grown
        self._outbox.send_credit()
        return effects

    def _check_session(self, session: Session, now: float) -> list[Effect]:
        ends_with_connection = isinstance(session, ClientSession) and session.cancel_on_leave
        if session.connection is None:
            return self._check_disconnected(session, ends_with_connection, now)
        last_received_at = self._last_received_at(session)
        if not self._heartbeat.is_silent(last_received_at, now):
            self._probe(session, now)
            return []
        reason = f"nothing was received from it for {self._heartbeat.silence_s(last_received_at, now):.3g} s"
        if ends_with_connection:
            return self._manager.close(session, reason, now, cancel=True)
        return self._manager.disconnect(session, reason, now)

    def _check_disconnected(self, session: Session, ends_with_connection: bool, now: float) -> list[Effect]:
        if isinstance(session, EngineSession):
            return []  # the core's grace period counts
        away_s = now - session.disconnected_at if session.disconnected_at is not None else 0.0
        is_empty = isinstance(session, ClientSession) and session.is_empty()
        limit_s = self._config.keep_idle_s if is_empty else self._config.keep_results_s
        if away_s < (self._silence_limit_s if ends_with_connection else limit_s):
            return []
        reason = (
            "the client has been away without tasks and results"
            if is_empty
            else "the client did not return for its results"
        )
        return self._manager.close(session, reason, now, cancel=ends_with_connection)

    def _probe(self, session: Session, now: float) -> None:
        """Probe an engine from which nothing was received but the heartbeats of its nanny: its Bye, or the report of
        its death, may be lost."""
        if (
            isinstance(session, EngineSession)
            and now - max(session.last_received_at, session.probed_at) > self._silence_limit_s
        ):
            session.probed_at = now
            self._outbox.probe(session)

    def _last_received_at(self, session: Session) -> float:
        if isinstance(session, EngineSession):
            nanny = self._sessions.nannies.get(session.nanny)
            if nanny is not None:
                return max(session.last_received_at, nanny.last_received_at)
        return session.last_received_at
