"""The actor: the one task that owns the state. Batches of events in, effects out, and nothing in between that waits.

A *turn* handles everything that is there, at one reading of the clock; then the outbox sends what came of it, and the
auditor's alarm is moved to the core's next deadline. `turn` is a plain function, so that a simulator can drive the
same code without Trio.

An exception ends the event that raised it and nothing else (R33): the core recovers, and the turn goes on with the next
event. That costs nothing per event: the `try` is around the whole turn, which resumes where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from trio_sched.core.events import TimePassed
from trio_sched.server.happenings import Effect, Event
from trio_sched.server.hub import Inbox
from trio_sched.server.outbox import Outbox
from trio_sched.server.reception import Reception
from trio_sched.server.recovery import GuardedScheduler


class Actor:
    """Owner of the scheduler and the sessions."""

    def __init__(
        self,
        guarded: GuardedScheduler,
        reception: Reception,
        inbox: Inbox,
        outbox: Outbox,
        moved: Callable[[float | None], None],
    ) -> None:
        self._guarded = guarded
        self._scheduler = guarded.scheduler
        self._reception = reception
        self._inbox = inbox
        self._outbox = outbox
        self._moved = moved

    def turn(self, events: Sequence[Event], now: float) -> list[Effect]:
        """Handle events in order, all at the time `now`; returns what is to be done, in order."""
        effects: list[Effect] = []
        handle = self._scheduler.handle
        own = self._reception.handlers
        remaining = iter(events)
        event: Event | None = None
        while True:
            try:
                for event in remaining:
                    handler = own.get(type(event))
                    if handler is None:
                        effects += handle(event, now)  # type: ignore[arg-type]  # what is not ours is the core's
                        if type(event) is TimePassed:
                            self._reception.bury(now)
                    else:
                        effects += handler(event, now)
                break
            except Exception as error:
                effects += self._survive(event, error, now)
        if self._guarded.recovered:
            effects += self._reception.reconcile(now)
        return effects

    def _survive(self, event: Event | None, error: Exception, now: float) -> list[Effect]:
        """What is to be done for an event whose handler raised."""
        if type(event) in self._reception.handlers:
            return self._reception.failed(event, error)
        return self._guarded.recover(event, error, now)

    def step(self, now: float) -> None:
        """One turn over what is in the inbox, and what follows from it."""
        self._outbox.take(self.turn(self._inbox.take(), now))
        self._outbox.flush(now)
        self._moved(self._scheduler.next_deadline())

    async def run(self) -> None:
        """The task."""
        while True:
            await self._inbox.wait()
            self.step(trio.current_time())
