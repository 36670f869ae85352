"""What becomes of a task, whatever the event: waiting, queueing, dispatch, ends and the cascade (R3-R9, R12-R18,
R20-R24).

`Lifecycle` holds the state and the moves; `Scheduler` says which event calls for which. A task is always in exactly
one place: its dependencies, a ready queue, a backoff, an engine, or the archive; each method here takes it from one to
the next.
"""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING, Any, cast, get_args

from msgspec import Struct

from trio_sched.core import dependency
from trio_sched.core.archive import Archive
from trio_sched.core.deadlines import Deadlines
from trio_sched.core.dependency import FOLLOW, Needs, listed
from trio_sched.core.effects import AssignTask, DeliverResult, Effect, ForgetSession, Publish, RecallTask
from trio_sched.core.engines import Engine
from trio_sched.core.events import MOST_BACKOFF_S, Outcome, PayloadRef
from trio_sched.core.ids import ClientId, EngineId, TaskId, format_task_id, is_native, session_of
from trio_sched.core.placement import SCHEMES, Scheme
from trio_sched.core.pools import Pools
from trio_sched.core.ready import Client, Pool, Turns
from trio_sched.core.task import ASSIGNED, CANCELLING, DELAYED, ENDED, READY, RECALLING, WAITING, Ended, Task

if TYPE_CHECKING:
    import numpy


MOST_DOUBLINGS = 64
"""Of a backoff: more would make it no longer than MOST_BACKOFF_S, and could overflow."""


class Settings(Struct, frozen=True):
    """What the scheduler is told once."""

    scheme: Scheme = "leastload"
    hwm: int = 10
    """Tasks outstanding on one engine, times its slots (R10); 0: no limit."""
    grace_s: float = 5.0
    """How long the tasks of a lost engine are kept for it (R20)."""
    keep_finished: int = 100_000
    """How many ended tasks are remembered (R22)."""
    max_dependencies: int = 100_000
    """The most tasks that one submission may name."""
    max_targets: int = 1_000
    """The most engines that one submission may name (R7)."""


