"""The numbers that peers may send, and their ranges: one table for the scheduler, its clients and its engines.

A number outside of its range is refused where it enters (`docs/wire.md` lists the ranges), so that the arithmetic of
the core stays finite and exact enough (R32).
"""

from __future__ import annotations

from collections.abc import Sized

from msgspec import Struct

from trio_sched.core.events import MOST_BACKOFF_S
from trio_sched.core.ids import MAX_ID

MOST_ID = MAX_ID
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

LENGTHS: dict[str, int] = {
    "call": 1_000,
    "label": 1_000,
    "resources": 100,
    "resource name": 200,
    "cwd": 4_096,
    "path": 10_000,
    "name": 1_000,
    "host": 1_000,
    "python": 100,
    "secret": 1_000,
    "scheduler": 1_000,
}
"""The most characters of texts, and entries of collections, by name. "path": entries of sys.path."""
MOST_PATH_CHARACTERS = 1 << 18
"""Of all entries of sys.path together."""


def check(name: str, value: float, said: str = "") -> None:
    """Check a number against its range.

    :raises ValueError: it is outside, infinite or NaN; the message has its name (or begins with `said` instead), the
        value and the range.
    """
    if value not in RANGES[name]:
        raise ValueError(f"{said or name + ' is'} {quoted(value)}; it must be {RANGES[name]}")


def check_length(name: str, value: Sized, said: str = "") -> None:
    """Check how long a text is, or how many items a collection has.

    :raises ValueError: it is longer than `LENGTHS` allows; the message has its name (or begins with `said` instead),
        its length and the limit, and does not quote it.
    """
    if len(value) > LENGTHS[name]:
        unit = "characters" if isinstance(value, str) else "entries"
        raise ValueError(f"{said or name + ' has'} {len(value):,} {unit}; the most is {LENGTHS[name]:,}")


def quoted(value: object) -> str:
    """A value as part of an error message. Python does not print integers of more than 4,300 digits."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    return repr(value)
