"""An alarm that can be set earlier at any time, without waking anybody before it goes off.

Trio keeps the deadlines of cancel scopes in a heap of its own: moving one costs about 2 us, a task woken up to look
at the clock 10 to 25. The auditor and the outbox each have one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio


class Alarm:
    """Calls a function when the time comes."""

    def __init__(self, ring: Callable[[float], None]) -> None:
        self._ring = ring
        self._scope: trio.CancelScope | None = None
        self.at = math.inf
        """When it goes off next."""

    def set(self, at: float) -> None:
        """Go off at `at`, unless it is set to go off earlier."""
        if at < self.at:
            self.at = at
            if self._scope is not None:
                self._scope.deadline = at

    async def run(self) -> None:
        """Until cancelled. The function is called with the time, and may set the alarm again."""
        while True:
            with trio.CancelScope(deadline=self.at) as self._scope:
                await trio.sleep_forever()
            self._scope = None
            self.go_off(trio.current_time())

    def go_off(self, now: float) -> None:
        """It is time."""
        self.at = math.inf
        self._ring(now)
