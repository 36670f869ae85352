"""The core as the turn uses it: an exception leads to recovery (R33)."""

from __future__ import annotations

from typing import Any

from trio_sched.core.recovery import recover
from trio_sched.core.scheduler import Scheduler
from trio_sched.logs import get_logger
from trio_sched.server.events import Effect
from trio_sched.server.ingress import Ingress

log = get_logger(__name__)


class GuardedScheduler:
    """Passes events to the core and returns their effects; raises only if the recovery itself fails (R33)."""

    def __init__(self, scheduler: Scheduler, ingress: Ingress) -> None:
        self.scheduler = scheduler
        self._ingress = ingress

    def handle(self, event: Any, now: float) -> list[Effect]:
        """Return the effects of an event of the core."""
        try:
            return self.scheduler.handle(event, now)  # type: ignore[return-value]  # list is invariant
        except Exception as error:
            return self.recover(event, error, now)

    def recover(self, event: Any, error: Exception, now: float) -> list[Effect]:
        """Restore the core after handling `event` raised `error`. Returns the effects of the event."""
        recovery = recover(self.scheduler, event, error, now)
        for each in recovery.errors:
            self._ingress.report_error(type(event).__name__, each)
        if recovery.was_reset:
            log.error("every unfinished task was ended with an error: the state could not be restored otherwise")
        return recovery.effects  # type: ignore[return-value]  # list is invariant
