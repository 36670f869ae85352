"""The actor: the one task that owns the state. Batches of events in, effects out, without an `await` in between.

A *turn* handles events at one reading of the clock and returns their effects. A *step* is a turn over all events in the
inbox, and its consequences: the outbox carries the effects out; the events that the outbox makes meanwhile are handled,
too; and the auditor gets the core's next deadline. All state of the core, of sessions and of the outbox changes in a
step and nowhere else. Both are plain functions, so that a simulator can drive the same code without Trio.

An exception ends the event that raised it and nothing else (R33): the core recovers, and the turn continues with the
next event. That costs nothing per event: the `try` is around the whole loop, which resumes at the next event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import trio

from trio_sched.server.auditor import Auditor, SessionAudit
from trio_sched.server.client_messages import ClientMessages
from trio_sched.server.events import AuditDue, Effect, Event, StopRequested, SubmissionsReceived
from trio_sched.server.guarded_scheduler import GuardedScheduler
from trio_sched.server.ingress import Inbox
from trio_sched.server.outbox import Outbox
from trio_sched.server.session_manager import Handler, SessionManager
from trio_sched.server.shutdown import Shutdown


class Actor:
    """Owner of the scheduler, the sessions and the outbox."""

    def __init__(
        self,
        guarded: GuardedScheduler,
        manager: SessionManager,
        clients: ClientMessages,
        audit: SessionAudit,
        inbox: Inbox,
        outbox: Outbox,
        auditor: Auditor,
        shutdown: Shutdown,
    ) -> None:
        self._guarded = guarded
        self._scheduler = guarded.scheduler
        self._manager = manager
        self._clients = clients
        self._inbox = inbox
        self._outbox = outbox
        self._auditor = auditor
        self._shutdown = shutdown
        self._scope = trio.CancelScope()
        self._core: Handler = guarded.scheduler.handle  # type: ignore[assignment]  # list is invariant
        self._handlers: Mapping[type, Handler] = {**manager.handlers, AuditDue: audit.handle}
        #: Handlers of client events that do not wait in the backlog: submissions are counted and checked on arrival.
        self._arrival_handlers: Mapping[type, Handler] = {SubmissionsReceived: manager.handlers[SubmissionsReceived]}

    def turn(self, urgent: Sequence[Event], client_events: Sequence[Event], now: float) -> list[Effect]:
        """Handle events, all at the time `now`. Returns the effects in order.

        The `urgent` events come first, in order. The `client_events` join the backlog, and a bounded slice of the
        backlog is handled last (R31).
        """
        effects = self._handle(urgent, self._handlers, self._core, now) if urgent else []
        if client_events:
            effects += self._handle(client_events, self._arrival_handlers, self._clients.add, now)
        if self._clients.has_backlog:
            effects += self._handle(self._clients.take_slice(), self._handlers, self._core, now)
        return effects

    def _handle(
        self, events: Iterable[Event], handlers: Mapping[type, Handler], default: Handler, now: float
    ) -> list[Effect]:
        effects: list[Effect] = []
        remaining = iter(events)
        event: Event | None = None
        while True:
            try:
                for event in remaining:
                    effects += handlers.get(type(event), default)(event, now)
                return effects
            except Exception as error:
                if type(event) in self._handlers:
                    effects += self._manager.report_failure(event, error)
                else:
                    effects += self._guarded.recover(event, error, now)

    def step(self, now: float) -> None:
        """Handle the events in the inbox, send the messages that follow, and set the next deadline."""
        effects = self.turn(*self._inbox.take(), now)
        while True:
            self._outbox.take(effects, now)
            self._outbox.flush(now)
            if self._shutdown.closing is not None:
                self._shutdown.check_idle()
                self._outbox.flush(now)
            events = self._outbox.take_events()
            if not events:
                break
            effects = self._handle(events, self._handlers, self._core, now)
        self._auditor.set_deadline(self._scheduler.next_deadline())
        if self._outbox.flush_at != self._scope.deadline:
            self._scope.deadline = self._outbox.flush_at

    def finish(self, now: float) -> None:
        """Take the last step: send `Closing` to the peers, and all results that wait for others."""
        if self._shutdown.closing is None:
            self._inbox.add_notifications([StopRequested("the scheduler was cancelled")])
        self.step(now)
        self._outbox.flush_all(now)

    async def run(self) -> None:
        """Take a step whenever events arrive, or a deadline of the outbox is over."""
        while True:
            with trio.CancelScope(deadline=self._outbox.flush_at) as self._scope:
                while True:
                    await self._inbox.wait()
                    self.step(trio.current_time())
            self.step(trio.current_time())
