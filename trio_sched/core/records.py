"""The records of the core that refer to one another."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, Final, Protocol

from msgspec import Struct

from trio_sched.core.dependency import Needs
from trio_sched.core.events import PayloadRef, TaskSpec
from trio_sched.core.fair_share import Client
from trio_sched.core.ids import EngineId, TaskId, format_task_id
from trio_sched.core.states import READY, TRANSITIONS, WAITING, State
from trio_sched.errors import InvariantError

_SWEEP = 64
"""Marks that a line may hold beyond its live tasks before it is swept."""
NOBODY: Final[frozenset[EngineId]] = frozenset()


# ---- tasks -----------------------------------------------------------------------------------------------------------


class Task(Struct, gc=False):
    """An accepted task that has not ended."""

    id: TaskId
    client: Client
    seq: int
    """Submission number: its place in the order (R12)."""
    payload: PayloadRef
    spec: TaskSpec
    accepted_at: float
    state: State = WAITING
    retries_left: int = 0
    attempt: int = 0
    """Number of assignments so far."""
    crashes: int = 0
    """Engine deaths while it ran (R20)."""
    copies: int = 1
    """Accepted submissions of this id: so often is its end delivered (R1)."""
    engine: Engine | None = None
    ran_on: EngineId | None = None
    """Where its last attempt ran, if that has ended."""
    assigned_at: float = 0.0
    deadline: float = 0.0
    """When its timeout is over; 0: none."""
    wake_at: float = 0.0
    """When its backoff is over, in state DELAYED."""
    refused: frozenset[EngineId] = NOBODY
    """Engines that it will never run on: they declined it, or it failed there and may not return (R18, R19)."""
    failed: frozenset[EngineId] = NOBODY
    """Engines where it failed and runs again only when no other matches (R18)."""
    needs: Needs | None = None
    """What it waits for, while there is anything left to hear of."""
    queue: ReadyQueue | None = None
    """The ready queue it is in, in state READY."""
    bound: Pool | None = None
    """The requirement that can make it impossible while it is in no queue: WAITING or DELAYED, with targets (R7)."""
    history: tuple[tuple[float, str], ...] = ()
    """What happened beyond the ordinary, for its story."""


class CheckedTask(Task, gc=False):
    """A task whose state changes only along the table of transitions: assignments to `state` call `check_state`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "state":
            check_state(self, value)
        super().__setattr__(name, value)


def check_state(task: Task, state: State) -> None:
    """Check the change of a task's state against the table.

    :raises InvariantError: the table has no such transition.
    """
    if state is not task.state and state not in TRANSITIONS[task.state]:
        raise InvariantError(f"task {format_task_id(task.id)} is {task.state.value} and cannot become {state.value}")


# ---- engines ---------------------------------------------------------------------------------------------------------

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


# ---- ready tasks -----------------------------------------------------------------------------------------------------


class Line:
    """One client's tasks at one priority in one queue, by submission number."""

    __slots__ = ("back", "client", "fresh", "live")

    def __init__(self, client: Client) -> None:
        self.client = client
        self.fresh: deque[Task] = deque()
        self.back: list[tuple[int, Task]] = []
        self.live = 0

    def push(self, task: Task) -> None:
        """Add a task at its place."""
        fresh = self.fresh
        if not fresh or fresh[-1].seq < task.seq:
            fresh.append(task)
        else:
            heappush(self.back, (task.seq, task))
        self.live += 1

    def head(self, queue: ReadyQueue) -> Task:
        """The next task; the line must have a live one."""
        fresh, back = self.fresh, self.back
        while fresh and fresh[0].queue is not queue:
            fresh.popleft()
        while back and back[0][1].queue is not queue:
            heappop(back)
        if back and not (fresh and fresh[0].seq < back[0][0]):
            return back[0][1]
        return fresh[0]

    def drop(self, task: Task) -> None:
        """Forget `task`, which is the head."""
        if self.fresh and self.fresh[0] is task:
            self.fresh.popleft()
        else:
            heappop(self.back)
        self.live -= 1

    def mark(self, queue: ReadyQueue) -> None:
        """A task left from the middle: its `queue` is no longer this one."""
        self.live -= 1
        if len(self.fresh) + len(self.back) > 2 * self.live + _SWEEP:
            self.fresh = deque(task for task in self.fresh if task.queue is queue)
            self.back = [entry for entry in self.back if entry[1].queue is queue]
            heapify(self.back)


