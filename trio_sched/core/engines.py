"""One record per engine: its capacity, what it has outstanding, what of its resources is held (R10, R16).

An engine knows the pools (requirements) that it matches, so that a change of its load touches just those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_sched.core.ids import EngineId, TaskId
from trio_sched.core.task import Task

if TYPE_CHECKING:
    from trio_sched.core.ready import Pool

UNLIMITED = 1 << 60
_EPSILON = 1e-9
"""Amounts like 0.1 + 0.2 must fit into 0.3."""


def fits(asked: tuple[tuple[str, float], ...], amounts: dict[str, float]) -> bool:
    """Whether every amount asked for is there."""
    return all(amounts.get(name, 0.0) + _EPSILON >= amount for name, amount in asked)


class Engine:
    """A registered engine."""

    __slots__ = (
        "capacity",
        "done",
        "draining",
        "free",
        "hwm",
        "id",
        "joined_at",
        "kind",
        "load",
        "lost_reason",
        "lost_running",
        "lost_until",
        "number",
        "open",
        "outstanding",
        "pools",
        "resources",
        "running",
        "slots",
        "used",
    )

    def __init__(
        self,
        engine_id: EngineId,
        number: int,
        slots: int,
        hwm: int,
        resources: tuple[tuple[str, float], ...],
        joined_at: float,
        kind: str = "",
    ) -> None:
        self.id = engine_id
        self.number = number
        """Counts engines in the order in which they joined."""
        self.slots = slots
        self.hwm = hwm
        self.capacity = hwm * slots or UNLIMITED
        self.resources = dict(resources)
        self.free = dict(resources)
        self.joined_at = joined_at
        self.kind = kind
        self.used = -number
        """When it was last given a task, on a clock that counts assignments; new engines come first (R11)."""
        self.load = 0
        self.done = 0
        self.open = True
        """Whether it may be given tasks at all: neither lost nor draining."""
        self.draining = False
        self.lost_until = 0.0
        """When its grace period is over; 0: it is not lost."""
        self.lost_reason = ""
        self.lost_running: tuple[TaskId, ...] | None = None
        self.outstanding: dict[TaskId, Task] = {}
        """In the order of assignment."""
        self.running: dict[TaskId, Task] = {}
        """Those that hold resources (R16); kept only by engines that have any."""
        self.pools: list[Pool] = []

    def take(self, task: Task) -> None:
        """Put a task on the engine; it holds its resources if it can run at once."""
        self.outstanding[task.id] = task
        self.load += 1
        if self.resources and len(self.running) < self.slots:
            self._hold(task)

    def give_back(self, task: Task) -> None:
        """Take a task off the engine; the longest waiting one that fits runs in its place."""
        del self.outstanding[task.id]
        self.load -= 1
        if self.resources and self.running.pop(task.id, None) is not None:
            for name, amount in task.spec.resources:
                self.free[name] += amount
            if not self.running:
                self.free = dict(self.resources)  # what rounding took away comes back
            self._promote()

    def restore(self, tasks: list[Task]) -> None:
        """It has these tasks outstanding, in this order; it is in no pool yet."""
        was_running = list(self.running.values())
        self.outstanding = {task.id: task for task in tasks}
        self.load = len(tasks)
        self.free = dict(self.resources)
        self.running = {}
        self.pools = []
        self.open = not self.lost_until and not self.draining
        if self.resources:
            for task in was_running:
                if self.outstanding.get(task.id) is task and len(self.running) < self.slots:
                    self._hold(task)
            self._promote()

    def presumed_running(self) -> set[TaskId]:
        """What it runs, as far as the scheduler can tell (R20)."""
        if self.resources:
            return set(self.running)
        return {task for task, _ in zip(self.outstanding, range(self.slots), strict=False)}

    def _hold(self, task: Task) -> None:
        self.running[task.id] = task
        for name, amount in task.spec.resources:
            self.free[name] -= amount

    def _promote(self) -> None:
        for task in self.outstanding.values():
            if len(self.running) >= self.slots:
                return
            if task.id not in self.running and fits(task.spec.resources, self.free):
                self._hold(task)