class Lifecycle:
    """The tasks and all that they wait for or run on, and the moves between."""

    def __init__(self, settings: Settings, rng: random.Random, generator: numpy.random.Generator | None = None) -> None:
        self.settings = settings
        self.monitored = False
        """Whether anyone listens: Publish effects are made only then (R28)."""
        self.draining = False
        self.counters: dict[str, int] = {}
        """How often what cannot be came in (R26)."""
        self.ends: dict[Outcome, int] = dict.fromkeys(get_args(Outcome), 0)
        """How many tasks ended how."""
        self.tasks: dict[TaskId, Task] = {}
        """The unfinished tasks."""
        self.archive = Archive(settings.keep_finished)
        self.clients: dict[ClientId, Client] = {}
        self.departed: dict[ClientId, int] = {}
        """Unfinished tasks of sessions that ended for good: how many, by client."""
        self.highest: dict[ClientId, int] = {}
        """The highest native task id seen of each session (R1)."""
        make_room = SCHEMES[settings.scheme]
        self.pools = Pools(lambda: make_room(rng, generator))
        self.engines = self.pools.engines
        self.waiters: dict[TaskId, list[Any]] = {}
        """By unfinished task: its dependents, each followed by the roles in which it is named."""
        self.timeouts: Deadlines[Task] = Deadlines(_timeout_of)
        self.backoffs: Deadlines[Task] = Deadlines(_wake_of)
        self._turns = Turns()
        self._settling: deque[tuple[TaskId, list[Any], Outcome, EngineId | None]] = deque()
        self._out: list[Effect] = []
        self._submissions = 0
        self._uses = 0

    def _count(self, what: str) -> None:
        self.counters[what] = self.counters.get(what, 0) + 1

    # ---- dependencies ------------------------------------------------------------------------------------------------

    def _depend(self, task: Task, now: float) -> bool:
        """Find what the task depends on; False if it ended at once (R4, R5)."""
        spec = task.spec
        named = dependency.edges(spec)
        if not named:
            return True
        tasks, archive, waiters = self.tasks, self.archive, self.waiters
        if spec.inputs:
            archive.want(spec.inputs)
        for other in named:
            if other == task.id or (other not in tasks and other not in archive):
                self._end(task, now, "unreachable", error="InvalidDependency", reason=self._invalid(task, other))
                return False
        for other in spec.inputs:
            ended = archive.get(other)
            if ended is not None and ended.dropped and ended.outcome == "ok":
                reason = f"the result of task {format_task_id(other)}, which it needs, is no longer kept"
                self._end(task, now, "unreachable", error="InvalidDependency", reason=reason)
                return False
        task.needs = needs = dependency.open_needs(named, spec)
        impossible = None
        for other, role in named.items():
            ended = archive.get(other)
            if ended is None:
                edges = waiters.get(other)
                if edges is None:
                    waiters[other] = [task, role]
                else:
                    edges += (task, role)
                continue
            impossible = impossible or dependency.settle(needs, spec, role, other, ended.outcome, ended.engine)
        if impossible:
            self._impossible(task, now, impossible)
            return False
        return True

    def _invalid(self, task: Task, other: TaskId) -> str:
        if other == task.id:
            return "it depends on itself"
        if is_native(other) and other <= self.highest.get(session_of(other), 0):
            return f"task {format_task_id(other)}, which it depends on, ended so long ago that it is forgotten"
        return f"task {format_task_id(other)}, which it depends on, was never submitted"

    # ---- waiting and ready ------------------------------------------------------------------------------------------

    def _place_of(self, task: Task) -> frozenset[EngineId] | None:
        """The engines that targets and follow leave, None for any (R6, R7)."""
        targets, needs = task.spec.targets, task.needs
        if needs is None or task.spec.follow is None or not task.spec.follow.tasks:
            return targets
        return needs.ran_on if targets is None else needs.ran_on & targets

    def _queue(self, task: Task, now: float) -> None:
        """Put an unplaced task, which is in no queue, where it belongs now: ready, waiting or impossible."""
        if task.needs is not None and not task.needs.met(task.spec):
            self._wait(task, now)
        else:
            self._enter(task, now)

    def _enter(self, task: Task, now: float) -> None:
        """Queue a task whose dependencies are met, unless it has to wait for its backoff or for more to follow."""
        spec = task.spec
        place = spec.targets if spec.follow is None else self._place_of(task)
        if place is None and not spec.resources and not spec.kind:
            pool = self.pools.anyone
        else:
            pool = self.pools.find(place, spec.resources, spec.kind)
        if place is not None and pool.hopeless(task.refused):
            self.pools.tidy(pool)
            if task.needs is not None and task.needs.follow:
                self._wait(task, now)
            else:
                self._no_target_left(task, now)
        elif task.wake_at > now:
            task.state = DELAYED
            self.backoffs.add(task.wake_at, task.seq, task)
            self._bind(task, pool)
        else:
            self._ready(task, pool)

    def _ready(self, task: Task, pool: Pool) -> None:
        task.state = READY
        client = task.client
        if not client.ready and not client.paused:
            self._turns.activate(client)
        client.ready += 1
        self.pools.push(task, pool)

    def _resume(self, client: Client) -> None:
        """R34: the client becomes active anew."""
        if client.ready:
            self._turns.activate(client)  # while it is still paused, so that it is not compared with itself
        client.paused = False
        client.pause_reason = ""
        self.pools.resume(client)

    def _wait(self, task: Task, now: float) -> None:
        """Let a task wait for dependencies, but fail when the last of its targets goes (R7), or of the engines that a
        settled `follow` leaves (R6).
        """
        task.state = WAITING
        targets = task.spec.targets if task.needs is None or task.needs.follow else self._place_of(task)
        if targets is None:
            return
        pool = self.pools.find(targets, task.spec.resources, task.spec.kind)
        if pool.hopeless(task.refused):
            self.pools.tidy(pool)
            self._no_target_left(task, now)
        else:
            self._bind(task, pool)

    def _bind(self, task: Task, pool: Pool) -> None:
        if pool.targets is not None:
            pool.bound[task.id] = task
            task.bound = pool

    def _leave_place(self, task: Task) -> None:
        """Take an unplaced task out of its queue, or of what binds it."""
        if task.queue is not None:
            task.client.ready -= 1
            self.pools.remove(task, task.queue)
        elif task.bound is not None:
            pool, task.bound = task.bound, None
            del pool.bound[task.id]
            self.pools.tidy(pool)

    def _requeue(self, task: Task, now: float, *, fresh_clock: bool) -> None:
        """A placed task that its engine has given up goes back to its old place."""
        task.engine = None
        if fresh_clock and task.spec.timeout_s:
            self._start_clock(task, now)
        elif task.deadline:
            self.timeouts.add(task.deadline, task.seq, task)
        self._queue(task, now)

    def _start_clock(self, task: Task, now: float) -> None:
        task.deadline = now + (task.spec.timeout_s or 0.0)
        self.timeouts.add(task.deadline, task.seq, task)

    # ---- dispatch and cascade ---------------------------------------------------------------------------------------

    def _dispatch(self, now: float) -> None:
        """Send ready tasks out until none has an engine with room (R12, R13)."""
        pools, out, turns = self.pools, self._out, self._turns
        if self.draining:
            pools.hot.clear()
            return
        while (pair := pools.next()) is not None:
            task, engine = pair
            client = task.client
            client.ready -= 1
            if client.vtime > turns.floor:
                turns.floor = client.vtime
            client.vtime += client.step
            task.attempt += 1
            out.append(self._assignment(task, engine))  # effects come before records: see recovery.py
            task.state = ASSIGNED
            task.engine = engine
            task.assigned_at = now
            engine.take(task)
            self._uses += 1
            engine.used = self._uses
            pools.changed(engine)
            if self.monitored:
                out.append(Publish("assigned", task.id, engine.id, client.id))

    def _assignment(self, task: Task, engine: Engine) -> AssignTask:
        inputs = task.spec.inputs
        if not inputs:
            return AssignTask(engine.id, task.id, task.attempt, task.payload)
        results = tuple(cast(Ended, self.archive.get(other)).result for other in inputs)
        return AssignTask(engine.id, task.id, task.attempt, task.payload, results)

    def _cascade(self, now: float) -> None:
        """Settle the dependents of ended tasks, first come first served; no recursion, so any depth will do (R4)."""
        settling, settle = self._settling, dependency.settle
        while settling:
            ended_id, edges, outcome, engine = settling[0]
            pairs = iter(edges)
            for task, role in zip(pairs, pairs, strict=True):
                if task.state is ENDED:
                    continue
                needs = task.needs
                impossible = settle(needs, task.spec, role, ended_id, outcome, engine)
                if impossible:
                    self._impossible(task, now, impossible)
                elif role & FOLLOW:
                    self._followed(task, now)
                elif task.state is WAITING and not (needs.after or needs.inputs) and needs.met(task.spec):
                    if task.bound is not None:
                        self._leave_place(task)
                    self._enter(task, now)
            settling.popleft()

    def _followed(self, task: Task, now: float) -> None:
        """One more of the tasks that it follows ended: it may be able to go now, or its set of engines has grown."""
        needs = cast(Needs, task.needs)
        if task.engine is not None or task.state is DELAYED:
            return  # it matters when the task comes back
        if needs.follow and not needs.met(task.spec):
            return
        if task.queue is not None and task.queue.pool.targets == self._place_of(task):
            return
        was_ready = task.queue is not None
        task.client.ready += was_ready  # it has a ready task all the while, so its turn stays as it is (R15)
        self._leave_place(task)
        self._queue(task, now)
        task.client.ready -= was_ready

    def _end(
        self,
        task: Task,
        now: float,
        outcome: Outcome,
        *,
        engine: EngineId | None = None,
        result: PayloadRef = None,
        error: str = "",
        reason: str = "",
    ) -> None:
        """A task ends: tell its client, remember it, and leave its dependents to the cascade. It is off its engine
        already.
        """
        if task.engine is None:
            self._leave_place(task)
        engine = task.ran_on if engine is None else engine
        client, task_id = task.client, task.id
        ended = Ended(
            client.id, outcome, engine, result, error, reason,
            task.attempt, task.accepted_at, task.assigned_at, now, history=task.history,
        )  # fmt: skip
        if not client.gone:
            self._out.append(delivery(task_id, ended))
            for _ in range(task.copies - 1):
                self._out.append(delivery(task_id, ended))
        task.engine = None
        task.state = ENDED
        self.ends[outcome] += 1
        if self.monitored:
            self._out.append(Publish("finished", task_id, engine, client.id, outcome))
        if self.waiters:
            edges = self.waiters.pop(task_id, None)
            if edges is not None:
                self._settling.append((task_id, edges, outcome, engine))
        if task.spec.inputs:  # before it is remembered itself, so that what it alone needed is forgotten first
            self.archive.release(task.spec.inputs)
        self.archive.add(task_id, ended)
        del self.tasks[task_id]
        task.payload = None  # its line may keep the task for a while
        client.unfinished -= 1
        if client.gone:
            self.archive.received(client.id, (task_id,))
            self._count_departed_end(client)

    def _count_departed_end(self, client: Client) -> None:
        """A task ended whose session has ended for good: the last one ends what is kept for the session."""
        others = self.departed[client.id] - 1
        if others:
            self.departed[client.id] = others
            return
        if self.clients.get(client.id, client) is client:  # else another session has this id now
            self._out.append(ForgetSession(client.id))
        del self.departed[client.id]

    def _impossible(self, task: Task, now: float, reason: str) -> None:
        self._end(task, now, "unreachable", error="ImpossibleDependency", reason=reason)

    def _no_target_left(self, task: Task, now: float) -> None:
        place = listed(sorted(map(str, self._place_of(task) or ())))
        self._impossible(task, now, f"none of the engines it may run on is left (of {place or 'none'})")

    # ---- going back, and being called off ---------------------------------------------------------------------------

    def _retry(self, task: Task, now: float, what: str, where: Engine | None) -> None:
        """R18: one retry less, and not on `where` again (a dead engine needs no exclusion)."""
        task.retries_left -= 1
        task.history += ((now, f"{what}; {task.retries_left} retries left"),)
        if where is not None:
            task.ran_on = where.id
            if task.spec.same_engine:
                task.failed |= {where.id}
            else:
                task.refused |= {where.id}
        if task.spec.backoff_s:
            task.wake_at = now + backoff(task.spec.backoff_s, task.spec.retries - task.retries_left)
        self._requeue(task, now, fresh_clock=True)

    def _orphaned(self, task: Task, engine: Engine, was_running: bool, now: float) -> None:
        limit = task.spec.crash_limit
        if task.state is CANCELLING:
            self._end_cancelled(task, now, engine.id if was_running else None)
            return
        if was_running or limit is None:
            task.crashes += 1
            task.ran_on = engine.id
        why = f": {engine.lost_reason}" if engine.lost_reason else ""
        if limit is not None and (not was_running or task.crashes <= limit):
            when = "while running it" if was_running else "before it began"
            task.history += ((now, f"engine {engine.id} died {when}{why}"),)
            self._requeue(task, now, fresh_clock=False)
            return
        reason = f"engine {engine.id} died while running task {format_task_id(task.id)}{why}"
        if task.retries_left:
            self._retry(task, now, reason, None)
        else:
            self._end(task, now, "lost", engine=engine.id, error="EngineError", reason=reason)

    def _cancel(self, task: Task, now: float, reason: str) -> None:
        """R23: a waiting task ends now; an assigned one is asked back and keeps its place until its engine answers."""
        if task.engine is None:
            self._end(task, now, "cancelled", error="TaskCancelled", reason=reason)
        elif task.state is not CANCELLING:
            recalled_already = task.state is RECALLING
            task.state = CANCELLING
            task.history += ((now, reason),)
            if not recalled_already and not task.engine.lost_until:
                self._out.append(RecallTask(task.engine.id, task.id, task.attempt))

    def _end_cancelled(self, task: Task, now: float, engine: EngineId | None) -> None:
        self._end(
            task, now, "cancelled", engine=engine, error="TaskCancelled", reason="cancelled while it was on an engine"
        )


def backoff(first_s: float, retry: int) -> float:
    """Seconds to wait before the n-th retry (R18)."""
    return min(first_s * 2.0 ** min(retry - 1, MOST_DOUBLINGS), MOST_BACKOFF_S)


def delivery(task: TaskId, ended: Ended) -> DeliverResult:
    """The effect that tells the client of an end."""
    return DeliverResult(ended.client, task, ended.outcome, ended.engine, ended.result, ended.error, ended.reason)


def _timeout_of(task: Task) -> float:
    return task.deadline if task.engine is None and task.state is not ENDED else 0.0


def _wake_of(task: Task) -> float:
    return task.wake_at if task.state is DELAYED else 0.0
