"""The scheduler: events in, effects out; all rules of docs/rules.md (R1-R29, R34) and nothing else.

Rules of this module:

- `handle` is the only way to change the state. It never awaits, reads no clock, touches no socket, and raises for no
  outside input: an invalid event (a result for an unknown task, an engine that joins twice) is an ordinary case that
  `counters` counts. So the rules can be tested without a network, and a simulator can drive them.
- Each event is handled in the same order: its handler changes the records that the event names, and ends or queues
  tasks; `_cascade` settles the dependents of the ended tasks; `_dispatch` assigns ready tasks to engines until no
  ready task has an engine with room.
- Everything that decides the state of a task is in this class. A task waits for dependencies, waits for a backoff, is
  in a ready queue, is on an engine, or has ended: exactly one of these. Its state changes only along the table of
  `states`; `CheckedTask` verifies each change.
- An effect is emitted *before* its records are changed. So after an exception the effects show which changes had begun,
  and `recovery` can restore the records (R33).
- An event costs O(log n) in the waiting tasks, O(r) in the request classes that an engine matches, and O(1) for each
  dependency that it settles.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast, get_args

from trio_sched.core import dependency
from trio_sched.core.completed_tasks import CompletedTask, CompletedTasks
from trio_sched.core.deadlines import Deadlines
from trio_sched.core.dependency import FOLLOW, PendingDependencies, format_list
from trio_sched.core.effects import (
    Accept,
    AssignTask,
    DeliverResult,
    Effect,
    ForgetEngine,
    ForgetSession,
    Publish,
    RecallTask,
    Refuse,
)
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
    MonitoringChanged,
    Outcome,
    PayloadRef,
    RecallAnswered,
    ResultsReceived,
    TaskFinished,
    TaskSubmitted,
    TimePassed,
    backoff_delay,
)
from trio_sched.core.fair_share import ClientState, FairShare
from trio_sched.core.ids import ClientId, EngineId, TaskId, format_task_id, is_native, session_base, session_of
from trio_sched.core.placement import SCHEMES
from trio_sched.core.records import UNLIMITED, Engine, RequestClass, Task, backoff_due_at, grace_due_at, timeout_due_at
from trio_sched.core.request_classes import RequestClasses
from trio_sched.core.settings import Settings, find_refusal
from trio_sched.core.states import ASSIGNED, CANCELLING, DELAYED, ENDED, READY, RECALLING, WAITING

if TYPE_CHECKING:
    import numpy

__all__ = ["Scheduler", "Settings"]


class Scheduler:
    """The state of all tasks, clients and engines, and the rules that change it.

    `rng` and `generator` are the only sources of randomness; schemes that draw at random use them.
    """

    #: The record that is made for a task. Tests use `CheckedTask`, which allows only the transitions of the table.
    task_type: type[Task] = Task

    def __init__(self, settings: Settings, rng: random.Random, generator: numpy.random.Generator | None = None) -> None:
        self.settings = settings
        #: Whether there are monitors: `Publish` effects are emitted only then (R28).
        self.monitored = False
        #: Whether the whole scheduler drains (R29).
        self.draining = False
        #: Counts of invalid, refused and repeated events, by kind (R25, R26).
        self.counters: dict[str, int] = {}
        #: Counts of ended tasks, by outcome (R24).
        self.outcome_counts: dict[Outcome, int] = dict.fromkeys(get_args(Outcome), 0)
        #: The unfinished tasks, in the order of submission.
        self.tasks: dict[TaskId, Task] = {}
        self.completed = CompletedTasks(settings.keep_finished)
        #: The open sessions.
        self.clients: dict[ClientId, ClientState] = {}
        #: Counts of unfinished tasks of sessions that ended for good, by client.
        self.departed_task_counts: dict[ClientId, int] = {}
        #: The highest native task id seen of each session that has ended (R1).
        self.highest_task_ids: dict[ClientId, int] = {}
        make_policy = SCHEMES[settings.scheme]
        self.request_classes = RequestClasses(lambda: make_policy(rng, generator))
        self.engines = self.request_classes.engines
        #: By unfinished task: its dependents, each followed by the roles in which it names the task.
        self.dependents: dict[TaskId, list[Any]] = {}
        self.timeout_deadlines: Deadlines[Task] = Deadlines(timeout_due_at)
        self.backoff_deadlines: Deadlines[Task] = Deadlines(backoff_due_at)
        self.grace_deadlines: Deadlines[Engine] = Deadlines(grace_due_at)
        self._fair_share = FairShare()
        #: Ended tasks whose dependents are not settled yet: id, dependents with roles, outcome, engine.
        self._settling: deque[tuple[TaskId, list[Any], Outcome, EngineId | None]] = deque()
        #: The effects of the event that is being handled.
        self._effects: list[Effect] = []
        self._pure = settings.scheme == "pure"
        self._submission_count = 0
        self._assignment_count = 0
        self._engine_count = 0
        self._client_count = 0
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
            MonitoringChanged: self._monitoring_changed,
            TimePassed: self._time_passed,
        }

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Handle one event; return its effects, in order.

        `now` is in seconds, on any monotonic clock.
        """
        effects: list[Effect] = []
        self._effects = effects
        self._handlers[type(event)](event, now)
        if self._settling:
            self._cascade(now)
        if self.request_classes.dispatchable:
            self._dispatch(now)
        return effects

    def next_deadline(self) -> float | None:
        """The time at which the next `TimePassed` is due; None if there is no deadline."""
        due = [
            when
            for when in (self.timeout_deadlines.next(), self.backoff_deadlines.next(), self.grace_deadlines.next())
            if when is not None
        ]
        return min(due, default=None)

    def _increment(self, kind: str) -> None:
        self.counters[kind] = self.counters.get(kind, 0) + 1

    # ---- clients ----------------------------------------------------------------------------------------------------

    def _client_joined(self, event: ClientJoined, now: float) -> None:
        if event.client in self.clients:
            self._increment("client_joined_twice")
            return
        self._client_count += 1
        highest = self.highest_task_ids.get(event.client)
        if highest is None:
            highest = session_base(event.client) - 1 if is_native(event.client) else 0
        self.clients[event.client] = ClientState(event.client, self._client_count, event.weight, highest)

    def _client_left(self, event: ClientLeft, now: float) -> None:
        """End a session, and cancel its tasks if the event says so (R17, R27). Costs a walk over the completed tasks if
        the event does not name the unread ones, and over the unfinished ones if they are cancelled."""
        client = self.clients.get(event.client)
        if client is None:
            self._increment("unknown_client_left")
            return
        client.has_left = True
        if client.paused:
            self._resume_client(client)
        unread = event.unread
        if unread is None:
            unread = tuple([task for task, completed in self.completed.items() if completed.client == client.id])
        self.completed.mark_received(client.id, unread)
        if client.unfinished_count:
            self.departed_task_counts[client.id] = self.departed_task_counts.get(client.id, 0) + client.unfinished_count
        elif client.id not in self.departed_task_counts:
            self._effects.append(ForgetSession(client.id))
        if event.cancel and client.unfinished_count:
            for task in [task for task in self.tasks.values() if task.client is client]:
                self._cancel_task(task, now, "its client left")
        self._keep_highest(client)
        del self.clients[event.client]

    def _keep_highest(self, client: ClientState) -> None:
        """Keep the highest task id of a session that ends, if it had native ids."""
        if client.last_task:
            self.highest_task_ids[client.id] = client.highest_task

    def _client_paused(self, event: ClientPaused, now: float) -> None:
        client = self.clients.get(event.client)
        if client is None:
            self._increment("unknown_client_paused")
            return
        client.pause_reason = event.reason
        if not client.paused:
            self.request_classes.pause(client)
            client.paused = True

    def _client_resumed(self, event: ClientResumed, now: float) -> None:
        client = self.clients.get(event.client)
        if client is None or not client.paused:
            self._increment("not_paused")
        else:
            self._resume_client(client)

    def _results_received(self, event: ResultsReceived, now: float) -> None:
        self.completed.mark_received(event.client, event.tasks)

    # ---- submission -------------------------------------------------------------------------------------------------

    def _task_submitted(self, event: TaskSubmitted, now: float) -> None:
        client = self.clients.get(event.client)
        if client is None:
            self._refuse(event, f"no session {event.client!r} is open; say hello first")
            return
        task_id, spec = event.task, event.spec
        if type(task_id) is int and client.highest_task < task_id <= client.last_task:
            client.highest_task = task_id
        elif self._answer_repeated(event, client):
            return
        if self.draining:
            self._refuse(event, "the scheduler is shutting down")
            return
        if spec is not DEFAULT_SPEC and (reason := find_refusal(spec, self.settings)):
            self._refuse(event, reason)
            return
        self._submission_count += 1
        task = self.task_type(task_id, client, self._submission_count, event.payload, spec, now)
        self.tasks[task_id] = task
        client.unfinished_count += 1
        self._effects.append(Accept(client.id, task_id))
        if self.monitored:
            self._effects.append(Publish("submitted", task_id, None, client.id))
        if spec is DEFAULT_SPEC:
            self._make_ready(task, self.request_classes.unconstrained)
            return
        task.retries_left = spec.retries
        if spec.timeout_s:
            self._start_timeout(task, now)
        if self._register_dependencies(task, now):
            self._enqueue(task, now)

    def _refuse(self, event: TaskSubmitted, reason: str) -> None:
        self._increment("refused")
        self._effects.append(Refuse(event.client, event.task, reason))

    def _answer_repeated(self, event: TaskSubmitted, client: ClientState) -> bool:
        """Answer a submission whose id was used before (R1); return False, without an answer, if the id is new."""
        task_id = event.task
        task = self.tasks.get(task_id)
        ended = None if task is not None else self.completed.get(task_id)
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
            self._increment("submitted_again")
            if task is not None:
                task.submissions += 1
            self._effects.append(Accept(client.id, task_id))
            if ended is not None:
                self._effects.append(make_delivery(task_id, ended))
        return True

    # ---- answers of engines -----------------------------------------------------------------------------------------

    def _release_answered(self, engine: EngineId, task_id: TaskId, attempt: int | None, stray: str) -> Task | None:
        """Take a task off the engine that has answered for it, and return the task.

        Return None, and count the answer under the name `stray`, if the task is not assigned to this engine for this
        attempt (R17).
        """
        task = self.tasks.get(task_id)
        if task is None or not self._is_assigned_to(task, engine, attempt):
            self._increment(stray)
            return None
        holder = cast(Engine, task.engine)
        holder.release(task)
        self.request_classes.update_engine(holder)
        return task

    def _is_assigned_to(self, task: Task, engine: EngineId, attempt: int | None) -> bool:
        """Whether the task is assigned to this engine, for this attempt (R17)."""
        holder = task.engine
        return holder is not None and holder.id == engine and (attempt is None or attempt == task.attempt)

    def _task_finished(self, event: TaskFinished, now: float) -> None:
        task = self._release_answered(event.engine, event.task, event.attempt, "stray_result")
        if task is None:
            return
        outcome = event.outcome
        engine = cast(Engine, task.engine)
        engine.finished_count += 1
        if task.state is CANCELLING:
            self._end_cancelled(task, now, engine.id)
        elif outcome == "error" and task.retries_left:
            self._retry_task(task, now, f"failed on engine {engine.id}: {event.reason}", engine)
        else:
            self._end_task(task, now, outcome, engine=engine.id, result=event.result, reason=event.reason)

    def _dependency_unmet(self, event: DependencyUnmet, now: float) -> None:
        task = self._release_answered(event.engine, event.task, event.attempt, "stray_unmet")
        if task is None:
            return
        if task.state is CANCELLING:
            self._end_cancelled(task, now, event.engine)
            return
        task.excluded |= {event.engine}
        task.history += ((now, f"declined by engine {event.engine}: {event.reason}"),)
        self._requeue(task, now, restart_timeout=False)

    def _recall_answered(self, event: RecallAnswered, now: float) -> None:
        if not event.recalled:
            task = self.tasks.get(event.task)
            if task is None or not self._is_assigned_to(task, event.engine, event.attempt):
                self._increment("stray_recall")
            elif task.state is RECALLING:
                task.state = ASSIGNED
            return
        task = self._release_answered(event.engine, event.task, event.attempt, "stray_recall")
        if task is None:
            return
        if task.state is CANCELLING:
            self._end_cancelled(task, now, None)
            return
        task.history += ((now, f"given back by engine {event.engine}"),)
        self._requeue(task, now, restart_timeout=False)

    # ---- cancelling -------------------------------------------------------------------------------------------------

    def _cancel_requested(self, event: CancelRequested, now: float) -> None:
        task = self.tasks.get(event.task)
        if task is None:
            self._increment("cancel_of_ended" if event.task in self.completed else "cancel_of_unknown")
        elif event.client is not None and task.client.id != event.client:
            self._increment("cancel_of_others")
        else:
            self._cancel_task(
                task, now, "cancelled by its client" if event.client is not None else "cancelled by an operator"
            )

    # ---- engines ----------------------------------------------------------------------------------------------------

    def _engine_joined(self, event: EngineJoined, now: float) -> None:
        if event.engine in self.engines:
            self._increment("engine_joined_twice")
            return
        self._engine_count += 1
        hwm = self.settings.hwm if event.hwm is None else event.hwm
        engine = Engine(event.engine, self._engine_count, event.slots, hwm, event.resources, now, event.kind)
        if self._pure:
            engine.capacity = UNLIMITED
        self.request_classes.add_engine(engine)
        if self.monitored:
            self._effects.append(Publish("engine_joined", engine=engine.id))

    def _engine_lost(self, event: EngineLost, now: float) -> None:
        engine = self.engines.get(event.engine)
        if engine is None or (engine.lost_until and not event.confirmed):
            self._increment("engine_lost_twice")
            return
        if event.running is not None or not engine.lost_until:
            engine.lost_running = event.running
        engine.lost_reason = event.reason
        engine.accepts_tasks = False
        if event.confirmed or self.settings.grace_s <= 0:
            self._unregister(engine, now)
            return
        engine.lost_until = now + self.settings.grace_s
        self.grace_deadlines.add(engine.lost_until, engine.number, engine)
        self.request_classes.update_engine(engine)

    def _unregister(self, engine: Engine, now: float) -> None:
        """Remove an engine for good: queue its tasks again or end them (R20); then end the tasks that may run only on
        this engine (R6, R7).
        """
        engine.lost_until = 0.0
        running = engine.presumed_running() if engine.lost_running is None else set(engine.lost_running)
        self._effects.append(ForgetEngine(engine.id))
        with_target = self.request_classes.remove_engine(engine)
        if self.monitored:
            self._effects.append(Publish("engine_lost", engine=engine.id))
        tasks = list(engine.outstanding.values())
        engine.outstanding.clear()
        for task in tasks:
            self._requeue_or_end(task, engine, task.id in running, now)
        self._requeue_unsatisfiable(with_target, now)

    def _requeue_unsatisfiable(self, request_classes: list[RequestClass], now: float) -> None:
        """Queue the tasks of these classes again whose last target was removed: they end, or wait for the other tasks
        that they follow (R6, R7)."""
        unsatisfiable: list[Task] = []
        for request_class in request_classes:
            unsatisfiable += [
                task for task in request_class.target_watchers.values() if request_class.is_unsatisfiable(task.excluded)
            ]
            for queue in request_class.queues.values():
                if request_class.is_unsatisfiable(queue.excluded):
                    unsatisfiable += queue.tasks()
        for task in sorted(unsatisfiable, key=_sequence_of):
            self._remove_from_queue(task)
            self._enqueue(task, now)

    def _engine_returned(self, event: EngineReturned, now: float) -> None:
        engine = self.engines.get(event.engine)
        if engine is None:
            self._increment("unknown_engine_returned")
            return
        engine.lost_until = 0.0
        engine.lost_running = None
        engine.accepts_tasks = not engine.draining
        never_begun = []
        for task in engine.outstanding.values():
            if task.id not in event.holding:
                if task.state is ASSIGNED:
                    self._effects.append(self._make_assignment(task, engine))
                else:
                    never_begun.append(task.id)
            elif task.state is not ASSIGNED:
                self._effects.append(RecallTask(engine.id, task.id, task.attempt))
        self.request_classes.update_engine(engine)
        for task_id in never_begun:
            self._recall_answered(RecallAnswered(engine.id, task_id, True), now)

    def _drain_requested(self, event: DrainRequested, now: float) -> None:
        if event.engine is None:
            self.draining = True
            engines = list(self.engines.values())
        elif event.engine in self.engines:
            engines = [self.engines[event.engine]]
        else:
            self._increment("drain_of_unknown")
            return
        for engine in engines:
            engine.draining = True
            engine.accepts_tasks = False
            self.request_classes.update_engine(engine)
            running = engine.presumed_running()
            for task in engine.outstanding.values():
                if task.state is ASSIGNED and task.id not in running:
                    task.state = RECALLING
                    if not engine.lost_until:
                        self._effects.append(RecallTask(engine.id, task.id, task.attempt))

    def _monitoring_changed(self, event: MonitoringChanged, now: float) -> None:
        self.monitored = event.on

    # ---- time -------------------------------------------------------------------------------------------------------

    def _time_passed(self, event: TimePassed, now: float) -> None:
        """Grace periods, backoffs, dispatch, then timeouts: no task times out that an engine can take now (R21)."""
        while (engine := self.grace_deadlines.pop_due(now)) is not None:
            self._unregister(engine, now)
        self._cascade(now)
        while (task := self.backoff_deadlines.pop_due(now)) is not None:
            self._remove_from_queue(task)
            task.wake_at = 0.0
            self._enqueue(task, now)
        self._dispatch(now)
        while (task := self.timeout_deadlines.pop_due(now)) is not None:
            reason = f"the task did not start within its timeout of {task.spec.timeout_s:g} s"
            self._end_task(task, now, "timeout", error="TaskTimeout", reason=reason)

    # ---- dependencies ------------------------------------------------------------------------------------------------

    def _register_dependencies(self, task: Task, now: float) -> bool:
        """Link the task to the tasks that it names; return False if it ended at once (R4, R5)."""
        spec = task.spec
        named = dependency.named_tasks(spec)
        if not named:
            return True
        tasks, completed, waiters = self.tasks, self.completed, self.dependents
        if spec.inputs:
            completed.retain(spec.inputs)
        for other in named:
            if other == task.id or (other not in tasks and other not in completed):
                self._end_task(
                    task, now, "unreachable", error="InvalidDependency", reason=self._explain_invalid(task, other)
                )
                return False
        for other in spec.inputs:
            end = completed.get(other)
            if end is not None and end.dropped and end.outcome == "ok":
                reason = f"the result of its input, task {format_task_id(other)}, is no longer kept"
                self._end_task(task, now, "unreachable", error="InvalidDependency", reason=reason)
                return False
        task.pending = pending = dependency.count_pending(named, spec)
        impossible = None
        for other, role in named.items():
            end = completed.get(other)
            if end is None:
                edges = waiters.get(other)
                if edges is None:
                    waiters[other] = [task, role]
                else:
                    edges += (task, role)
                continue
            impossible = impossible or dependency.settle(pending, spec, role, other, end.outcome, end.engine)
        if impossible:
            self._end_impossible(task, now, impossible)
            return False
        return True

    def _explain_invalid(self, task: Task, other: TaskId) -> str:
        if other == task.id:
            return "the task depends on itself"
        if is_native(other):
            client = self.clients.get(session_of(other))
            if other <= (self.highest_task_ids.get(session_of(other), 0) if client is None else client.highest_task):
                return f"its dependency, task {format_task_id(other)}, ended so long ago that it is forgotten"
        return f"its dependency, task {format_task_id(other)}, was never submitted"

    # ---- waiting and ready ------------------------------------------------------------------------------------------

    def _allowed_engines(self, task: Task) -> frozenset[EngineId] | None:
        """The engines that `targets` and the ended tasks of `follow` allow; None: any engine (R6, R7)."""
        targets, pending = task.spec.targets, task.pending
        if pending is None or task.spec.follow is None or not task.spec.follow.tasks:
            return targets
        return pending.ran_on if targets is None else pending.ran_on & targets

    def _enqueue(self, task: Task, now: float) -> None:
        """Queue a task that is on no engine and in no queue: it becomes ready, delayed or waiting, or ends as
        impossible.
        """
        if task.pending is not None and not task.pending.is_met(task.spec):
            self._make_waiting(task, now)
        else:
            self._enqueue_runnable(task, now)

    def _enqueue_runnable(self, task: Task, now: float) -> None:
        """Queue a task whose dependencies are met; it may wait for its backoff, or for further tasks to follow."""
        spec = task.spec
        targets = spec.targets if spec.follow is None else self._allowed_engines(task)
        if targets is None and not spec.resources and not spec.kind:
            request_class = self.request_classes.unconstrained
        else:
            request_class = self.request_classes.find(targets, spec.resources, spec.kind)
        if targets is not None and request_class.is_unsatisfiable(task.excluded):
            self.request_classes.discard_if_empty(request_class)
            if task.pending is not None and task.pending.follow:
                self._make_waiting(task, now)
            else:
                self._end_without_target(task, now)
        elif task.wake_at > now:
            task.state = DELAYED
            self.backoff_deadlines.add(task.wake_at, task.seq, task)
            self._watch_targets(task, request_class)
        else:
            self._make_ready(task, request_class)

    def _make_ready(self, task: Task, request_class: RequestClass) -> None:
        task.state = READY
        client = task.client
        if not client.ready_count and not client.paused:
            self._fair_share.activate(client)
        client.ready_count += 1
        self.request_classes.push(task, request_class)

    def _resume_client(self, client: ClientState) -> None:
        """End the pause of a client: its ready tasks can be dispatched, and it becomes active (R15, R34)."""
        if client.ready_count:
            self._fair_share.activate(client)  # while it is still paused, so that it is not compared with itself
        client.paused = False
        client.pause_reason = ""
        self.request_classes.resume(client)

    def _make_waiting(self, task: Task, now: float) -> None:
        """Let a task wait for its dependencies. It ends when the last of its targets is removed (R7), or the last of
        the engines that a settled `follow` allows (R6)."""
        task.state = WAITING
        targets = task.spec.targets if task.pending is None or task.pending.follow else self._allowed_engines(task)
        if targets is None:
            return
        request_class = self.request_classes.find(targets, task.spec.resources, task.spec.kind)
        if request_class.is_unsatisfiable(task.excluded):
            self.request_classes.discard_if_empty(request_class)
            self._end_without_target(task, now)
        else:
            self._watch_targets(task, request_class)

    def _watch_targets(self, task: Task, request_class: RequestClass) -> None:
        """Have the task end when the last target of the class is removed."""
        if request_class.targets is not None:
            request_class.target_watchers[task.id] = task
            task.watched = request_class

    def _remove_from_queue(self, task: Task) -> None:
        """Take a task that is on no engine out of its queue, or from the watchers of its targets."""
        if task.queue is not None:
            task.client.ready_count -= 1
            self.request_classes.remove(task, task.queue)
        elif task.watched is not None:
            request_class, task.watched = task.watched, None
            del request_class.target_watchers[task.id]
            self.request_classes.discard_if_empty(request_class)

    def _requeue(self, task: Task, now: float, *, restart_timeout: bool) -> None:
        """Queue a task again that its engine has released, at its former place in the order (R12)."""
        task.engine = None
        if restart_timeout and task.spec.timeout_s:
            self._start_timeout(task, now)
        elif task.deadline:
            self.timeout_deadlines.add(task.deadline, task.seq, task)
        self._enqueue(task, now)

    def _start_timeout(self, task: Task, now: float) -> None:
        task.deadline = now + (task.spec.timeout_s or 0.0)
        self.timeout_deadlines.add(task.deadline, task.seq, task)

    # ---- dispatch, cascade, ends -------------------------------------------------------------------------------------

    def _dispatch(self, now: float) -> None:
        """Assign ready tasks until none has an engine with room (R12, R13)."""
        request_classes, effects, fair_share = self.request_classes, self._effects, self._fair_share
        if self.draining:
            request_classes.dispatchable.clear()
            return
        while (pair := request_classes.pop_next()) is not None:
            task, engine = pair
            client = task.client
            client.ready_count -= 1
            if client.virtual_time > fair_share.floor:
                fair_share.floor = client.virtual_time
            client.virtual_time += client.virtual_step
            task.attempt += 1
            effects.append(self._make_assignment(task, engine))
            task.state = ASSIGNED
            task.engine = engine
            task.assigned_at = now
            engine.assign(task)
            self._assignment_count += 1
            engine.last_used = self._assignment_count
            request_classes.update_engine(engine)
            if self.monitored:
                effects.append(Publish("assigned", task.id, engine.id, client.id))

    def _make_assignment(self, task: Task, engine: Engine) -> AssignTask:
        inputs = task.spec.inputs
        if not inputs:
            return AssignTask(engine.id, task.id, task.attempt, task.payload)
        results = tuple(cast(CompletedTask, self.completed.get(other)).result for other in inputs)
        return AssignTask(engine.id, task.id, task.attempt, task.payload, results)

    def _cascade(self, now: float) -> None:
        """Settle the dependents of ended tasks, in the order of the ends (R4). Without recursion, for graphs of any
        depth.
        """
        settling, settle = self._settling, dependency.settle
        while settling:
            ended_id, edges, outcome, engine = settling[0]
            pairs = iter(edges)
            for task, role in zip(pairs, pairs, strict=True):
                if task.state is ENDED:
                    continue
                pending = task.pending
                impossible = settle(pending, task.spec, role, ended_id, outcome, engine)
                if impossible:
                    self._end_impossible(task, now, impossible)
                elif role & FOLLOW:
                    self._update_follower(task, now)
                elif task.state is WAITING and not (pending.after or pending.inputs) and pending.is_met(task.spec):
                    if task.watched is not None:
                        self._remove_from_queue(task)
                    self._enqueue_runnable(task, now)
            settling.popleft()

    def _update_follower(self, task: Task, now: float) -> None:
        """Queue a task again if the end of a followed task made it ready, or allowed it on more engines (R6)."""
        pending = cast(PendingDependencies, task.pending)
        if task.engine is not None or task.state is DELAYED:
            return  # considered when the task is queued again
        if pending.follow and not pending.is_met(task.spec):
            return
        if task.queue is not None and task.queue.request_class.targets == self._allowed_engines(task):
            return
        was_ready = task.queue is not None
        task.client.ready_count += was_ready  # the client stays active meanwhile (R15)
        self._remove_from_queue(task)
        self._enqueue(task, now)
        task.client.ready_count -= was_ready

    def _end_task(
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
        """End a task that is in a queue or has just been released by its engine; the cascade settles its dependents.

        `engine` is the engine on which the task ran, if it ran in this attempt. `result` is the result that the engine
        sent; without a result, `error` and `reason` say why the scheduler ended the task.
        """
        if task.engine is None:
            self._remove_from_queue(task)
        engine = task.ran_on if engine is None else engine
        client, task_id = task.client, task.id
        completed = CompletedTask(
            client.id, outcome, engine, result, error, reason,
            task.attempt, task.accepted_at, task.assigned_at, now, history=task.history,
        )  # fmt: skip
        if not client.has_left:
            self._effects.append(make_delivery(task_id, completed))
            for _ in range(task.submissions - 1):
                self._effects.append(make_delivery(task_id, completed))
        task.engine = None
        task.state = ENDED
        self.outcome_counts[outcome] += 1
        if self.monitored:
            self._effects.append(Publish("finished", task_id, engine, client.id, outcome))
        if self.dependents:
            edges = self.dependents.pop(task_id, None)
            if edges is not None:
                self._settling.append((task_id, edges, outcome, engine))
        if task.spec.inputs:  # before the task is added: inputs that only it needed are forgotten first
            self.completed.release(task.spec.inputs)
        self.completed.add(task_id, completed)
        del self.tasks[task_id]
        task.payload = None  # frees the memory, although a client queue may refer to the task until it is swept
        client.unfinished_count -= 1
        if client.has_left:
            self.completed.mark_received(client.id, (task_id,))
            self._count_departed_end(client)

    def _count_departed_end(self, client: ClientState) -> None:
        """Count the end of a task whose session ended for good; emit `ForgetSession` with the last one."""
        others = self.departed_task_counts[client.id] - 1
        if others:
            self.departed_task_counts[client.id] = others
            return
        if self.clients.get(client.id, client) is client:  # no later session has the same id
            self._effects.append(ForgetSession(client.id))
        del self.departed_task_counts[client.id]

    def _end_impossible(self, task: Task, now: float, reason: str) -> None:
        self._end_task(task, now, "unreachable", error="ImpossibleDependency", reason=reason)

    def _end_without_target(self, task: Task, now: float) -> None:
        engines = format_list(sorted(map(str, self._allowed_engines(task) or ())))
        self._end_impossible(
            task, now, f"none of the engines that the task may run on is left (of {engines or 'none'})"
        )

    # ---- retries, lost engines, cancellation ------------------------------------------------------------------------

    def _retry_task(self, task: Task, now: float, failure: str, engine: Engine | None) -> None:
        """Use one retry; exclude or avoid the engine on which the task failed (R18).

        `failure` describes the failure for the history. `engine` None: the engine was removed.
        """
        task.retries_left -= 1
        task.history += ((now, f"{failure}; {task.retries_left} retries left"),)
        if engine is not None:
            task.ran_on = engine.id
            if task.spec.same_engine:
                task.avoided |= {engine.id}
            else:
                task.excluded |= {engine.id}
        if task.spec.backoff_s:
            task.wake_at = now + backoff_delay(task.spec.backoff_s, task.spec.retries - task.retries_left)
        self._requeue(task, now, restart_timeout=True)

    def _requeue_or_end(self, task: Task, engine: Engine, was_running: bool, now: float) -> None:
        """Queue a task of a removed engine again, or end it (R20)."""
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
            self._requeue(task, now, restart_timeout=False)
            return
        reason = f"engine {engine.id} died while running task {format_task_id(task.id)}{why}"
        if task.retries_left:
            self._retry_task(task, now, reason, None)
        else:
            self._end_task(task, now, "lost", engine=engine.id, error="EngineError", reason=reason)

    def _cancel_task(self, task: Task, now: float, reason: str) -> None:
        """Cancel a task (R23): end it if it is on no engine; else recall it, and keep it until its engine answers.

        A lost engine gets the recall when it returns.
        """
        if task.engine is None:
            self._end_task(task, now, "cancelled", error="TaskCancelled", reason=reason)
        elif task.state is not CANCELLING:
            recalled_already = task.state is RECALLING
            task.state = CANCELLING
            task.history += ((now, reason),)
            if not recalled_already and not task.engine.lost_until:
                self._effects.append(RecallTask(task.engine.id, task.id, task.attempt))

    def _end_cancelled(self, task: Task, now: float, engine: EngineId | None) -> None:
        self._end_task(
            task, now, "cancelled", engine=engine, error="TaskCancelled", reason="cancelled while it was on an engine"
        )


def make_delivery(task: TaskId, end: CompletedTask) -> DeliverResult:
    """The effect that delivers the result of a completed task."""
    return DeliverResult(end.client, task, end.outcome, end.engine, end.result, end.error, end.reason)


def _sequence_of(task: Task) -> int:
    return task.seq
