"""What `options(...)` takes, checked where it is written, and its form on the wire."""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, TypedDict, Unpack

from trio_sched.client.ends import BaseFuture
from trio_sched.wire import native
from trio_sched.wire.ranges import MOST_ID, RANGES, quoted

__all__ = ["OptionNames", "TaskRef", "Unpack", "task_number", "wire_options"]

TaskRef: TypeAlias = "BaseFuture[Any] | str | int"
"""A task: a future of any client of the same scheduler, or an id as shown ("3-17"), or the same as a number."""
SESSION_SHIFT = 32
OTHER = "wait for its result before you submit"
"""What to do instead of a dependency on a task of another scheduler."""


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
    """How often a failure is tried again (R18); at most 1,000,000."""
    backoff: float
    """Seconds to wait before the first retry, at most 86,400; doubles with each, up to a day (R18)."""
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


def task_number(ref: TaskRef, scheduler: str = "", instead: str = "ask its own client") -> int:
    """The full id of a task.

    :raises ValueError: it is no id, or the future of a task of another scheduler than this instance (empty: any); the
        message says what to do `instead`.
    """
    if isinstance(ref, BaseFuture):
        if scheduler and ref.scheduler != scheduler:
            raise ValueError(f"task {ref.task_id} belongs to another scheduler than this client's; {instead}")
        return ref.full_id
    number = 0
    if isinstance(ref, int) and not isinstance(ref, bool):
        number = ref
    elif isinstance(ref, str):
        session, dash, counter = ref.partition("-")
        if dash and session.isdecimal() and counter.isdecimal() and int(counter) <= native.COUNTER_MASK:
            number = int(session) << SESSION_SHIFT | int(counter)
    if native.COUNTER_MASK < number <= MOST_ID:
        return number
    raise ValueError(f"{ref!r} is not a task: give a future, or an id like '3-17'")


def wire_options(asked: OptionNames, scheduler: str = "") -> native.Options:
    """The wire form, for this scheduler instance. An option that is None is as if it had not been given.

    What the scheduler could not read must be found here: there it would be the end of the whole client.

    :raises ValueError: a value cannot be right; the message names the option.
    :raises TypeError: there is no such option.
    """
    unknown = asked.keys() - OptionNames.__annotations__.keys()
    if unknown:
        known = ", ".join(OptionNames.__annotations__)
        raise TypeError(f"options() has no option {', '.join(sorted(unknown))!r}; it has {known}")
    made = {name: _MAKERS[name](name, value) for name, value in asked.items() if value is not None}
    for which in ("after", "follow"):
        if not made.get(f"{which}_success", True) and not made.get(f"{which}_failure", False):
            raise ValueError(f"{which}_success and {which}_failure are both false: then nothing could ever count")
    if "after" in made and made.get("after_all", True) and made.get("after_success", True):
        made["after"] = _pending(made["after"])
    for which in ("after", "follow"):
        made[which] = [task_number(ref, scheduler, OTHER) for ref in made.get(which, ())]
    return native.Options(**{_WIRE_NAMES.get(name, name): value for name, value in made.items()})


def _pending(refs: list[TaskRef]) -> list[TaskRef]:
    """The tasks of `after`, without those that are known here to have succeeded where all must: the scheduler may have
    forgotten them, and the list may be long."""
    return [ref for ref in refs if not (isinstance(ref, BaseFuture) and ref.succeeded)]


# ---- values: whatever can be meant, numpy's numbers among it, as what the wire takes ---------------------------------


def _tasks(name: str, given: Any) -> list[TaskRef]:
    if isinstance(given, (BaseFuture, str, int)):
        return [given]
    try:
        return list(dict.fromkeys(given))
    except TypeError:
        raise ValueError(f"{name}={given!r}: must be tasks: futures, or ids like '3-17'") from None


def _whole(name: str, value: Any) -> int:
    """A whole number in the range of this option; engines' numbers have that of priorities."""
    allowed = RANGES.get(name, RANGES["priority"])
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={value!r}: must be a whole number {allowed}") from None
    if number not in allowed:
        raise ValueError(f"{name}={quoted(number)}: must be a whole number {allowed}")
    return number


def _finite(value: Any) -> float:
    """NaN for what is no finite number."""
    with contextlib.suppress(OverflowError):
        if isinstance(value, numbers.Real) and math.isfinite(number := float(value)):
            return number
    return math.nan


def _seconds(name: str, value: Any) -> float:
    allowed = RANGES[_WIRE_NAMES[name]]
    if (seconds := _finite(value)) not in allowed:
        raise ValueError(f"{name}={quoted(value)}: must be a number of seconds {allowed}")
    return seconds


def _flag(name: str, value: Any) -> bool:
    if value not in (True, False):
        raise ValueError(f"{name}={value!r}: must be True or False")
    return bool(value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}={value!r}: must be text")
    return native.sendable(value)


def _engines(name: str, value: Any) -> list[int]:
    several = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
    return sorted({_whole(name, engine) for engine in (value if several else [value])})


def _amounts(name: str, value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}={value!r}: must be amounts by name, like {{'gpu': 1}}")
    for resource, amount in value.items():
        if not 0 < _finite(amount) <= RANGES["resource"].most:
            raise ValueError(
                f"{name}: {resource}={quoted(amount)} must be a number, more than 0 and at most "
                f"{RANGES['resource'].most:,.15g}"
            )
    return {_text(name, resource): _finite(amount) for resource, amount in value.items()}


_MAKERS: dict[str, Callable[[str, Any], Any]] = {
    "after": _tasks,
    "after_all": _flag,
    "after_success": _flag,
    "after_failure": _flag,
    "follow": _tasks,
    "follow_all": _flag,
    "follow_success": _flag,
    "follow_failure": _flag,
    "targets": _engines,
    "retries": _whole,
    "backoff": _seconds,
    "same_engine": _flag,
    "timeout": _seconds,
    "priority": _whole,
    "resources": _amounts,
    "label": _text,
}
_WIRE_NAMES = {"backoff": "backoff_s", "timeout": "timeout_s"}
