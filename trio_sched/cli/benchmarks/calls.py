"""Functions that benchmark tasks run.

Engines and process pools import this module by name, so it imports nothing heavy: its import time is part of what is
measured.
"""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def noop(_: object = None) -> None:
    """Do nothing, so that the measurement shows the overhead of a task."""


def echo(value: T) -> T:
    """Return the argument, so that a payload travels in both directions."""
    return value
