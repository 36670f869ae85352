"""The ready queues: who goes next, at a cost that does not grow with how many wait (R12, R13, R15).

Ready tasks sit by *requirement*: a `Pool` for each (targets, resources), which knows the engines that match and which
of them have room, and in it a `ReadyQueue` for each set of exclusions. A queue holds per priority a heap of client
lines by virtual time, refreshed lazily, since virtual times only grow; a line holds one client's tasks by submission
number, a deque for those that came in order and a heap for those that came back. Tasks that leave from the middle
(cancelled, timed out) are only marked and skipped later; a line that is mostly marks is swept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush, heapreplace

from trio_sched.core.engines import Engine, fits
from trio_sched.core.ids import ClientId, EngineId, TaskId
from trio_sched.core.placement import Room
from trio_sched.core.task import NOBODY, READY, Task

_SWEEP = 64
"""Marks that a line may hold beyond its live tasks before it is swept."""


class Client:
    """A session, and its turn (R15)."""

    __slots__ = ("active", "gone", "id", "number", "pause_reason", "paused", "ready", "step", "unfinished", "vtime")

    def __init__(self, client_id: ClientId, number: int, weight: float) -> None:
        self.id = client_id
        self.number = number
        self.vtime = 0.0
        self.step = 1.0 / weight
        self.unfinished = 0
        """Its accepted tasks that have not ended."""
        self.ready = 0
        """Its ready tasks; it is active while there are any and it is not paused."""
        self.active = False
        """Whether it stands in the heap of active clients."""
        self.gone = False
        self.paused = False
        """Whether its tasks stay here (R34)."""
        self.pause_reason = ""


class Turns:
    """The active clients by virtual time: from where one that becomes active starts."""

    __slots__ = ("_heap", "floor")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Client]] = []
        self.floor = 0.0
        """The largest virtual time at which a task was ever sent."""

    def activate(self, client: Client) -> None:
        """A client without ready tasks is about to have one."""
        if client.active and len(self._heap) == 1:  # it stands there alone: a common case, and no comparison is needed
            client.vtime = max(client.vtime, self.floor)
            return
        start = self._current()
        if client.vtime < start:
            client.vtime = start
        if not client.active:
            client.active = True
            heappush(self._heap, (client.vtime, client.number, client))

    def restore(self, active: list[Client]) -> None:
        """These clients, and no others, are active."""
        self._heap = [(client.vtime, client.number, client) for client in active]
        heapify(self._heap)
        for client in active:
            client.active = True

    def _current(self) -> float:
        heap = self._heap
        while heap:
            vtime, number, client = heap[0]
            if not client.ready or client.paused:
                heappop(heap)
                client.active = False
            elif vtime != client.vtime:
                heapreplace(heap, (client.vtime, number, client))
            else:
                return vtime
        return self.floor


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
