"""The auditor: what happens because time passes. It sleeps until the next deadline, of the core or of its own round.

Once in a heartbeat period it makes a round: who was not heard for too long is away; who was away for too long is
gone, soon when nothing of it is left; engines hear what arrived of them; functions that nobody needs are let go. A peer
was last heard when its message was *received*; a nanny's beats count for its engines. When the round itself comes late
by more than a period, this process was stopped, or the machine slept: then nobody could be heard, and everyone gets as
much time again.
"""

from __future__ import annotations

from collections.abc import Callable

from trio_sched.core.events import TimePassed
from trio_sched.server.alarm import Alarm
from trio_sched.server.config import Config
from trio_sched.server.happenings import Event, Left, LinkLost
from trio_sched.server.hub import Hub
from trio_sched.server.outbox import Outbox
from trio_sched.server.sessions import ClientSession, EngineSession, Session, Sessions


class Auditor:
    """Tells the actor that time has passed."""

    def __init__(
        self, hub: Hub, config: Config, sessions: Sessions, outbox: Outbox, tidy: Callable[[], None], now: float
    ) -> None:
        self._hub = hub
        self._config = config
        self._sessions = sessions
        self._outbox = outbox
        self._tidy = tidy
        self._patience_s = config.heartbeat_s * config.missed_heartbeats
        self._awake_since = now
        self._next_round = now + config.heartbeat_s
        self._deadline: float | None = None
        self.alarm = Alarm(self._ring)
        self.alarm.set(self._next_round)

    def moved(self, deadline: float | None) -> None:
        """The core's next deadline is another one, perhaps."""
        self._deadline = deadline
        if deadline is not None:
            self.alarm.set(deadline)

    def _ring(self, now: float) -> None:
        events: list[Event] = []
        if self._deadline is not None and self._deadline <= now:
            events.append(TimePassed())
            self._deadline = None  # until the actor says which is next
        if now >= self._next_round:
            events += self._round(now)
        if events:
            self._hub.inbox.add_notifications(events)
        self.moved(self._deadline)
        self.alarm.set(self._next_round)

    def _round(self, now: float) -> list[Event]:
        period_s = self._config.heartbeat_s
        if now - self._next_round > period_s:
            self._awake_since = now
        self._next_round = now + period_s
        events = [event for session in self._sessions for event in self._judge(session, now)]
        self._tidy()
        return events

    def _judge(self, session: Session, now: float) -> list[Event]:
        """What is to be said about a session now."""
        hasty = isinstance(session, ClientSession) and session.cancel_on_leave
        if session.link is None:
            away_s = now - session.away_since if session.away_since is not None else 0.0
            empty = isinstance(session, ClientSession) and session.is_empty()
            patience_s = self._config.keep_idle_s if empty else self._config.keep_results_s
            if isinstance(session, EngineSession) or away_s < (self._patience_s if hasty else patience_s):
                return []
            why = "nothing of it was left" if empty else "nobody came back for its results"
            return [Left(session, why, cancel=hasty, away_since=session.away_since)]
        silent_s = now - max(self._heard(session), self._awake_since)
        if silent_s <= self._patience_s:
            self._probe(session, now)
            return []
        if hasty:
            return [Left(session, f"nothing was heard from it for {silent_s:.3g} s", cancel=True)]
        return [LinkLost(session.link, f"nothing was heard from it for {silent_s:.3g} s")]

    def _probe(self, session: Session, now: float) -> None:
        """An engine that only its nanny speaks for may be dead all the same: its Bye, or the report of its death, got
        lost."""
        if isinstance(session, EngineSession) and now - max(session.last_heard(), session.probed_at) > self._patience_s:
            session.probed_at = now
            self._outbox.probe(session)

    def _heard(self, session: Session) -> float:
        if isinstance(session, EngineSession):
            nanny = self._sessions.nannies.get(session.nanny)
            if nanny is not None:
                return max(session.last_heard(), nanny.last_heard())
        return session.last_heard()
