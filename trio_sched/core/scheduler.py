"""The scheduler: events in, effects out, all of the rules of docs/rules.md (R1-R29) and nothing else.

`handle` never awaits, reads no clock, touches no socket, and raises for no outside input: what cannot be (a result for an
unknown task, an engine that joins twice) is an ordinary case, counted in `counters`. Each event goes the same way: its handler changes
what the event names and ends or queues tasks; `_cascade` settles what depends on the ends; `_dispatch` sends ready tasks out. One event
costs O(log n) in the waiting tasks, plus the dependency edges that it settles.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from msgspec import Struct

from trio_sched.core import dependency
from trio_sched.core.archive import Archive
from trio_sched.core.deadlines import Deadlines
from trio_sched.core.dependency import FOLLOW, INPUT, Needs, name
from trio_sched.core.effects import Accept, AssignTask, DeliverResult, Effect, Publish, RecallTask, Refuse
from trio_sched.core.engines import UNLIMITED, Engine
from trio_sched.core.events import (
    DEFAULT_SPEC,
    SESSION_SHIFT,
    CancelRequested,
    ClientId,
    ClientJoined,
    ClientLeft,
    DependencyUnmet,
    DrainRequested,
    EngineId,
    EngineJoined,
    EngineLost,
    EngineReturned,
    Event,
    Outcome,
    PayloadRef,
    RecallAnswered,
    ResultsReceived,
    TaskFinished,
    TaskId,
    TaskSpec,
    TaskSubmitted,
    TimePassed,
)
from trio_sched.core.placement import SCHEMES, Scheme
from trio_sched.core.pools import Pools
from trio_sched.core.ready import Client, Pool, Turns
from trio_sched.core.task import (
    ASSIGNED,
    CANCELLING,
    DELAYED,
    ENDED,
    READY,
    RECALLING,
    WAITING,
    Ended,
    Task,
)

if TYPE_CHECKING:
    import numpy


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


class Scheduler:
    """The whole state, changed by `handle` alone."""

    def __init__(
        self, settings: Settings, rng: random.Random, generator: numpy.random.Generator | None = None
    ) -> None:
        self.settings = settings
        self.monitored = False
        """Whether anyone listens: Publish effects are made only then (R28)."""
        self.draining = False
        self.counters: dict[str, int] = {}
        """How often what cannot be came in, and how tasks ended."""
        self.tasks: dict[TaskId, Task] = {}
        """The unfinished tasks."""
        self.archive = Archive(settings.keep_finished)
        self.clients: dict[ClientId, Client] = {}
        self.highest: dict[ClientId, int] = {}
        """The highest native task id seen of each session (R1)."""
        make_room = SCHEMES[settings.scheme]
        self.pools = Pools(lambda: make_room(rng, generator))
        self.engines = self.pools.engines
        self.waiters: dict[TaskId, list[Any]] = {}
        """By unfinished task: its dependents, each followed by the roles in which it is named."""
        self.timeouts: Deadlines[Task] = Deadlines(_timeout_of)
        self.backoffs: Deadlines[Task] = Deadlines(_wake_of)
        self.graces: Deadlines[Engine] = Deadlines(_grace_of)
        self._pure = settings.scheme == "pure"
        self._turns = Turns()
        self._settling: deque[tuple[TaskId, list[Any], Outcome, EngineId | None]] = deque()
        self._out: list[Effect] = []
        self._submissions = 0
        self._uses = 0
        self._engine_numbers = 0
        self._client_numbers = 0
        self._handlers: dict[type[Event], Callable[[Any, float], None]] = {
            ClientJoined: self._client_joined,
            ClientLeft: self._client_left,
            TaskSubmitted: self._task_submitted,
            TaskFinished: self._task_finished,
            DependencyUnmet: self._dependency_unmet,
            ResultsReceived: self._results_received,
            EngineJoined: self._engine_joined,
            EngineLost: self._engine_lost,
            EngineReturned: self._engine_returned,
            DrainRequested: self._drain_requested,
            CancelRequested: self._cancel_requested,
            RecallAnswered: self._recall_answered,
            TimePassed: self._time_passed,
        }

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event at the time `now` (seconds on any steady clock); returns what is to be done, in order."""
        self._out = out = []
        self._handlers[type(event)](event, now)
        if self._settling:
            self._cascade(now)
        if self.pools.hot:
            self._dispatch(now)
        return out

    def next_deadline(self) -> float | None:
        """When `TimePassed` is next due; None if nothing waits for time."""
        due = [
            when for when in (self.timeouts.next(), self.backoffs.next(), self.graces.next()) if when is not None
        ]
        return min(due, default=None)

    def _count(self, what: str) -> None:
        self.counters[what] = self.counters.get(what, 0) + 1

    # ---- clients ----------------------------------------------------------------------------------------------------

    def _client_joined(self, event: ClientJoined, now: float) -> None:
        if event.client in self.clients:
            self._count("client_joined_twice")
            return
        self._client_numbers += 1
        self.clients[event.client] = Client(event.client, self._client_numbers, event.weight)

    def _client_left(self, event: ClientLeft, now: float) -> None:
        """Walks over all tasks: a session ends once, and an index by client would cost every task."""
        client = self.clients.pop(event.client, None)
        if client is None:
            self._count("unknown_client_left")
            return
        client.gone = True
        self.archive.received(client.id, [task for task, ended in self.archive.items() if ended.client == client.id])
        if event.cancel:
            for task in [task for task in self.tasks.values() if task.client is client]:
                self._cancel(task, now, "its client left")

    def _results_received(self, event: ResultsReceived, now: float) -> None:
        self.archive.received(event.client, event.tasks)

    # ---- submission -------------------------------------------------------------------------------------------------

    def _task_submitted(self, event: TaskSubmitted, now: float) -> None:
        client = self.clients.get(event.client)
        if client is None:
            self._refuse(event, f"no session {event.client!r} is open; say hello first")
            return
        task_id, spec = event.task, event.spec
        if type(task_id) is int and task_id > self.highest.get(client.id, 0) and task_id >> SESSION_SHIFT == client.id:
            self.highest[client.id] = task_id
        elif self._seen(event, client):
            return
        if self.draining:
            self._refuse(event, "the scheduler is shutting down")
            return
        if spec is not DEFAULT_SPEC and (wrong := self._what_is_wrong(spec)):
            self._refuse(event, wrong)
            return
        self._submissions += 1
        task = Task(task_id, client, self._submissions, event.payload, spec, now)
        self.tasks[task_id] = task
        self._out.append(Accept(client.id, task_id))
        if self.monitored:
            self._out.append(Publish("submitted", task_id, None, client.id))
        if spec is DEFAULT_SPEC:
            self._ready(task, self.pools.anyone)
            return
        task.retries_left = spec.retries
        if spec.timeout_s:
            self._start_clock(task, now)
        if self._depend(task, now):
            self._queue(task, now)

    def _refuse(self, event: TaskSubmitted, reason: str) -> None:
        self._count("refused")
        self._out.append(Refuse(event.client, event.task, reason))

    def _seen(self, event: TaskSubmitted, client: Client) -> bool:
        """Handle a submission whose id may have been used before (R1); False if it is new after all."""
        task_id = event.task
        task = self.tasks.get(task_id)
        ended = None if task is not None else self.archive.get(task_id)
        if task is not None:
            owner = task.client.id
        elif ended is not None:
            owner = ended.client
        elif isinstance(task_id, int) and isinstance(client.id, int):
            if task_id >> SESSION_SHIFT != client.id:
                self._refuse(event, f"task id {name(task_id)} is not of session {client.id}")
            else:
                self._refuse(event, f"task id {name(task_id)} was used before, and its task is forgotten")
            return True
        else:
            return False
        if owner != client.id:
            self._refuse(event, f"task id {name(task_id)} belongs to another session")
        elif ended is not None and ended.dropped:
            self._refuse(event, f"task {name(task_id)} has ended, and its result was received and dropped")
        else:
            self._count("submitted_again")
            self._out.append(Accept(client.id, task_id))
            if task is not None:
                task.copies += 1
            elif ended is not None:
                self._out.append(_delivery(task_id, ended))
        return True

    def _what_is_wrong(self, spec: TaskSpec) -> str:
        """Why this spec cannot be taken; "" if it can (R2, R11)."""
        for what, named in (("after", spec.after), ("follow", spec.follow)):
            if named is not None and not (named.success or named.failure):
                return f"{what} counts neither success nor failure: set at least one of them"
        count = sum(len(d.tasks) for d in (spec.after, spec.follow) if d is not None) + len(spec.inputs)
        if count > self.settings.max_dependencies:
            return f"it names {count} tasks; the most is {self.settings.max_dependencies}"
        if spec.retries < 0 or (spec.timeout_s or 0) < 0 or spec.backoff_s < 0:
            return "retries, timeout and backoff must not be negative"
        if self._pure and (count or spec.targets is not None or spec.resources or spec.retries or spec.timeout_s):
            return (
                "the scheme 'pure' looks at no dependencies, inputs, targets, resources, retries or timeout: "
                "leave them out, or run the scheduler with another scheme"
            )
        return ""

    def _depend(self, task: Task, now: float) -> bool:
        """Find what the task depends on; False if it ended at once (R4, R5)."""
        spec = task.spec
        named = dependency.edges(spec)
        if not named:
            return True
        for other in named:
            if other == task.id or (other not in self.tasks and other not in self.archive):
                self._end(task, now, "unreachable", error="InvalidDependency", reason=self._invalid(task, other))
                return False
        for other in spec.inputs:
            ended = self.archive.get(other)
            if ended is not None and ended.dropped and ended.outcome == "ok":
                reason = f"the result of task {name(other)}, which it needs, is no longer kept"
                self._end(task, now, "unreachable", error="InvalidDependency", reason=reason)
                return False
        task.needs = needs = dependency.open_needs(named)
        impossible = None
        for other, role in named.items():
            ended = self.archive.get(other)
            if ended is None:
                self.waiters.setdefault(other, []).extend((task, role))
                continue
            if role & INPUT:
                ended.keepers += 1
            impossible = impossible or dependency.settle(needs, spec, role, other, ended.outcome, ended.engine)
        if impossible:
            self._impossible(task, now, impossible)
            return False
        return True

    def _invalid(self, task: Task, other: TaskId) -> str:
        if other == task.id:
            return "it depends on itself"
        if isinstance(other, int) and other <= self.highest.get(other >> SESSION_SHIFT, 0):
            return f"task {name(other)}, which it depends on, ended so long ago that it is forgotten"
        return f"task {name(other)}, which it depends on, was never submitted"

    # ---- waiting and ready ------------------------------------------------------------------------------------------

    def _place_of(self, task: Task) -> frozenset[EngineId] | None:
        """The engines that targets and follow leave, None for any (R6, R7)."""
        targets, needs = task.spec.targets, task.needs
        if needs is None or task.spec.follow is None or not task.spec.follow.tasks:
            return targets
        return needs.ran_on if targets is None else needs.ran_on & targets

    def _queue(self, task: Task, now: float) -> None:
        """Put an unplaced task, which is in no queue, where it belongs now: ready, waiting or impossible."""
        spec, needs = task.spec, task.needs
        if needs is not None and not needs.met(spec):
            self._wait(task, spec.targets, now)
            return
        pool = self.pools.find(self._place_of(task), spec.resources)
        if pool.hopeless(task.refused):
            self.pools.tidy(pool)
            if needs is not None and needs.follow:
                self._wait(task, spec.targets, now)
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
        if not client.ready:
            self._turns.activate(client)
        client.ready += 1
        self.pools.push(task, pool)

    def _wait(self, task: Task, targets: frozenset[EngineId] | None, now: float) -> None:
        """Let a task wait for dependencies, but fail when the last of its targets goes (R7)."""
        task.state = WAITING
        pool = self.pools.find(targets, task.spec.resources) if targets is not None else None
        if pool is None:
            return
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
            task.state = ASSIGNED
            task.engine = engine
            task.attempt += 1
            task.assigned_at = now
            engine.take(task)
            self._uses += 1
            engine.used = self._uses
            pools.changed(engine)
            out.append(self._assignment(task, engine))
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
        settling = self._settling
        while settling:
            ended_id, edges, outcome, engine = settling.popleft()
            pairs = iter(edges)
            for task, role in zip(pairs, pairs, strict=True):
                if task.state is ENDED:
                    continue
                impossible = dependency.settle(task.needs, task.spec, role, ended_id, outcome, engine)
                if impossible:
                    self._impossible(task, now, impossible)
                elif role & FOLLOW or task.needs.met(task.spec):
                    self._settled(task, now)

    def _settled(self, task: Task, now: float) -> None:
        """One more of a waiting task's dependencies is settled, perhaps the last, or its set of engines has grown."""
        needs = cast(Needs, task.needs)
        if task.engine is not None or task.state is DELAYED:
            return  # follow (any) heard of one more engine: it matters when the task comes back
        if not needs.met(task.spec):
            return
        if task.queue is not None and task.queue.pool.targets == self._place_of(task):
            return
        self._leave_place(task)
        self._queue(task, now)

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
        """A task ends: tell its client, remember it, and leave its dependents to the cascade. It is off its engine already."""
        if task.engine is None:
            self._leave_place(task)
        task.engine = None
        task.state = ENDED
        client, task_id = task.client, task.id
        del self.tasks[task_id]
        ended = Ended(
            client.id, outcome, engine, result, error, reason,
            task.attempt, task.accepted_at, task.assigned_at, now, history=task.history,
        )  # fmt: skip
        if not client.gone:
            self._out.append(_delivery(task_id, ended))
            for _ in range(task.copies - 1):
                self._out.append(_delivery(task_id, ended))
        if self.monitored:
            self._out.append(Publish("finished", task_id, engine, client.id, outcome))
        edges = self.waiters.pop(task_id, None) if self.waiters else None
        if edges:
            pairs = iter(edges)
            for dependent, role in zip(pairs, pairs, strict=True):
                if role & INPUT and dependent.state is not ENDED:
                    ended.keepers += 1
            self._settling.append((task_id, edges, outcome, engine))
        self.archive.add(task_id, ended)
        if client.gone:
            self.archive.received(client.id, (task_id,))
        if task.spec.inputs and task.needs is not None:  # else it ended before it was counted as a keeper
            self.archive.release(frozenset(task.spec.inputs))

    def _impossible(self, task: Task, now: float, reason: str) -> None:
        self._end(task, now, "unreachable", error="ImpossibleDependency", reason=reason)

    def _no_target_left(self, task: Task, now: float) -> None:
        place = sorted(map(str, self._place_of(task) or ()))
        self._impossible(task, now, f"none of the engines it may run on is left (of {', '.join(place) or 'none'})")

    # ---- what engines answer ----------------------------------------------------------------------------------------

    def _held(self, engine: EngineId, task_id: TaskId, attempt: int | None, what: str) -> Task | None:
        """The task, if it is this engine's to answer for (R17); it is taken off the engine."""
        task = self.tasks.get(task_id)
        holder = None if task is None else task.engine
        if task is None or holder is None or holder.id != engine or (attempt is not None and attempt != task.attempt):
            self._count(what)
            return None
        holder.give_back(task)
        self.pools.changed(holder)
        return task

    def _task_finished(self, event: TaskFinished, now: float) -> None:
        task = self._held(event.engine, event.task, event.attempt, "stray_result")
        if task is None:
            return
        outcome = event.outcome
        engine = cast(Engine, task.engine)
        engine.done += 1
        if task.state is CANCELLING:
            self._end_cancelled(task, now, engine.id)
        elif outcome == "error" and task.retries_left:
            self._retry(task, now, f"failed on engine {engine.id}: {event.reason}", engine)
        else:
            self._end(task, now, outcome, engine=engine.id, result=event.result, reason=event.reason)

    def _retry(self, task: Task, now: float, what: str, where: Engine | None) -> None:
        """R18: one retry less, and not on `where` again (a dead engine needs no exclusion)."""
        task.retries_left -= 1
        task.history += ((now, f"{what}; {task.retries_left} retries left"),)
        if where is not None:
            if task.spec.same_engine:
                task.failed |= {where.id}
            else:
                task.refused |= {where.id}
        if task.spec.backoff_s:
            task.wake_at = now + task.spec.backoff_s * 2.0 ** (task.spec.retries - task.retries_left - 1)
        self._requeue(task, now, fresh_clock=True)

    def _dependency_unmet(self, event: DependencyUnmet, now: float) -> None:
        task = self._held(event.engine, event.task, event.attempt, "stray_unmet")
        if task is None:
            return
        if task.state is CANCELLING:
            self._end_cancelled(task, now, event.engine)
            return
        task.refused |= {event.engine}
        task.history += ((now, f"declined by engine {event.engine}: {event.reason}"),)
        self._requeue(task, now, fresh_clock=False)

    def _recall_answered(self, event: RecallAnswered, now: float) -> None:
        task = self.tasks.get(event.task)
        if not event.recalled:
            if task is None or task.engine is None or task.engine.id != event.engine:
                self._count("stray_recall")
            elif task.state is RECALLING:
                task.state = ASSIGNED
            return
        task = self._held(event.engine, event.task, event.attempt, "stray_recall")
        if task is None:
            return
        if task.state is CANCELLING:
            self._end_cancelled(task, now, None)
            return
        task.history += ((now, f"given back by engine {event.engine}"),)
        self._requeue(task, now, fresh_clock=False)

    # ---- cancelling -------------------------------------------------------------------------------------------------

    def _cancel_requested(self, event: CancelRequested, now: float) -> None:
        task = self.tasks.get(event.task)
        if task is None:
            self._count("cancel_of_ended" if event.task in self.archive else "cancel_of_unknown")
        elif event.client is not None and task.client.id != event.client:
            self._count("cancel_of_others")
        else:
            self._cancel(task, now, "cancelled by its client" if event.client is not None else "cancelled by an operator")

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

    # ---- engines ----------------------------------------------------------------------------------------------------

    def _engine_joined(self, event: EngineJoined, now: float) -> None:
        if event.engine in self.engines:
            self._count("engine_joined_twice")
            return
        self._engine_numbers += 1
        hwm = self.settings.hwm if event.hwm is None else event.hwm
        engine = Engine(event.engine, self._engine_numbers, event.slots, hwm, event.resources, now)
        if self._pure:
            engine.capacity = UNLIMITED
        self.pools.join(engine)
        if self.monitored:
            self._out.append(Publish("engine_joined", engine=engine.id))

    def _engine_lost(self, event: EngineLost, now: float) -> None:
        engine = self.engines.get(event.engine)
        if engine is None or (engine.lost_until and not event.confirmed):
            self._count("engine_lost_twice")
            return
        if event.running is not None or not engine.lost_until:
            engine.lost_running = event.running
        engine.lost_reason = event.reason
        engine.open = False
        if event.confirmed or self.settings.grace_s <= 0:
            self._unregister(engine, now)
            return
        engine.lost_until = now + self.settings.grace_s
        self.graces.add(engine.lost_until, engine.number, engine)
        self.pools.changed(engine)

    def _unregister(self, engine: Engine, now: float) -> None:
        """The engine is gone for good: its tasks go back or fail (R20), and so do those that only it could run (R7)."""
        engine.lost_until = 0.0
        running = engine.presumed_running() if engine.lost_running is None else set(engine.lost_running)
        targeting = self.pools.leave(engine)
        if self.monitored:
            self._out.append(Publish("engine_lost", engine=engine.id))
        orphans = list(engine.outstanding.values())
        engine.outstanding.clear()
        for task in orphans:
            self._orphaned(task, engine, task.id in running, now)
        for pool in targeting:
            self._recheck(pool, now)

    def _orphaned(self, task: Task, engine: Engine, was_running: bool, now: float) -> None:
        limit = task.spec.crash_limit
        if task.state is CANCELLING:
            self._end_cancelled(task, now, engine.id if was_running else None)
            return
        if was_running:
            task.crashes += 1
        if limit is not None and (not was_running or task.crashes <= limit):
            task.history += ((now, f"engine {engine.id} died {'while running it' if was_running else 'before it began'}"),)
            self._requeue(task, now, fresh_clock=False)
            return
        reason = f"engine {engine.id} died while running task {name(task.id)}"
        if engine.lost_reason:
            reason = f"{reason}: {engine.lost_reason}"
        if task.retries_left:
            self._retry(task, now, reason, None)
        else:
            self._end(task, now, "lost", engine=engine.id, error="EngineError", reason=reason)

    def _recheck(self, pool: Pool, now: float) -> None:
        """A target of this pool is gone: tasks for which it was the last one end, or wait for more to follow (R6, R7)."""
        hopeless = [task for task in pool.bound.values() if pool.hopeless(task.refused)]
        for queue in pool.queues.values():
            if pool.hopeless(queue.refused):
                hopeless.extend(queue.tasks())
        for task in sorted(hopeless, key=_submission):
            self._leave_place(task)
            self._queue(task, now)

    def _engine_returned(self, event: EngineReturned, now: float) -> None:
        engine = self.engines.get(event.engine)
        if engine is None or not engine.lost_until:
            self._count("engine_returned_unlost")
            return
        engine.lost_until = 0.0
        engine.lost_running = None
        engine.open = not engine.draining
        for task in engine.outstanding.values():
            if task.id not in event.holding and task.state is ASSIGNED:
                self._out.append(self._assignment(task, engine))
            elif task.state is not ASSIGNED:
                self._out.append(RecallTask(engine.id, task.id, task.attempt))
        self.pools.changed(engine)

    def _drain_requested(self, event: DrainRequested, now: float) -> None:
        if event.engine is None:
            self.draining = True
            engines = list(self.engines.values())
        elif event.engine in self.engines:
            engines = [self.engines[event.engine]]
        else:
            self._count("drain_of_unknown")
            return
        for engine in engines:
            engine.draining = True
            engine.open = False
            self.pools.changed(engine)
            for task in engine.outstanding.values():
                if task.state is ASSIGNED:
                    task.state = RECALLING
                    if not engine.lost_until:
                        self._out.append(RecallTask(engine.id, task.id, task.attempt))

    # ---- time -------------------------------------------------------------------------------------------------------

    def _time_passed(self, event: TimePassed, now: float) -> None:
        """Grace periods, backoffs, dispatch, and only then timeouts: what can be placed at once never times out (R21)."""
        while (engine := self.graces.pop_due(now)) is not None:
            self._unregister(engine, now)
        self._cascade(now)
        while (task := self.backoffs.pop_due(now)) is not None:
            self._leave_place(task)
            task.wake_at = 0.0
            self._queue(task, now)
        self._dispatch(now)
        while (task := self.timeouts.pop_due(now)) is not None:
            reason = f"it did not start within its timeout of {task.spec.timeout_s:g} s"
            self._end(task, now, "timeout", error="TaskTimeout", reason=reason)


def _delivery(task: TaskId, ended: Ended) -> DeliverResult:
    return DeliverResult(ended.client, task, ended.outcome, ended.engine, ended.result, ended.error, ended.reason)


def _submission(task: Task) -> int:
    return task.seq


def _timeout_of(task: Task) -> float:
    return task.deadline if task.engine is None and task.state is not ENDED else 0.0


def _wake_of(task: Task) -> float:
    return task.wake_at if task.state is DELAYED else 0.0


def _grace_of(engine: Engine) -> float:
    return engine.lost_until
