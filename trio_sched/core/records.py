"""The records that refer to one another: tasks, engines, request classes and their ready queues (R10, R12, R13, R15,
R16).

Rules:

- An unfinished task is a `Task`, as small as possible, since there may be a million. Its state, its engine and its
  queue agree at all times; `invariants.check` verifies it.
- Tasks with the same requirements on engines (targets, resources, kind) share a `RequestClass`. It knows the engines
  that match and, by its placement policy, those that have room. So a change of an engine's load affects only
  the classes that the engine matches, and one look at a class shows whether its tasks can be dispatched.
- Within a class there is a `ReadyQueue` for each set of exclusions (R18, R19), within that a `PriorityBand` for each
  priority, within that a `ClientQueue` for each client. Only the first task of each queue is ever compared, so dispatch
  does not cost the number of waiting tasks.
- A task that leaves a queue from the middle (cancelled, timed out) only loses its reference to the queue and is skipped
  later. A client queue that consists mostly of such tasks is swept.

The records are in one module because each kind refers to the others. They keep their own counts and indexes consistent
and decide nothing: which task moves when is decided by `Scheduler`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, Final, Protocol

from msgspec import Struct

from trio_sched.core.dependency import PendingDependencies
from trio_sched.core.events import PayloadRef, TaskSpec
from trio_sched.core.fair_share import ClientState
from trio_sched.core.ids import EngineId, TaskId, format_task_id
from trio_sched.core.states import DELAYED, ENDED, READY, TRANSITIONS, WAITING, State
from trio_sched.errors import InvariantError

#: Removed tasks that a client queue may hold, beyond the number of its ready ones, before it is swept.
_SWEEP = 64
NO_ENGINES: Final[frozenset[EngineId]] = frozenset()


# ---- tasks -----------------------------------------------------------------------------------------------------------


class Task(Struct, gc=False):
    """An accepted task that has not ended."""

    id: TaskId
    client: ClientState
    #: The number of the submission, which is the place of the task in the order (R12).
    seq: int
    payload: PayloadRef
    spec: TaskSpec
    accepted_at: float
    state: State = WAITING
    retries_left: int = 0
    #: The number of assignments so far.
    attempt: int = 0
    #: How many engines died while they ran the task (R20).
    crashes: int = 0
    #: Accepted submissions of this id. The result is delivered once for each (R1).
    submissions: int = 1
    #: The engine to which the task is assigned, in the states of `PLACED`.
    engine: Engine | None = None
    #: The engine of the last attempt that ran and ended.
    ran_on: EngineId | None = None
    assigned_at: float = 0.0
    #: When the timeout is over (R21); 0: no timeout.
    deadline: float = 0.0
    #: When the backoff is over, in state DELAYED (R18).
    wake_at: float = 0.0
    #: Engines on which the task never runs: they declined it, or it failed there without `same_engine` (R18, R19).
    excluded: frozenset[EngineId] = NO_ENGINES
    #: Engines on which the task failed, and runs again only if no other engine matches (R18).
    avoided: frozenset[EngineId] = NO_ENGINES
    #: Counts of its pending dependencies; None: it has no dependencies.
    pending: PendingDependencies | None = None
    #: The ready queue that holds the task, in state READY.
    queue: ReadyQueue | None = None
    #: The request class that has the task among its `target_watchers`, in the states WAITING and DELAYED.
    watched: RequestClass | None = None
    #: Times and descriptions of failures, retries, recalls and lost engines, for the story of the task.
    history: tuple[tuple[float, str], ...] = ()


def timeout_due_at(task: Task) -> float:
    """When the timeout of the task is due, 0 while it is not (R21)."""
    return task.deadline if task.engine is None and task.state is not ENDED else 0.0


def backoff_due_at(task: Task) -> float:
    """When the backoff of the task is over, 0 without one (R18)."""
    return task.wake_at if task.state is DELAYED else 0.0


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

#: The capacity of an engine without a high-water mark.
UNLIMITED = 1 << 60
#: Tolerance for sums of amounts: 0.1 + 0.2 fits into 0.3.
_EPSILON = 1e-9


def fits(requested: tuple[tuple[str, float], ...], amounts: dict[str, float]) -> bool:
    """Whether the requested amounts are available (R16)."""
    return all(amounts.get(name, 0.0) + _EPSILON >= amount for name, amount in requested)


class Engine:
    """The record of a registered engine: its capacity, its outstanding tasks, and the resources that they hold (R10,
    R16).
    """

    __slots__ = (
        "accepts_tasks",
        "capacity",
        "draining",
        "finished_count",
        "free",
        "hwm",
        "id",
        "joined_at",
        "kind",
        "last_used",
        "load",
        "lost_reason",
        "lost_running",
        "lost_until",
        "number",
        "outstanding",
        "request_classes",
        "resources",
        "running",
        "slots",
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
        #: Counts engines in the order in which they joined.
        self.number = number
        self.slots = slots
        self.hwm = hwm
        self.capacity = hwm * slots or UNLIMITED
        self.resources = dict(resources)
        self.free = dict(resources)
        self.joined_at = joined_at
        self.kind = kind
        #: The number, among all assignments, of the last one to this engine. Before the first one it is negative, so
        #: that engines without a task come first, the newest of them before the others (R11).
        self.last_used = -number
        #: The number of outstanding tasks.
        self.load = 0
        #: The number of tasks that it finished.
        self.finished_count = 0
        #: Whether it is neither lost nor draining.
        self.accepts_tasks = True
        self.draining = False
        #: When the grace period is over (R20); 0: the engine is not lost.
        self.lost_until = 0.0
        self.lost_reason = ""
        #: The tasks that were running when it was lost, None if not known.
        self.lost_running: tuple[TaskId, ...] | None = None
        #: The tasks assigned to it, in the order of assignment.
        self.outstanding: dict[TaskId, Task] = {}
        #: The outstanding tasks that hold resources (R16). Only engines that offer resources keep it.
        self.running: dict[TaskId, Task] = {}
        #: The classes of which it is a member.
        self.request_classes: list[RequestClass] = []

    def assign(self, task: Task) -> None:
        """Add an outstanding task. It holds its resources if a slot is free for it."""
        self.outstanding[task.id] = task
        self.load += 1
        if self.resources and len(self.running) < self.slots:
            self._hold(task)

    def release(self, task: Task) -> None:
        """Remove an outstanding task. The first of the others that fits takes its slot and resources."""
        del self.outstanding[task.id]
        self.load -= 1
        if self.resources and self.running.pop(task.id, None) is not None:
            for name, amount in task.spec.resources:
                self.free[name] += amount
            if not self.running:
                self.free = dict(self.resources)  # undoes rounding errors (R32)
            self._promote()

    def restore(self, tasks: list[Task]) -> None:
        """Replace the outstanding tasks by these, in this order, and leave all request classes."""
        was_running = list(self.running.values())
        self.outstanding = {task.id: task for task in tasks}
        self.load = len(tasks)
        self.free = dict(self.resources)
        self.running = {}
        self.request_classes = []
        self.accepts_tasks = not self.lost_until and not self.draining
        if self.resources:
            for task in was_running:
                if self.outstanding.get(task.id) is task and len(self.running) < self.slots:
                    self._hold(task)
            self._promote()

    def presumed_running(self) -> set[TaskId]:
        """The tasks that it probably runs: engines do not report the start of a task (R20)."""
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


def grace_due_at(engine: Engine) -> float:
    """When the grace period of the engine is over, 0 without one (R20)."""
    return engine.lost_until


# ---- ready tasks -----------------------------------------------------------------------------------------------------


class ClientQueue:
    """The tasks of one client in one priority band, by submission number.

    Tasks in the order of submission are in a deque, tasks that are queued again (retry, recall) in a heap.
    """

    __slots__ = ("client", "in_order", "ready_count", "returned")

    def __init__(self, client: ClientState) -> None:
        self.client = client
        self.in_order: deque[Task] = deque()
        self.returned: list[tuple[int, Task]] = []
        self.ready_count = 0

    def push(self, task: Task) -> None:
        """Add a task at the place of its submission number."""
        in_order = self.in_order
        if not in_order or in_order[-1].seq < task.seq:
            in_order.append(task)
        else:
            heappush(self.returned, (task.seq, task))
        self.ready_count += 1

    def head(self, queue: ReadyQueue) -> Task:
        """The first task of the queue, of which there is at least one."""
        in_order, returned = self.in_order, self.returned
        while in_order and in_order[0].queue is not queue:
            in_order.popleft()
        while returned and returned[0][1].queue is not queue:
            heappop(returned)
        if returned and not (in_order and in_order[0].seq < returned[0][0]):
            return returned[0][1]
        return in_order[0]

    def drop(self, task: Task) -> None:
        """Remove `task`, which is the head."""
        if self.in_order and self.in_order[0] is task:
            self.in_order.popleft()
        else:
            heappop(self.returned)
        self.ready_count -= 1

    def count_removed(self, queue: ReadyQueue) -> None:
        """Count a task whose reference to `queue` was removed; sweep the queue when most tasks in it are such."""
        self.ready_count -= 1
        if len(self.in_order) + len(self.returned) > 2 * self.ready_count + _SWEEP:
            self.in_order = deque(task for task in self.in_order if task.queue is queue)
            self.returned = [entry for entry in self.returned if entry[1].queue is queue]
            heapify(self.returned)


class PriorityBand:
    """The client queues of one priority in one ready queue, in the order of virtual time.

    Each is once in the heap. Virtual times in the heap may be outdated; an entry is corrected at the top. The queues of
    paused clients are not in the heap and not counted (R34).
    """

    __slots__ = ("heap", "paused_queues", "queues", "ready_count")

    def __init__(self) -> None:
        self.queues: dict[int, ClientQueue] = {}
        self.paused_queues: dict[int, ClientQueue] = {}
        self.heap: list[tuple[float, int, ClientQueue]] = []
        self.ready_count = 0

    def pause(self, number: int) -> int:
        """Withhold the queue of a client; return the number of its tasks."""
        client_queue = self.queues.pop(number, None)
        if client_queue is None:
            return 0
        self.heap = [entry for entry in self.heap if entry[2] is not client_queue]
        heapify(self.heap)
        if client_queue.ready_count:
            self.paused_queues[number] = client_queue
            self.ready_count -= client_queue.ready_count
        return client_queue.ready_count

    def resume(self, client: ClientState) -> int:
        """Add the withheld queue of a client again; return the number of its tasks."""
        client_queue = self.paused_queues.pop(client.number, None)
        if client_queue is None:
            return 0
        self.queues[client.number] = client_queue
        heappush(self.heap, (client.virtual_time, client.number, client_queue))
        self.ready_count += client_queue.ready_count
        return client_queue.ready_count

    def first(self) -> ClientQueue:
        """The queue with the smallest virtual time. The band must have a ready task."""
        heap = self.heap
        while True:
            virtual_time, number, client_queue = heap[0]
            if not client_queue.ready_count:
                heappop(heap)
                del self.queues[number]
            elif len(heap) > 1 and virtual_time != client_queue.client.virtual_time:
                heapreplace(heap, (client_queue.client.virtual_time, number, client_queue))
            else:
                return client_queue


class ReadyQueue:
    """The ready tasks of one request class that have the same excluded and avoided engines (R18, R19)."""

    __slots__ = ("avoided", "bands", "excluded", "paused_count", "ready_count", "request_class", "top_priority")

    def __init__(
        self, request_class: RequestClass, excluded: frozenset[EngineId], avoided: frozenset[EngineId]
    ) -> None:
        self.request_class = request_class
        self.excluded = excluded
        self.avoided = avoided
        self.bands: dict[int, PriorityBand] = {}
        #: Tasks of clients that are not paused.
        self.ready_count = 0
        #: Tasks of paused clients.
        self.paused_count = 0
        #: The highest priority of a task of a client that is not paused; without such a task it is not valid.
        self.top_priority = 0

    def push(self, task: Task) -> None:
        """Add a task, which is ready."""
        task.queue = self
        priority = task.spec.priority
        band = self.bands.get(priority)
        if band is None:
            band = self.bands[priority] = PriorityBand()
        client = task.client
        if client.paused:
            client_queue = band.paused_queues.get(client.number)
            if client_queue is None:
                client_queue = band.paused_queues[client.number] = ClientQueue(client)
            client_queue.push(task)
            self.paused_count += 1
            self.request_class.paused_count += 1
            return
        client_queue = band.queues.get(client.number)
        if client_queue is None:
            client_queue = band.queues[client.number] = ClientQueue(client)
            heappush(band.heap, (client.virtual_time, client.number, client_queue))
        client_queue.push(task)
        band.ready_count += 1
        if not self.ready_count or priority > self.top_priority:
            self.top_priority = priority
        self.ready_count += 1
        self.request_class.ready_count += 1

    def head(self) -> Task:
        """The task that is dispatched next. The queue must have a task of a client that is not paused."""
        return self.bands[self.top_priority].first().head(self)

    def pop(self) -> Task:
        """Remove the head and return it."""
        band = self.bands[self.top_priority]
        client_queue = band.first()
        task = client_queue.head(self)
        client_queue.drop(task)
        self._count_removed(task, band)
        return task

    def remove(self, task: Task) -> None:
        """Remove any task of the queue."""
        band = self.bands[task.spec.priority]
        number = task.client.number
        if task.client.paused:
            client_queue = band.paused_queues[number]
            task.queue = None
            self.paused_count -= 1
            self.request_class.paused_count -= 1
            client_queue.count_removed(self)
            if not client_queue.ready_count:
                del band.paused_queues[number]
                self._discard_empty_bands()
            return
        client_queue = band.queues[number]
        self._count_removed(task, band)
        client_queue.count_removed(self)

    def _count_removed(self, task: Task, band: PriorityBand) -> None:
        task.queue = None
        self.ready_count -= 1
        self.request_class.ready_count -= 1
        band.ready_count -= 1
        if not band.ready_count and len(self.bands) > 1:
            if not band.paused_queues:
                del self.bands[task.spec.priority]
            self.top_priority = max(
                (priority for priority, other in self.bands.items() if other.ready_count), default=0
            )

    def _discard_empty_bands(self) -> None:
        bands = {priority: band for priority, band in self.bands.items() if band.ready_count or band.paused_queues}
        self.bands = bands
        self.top_priority = max((priority for priority, band in bands.items() if band.ready_count), default=0)

    def pause(self, client: ClientState) -> None:
        """Withhold the tasks of a client (R34)."""
        self._move_to_paused(sum(band.pause(client.number) for band in self.bands.values()))

    def resume(self, client: ClientState) -> None:
        """Make the withheld tasks of a client available again (R34)."""
        self._move_to_paused(-sum(band.resume(client) for band in self.bands.values()))

    def _move_to_paused(self, count: int) -> None:
        if count:
            self.ready_count -= count
            self.paused_count += count
            self.request_class.ready_count -= count
            self.request_class.paused_count += count
            self._discard_empty_bands()

    def tasks(self) -> Iterator[Task]:
        """All tasks, those of paused clients included, in no particular order."""
        for band in self.bands.values():
            for client_queue in [*band.queues.values(), *band.paused_queues.values()]:
                yield from (task for task in client_queue.in_order if task.queue is self and task.state is READY)
                yield from (task for _, task in client_queue.returned if task.queue is self and task.state is READY)


# ---- request classes -------------------------------------------------------------------------------------------------


class PlacementPolicy(Protocol):
    """The engines of one request class that have room, and the choice among them (R11)."""

    def update(self, engine: Engine, available: bool) -> None:
        """Record whether the engine has room, and its present `load` and `last_used`."""

    def pick(self, excluded: frozenset[EngineId]) -> Engine | None:
        """Choose an engine that is not excluded; None if there is none.

        Changes nothing but the state of the random generator, or the position of the round robin.
        """

    def has_candidate(self, excluded: frozenset[EngineId]) -> bool:
        """Whether `pick` would find an engine."""


class RequestClass:
    """Tasks with the same requirements on engines (targets, resources, kind), and the engines that match them."""

    __slots__ = (
        "kind",
        "main_queue",
        "members",
        "paused_count",
        "policy",
        "queues",
        "ready_count",
        "registered",
        "resources",
        "target_watchers",
        "targets",
    )

    def __init__(
        self,
        targets: frozenset[EngineId] | None,
        resources: tuple[tuple[str, float], ...],
        kind: str,
        policy: PlacementPolicy,
        registered: Mapping[EngineId, Engine],
    ) -> None:
        self.registered = registered
        self.targets = targets
        self.resources = resources
        self.kind = kind
        #: The members that have room now, and the choice among them.
        self.policy = policy
        #: The registered engines that match, with and without room.
        self.members: dict[EngineId, Engine] = {}
        #: The ready queues by excluded and avoided engines.
        self.queues: dict[tuple[frozenset[EngineId], frozenset[EngineId]], ReadyQueue] = {}
        #: The queue of tasks without excluded and avoided engines.
        self.main_queue = self.queue(NO_ENGINES, NO_ENGINES)
        #: Ready tasks in all queues, of clients that are not paused.
        self.ready_count = 0
        #: Ready tasks of paused clients.
        self.paused_count = 0
        #: Tasks in the states WAITING and DELAYED that end when the last of the targets is removed (R7).
        self.target_watchers: dict[TaskId, Task] = {}

    @property
    def key(self) -> tuple[frozenset[EngineId] | None, tuple[tuple[str, float], ...], str]:
        """The requirements, by which the class is found."""
        return self.targets, self.resources, self.kind

    def queue(self, excluded: frozenset[EngineId], avoided: frozenset[EngineId]) -> ReadyQueue:
        """The queue for these excluded and avoided engines; it is made if it does not exist."""
        queue = self.queues.get((excluded, avoided))
        if queue is None:
            queue = self.queues[excluded, avoided] = ReadyQueue(self, excluded, avoided)
        return queue

    def matches(self, engine: Engine) -> bool:
        """Whether the engine meets the requirements with all of its resources, free or not."""
        if engine.kind != self.kind or (self.targets is not None and engine.id not in self.targets):
            return False
        return not self.resources or fits(self.resources, engine.resources)

    def takes(self, engine: Engine) -> bool:
        """Whether an engine that matches has room for a task of the class now."""
        return (
            engine.accepts_tasks
            and engine.load < engine.capacity
            and (not self.resources or fits(self.resources, engine.free))
        )

    def effective_exclusions(self, excluded: frozenset[EngineId], avoided: frozenset[EngineId]) -> frozenset[EngineId]:
        """The engines that a task may not go to now: avoided ones count only while another member remains (R18)."""
        if not avoided:
            return excluded
        both = excluded | avoided
        members = self.members
        if len(members) > len(both) or any(engine not in both for engine in members):
            return both
        return excluded

    def is_unsatisfiable(self, excluded: frozenset[EngineId]) -> bool:
        """Whether all targets are removed or excluded (R7, R19). A class without targets is always satisfiable."""
        return self.targets is not None and not any(
            target in self.registered and target not in excluded for target in self.targets
        )
