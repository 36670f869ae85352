"""The scheduler: events in, effects out, all of the rules of docs/rules.md (R1-R29, R34) and nothing else.

`handle` never awaits, reads no clock, touches no socket, and raises for no outside input: what cannot be (a result for
an unknown task, an engine that joins twice) is an ordinary case, counted in `counters`. Each event goes the same way:
its handler changes what the event names and ends or queues tasks; `_cascade` settles what depends on the ends;
`_dispatch` sends ready tasks out. One event costs O(log n) in the waiting tasks, plus the dependency edges that it
settles.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from trio_sched.core.deadlines import Deadlines
from trio_sched.core.effects import Accept, Effect, ForgetEngine, ForgetSession, Publish, RecallTask, Refuse
from trio_sched.core.engines import UNLIMITED, Engine
from trio_sched.core.events import (
    DEFAULT_SPEC,
    CancelRequested,
    ClientJoined,
    ClientLeft,
    ClientPaused,
    ClientResumed,
    DependencyUnmet,
    DrainRequested,
    EngineJoined,
    EngineLost,
    EngineReturned,
    Event,
    RecallAnswered,
    ResultsReceived,
    TaskFinished,
    TaskSpec,
    TaskSubmitted,
    TimePassed,
)
from trio_sched.core.ids import EngineId, TaskId, format_task_id, is_native, session_of
from trio_sched.core.lifecycle import Lifecycle, Settings, delivery
from trio_sched.core.ready import Client, Pool
from trio_sched.core.task import ASSIGNED, CANCELLING, RECALLING, Task

if TYPE_CHECKING:
    import numpy

__all__ = ["Scheduler", "Settings"]


class Scheduler(Lifecycle):
    """The whole state, changed by `handle` alone."""

    def __init__(self, settings: Settings, rng: random.Random, generator: numpy.random.Generator | None = None) -> None:
        super().__init__(settings, rng, generator)
        self.graces: Deadlines[Engine] = Deadlines(_grace_of)
        self._pure = settings.scheme == "pure"
        self._engine_numbers = 0
        self._client_numbers = 0
        self._handlers: dict[type[Event], Callable[[Any, float], None]] = {
            ClientJoined: self._client_joined,
            ClientLeft: self._client_left,
            ClientPaused: self._client_paused,
            ClientResumed: self._client_resumed,
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
        out: list[Effect] = []
        self._out = out
        self._handlers[type(event)](event, now)
        if self._settling:
            self._cascade(now)
        if self.pools.hot:
            self._dispatch(now)
        return out

    def next_deadline(self) -> float | None:
        """When `TimePassed` is next due; None if nothing waits for time."""
        due = [when for when in (self.timeouts.next(), self.backoffs.next(), self.graces.next()) if when is not None]
        return min(due, default=None)

    # ---- clients ----------------------------------------------------------------------------------------------------

    def _client_joined(self, event: ClientJoined, now: float) -> None:
        if event.client in self.clients:
            self._count("client_joined_twice")
            return
        self._client_numbers += 1
        self.clients[event.client] = Client(event.client, self._client_numbers, event.weight)

    def _client_left(self, event: ClientLeft, now: float) -> None:
        """Walks over all tasks where the event does not name those that matter: a session ends once, and an index by
        client would cost every task."""
        client = self.clients.get(event.client)
        if client is None:
            self._count("unknown_client_left")
            return
        client.gone = True
        if client.paused:
            self._resume(client)
        unread = event.unread
        if unread is None:
            unread = tuple([task for task, ended in self.archive.items() if ended.client == client.id])
        self.archive.received(client.id, unread)
        if client.unfinished:
            self.departed[client.id] = self.departed.get(client.id, 0) + client.unfinished
        elif client.id not in self.departed:
            self._out.append(ForgetSession(client.id))
        if event.cancel and client.unfinished:
            for task in [task for task in self.tasks.values() if task.client is client]:
                self._cancel(task, now, "its client left")
        del self.clients[event.client]

    def _client_paused(self, event: ClientPaused, now: float) -> None:
        client = self.clients.get(event.client)
        if client is None:
            self._count("unknown_client_paused")
            return
        client.pause_reason = event.reason
        if not client.paused:
            self.pools.pause(client)
            client.paused = True

    def _client_resumed(self, event: ClientResumed, now: float) -> None:
        client = self.clients.get(event.client)
        if client is None or not client.paused:
            self._count("not_paused")
        else:
            self._resume(client)

    def _results_received(self, event: ResultsReceived, now: float) -> None:
        self.archive.received(event.client, event.tasks)

    # ---- submission -------------------------------------------------------------------------------------------------

    def _task_submitted(self, event: TaskSubmitted, now: float) -> None:
        client = self.clients.get(event.client)
        if client is None:
            self._refuse(event, f"no session {event.client!r} is open; say hello first")
            return
        task_id, spec = event.task, event.spec
        if type(task_id) is int and task_id > self.highest.get(client.id, 0) and session_of(task_id) == client.id:
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
        client.unfinished += 1
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
        elif is_native(task_id) and is_native(client.id):
            if session_of(task_id) != client.id:
                self._refuse(event, f"task id {format_task_id(task_id)} is not of session {client.id}")
            else:
                self._refuse(event, f"task id {format_task_id(task_id)} was used before, and its task is forgotten")
            return True
        else:
            return False
        if owner != client.id:
            self._refuse(event, f"task id {format_task_id(task_id)} belongs to another session")
        elif ended is not None and ended.dropped:
            self._refuse(event, f"task {format_task_id(task_id)} has ended, and its result was received and dropped")
        else:
            self._count("submitted_again")
            if task is not None:
                task.copies += 1
            self._out.append(Accept(client.id, task_id))
            if ended is not None:
                self._out.append(delivery(task_id, ended))
        return True

    def _what_is_wrong(self, spec: TaskSpec) -> str:
        """Why this spec cannot be taken; "" if it can (R2, R11)."""
        count = len(spec.inputs)
        for named in (spec.after, spec.follow):
            if named is not None:
                count += len(named.tasks)
                if not (named.success or named.failure):
                    what = "after" if named is spec.after else "follow"
                    return f"{what} counts neither success nor failure: set at least one of them"
        if count > self.settings.max_dependencies:
            return f"it names {count} tasks; the most is {self.settings.max_dependencies}"
        if spec.targets is not None and len(spec.targets) > self.settings.max_targets:
            return f"it names {len(spec.targets)} targets; the most is {self.settings.max_targets} (max_targets)"
        if spec.retries < 0 or (spec.timeout_s or 0) < 0 or spec.backoff_s < 0:
            return "retries, timeout and backoff must not be negative"
        if self._pure and (count or spec.targets is not None or spec.resources or spec.retries or spec.timeout_s):
            return (
                "the scheme 'pure' looks at no dependencies, inputs, targets, resources, retries or timeout: "
                "leave them out, or run the scheduler with another scheme"
            )
        return ""

    # ---- what engines answer ----------------------------------------------------------------------------------------

    def _held(self, engine: EngineId, task_id: TaskId, attempt: int | None, what: str) -> Task | None:
        """The task, if it is this engine's to answer for (R17); it is taken off the engine."""
        task = self.tasks.get(task_id)
        if task is None or not self._is_of(task, engine, attempt):
            self._count(what)
            return None
        holder = cast(Engine, task.engine)
        holder.give_back(task)
        self.pools.changed(holder)
        return task

    def _is_of(self, task: Task, engine: EngineId, attempt: int | None) -> bool:
        """Whether it is this engine, and for this attempt, that answers for the task (R17)."""
        holder = task.engine
        return holder is not None and holder.id == engine and (attempt is None or attempt == task.attempt)

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
        if not event.recalled:
            task = self.tasks.get(event.task)
            if task is None or not self._is_of(task, event.engine, event.attempt):
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
            self._cancel(
                task, now, "cancelled by its client" if event.client is not None else "cancelled by an operator"
            )

    # ---- engines ----------------------------------------------------------------------------------------------------

    def _engine_joined(self, event: EngineJoined, now: float) -> None:
        if event.engine in self.engines:
            self._count("engine_joined_twice")
            return
        self._engine_numbers += 1
        hwm = self.settings.hwm if event.hwm is None else event.hwm
        engine = Engine(event.engine, self._engine_numbers, event.slots, hwm, event.resources, now, event.kind)
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
        self._out.append(ForgetEngine(engine.id))
        targeting = self.pools.leave(engine)
        if self.monitored:
            self._out.append(Publish("engine_lost", engine=engine.id))
        orphans = list(engine.outstanding.values())
        engine.outstanding.clear()
        for task in orphans:
            self._orphaned(task, engine, task.id in running, now)
        self._recheck(targeting, now)

    def _recheck(self, pools: list[Pool], now: float) -> None:
        """A target of these is gone: tasks for which it was the last end, or wait for more to follow (R6, R7)."""
        hopeless: list[Task] = []
        for pool in pools:
            hopeless += [task for task in pool.bound.values() if pool.hopeless(task.refused)]
            for queue in pool.queues.values():
                if pool.hopeless(queue.refused):
                    hopeless += queue.tasks()
        for task in sorted(hopeless, key=_submission):
            self._leave_place(task)
            self._queue(task, now)

    def _engine_returned(self, event: EngineReturned, now: float) -> None:
        engine = self.engines.get(event.engine)
        if engine is None:
            self._count("unknown_engine_returned")
            return
        engine.lost_until = 0.0
        engine.lost_running = None
        engine.open = not engine.draining
        never_begun = []
        for task in engine.outstanding.values():
            if task.id not in event.holding:
                if task.state is ASSIGNED:
                    self._out.append(self._assignment(task, engine))
                else:
                    never_begun.append(task.id)
            elif task.state is not ASSIGNED:
                self._out.append(RecallTask(engine.id, task.id, task.attempt))
        self.pools.changed(engine)
        for task_id in never_begun:
            self._recall_answered(RecallAnswered(engine.id, task_id, True), now)

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
            running = engine.presumed_running()
            for task in engine.outstanding.values():
                if task.state is ASSIGNED and task.id not in running:
                    task.state = RECALLING
                    if not engine.lost_until:
                        self._out.append(RecallTask(engine.id, task.id, task.attempt))

    # ---- time -------------------------------------------------------------------------------------------------------

    def _time_passed(self, event: TimePassed, now: float) -> None:
        """Grace periods, backoffs, dispatch, and only then timeouts: what can be placed now never times out (R21)."""
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


def _submission(task: Task) -> int:
    return task.seq


def _grace_of(engine: Engine) -> float:
    return engine.lost_until