class Level:
    """The lines of one priority in one queue, each once in the heap; the virtual times there may be outdated. Those of
    paused clients are set apart and not counted."""

    __slots__ = ("heap", "lines", "live", "paused")

    def __init__(self) -> None:
        self.lines: dict[int, Line] = {}
        self.paused: dict[int, Line] = {}
        self.heap: list[tuple[float, int, Line]] = []
        self.live = 0

    def pause(self, number: int) -> int:
        """Set the line of a client apart; returns how many tasks that are."""
        line = self.lines.pop(number, None)
        if line is None:
            return 0
        self.heap = [entry for entry in self.heap if entry[2] is not line]
        heapify(self.heap)
        if line.live:
            self.paused[number] = line
            self.live -= line.live
        return line.live

    def resume(self, client: Client) -> int:
        """Take the line of a client back; returns how many tasks that are."""
        line = self.paused.pop(client.number, None)
        if line is None:
            return 0
        self.lines[client.number] = line
        heappush(self.heap, (client.vtime, client.number, line))
        self.live += line.live
        return line.live

    def first(self) -> Line:
        """The line whose turn it is; the level must have a live task."""
        heap = self.heap
        while True:
            vtime, number, line = heap[0]
            if not line.live:
                heappop(heap)
                del self.lines[number]
            elif len(heap) > 1 and vtime != line.client.vtime:
                heapreplace(heap, (line.client.vtime, number, line))
            else:
                return line


class ReadyQueue:
    """The ready tasks of one requirement: a pool's engines less these exclusions."""

    __slots__ = ("failed", "held", "levels", "live", "pool", "refused", "top")

    def __init__(self, pool: Pool, refused: frozenset[EngineId], failed: frozenset[EngineId]) -> None:
        self.pool = pool
        self.refused = refused
        self.failed = failed
        self.levels: dict[int, Level] = {}
        self.live = 0
        """Tasks that can be dispatched."""
        self.held = 0
        """Tasks of paused clients."""
        self.top = 0
        """The highest priority with a live task; meaningless without one."""

    def push(self, task: Task) -> None:
        """Add a ready task at its place."""
        task.queue = self
        priority = task.spec.priority
        level = self.levels.get(priority)
        if level is None:
            level = self.levels[priority] = Level()
        client = task.client
        if client.paused:
            line = level.paused.get(client.number)
            if line is None:
                line = level.paused[client.number] = Line(client)
            line.push(task)
            self.held += 1
            self.pool.held += 1
            return
        line = level.lines.get(client.number)
        if line is None:
            line = level.lines[client.number] = Line(client)
            heappush(level.heap, (client.vtime, client.number, line))
        line.push(task)
        level.live += 1
        if not self.live or priority > self.top:
            self.top = priority
        self.live += 1
        self.pool.live += 1

    def head(self) -> Task:
        """The task whose turn it is; the queue must have a live one."""
        return self.levels[self.top].first().head(self)

    def pop(self) -> Task:
        """Take out the head."""
        level = self.levels[self.top]
        line = level.first()
        task = line.head(self)
        line.drop(task)
        self._left(task, level)
        return task

    def remove(self, task: Task) -> None:
        """Take out any task of the queue."""
        level = self.levels[task.spec.priority]
        number = task.client.number
        if task.client.paused:
            line = level.paused[number]
            task.queue = None
            self.held -= 1
            self.pool.held -= 1
            line.mark(self)
            if not line.live:
                del level.paused[number]
                self._discard_empty_levels()
            return
        line = level.lines[number]
        self._left(task, level)
        line.mark(self)

    def _left(self, task: Task, level: Level) -> None:
        task.queue = None
        self.live -= 1
        self.pool.live -= 1
        level.live -= 1
        if not level.live and len(self.levels) > 1:
            if not level.paused:
                del self.levels[task.spec.priority]
            self.top = max((priority for priority, other in self.levels.items() if other.live), default=0)

    def _discard_empty_levels(self) -> None:
        levels = {priority: level for priority, level in self.levels.items() if level.live or level.paused}
        self.levels = levels
        self.top = max((priority for priority, level in levels.items() if level.live), default=0)

    def pause(self, client: Client) -> None:
        """Set the tasks of a client apart (R34)."""
        self._count_held(sum(level.pause(client.number) for level in self.levels.values()))

    def resume(self, client: Client) -> None:
        """Take the tasks of a client back."""
        self._count_held(-sum(level.resume(client) for level in self.levels.values()))

    def _count_held(self, count: int) -> None:
        if count:
            self.live -= count
            self.held += count
            self.pool.live -= count
            self.pool.held += count
            self._discard_empty_levels()

    def tasks(self) -> Iterator[Task]:
        """All tasks, in no particular order."""
        for level in self.levels.values():
            for line in [*level.lines.values(), *level.paused.values()]:
                yield from (task for task in line.fresh if task.queue is self and task.state is READY)
                yield from (task for _, task in line.back if task.queue is self and task.state is READY)


