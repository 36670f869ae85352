"""When the next heartbeat is due, and how long a peer has been silent, as seen by one observer of heartbeats.

A peer counts as silent after `missed` periods without a message. That conclusion is only valid while the observer
itself runs: a process that was suspended (SIGSTOP, a debugger, a machine that slept) finds its last message from every
peer far in the past, although the messages may wait in its sockets. So the observer calls `tick` at least once a
period; when two calls are more than two periods apart, the process was suspended, and silence until then counts only
up to the point that leaves the peer `grace` more periods.

Pure: every time is passed in, in seconds of one monotonic clock.
"""

from __future__ import annotations

import math

FIRST_PERIOD_S = 2.0
"""The period until the scheduler's `Welcome` has set one."""
MISSED_HEARTBEATS = 5
"""Periods without a message after which a peer counts as silent."""
NEVER = -math.inf
"""The time of the last message of a peer that has not sent any."""


class Heartbeat:
    """Times the heartbeats of one observer. The peers' times of the last message are passed in."""

    __slots__ = ("_last_tick", "_sent_at", "_silence_from", "grace", "missed", "period_s")

    def __init__(
        self,
        now: float | None = None,
        *,
        period_s: float = FIRST_PERIOD_S,
        missed: int = MISSED_HEARTBEATS,
        grace: int | None = None,
    ) -> None:
        """Begin to observe.

        :param now: the time of the first tick; None: the first call of `tick` is it.
        :param period_s: seconds between two heartbeats; may be changed at any time.
        :param missed: periods without a message after which a peer counts as silent.
        :param grace: periods that a peer gets after the observer was suspended, at most `missed`; None: `missed`.
        """
        self.period_s = period_s
        self.missed = missed
        self.grace = missed if grace is None else grace
        self._last_tick = now
        self._silence_from = NEVER if now is None else now
        self._sent_at = NEVER if now is None else now

    # ---- sending ----------------------------------------------------------------------------------------------------

    @property
    def due_at(self) -> float:
        """When the next heartbeat is due, one period after the last one; `NEVER` (long past): at once."""
        return self._sent_at + self.period_s

    def sent(self, now: float) -> None:
        """Note that a heartbeat was sent: the next one is due a period later."""
        self._sent_at = now

    def make_due(self) -> None:
        """Make the next heartbeat due at once."""
        self._sent_at = NEVER

    # ---- silence ----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> bool:
        """Note that the observer runs.

        :returns: whether it was suspended since the last tick.
        """
        last, self._last_tick = self._last_tick, now
        if last is None:
            self._silence_from = now
            return False
        suspended = now - last > 2 * self.period_s
        if suspended:
            counted_s = (self.missed - self.grace) * self.period_s
            self._silence_from = max(self._silence_from, now - counted_s)
        return suspended

    def silence_s(self, last_received_at: float, now: float) -> float:
        """Seconds since the last message of a peer, which was received at `last_received_at`.

        The time before the first tick is not counted, nor the time before the end of a suspension beyond what `grace`
        leaves.
        """
        return now - max(last_received_at, self._silence_from)

    def is_silent(self, last_received_at: float, now: float) -> bool:
        """Whether the last message of a peer was received more than `missed` periods ago."""
        return self.silence_s(last_received_at, now) > self.missed * self.period_s
