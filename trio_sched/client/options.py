"""The options of tasks: their names, their validation in `options(...)`, and their form on the wire."""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, TypedDict, Unpack

from trio_sched.client.results import BaseFuture
from trio_sched.wire import native
from trio_sched.wire.ids import is_task_id, parse_task_id
from trio_sched.wire.ranges import RANGES, quoted

__all__ = ["OptionNames", "TaskRef", "Unpack", "task_number", "wire_options"]

#: A task: a future of any client of the same scheduler, its id as text ("3-17"), or its id as a number.
TaskRef: TypeAlias = "BaseFuture[Any] | str | int"
#: The advice for a dependency on a task of another scheduler.
_DEPENDENCY_ADVICE = "wait for its result before you submit"


class OptionNames(TypedDict, total=False):
    """The keyword arguments of `options(...)`."""

    #: Tasks that must have ended before this task starts (R2).
    after: TaskRef | Iterable[TaskRef]
    #: Whether all of these must count (default), or any one of them.
    after_all: bool
    #: Whether a task that succeeded counts (default True).
    after_success: bool
    #: Whether a task that failed, for any reason, counts (default False).
    after_failure: bool
    #: Tasks on one of whose engines this task must run (R6).
    follow: TaskRef | Iterable[TaskRef]
    #: As `after_all`, `after_success` and `after_failure`, for `follow`.
    follow_all: bool
    follow_success: bool
    follow_failure: bool
    #: Numbers of the only engines that may run the task (R7).
    targets: int | Iterable[int]
    #: How often a failed task is run again (R18); at most 1,000,000.
    retries: int
    #: Seconds before the first retry, at most 86,400; doubles with each retry, up to a day (R18).
    backoff: float
    #: Whether a retry may run on the engine of the failure when no other engine matches (default True; R18).
    same_engine: bool
    #: The longest time to wait for a start, in seconds (R21).
    timeout: float | None
    #: Tasks of higher priority are dispatched first (R12).
    priority: int
    #: Amounts of the engine's resources that the task uses, by name (R16).
    resources: Mapping[str, float]
    #: A name for status and dashboards.
    label: str


def task_number(ref: TaskRef, scheduler: str = "", advice: str = "ask its own client") -> int:
    """Return the full id of a task.

    :param scheduler: the scheduler instance that the task must belong to; empty: any.
    :param advice: what the error says to do about a task of another scheduler.
    :raises ValueError: the reference is not a task id, or is a future of another scheduler instance.
    """
    if isinstance(ref, BaseFuture):
        if scheduler and ref.scheduler != scheduler:
            raise ValueError(f"task {ref.task_id} belongs to another scheduler than this client's; {advice}")
        return ref.full_id
    if isinstance(ref, str):
        with contextlib.suppress(ValueError):
            return parse_task_id(ref)
    elif isinstance(ref, int) and not isinstance(ref, bool) and is_task_id(ref):
        return ref
    raise ValueError(f"{ref!r} is not a task: give a future, or an id like '3-17'")


def wire_options(values: OptionNames, scheduler: str = "") -> native.Options:
    """Validate options and return their form on the wire. An option whose value is None counts as not given.

    Every value that the scheduler could not decode must be refused here: there, the error would end the whole client.

    :param scheduler: the scheduler instance that tasks in `after` and `follow` must belong to; empty: any.
    :raises ValueError: a value is not valid; the message names the option.
    :raises TypeError: there is no option of that name.
    """
    unknown = values.keys() - OptionNames.__annotations__.keys()
    if unknown:
        known = ", ".join(OptionNames.__annotations__)
        raise TypeError(f"options() has no option {', '.join(sorted(unknown))!r}; it has {known}")
    checked = {name: _CHECKS[name](name, value) for name, value in values.items() if value is not None}
    for which in ("after", "follow"):
        if not checked.get(f"{which}_success", True) and not checked.get(f"{which}_failure", False):
            raise ValueError(f"{which}_success and {which}_failure are both false: then no task could ever count")
    if "after" in checked and checked.get("after_all", True) and checked.get("after_success", True):
        checked["after"] = _drop_succeeded(checked["after"])
    for which in ("after", "follow"):
        checked[which] = [task_number(ref, scheduler, _DEPENDENCY_ADVICE) for ref in checked.get(which, ())]
    return native.Options(**{_WIRE_NAMES.get(name, name): value for name, value in checked.items()})


def _drop_succeeded(refs: list[TaskRef]) -> list[TaskRef]:
    """Remove the tasks that are known here to have succeeded from an `after` that needs all: the scheduler may have
    forgotten them, and the list may be long."""
    return [ref for ref in refs if not (isinstance(ref, BaseFuture) and ref.succeeded)]


# ---- checks of values, which accept every type of the same meaning, for example numpy's numbers --------------------


def _check_tasks(name: str, given: Any) -> list[TaskRef]:
    if isinstance(given, (BaseFuture, str, int)):
        return [given]
    try:
        return list(dict.fromkeys(given))
    except TypeError:
        raise ValueError(f"{name}={given!r}: must be tasks: futures, or ids like '3-17'") from None


def _check_integer(name: str, value: Any) -> int:
    """Check an integer against the range of its option; numbers of engines have the range of priorities."""
    allowed = RANGES.get(name, RANGES["priority"])
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={value!r}: must be a whole number {allowed}") from None
    if number not in allowed:
        raise ValueError(f"{name}={quoted(number)}: must be a whole number {allowed}")
    return number


def _to_float(value: Any) -> float:
    """Convert a finite number; everything else becomes NaN, which is outside of every range."""
    with contextlib.suppress(OverflowError):
        if isinstance(value, numbers.Real) and math.isfinite(number := float(value)):
            return number
    return math.nan


def _check_seconds(name: str, value: Any) -> float:
    allowed = RANGES[_WIRE_NAMES[name]]
    if (seconds := _to_float(value)) not in allowed:
        raise ValueError(f"{name}={quoted(value)}: must be a number of seconds {allowed}")
    return seconds


def _check_flag(name: str, value: Any) -> bool:
    if value not in (True, False):
        raise ValueError(f"{name}={value!r}: must be True or False")
    return bool(value)


def _check_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}={value!r}: must be text")
    return native.sendable(value)


def _check_engines(name: str, value: Any) -> list[int]:
    several = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
    return sorted({_check_integer(name, engine) for engine in (value if several else [value])})


def _check_amounts(name: str, value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}={value!r}: must be amounts by name, like {{'gpu': 1}}")
    for resource, amount in value.items():
        if not 0 < _to_float(amount) <= RANGES["resource"].maximum:
            raise ValueError(
                f"{name}: {resource}={quoted(amount)} must be a number, more than 0 and at most "
                f"{RANGES['resource'].maximum:,.15g}"
            )
    return {_check_text(name, resource): _to_float(amount) for resource, amount in value.items()}


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "after": _check_tasks,
    "after_all": _check_flag,
    "after_success": _check_flag,
    "after_failure": _check_flag,
    "follow": _check_tasks,
    "follow_all": _check_flag,
    "follow_success": _check_flag,
    "follow_failure": _check_flag,
    "targets": _check_engines,
    "retries": _check_integer,
    "backoff": _check_seconds,
    "same_engine": _check_flag,
    "timeout": _check_seconds,
    "priority": _check_integer,
    "resources": _check_amounts,
    "label": _check_text,
}
_WIRE_NAMES = {"backoff": "backoff_s", "timeout": "timeout_s"}
