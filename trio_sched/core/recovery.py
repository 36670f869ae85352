"""Recovery from an exception in the core (R33): the state is restored, and the task that raised ends with an error.

An exception can leave an event half done. Recovery uses, in this order:

1. the effects that the event has emitted: they will be carried out, so the records must agree with them. `Scheduler`
   emits an effect *before* it changes the records, so each changed record has its effect;
2. the completed tasks;
3. the records of tasks, engines and clients.

Everything else (request classes, queues, loads, resources held, edges, counts, deadlines, virtual times) is derived
from these and built again. Restored tasks change their state along the table, like all others.

The task that the event is about ends with `SchedulerError`, or its submission is refused. An event that is not about
one task is handled once more. If that raises, too, the task or engine that the traceback names is ended; if that does
not help, all tasks are. `invariants.check` runs at the end of each attempt.

Recovery costs O(number of tasks), and runs only after an exception.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import FrameType
from typing import Any

from msgspec import Struct

from trio_sched.core import dependency, invariants
from trio_sched.core.completed_tasks import CompletedTask
from trio_sched.core.dependency import AFTER, INPUT, PendingDependencies
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
    ClientJoined,
    ClientLeft,
    DependencyUnmet,
    EngineJoined,
    Event,
    Outcome,
    RecallAnswered,
    TaskFinished,
    TaskSubmitted,
)
from trio_sched.core.fair_share import FairShare
from trio_sched.core.ids import ClientId, EngineId, TaskId, format_task_id
from trio_sched.core.records import Engine, Task
from trio_sched.core.scheduler import Scheduler, make_delivery
from trio_sched.core.states import ASSIGNED, CANCELLING, ENDED, PLACED

#: Attempts at a restoration before all tasks are ended.
MAX_ATTEMPTS = 4
ERROR = "SchedulerError"
REASON = "the scheduler failed while it handled this task; its log has the traceback"
_TASK_EVENTS = (TaskFinished, DependencyUnmet, RecallAnswered)


class Recovery(Struct):
    """The outcome of a recovery."""

    #: The effects of the event and of the restoration.
    effects: list[Effect]
    #: The exception, and those that the attempts at a restoration raised.
    errors: list[Exception]
    #: Whether all tasks were ended.
    was_reset: bool = False


def recover(scheduler: Scheduler, event: Event, error: Exception, now: float) -> Recovery:
    """Restore the state after `scheduler.handle(event, now)` raised `error`.

    :raises InvariantError: the state contradicts itself even after all tasks were ended.
    """
    effects = _effects_so_far(scheduler, error)
    scheduler._effects = effects
    known_engines, known_clients = _list_known(scheduler, event)
    errors = [error]
    in_handler = not any(frame.f_code.co_name in ("_dispatch", "_cascade") for frame in _frames(error))
    suspects = _suspects_of(scheduler, event) if in_handler else []
    retried = in_handler and not isinstance(event, (TaskSubmitted, *_TASK_EVENTS))
    outcomes: dict[TaskId, tuple[Outcome, EngineId | None]] = {}
    for _ in range(MAX_ATTEMPTS):
        try:
            _answer_submission(scheduler, event)
            _restore(scheduler, suspects, outcomes, now)
            if retried:
                scheduler._handlers[type(event)](event, now)
            _end_session(scheduler, event)
            scheduler._cascade(now)
            scheduler._dispatch(now)
            _emit_forgotten(scheduler, known_engines, known_clients)
            invariants.check(scheduler)
            return Recovery(_without_duplicates(scheduler._effects), errors)
        except Exception as again:
            errors.append(again)
            retried = False
            suspects = _suspects_in(again)
    _reset(scheduler, now)
    _end_session(scheduler, event)
    _emit_forgotten(scheduler, known_engines, known_clients)
    invariants.check(scheduler)
    return Recovery(_without_duplicates(scheduler._effects), errors, was_reset=True)


# ---- what happened --------------------------------------------------------------------------------------------------


def _frames(error: Exception) -> Iterator[FrameType]:
    """The frames of a traceback, from the outermost to the innermost."""
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _effects_so_far(scheduler: Scheduler, error: Exception) -> list[Effect]:
    """The effects of the event that raised: `scheduler._effects`, unless it is still the list of an earlier event."""
    effects = scheduler._effects
    return effects if any(frame.f_locals.get("effects") is effects for frame in _frames(error)) else []


def _suspects_of(scheduler: Scheduler, event: Event) -> list[Task | Engine]:
    """The task that the event is about, if the event could change it."""
    if not isinstance(event, (TaskSubmitted, *_TASK_EVENTS)):
        return []
    task = scheduler.tasks.get(event.task)
    if task is None:
        return []
    if isinstance(event, TaskSubmitted):
        return [task] if _is_new(scheduler, event, task) else []
    half_way = task.engine is None and task.state in PLACED
    return [task] if half_way or scheduler._is_assigned_to(task, event.engine, event.attempt) else []


def _suspects_in(error: Exception) -> list[Task | Engine]:
    """The task or engine in the innermost frame of the core that has one."""
    for frame in reversed(list(_frames(error))):
        if not frame.f_globals.get("__name__", "").startswith("trio_sched.core."):
            continue
        if frame.f_code.co_filename == __file__:
            continue
        for variable in ("task", "engine"):
            found = frame.f_locals.get(variable)
            if isinstance(found, (Task, Engine)):
                return [found]
    return []


def _is_new(scheduler: Scheduler, event: TaskSubmitted, task: Task) -> bool:
    """Whether this submission created the task; else it repeated an id (R1)."""
    return task.seq == scheduler._submission_count and task.payload is event.payload


def _answer_submission(scheduler: Scheduler, event: Event) -> None:
    """Make sure that the submission is accepted or refused, and has an end if it is accepted."""
    if not isinstance(event, TaskSubmitted):
        return
    effects = scheduler._effects
    task = scheduler.tasks.get(event.task)
    if any(isinstance(effect, Refuse) and effect.task == event.task for effect in effects):
        return
    if not any(isinstance(effect, Accept) and effect.task == event.task for effect in effects):
        if task is not None and _is_new(scheduler, event, task):
            del scheduler.tasks[event.task]
        effects.append(Refuse(event.client, event.task, f"{REASON} (the submission changed nothing)"))
    elif task is None and not any(
        isinstance(effect, DeliverResult) and effect.task == event.task for effect in effects
    ):
        end = scheduler.completed.get(event.task)
        effects.append(
            DeliverResult(event.client, event.task, "error", None, None, ERROR, REASON)
            if end is None
            else make_delivery(event.task, end)
        )


def _without_duplicates(effects: list[Effect]) -> list[Effect]:
    """The effects without those that an event emitted twice because it was handled twice."""
    seen: set[tuple[object, ...]] = set()
    kept: list[Effect] = []
    for effect in effects:
        key: tuple[object, ...] = ()
        if isinstance(effect, (AssignTask, RecallTask)):
            key = (type(effect), effect.engine, effect.task, effect.attempt)
        elif isinstance(effect, ForgetEngine):
            key = (ForgetEngine, effect.engine)
        elif isinstance(effect, ForgetSession):
            key = (ForgetSession, effect.client)
        if key:
            if key in seen:
                continue
            seen.add(key)
        kept.append(effect)
    return kept


def _list_known(scheduler: Scheduler, event: Event) -> tuple[list[EngineId], list[ClientId]]:
    """The engines and sessions for which the server keeps a session, the one that the event adds included."""
    engines = list(scheduler.engines)
    clients = [*scheduler.clients, *scheduler.departed_task_counts]
    if isinstance(event, EngineJoined):
        engines.append(event.engine)
    if isinstance(event, ClientJoined):
        clients.append(event.client)
    return engines, clients


def _end_session(scheduler: Scheduler, event: Event) -> None:
    """End the session that the event ends, even if its handler raised each time."""
    if not isinstance(event, ClientLeft) or event.client not in scheduler.clients:
        return
    client = scheduler.clients[event.client]
    if client.paused:
        scheduler._resume_client(client)
    scheduler._keep_highest(client)
    del scheduler.clients[event.client]
    client.has_left = True
    _restore_departed(scheduler)


def _emit_forgotten(scheduler: Scheduler, engines: list[EngineId], clients: list[ClientId]) -> None:
    """Emit `ForgetEngine` and `ForgetSession` for known engines and sessions of which the core has no record now."""
    effects = scheduler._effects
    forgotten = {effect.engine for effect in effects if isinstance(effect, ForgetEngine)}
    for engine in engines:
        if engine not in scheduler.engines and engine not in forgotten:
            effects.append(ForgetEngine(engine))
            if scheduler.monitored:
                effects.append(Publish("engine_lost", engine=engine))
    effects += [
        ForgetSession(client)
        for client in clients
        if client not in scheduler.clients and client not in scheduler.departed_task_counts
    ]


# ---- restoring ------------------------------------------------------------------------------------------------------


def _restore(
    scheduler: Scheduler,
    suspects: list[Task | Engine],
    outcomes: dict[TaskId, tuple[Outcome, EngineId | None]],
    now: float,
) -> None:
    """Restore the records and the data derived from them, and end the suspects.

    `outcomes` collects the outcomes of ended tasks, some of which may have no record any longer.
    """
    for ended_id, _, outcome, ran_on in scheduler._settling:
        outcomes[ended_id] = (outcome, ran_on)
    scheduler._settling.clear()
    for suspect in suspects:
        if isinstance(suspect, Engine) and scheduler.engines.get(suspect.id) is suspect:
            scheduler._effects.append(ForgetEngine(suspect.id))
            if scheduler.monitored:
                scheduler._effects.append(Publish("engine_lost", engine=suspect.id))
    for effect in scheduler._effects:
        if isinstance(effect, ForgetEngine):
            scheduler.engines.pop(effect.engine, None)
    _apply_effects(scheduler, outcomes, now)
    ending = {task.id for task in suspects if isinstance(task, Task) and scheduler.tasks.get(task.id) is task}
    for task_id in ending:
        _recall(scheduler, scheduler.tasks[task_id])
    cancelled = {task.id for task in scheduler.tasks.values() if _detach(scheduler, task)}
    _restore_engines(scheduler)
    _restore_departed(scheduler)
    active = _restore_fair_share(scheduler)
    impossible = _restore_edges(scheduler, outcomes)
    for task in list(scheduler.tasks.values()):
        if task.id in ending:
            scheduler._end_task(task, now, "error", error=ERROR, reason=REASON)
        elif task.engine is not None:
            continue
        elif task.id in cancelled:
            scheduler._end_cancelled(task, now, None)
        elif task.id in impossible:
            scheduler._end_task(task, now, "unreachable", error=impossible[task.id][0], reason=impossible[task.id][1])
        else:
            if task.deadline:
                scheduler.timeout_deadlines.add(task.deadline, task.seq, task)
            scheduler._enqueue(task, now)
    for client in active:
        client.ready_count -= 1


def _apply_effects(scheduler: Scheduler, outcomes: dict[TaskId, tuple[Outcome, EngineId | None]], now: float) -> None:
    """Adjust the records to the effects: which tasks have ended, and which are on an engine."""
    effects, tasks, completed = scheduler._effects, scheduler.tasks, scheduler.completed
    deliveries = [effect for effect in effects if isinstance(effect, DeliverResult)]
    for effect in {end.task: end for end in deliveries}.values():
        task = tasks.pop(effect.task, None)
        if task is None:
            continue
        outcomes[task.id] = (effect.outcome, effect.engine)
        effects += [effect] * (task.submissions - sum(1 for end in deliveries if end.task == task.id))
        task.state, task.engine = ENDED, None
        if task.id not in completed:
            completed.add(
                task.id,
                CompletedTask(
                    effect.client, effect.outcome, effect.engine, effect.result, effect.error, effect.reason,
                    task.attempt, task.accepted_at, task.assigned_at, now, history=task.history,
                ),
            )  # fmt: skip
    for task in [task for task in tasks.values() if task.state is ENDED or task.id in completed]:
        del tasks[task.id]
        task.state, task.engine = ENDED, None
    for assigned in [effect for effect in effects if isinstance(effect, AssignTask)]:
        task, engine = tasks.get(assigned.task), scheduler.engines.get(assigned.engine)
        if task is not None and engine is not None:
            if task.engine is not engine or task.state not in PLACED:
                task.state = ASSIGNED
            task.engine, task.attempt = engine, assigned.attempt


def _recall(scheduler: Scheduler, task: Task) -> None:
    """Take a task that is about to end off its engine, and recall it there."""
    engine = task.engine
    if engine is not None and engine.outstanding.get(task.id) is task:
        del engine.outstanding[task.id]
        scheduler._effects.append(RecallTask(engine.id, task.id, task.attempt))
        task.ran_on = engine.id
    task.engine = None


def _detach(scheduler: Scheduler, task: Task) -> bool:
    """Take a task off an engine that is not registered or to which its assignment is incomplete.

    Return whether the task was being cancelled, and so ends as cancelled.
    """
    engine = task.engine
    if engine is not None and task.state in PLACED and scheduler.engines.get(engine.id) is engine:
        return False
    task.engine = task.queue = task.watched = None  # its state changes when it is queued
    return task.state is CANCELLING


def _restore_engines(scheduler: Scheduler) -> None:
    engines = sorted(scheduler.engines.values(), key=lambda engine: engine.number)
    placed: dict[EngineId, list[Task]] = {engine.id: [] for engine in engines}
    for task in scheduler.tasks.values():
        task.queue = task.watched = None
        if task.engine is not None:
            placed[task.engine.id].append(task)
    request_classes = scheduler.request_classes = scheduler.request_classes.new_empty()
    scheduler.engines = request_classes.engines
    scheduler.grace_deadlines.clear()
    for engine in engines:
        order = {task_id: place for place, task_id in enumerate(engine.outstanding)}
        engine.restore(sorted(placed[engine.id], key=lambda task: order.get(task.id, len(order))))
        request_classes.add_engine(engine)
        if engine.lost_until:
            scheduler.grace_deadlines.add(engine.lost_until, engine.number, engine)


def _restore_departed(scheduler: Scheduler) -> None:
    """Count the unfinished tasks of each client, and those of the sessions that ended for good.

    A session that was about to end is open again: its event is handled once more.
    """
    for client in scheduler.clients.values():
        client.unfinished_count = 0
        client.has_left = False
    for task in scheduler.tasks.values():
        task.client.unfinished_count = 0
    scheduler.departed_task_counts.clear()
    for task in scheduler.tasks.values():
        client = task.client
        client.unfinished_count += 1
        if client.has_left:
            scheduler.departed_task_counts[client.id] = scheduler.departed_task_counts.get(client.id, 0) + 1


def _restore_fair_share(scheduler: Scheduler) -> list[Any]:
    """Restore the active clients; return them, each with one ready task too many, so that they stay active (R15)."""
    clients = {id(client): client for client in scheduler.clients.values()}
    clients.update((id(task.client), task.client) for task in scheduler.tasks.values())
    floor = scheduler._fair_share.floor
    scheduler._fair_share = fair_share = FairShare()
    fair_share.floor = floor if math.isfinite(floor) else 0.0
    active = []
    for client in clients.values():
        if not math.isfinite(client.virtual_time):
            client.virtual_time = fair_share.floor
        if client.ready_count > 0 and not client.paused:
            active.append(client)
        client.ready_count = 0
        client.in_heap = False
    for client in active:
        client.ready_count = 1
    fair_share.restore(active)
    return active


def _restore_edges(
    scheduler: Scheduler, outcomes: dict[TaskId, tuple[Outcome, EngineId | None]]
) -> dict[TaskId, tuple[str, str]]:
    """Restore the edges and counts of dependencies, and clear the deadlines.

    Return, by task, the error and the reason of those that are impossible.
    """
    tasks, completed, waiters = scheduler.tasks, scheduler.completed, scheduler.dependents
    scheduler.timeout_deadlines.clear()
    scheduler.backoff_deadlines.clear()
    waiters.clear()
    completed.restore([task.spec.inputs for task in tasks.values()])
    impossible: dict[TaskId, tuple[str, str]] = {}
    for task in tasks.values():
        named = dependency.named_tasks(task.spec)
        if not named:
            continue
        for other, role in named.items():
            if other in tasks:
                waiters.setdefault(other, []).extend((task, role))
        known = {}
        for other in named:
            end = completed.get(other)
            if end is not None:
                known[other] = (end.outcome, end.engine)
            elif other in outcomes:
                known[other] = outcomes[other]
        missing = [other for other in named if task.pending is None and other not in tasks and other not in known]
        kept = [completed.get(other) for other in task.spec.inputs]
        if missing:
            impossible[task.id] = (
                "InvalidDependency",
                f"its dependency, task {format_task_id(missing[0])}, is not known",
            )
        elif any(end is not None and end.dropped and end.outcome == "ok" for end in kept):
            impossible[task.id] = ("InvalidDependency", "the result of one of its inputs is no longer kept")
        pending, why = _count_pending_again(task, {o: r for o, r in named.items() if o in tasks or o in known}, known)
        task.pending = pending
        if why:
            impossible.setdefault(task.id, ("ImpossibleDependency", why))
    return impossible


def _count_pending_again(
    task: Task, named: dict[TaskId, int], known: dict[TaskId, tuple[Outcome, EngineId | None]]
) -> tuple[PendingDependencies, str | None]:
    """The pending dependencies of a task, and the reason for which they are impossible, if they are.

    A dependency that was met stays met. The end of a task without a record was settled before.
    """
    before, spec = task.pending, task.spec
    met = (0 if before is None or before.after else AFTER) | (0 if before is None or before.inputs else INPUT)
    edges = {other: role & ~met for other, role in named.items()}
    after = sum(1 for role in edges.values() if role & AFTER)
    inputs = sum(1 for role in edges.values() if role & INPUT)
    follow = sum(1 for role in edges.values() if role & dependency.FOLLOW)
    pending = PendingDependencies(after, inputs, follow, before.ran_on if before is not None else frozenset())
    why = None
    for other, role in edges.items():
        if other in known:
            why = dependency.settle(pending, spec, role, other, *known[other]) or why
    return pending, why


# ---- the last resort ------------------------------------------------------------------------------------------------


def _reset(scheduler: Scheduler, now: float) -> None:
    """End all tasks; engines and clients stay."""
    effects, completed = scheduler._effects, scheduler.completed
    delivered = [effect.task for effect in effects if isinstance(effect, DeliverResult)]
    for task in list(scheduler.tasks.values()):
        end = CompletedTask(
            task.client.id, "error", task.ran_on, None, ERROR, REASON,
            task.attempt, task.accepted_at, task.assigned_at, now, history=task.history,
        )  # fmt: skip
        if task.engine is not None:
            effects.append(RecallTask(task.engine.id, task.id, task.attempt))
        if not task.client.has_left:
            effects += [make_delivery(task.id, end)] * (task.submissions - delivered.count(task.id))
        if task.id not in delivered:
            scheduler.outcome_counts["error"] += 1
        task.state, task.engine = ENDED, None
        task.client.ready_count = 0
    scheduler.tasks.clear()
    _restore_departed(scheduler)
    scheduler.dependents.clear()
    scheduler._settling.clear()
    scheduler.timeout_deadlines.clear()
    scheduler.backoff_deadlines.clear()
    completed.restore([])
    for client in scheduler.clients.values():
        client.ready_count = 0
    _restore_fair_share(scheduler)
    _restore_engines(scheduler)
