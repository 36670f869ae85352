"""What `options(...)` takes, checked where it is written, and its form on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, TypedDict, Unpack

from trio_sched.client.ends import BaseFuture
from trio_sched.wire import native

__all__ = ["OptionNames", "TaskRef", "Unpack", "task_number", "wire_options"]

TaskRef: TypeAlias = "BaseFuture[Any] | str | int"
"""A task: a future of any client of the same scheduler, or an id as shown ("3-17"), or the same as a number."""
SESSION_SHIFT = 32


class OptionNames(TypedDict, total=False):
    """The keywords of `options(...)`."""

    after: TaskRef | Iterable[TaskRef]
    """Tasks that must have ended before this one starts (R2)."""
    after_all: bool
    """All of them (True, the default), or any one."""
    after_success: bool
    """Whether one that succeeded counts (default True)."""
    after_failure: bool
    """Whether one that failed, in whatever way, counts (default False)."""
    follow: TaskRef | Iterable[TaskRef]
    """Run on an engine where these ran (R6)."""
    follow_all: bool
    follow_success: bool
    follow_failure: bool
    targets: int | Iterable[int]
    """Only these engines, by number (R7)."""
    retries: int
    """How often a failure is tried again (R18)."""
    backoff: float
    """Seconds to wait before the first retry; doubles with each (R18)."""
    same_engine: bool
    """Whether a retry may go to the engine where it failed when no other would do (default True; R18)."""
    timeout: float | None
    """Longest wait to start, in seconds (R21)."""
    priority: int
    """Higher goes first (R12)."""
    resources: Mapping[str, float]
    """What the task needs of an engine, by name (R16)."""
    label: str
    """A name to show in status and dashboards."""


def task_number(ref: TaskRef) -> int:
    """The full id of a task.

    :raises ValueError: it is no id.
    """
    if isinstance(ref, BaseFuture):
        return ref.full_id
    if isinstance(ref, int) and not isinstance(ref, bool) and ref >> SESSION_SHIFT:
        return ref
    if isinstance(ref, str):
        session, dash, counter = ref.partition("-")
        if dash and session.isdecimal() and counter.isdecimal():
            return int(session) << SESSION_SHIFT | int(counter)
    raise ValueError(f"{ref!r} is not a task: give a future, or an id like '3-17'")


def wire_options(asked: OptionNames) -> native.Options:
    """The wire form.

    :raises ValueError: a value cannot be right; the message names the option.
    :raises TypeError: there is no such option.
    """
    unknown = asked.keys() - OptionNames.__annotations__.keys()
    if unknown:
        known = ", ".join(OptionNames.__annotations__)
        raise TypeError(f"options() has no option {', '.join(sorted(unknown))!r}; it has {known}")
    for name in ("retries", "backoff", "timeout"):
        value = asked.get(name)
        if value is not None and not (isinstance(value, (int, float)) and value >= 0):
            raise ValueError(f"{name}={value!r}: must be a number, 0 or more")
    for which in ("after", "follow"):
        if not asked.get(f"{which}_success", True) and not asked.get(f"{which}_failure", False):
            raise ValueError(f"{which}_success and {which}_failure are both false: then nothing could ever count")
    for name, amount in asked.get("resources", {}).items():
        if not amount > 0:
            raise ValueError(f"resources: {name}={amount!r} must be more than 0")
    targets = asked.get("targets")
    return native.Options(
        after=_pending(asked),
        after_all=asked.get("after_all", True),
        after_success=asked.get("after_success", True),
        after_failure=asked.get("after_failure", False),
        follow=[task_number(ref) for ref in _refs(asked.get("follow", ()))],
        follow_all=asked.get("follow_all", True),
        follow_success=asked.get("follow_success", True),
        follow_failure=asked.get("follow_failure", False),
        targets=None if targets is None else [targets] if isinstance(targets, int) else sorted(set(targets)),
        resources=dict(asked.get("resources", {})),
        priority=asked.get("priority", 0),
        retries=asked.get("retries", 0),
        timeout_s=asked.get("timeout"),
        backoff_s=float(asked.get("backoff", 0.0)),
        same_engine=asked.get("same_engine", True),
        label=asked.get("label", ""),
    )


def _refs(given: TaskRef | Iterable[TaskRef]) -> list[TaskRef]:
    given = [given] if isinstance(given, (BaseFuture, str, int)) else list(given)
    return list(dict.fromkeys(given))


def _pending(asked: OptionNames) -> list[int]:
    """The tasks of `after`, without those that are known here to have succeeded where all must: the scheduler may have
    forgotten them, and the list may be long."""
    refs = _refs(asked.get("after", ()))
    if asked.get("after_all", True) and asked.get("after_success", True):
        refs = [ref for ref in refs if not (isinstance(ref, BaseFuture) and ref.succeeded)]
    return [task_number(ref) for ref in refs]
