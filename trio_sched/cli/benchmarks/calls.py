"""What the tasks of a benchmark do. Importable by name on every engine, and in every pool that is compared with."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def noop(_: object = None) -> None:
    """Nothing: what is measured is everything around it."""


def echo(value: T) -> T:
    """The argument back: payloads both ways."""
    return value
