"""Dependencies: `after`, `follow` and `inputs`, settled one edge at a time (R2-R9).

Rules:

- An edge leads from a task to a task that it names, with the roles (after, follow, input) in which it names it.
- A task holds counts of its pending edges. When a task ends, only its own dependents are visited. So an edge costs
  O(1), with any number of waiting tasks.
- Whether an edge makes its task impossible is a pure function of the counts and of the outcome.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from trio_sched.core.events import Dependency, Outcome, TaskSpec
from trio_sched.core.ids import EngineId, TaskId, format_task_id

# The roles of an edge: the dependencies in which the task names the other one, combined with "|". Plain ints cost less
# than the members of an IntFlag.
AFTER: Final = 1
FOLLOW: Final = 2
INPUT: Final = 4
NO_DEPENDENCY: Final = Dependency()
#: The most items that a reason or an explanation lists; further ones are counted.
MAX_LISTED: Final = 5


class PendingDependencies(Struct, gc=False):
    """Counts of the edges that are not settled, by dependency; 0 once the dependency is met (R3)."""

    after: int = 0
    inputs: int = 0
    follow: int = 0
    #: The engines on which followed tasks ran whose outcome counts, by now (R6).
    ran_on: frozenset[EngineId] = frozenset()

    def is_met(self, spec: TaskSpec) -> bool:
        """Whether the dependencies allow the task to go to an engine now."""
        if self.after or self.inputs:
            return False
        return not self.follow or (bool(self.ran_on) and spec.follow is not None and not spec.follow.all)


def counts(dependency: Dependency, outcome: Outcome) -> bool:
    """Whether the outcome is one that the dependency waits for (R2)."""
    return dependency.success if outcome == "ok" else dependency.failure


def named_tasks(spec: TaskSpec) -> dict[TaskId, int]:
    """The edges of a task: the ids that the spec names, in the order after, follow, inputs, with their roles."""
    named: dict[TaskId, int] = {}
    if spec.after is not None:
        named = dict.fromkeys(spec.after.tasks, AFTER)
    if spec.follow is not None:
        for task in spec.follow.tasks:
            named[task] = named.get(task, 0) | FOLLOW
    for task in spec.inputs:
        named[task] = named.get(task, 0) | INPUT
    return named


def count_pending(named: dict[TaskId, int], spec: TaskSpec) -> PendingDependencies:
    """The counts for a task of whose edges none is settled. `named` is the result of `named_tasks`."""
    if spec.follow is None and not spec.inputs:
        return PendingDependencies(len(named))
    if spec.follow is None and spec.after is None:
        return PendingDependencies(0, len(named))
    after = follow = inputs = 0
    for role in named.values():
        after += role & AFTER
        follow += (role & FOLLOW) >> 1
        inputs += (role & INPUT) >> 2
    return PendingDependencies(after, inputs, follow)


def settle(
    pending: PendingDependencies, spec: TaskSpec, role: int, task: TaskId, outcome: Outcome, engine: EngineId | None
) -> str | None:
    """Settle one edge, that leads to `task`, which ended with `outcome` on `engine`.

    Update `pending`, the counts of the dependent; return the reason for which the dependent is impossible now, or None
    (R4, R6).
    """
    if role & AFTER and pending.after:
        after = spec.after or NO_DEPENDENCY
        if counts(after, outcome):
            pending.after = pending.after - 1 if after.all else 0
        elif after.all:
            return f"its after dependency, task {format_task_id(task)}, ended as {outcome}"
        elif pending.after == 1:
            return "all of its after dependencies ended, and none with an outcome that counts"
        else:
            pending.after -= 1
    if role & INPUT:
        if outcome != "ok":
            return f"its input, task {format_task_id(task)}, ended as {outcome}"
        pending.inputs -= 1
    if role & FOLLOW:
        return _settle_follow(pending, spec.follow or NO_DEPENDENCY, task, outcome, engine)
    return None


def _settle_follow(
    pending: PendingDependencies, follow: Dependency, task: TaskId, outcome: Outcome, engine: EngineId | None
) -> str | None:
    pending.follow -= 1
    is_counted = engine is not None and counts(follow, outcome)
    if follow.all:
        if engine is None:
            return f"its follow dependency, task {format_task_id(task)}, ended as {outcome} and ran on no engine"
        if not is_counted:
            return f"its follow dependency, task {format_task_id(task)}, ended as {outcome}"
        if pending.ran_on and engine not in pending.ran_on:
            return f"its follow dependencies ran on different engines ({next(iter(pending.ran_on))} and {engine})"
    if is_counted and engine is not None:
        pending.ran_on |= {engine}
    if not pending.follow and not pending.ran_on:
        return "all of its follow dependencies ended, and none with an outcome that counts on an engine"
    return None


def format_list(items: list[str], joint: str = ", ") -> str:
    """The first `MAX_LISTED` items, separated by `joint`, and the number of the others."""
    more = len(items) - MAX_LISTED
    return joint.join(items[:MAX_LISTED]) + (f" and {more:,} more" if more > 0 else "")
