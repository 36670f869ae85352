"""Functions that benchmark tasks run.

Engines and process pools import this module by name, and the measurements include that time, so it imports nothing
heavy.
"""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def noop(_: object = None) -> None:
    """Do nothing, so that the measurement shows the overhead of a task."""


def echo(value: T) -> T:
    """Return the argument, so that a payload travels in both directions."""
    return value
