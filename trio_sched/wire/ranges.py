"""Ranges of the numbers, and limits of the lengths, that peers may send: one table for all parts of the package.

A message with a number outside its range is refused where it arrives (`docs/wire.md` lists the ranges), so that the
arithmetic of the core stays finite and exact enough (R32).
"""

from __future__ import annotations

from collections.abc import Sized

from msgspec import Struct

from trio_sched.core.events import MAX_BACKOFF_S
from trio_sched.core.ids import MAX_ID

MAX_SECONDS = 1e12


class Range(Struct, frozen=True):
    """An interval of numbers, both ends included."""

    minimum: float
    maximum: float

    def __contains__(self, value: float) -> bool:
        """Whether the number is in the interval; NaN is not."""
        return self.minimum <= value <= self.maximum

    def __str__(self) -> str:
        return f"from {_format(self.minimum)} to {_format(self.maximum)}"


def _format(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.15g}"


#: By name. "resource" is an amount of a resource, "id" the id of a task, "received" a count of messages.
RANGES: dict[str, Range] = {
    "priority": Range(-MAX_ID, MAX_ID),
    "retries": Range(0, 1_000_000),
    "backoff_s": Range(0.0, MAX_BACKOFF_S),
    "timeout_s": Range(0.0, MAX_SECONDS),
    "resource": Range(0.0, 1e15),
    "weight": Range(0.001, 1000.0),
    "slots": Range(1, 100_000),
    "hwm": Range(0, 1_000_000),
    "id": Range(1, MAX_ID),
    "received": Range(0, MAX_ID),
}

#: The most characters of a text, or entries of a collection, by name. "path" is sys.path.
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
#: The most characters of all entries of sys.path together.
MAX_PATH_CHARACTERS = 1 << 18


def check(name: str, value: float, words: str = "") -> None:
    """Check that a number is in its range.

    :param words: the beginning of the error message; default: "NAME is".
    :raises ValueError: the number is outside, infinite or NaN; the message has the value and the range.
    """
    if value not in RANGES[name]:
        raise ValueError(f"{words or name + ' is'} {quoted(value)}; it must be {RANGES[name]}")


def check_length(name: str, value: Sized, words: str = "") -> None:
    """Check the length of a text or collection.

    :param words: the beginning of the error message; default: "NAME has".
    :raises ValueError: the length is above its limit in `LENGTHS`; the message has the length and the limit, but not
        the value.
    """
    if len(value) > LENGTHS[name]:
        unit = "characters" if isinstance(value, str) else "entries"
        raise ValueError(f"{words or name + ' has'} {len(value):,} {unit}; the limit is {LENGTHS[name]:,}")


def quoted(value: object) -> str:
    """Format a value for an error message; a long integer by its size, as Python prints at most 4,300 digits."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    return repr(value)
