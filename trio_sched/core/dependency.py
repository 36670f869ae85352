"""`after`, `follow` and `inputs`: what a task waits for, settled one edge at a time (R2-R9).

A waiting task holds counts of what it still has to hear of, and each ended task walks only its own dependents, so an
edge costs the same however many tasks wait. The verdict on one edge is a pure function of the counts and the end.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Final

from msgspec import Struct

from trio_sched.core.events import Dependency, Outcome, TaskSpec
from trio_sched.core.ids import EngineId, TaskId, format_task_id


class Role(IntFlag):
    """In which of its dependencies a task names another: the label of an edge."""

    AFTER = 1
    FOLLOW = 2
    INPUT = 4


AFTER: Final = 1
FOLLOW: Final = 2
INPUT: Final = 4
NO_DEPENDENCY: Final = Dependency()
MOST_LISTED: Final = 5
"""Items that one reason or explanation names; further ones are only counted."""


class Needs(Struct, gc=False):
    """How much of each dependency is open: the number of edges still to be settled, 0 once met.

    `ran_on` are the engines where the followed tasks that count ran, so far.
    """

    after: int = 0
    inputs: int = 0
    follow: int = 0
    ran_on: frozenset[EngineId] = frozenset()

    def met(self, spec: TaskSpec) -> bool:
        """Whether the task could be placed now, as far as dependencies go."""
        if self.after or self.inputs:
            return False
        return not self.follow or (bool(self.ran_on) and spec.follow is not None and not spec.follow.all)


def counts(dependency: Dependency, outcome: Outcome) -> bool:
    """Whether this end is one that the dependency waits for (R2)."""
    return dependency.success if outcome == "ok" else dependency.failure


def edges(spec: TaskSpec) -> dict[TaskId, int]:
    """Each task that the spec names, in the order after, follow, inputs, with the roles in which it names it."""
    named: dict[TaskId, int] = {}
    if spec.after is not None:
        named = dict.fromkeys(spec.after.tasks, AFTER)
    if spec.follow is not None:
        for task in spec.follow.tasks:
            named[task] = named.get(task, 0) | FOLLOW
    for task in spec.inputs:
        named[task] = named.get(task, 0) | INPUT
    return named


def open_needs(named: dict[TaskId, int], spec: TaskSpec) -> Needs:
    """The needs of a task none of whose edges is settled yet."""
    if spec.follow is None and not spec.inputs:
        return Needs(len(named))
    if spec.follow is None and spec.after is None:
        return Needs(0, len(named))
    after = follow = inputs = 0
    for role in named.values():
        after += role & AFTER
        follow += (role & FOLLOW) >> 1
        inputs += (role & INPUT) >> 2
    return Needs(after, inputs, follow)


def settle(
    needs: Needs, spec: TaskSpec, role: int, task: TaskId, outcome: Outcome, engine: EngineId | None
) -> str | None:
    """Settle one edge, `task` having ended: updates `needs`; returns why it is impossible now, or None (R4, R6)."""
    if role & AFTER and needs.after:
        after = spec.after or NO_DEPENDENCY
        if counts(after, outcome):
            needs.after = needs.after - 1 if after.all else 0
        elif after.all:
            return f"task {format_task_id(task)}, which it waits for, ended as {outcome}"
        elif needs.after == 1:
            return "every task of which any would do ended, none as it should"
        else:
            needs.after -= 1
    if role & INPUT:
        if outcome != "ok":
            return f"task {format_task_id(task)}, whose result it needs, ended as {outcome}"
        needs.inputs -= 1
    if role & FOLLOW:
        return _settle_follow(needs, spec.follow or NO_DEPENDENCY, task, outcome, engine)
    return None


def _settle_follow(
    needs: Needs, follow: Dependency, task: TaskId, outcome: Outcome, engine: EngineId | None
) -> str | None:
    needs.follow -= 1
    would_do = engine is not None and counts(follow, outcome)
    if follow.all:
        if engine is None:
            return f"task {format_task_id(task)}, which it follows, ended as {outcome} without having run"
        if not would_do:
            return f"task {format_task_id(task)}, which it follows, ended as {outcome}"
        if needs.ran_on and engine not in needs.ran_on:
            return f"the tasks that it follows ran on different engines ({next(iter(needs.ran_on))} and {engine})"
    if would_do and engine is not None:
        needs.ran_on |= {engine}
    if not needs.follow and not needs.ran_on:
        return "every task that it follows ended, none where and as it should"
    return None


def listed(items: list[str], joint: str = ", ") -> str:
    """The first `MOST_LISTED` items in words, and the number of the others."""
    more = len(items) - MOST_LISTED
    return joint.join(items[:MOST_LISTED]) + (f" and {more:,} more" if more > 0 else "")
