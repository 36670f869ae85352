"""The options of a submission as the core's `TaskSpec`."""

from __future__ import annotations

from collections.abc import Sequence

from trio_sched.core.events import DEFAULT_SPEC, Dependency, TaskSpec
from trio_sched.core.ids import expand_task_id
from trio_sched.wire.native import Options
from trio_sched.wire.ranges import check, check_length


def amounts(resources: dict[str, float]) -> tuple[tuple[str, float], ...]:
    """Return resources as the core has them.

    :raises ValueError: a name or an amount is out of its range.
    """
    check_length("resources", resources)
    for name, amount in resources.items():
        check_length("resource name", name, "the name of a resource has")
        check("resource", amount, f"resource {name!r} is")
    return tuple(sorted((name, amount) for name, amount in resources.items() if amount))


def spec_of(options: Options, session: int) -> TaskSpec:
    """Return the core's form of the options, whose ids may be counters of tasks of `session`.

    :raises ValueError: an option is out of its range; the message names it.
    """
    if options.timeout_s is not None:
        check("timeout_s", options.timeout_s)
    check_length("label", options.label)
    check("backoff_s", options.backoff_s)
    check("retries", options.retries)
    check("priority", options.priority)
    after = (options.after_all, options.after_success, options.after_failure)
    follow = (options.follow_all, options.follow_success, options.follow_failure)
    spec = TaskSpec(
        after=_dependency("after", options.after, after, session),
        follow=_dependency("follow", options.follow, follow, session),
        inputs=_ids("inputs", options.inputs, session),
        targets=None if options.targets is None else frozenset(options.targets),
        resources=amounts(options.resources),
        priority=options.priority,
        retries=options.retries,
        timeout_s=options.timeout_s,
        backoff_s=options.backoff_s,
        same_engine=options.same_engine,
        label=options.label,
    )
    return DEFAULT_SPEC if spec == DEFAULT_SPEC else spec


def _ids(name: str, tasks: Sequence[int], session: int) -> tuple[int, ...]:
    for task in tasks:
        check("id", task, f"{name} names the task")
    return tuple(dict.fromkeys([expand_task_id(session, task) for task in tasks]))


def _dependency(name: str, tasks: Sequence[int], flags: tuple[bool, bool, bool], session: int) -> Dependency | None:
    ids = _ids(name, tasks, session)
    _all, success, failure = flags
    if ids or not (success or failure):  # R2 refuses that even where no task is named
        return Dependency(ids, *flags)
    return None
