"""The numbers that peers may send, and their ranges: one table for the scheduler, its clients and its engines.

A number outside of its range is refused where it enters (`docs/wire.md` lists the ranges), so that the arithmetic of
the core stays finite and exact enough (R32).
"""

from __future__ import annotations

from msgspec import Struct

from trio_sched.core.events import MOST_BACKOFF_S

MOST_ID = (1 << 62) - 1
"""No id of a task, number of a session or count of messages is larger."""
MOST_SECONDS = 1e12


class Range(Struct, frozen=True):
    """The smallest and the largest value, both included."""

    least: float
    most: float

    def __contains__(self, value: float) -> bool:
        """Whether the number is in the range; NaN never is."""
        return self.least <= value <= self.most

    def __str__(self) -> str:
        return f"from {_in_words(self.least)} to {_in_words(self.most)}"


def _in_words(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.15g}"


RANGES: dict[str, Range] = {
    "priority": Range(-MOST_ID, MOST_ID),
    "retries": Range(0, 1_000_000),
    "backoff_s": Range(0.0, MOST_BACKOFF_S),
    "timeout_s": Range(0.0, MOST_SECONDS),
    "resource": Range(0.0, 1e15),
    "weight": Range(0.001, 1000.0),
    "slots": Range(1, 100_000),
    "hwm": Range(0, 1_000_000),
    "id": Range(1, MOST_ID),
    "received": Range(0, MOST_ID),
}
"""By name. "resource": an amount of a resource; "id": of a task; "received": a count of messages."""


def check(name: str, value: float, said: str = "") -> None:
    """Check a number against its range.

    :raises ValueError: it is outside, infinite or NaN; the message has its name (or begins with `said` instead), the
        value and the range.
    """
    if value not in RANGES[name]:
        raise ValueError(f"{said or name + ' is'} {quoted(value)}; it must be {RANGES[name]}")


def quoted(value: object) -> str:
    """A value as part of an error message. Python does not print integers of more than 4,300 digits."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    return repr(value)
