"""What the server does when the core raises (R33): it recovers the core, says so, and goes on."""

from __future__ import annotations

from typing import Any

from trio_sched.core.recovery import recover
from trio_sched.core.scheduler import Scheduler
from trio_sched.logs import get_logger
from trio_sched.server.happenings import Effect
from trio_sched.server.hub import Hub

log = get_logger(__name__)


class GuardedScheduler:
    """The scheduler as the actor uses it: events go in, effects come out, and no exception does."""

    def __init__(self, scheduler: Scheduler, hub: Hub) -> None:
        self.scheduler = scheduler
        self._hub = hub
        self.recovered = False
        """Whether sessions may disagree with the core, since it recovered."""

    def handle(self, event: Any, now: float) -> list[Effect]:
        """`Scheduler.handle`, and `recover` when it raises."""
        try:
            return self.scheduler.handle(event, now)  # type: ignore[return-value]  # list is invariant
        except Exception as error:
            return self.recover(event, error, now)

    def recover(self, event: Any, error: Exception, now: float) -> list[Effect]:
        """The effects of an event whose handling raised `error`; the error goes to the log."""
        recovery = recover(self.scheduler, event, error, now)
        self.recovered = True
        for each in recovery.errors:
            self._hub.failed(type(event).__name__, each)
        if recovery.was_reset:
            log.error("every unfinished task was ended with an error: the state could not be restored otherwise")
        return recovery.effects  # type: ignore[return-value]
