"""When to say that we live, and when the other side counts as silent."""

from __future__ import annotations

SILENT_PERIODS = 5
"""Heartbeats without a word from the scheduler after which the connection counts as broken."""


class Liveness:
    """The heartbeats of one connection, in both directions. Times are on the face's own clock."""

    def __init__(self) -> None:
        self.heartbeat_s = 2.0
        self.ping_at: float | None = None
        """When the next heartbeat of ours is due; None: now."""
        self._heard_at: float | None = None
        self._looked_at: float | None = None

    def heard(self, now: float) -> None:
        """Something came from the scheduler, or a new connection was opened: it gets its time to answer."""
        self._heard_at = now

    def ping_due(self, now: float) -> bool:
        """Whether to send a heartbeat now; if so, the next one is due a period later."""
        if self.ping_at is not None and now < self.ping_at:
            return False
        self.ping_at = now + self.heartbeat_s
        return True

    def quiet_s(self, now: float) -> float:
        """For how long nothing was heard."""
        return 0.0 if self._heard_at is None else now - self._heard_at

    def silent(self, now: float) -> bool:
        """Whether nothing was heard for too long, so that the face should open another connection.

        To be asked at least once a heartbeat: after a longer pause of our own the scheduler gets one more period.
        """
        if self._looked_at is not None and now - self._looked_at > 2 * self.heartbeat_s:
            allowance = now - (SILENT_PERIODS - 1) * self.heartbeat_s
            self._heard_at = max(self._heard_at or now, allowance)
        self._looked_at = now
        if self._heard_at is None:
            self._heard_at = now
        return now - self._heard_at > SILENT_PERIODS * self.heartbeat_s