# ---- requirements ----------------------------------------------------------------------------------------------------


class Room(Protocol):
    """The engines of one pool that have room."""

    def update(self, engine: Engine, has_room: bool) -> None:
        """The engine's room, load or time of use may have changed."""

    def pick(self, barred: frozenset[EngineId]) -> Engine | None:
        """Choose an engine that is not barred; None if there is none. Changes nothing but the state of randomness."""

    def any_but(self, barred: frozenset[EngineId]) -> bool:
        """Whether `pick` would find one."""


class Pool:
    """One requirement on engines (targets, resources, kind), the engines that match it, and the tasks that have it."""

    __slots__ = (
        "bound",
        "held",
        "kind",
        "live",
        "members",
        "plain",
        "queues",
        "registered",
        "resources",
        "room",
        "targets",
    )

    def __init__(
        self,
        targets: frozenset[EngineId] | None,
        resources: tuple[tuple[str, float], ...],
        kind: str,
        room: Room,
        registered: Mapping[EngineId, Engine],
    ) -> None:
        self.registered = registered
        self.targets = targets
        self.resources = resources
        self.kind = kind
        self.room = room
        """The matching engines that have room now, by the scheme."""
        self.members: dict[EngineId, Engine] = {}
        """All registered engines that match, room or not."""
        self.queues: dict[tuple[frozenset[EngineId], frozenset[EngineId]], ReadyQueue] = {}
        self.plain = self.queue(NOBODY, NOBODY)
        self.live = 0
        """Ready tasks in all of its queues that can be dispatched."""
        self.held = 0
        """Ready tasks of paused clients."""
        self.bound: dict[TaskId, Task] = {}
        """Waiting tasks that need one of its targets, but are in no queue yet (R7)."""

    @property
    def key(self) -> tuple[frozenset[EngineId] | None, tuple[tuple[str, float], ...], str]:
        """What it is found by."""
        return self.targets, self.resources, self.kind

    def queue(self, refused: frozenset[EngineId], failed: frozenset[EngineId]) -> ReadyQueue:
        """The queue for these exclusions."""
        queue = self.queues.get((refused, failed))
        if queue is None:
            queue = self.queues[refused, failed] = ReadyQueue(self, refused, failed)
        return queue

    def matches(self, engine: Engine) -> bool:
        """Whether the engine could ever take a task of this pool."""
        if engine.kind != self.kind or (self.targets is not None and engine.id not in self.targets):
            return False
        return not self.resources or fits(self.resources, engine.resources)

    def takes(self, engine: Engine) -> bool:
        """Whether a matching engine could take a task of this pool now."""
        return (
            engine.open and engine.load < engine.capacity and (not self.resources or fits(self.resources, engine.free))
        )

    def barred(self, refused: frozenset[EngineId], failed: frozenset[EngineId]) -> frozenset[EngineId]:
        """The engines that a task with these exclusions may not run on, among the members as they are (R18)."""
        if not failed:
            return refused
        both = refused | failed
        members = self.members
        if len(members) > len(both) or any(engine not in both for engine in members):
            return both
        return refused

    def hopeless(self, refused: frozenset[EngineId]) -> bool:
        """Whether no target that counts is left (R7, R19). Without targets there is always hope."""
        return self.targets is not None and not any(
            target in self.registered and target not in refused for target in self.targets
        )
