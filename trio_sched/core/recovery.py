"""Recovery from an exception in the core (R33): the state is restored, and whatever raised is ended with an error.

An exception can leave any event half done. What is trusted then, in this order:

1. the effects of the event so far: they will be carried out, so what they say is so. The core appends an effect
   *before* it changes the record of the task (`Lifecycle._dispatch`, `_end`), so a changed record has its effect;
2. the archive;
3. the records of tasks, engines and clients.

Everything else (pools, queues, loads, resources held, edges, counts, deadlines, virtual times) is derived from these
and built again. The task that the event is about ends with `SchedulerError`, or is refused; an event that is not about
one task is handled once more. When that raises again, the task or engine that the traceback names is ended, and when
that does not help all tasks are. `invariants.check` runs at the end of each attempt.

Costs the number of tasks; nothing here runs unless the core has raised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import FrameType
from typing import Any

from msgspec import Struct

from trio_sched.core import dependency, invariants
from trio_sched.core.dependency import AFTER, INPUT, Needs
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
from trio_sched.core.engines import Engine
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
from trio_sched.core.ids import ClientId, EngineId, TaskId, format_task_id
from trio_sched.core.lifecycle import delivery
from trio_sched.core.ready import Turns
from trio_sched.core.scheduler import Scheduler
from trio_sched.core.task import ASSIGNED, CANCELLING, ENDED, PLACED, WAITING, Ended, Task

MOST_ATTEMPTS = 4
"""At a restoration that leaves tasks alive, before all of them are ended."""
ERROR = "SchedulerError"
REASON = "the scheduler failed while it handled this task; its log has the traceback"
_TASK_EVENTS = (TaskFinished, DependencyUnmet, RecallAnswered)


class Recovery(Struct):
    """What came of it."""

    effects: list[Effect]
    """Of the event, and of the restoration."""
    errors: list[Exception]
    """The exception, and those that the attempts at recovery met."""
    was_reset: bool = False
    """All tasks were ended."""


def recover(scheduler: Scheduler, event: Event, error: Exception, now: float) -> Recovery:
    """Restore the state after `scheduler.handle(event, now)` raised `error`.

    :raises InvariantError: not even an empty state is consistent.
    """
    told = _effects_so_far(scheduler, error)
    scheduler._out = told
    known_engines, known_clients = _known_before(scheduler, event)
    errors = [error]
    in_handler = not any(frame.f_code.co_name in ("_dispatch", "_cascade") for frame in _frames(error))
    suspects = _blamed(scheduler, event) if in_handler else []
    retried = in_handler and not isinstance(event, (TaskSubmitted, *_TASK_EVENTS))
    outcomes: dict[TaskId, tuple[Outcome, EngineId | None]] = {}
    for _ in range(MOST_ATTEMPTS):
        try:
            _answer_submission(scheduler, event)
            _restore(scheduler, suspects, outcomes, now)
            if retried:
                scheduler._handlers[type(event)](event, now)
            _end_session(scheduler, event)
            scheduler._cascade(now)
            scheduler._dispatch(now)
            _forget(scheduler, known_engines, known_clients)
            invariants.check(scheduler)
            return Recovery(_without_repeats(scheduler._out), errors)
        except Exception as again:
            errors.append(again)
            retried = False
            suspects = _named_by(again)
    _reset(scheduler, now)
    _end_session(scheduler, event)
    _forget(scheduler, known_engines, known_clients)
    invariants.check(scheduler)
    return Recovery(_without_repeats(scheduler._out), errors, was_reset=True)


# ---- what happened --------------------------------------------------------------------------------------------------


def _frames(error: Exception) -> Iterator[FrameType]:
    """From the outermost to the innermost."""
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _effects_so_far(scheduler: Scheduler, error: Exception) -> list[Effect]:
    """Those of the event that raised: `scheduler._out`, unless that is still the list of the event before."""
    out = scheduler._out
    return out if any(frame.f_locals.get("out") is out for frame in _frames(error)) else []


def _blamed(scheduler: Scheduler, event: Event) -> list[Task | Engine]:
    """The task that the event is about, if this event could change it."""
    if not isinstance(event, (TaskSubmitted, *_TASK_EVENTS)):
        return []
    task = scheduler.tasks.get(event.task)
    if task is None:
        return []
    if isinstance(event, TaskSubmitted):
        return [task] if _is_new(scheduler, event, task) else []
    half_way = task.engine is None and task.state in PLACED
    return [task] if half_way or scheduler._is_of(task, event.engine, event.attempt) else []


def _named_by(error: Exception) -> list[Task | Engine]:
    """The innermost task or engine that the traceback was busy with."""
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
    """Whether this submission made the task, rather than repeat it (R1)."""
    return task.seq == scheduler._submissions and task.payload is event.payload


def _answer_submission(scheduler: Scheduler, event: Event) -> None:
    """Each submission is accepted or refused."""
    if not isinstance(event, TaskSubmitted):
        return
    told = scheduler._out
    task = scheduler.tasks.get(event.task)
    if any(isinstance(effect, Refuse) and effect.task == event.task for effect in told):
        return
    if not any(isinstance(effect, Accept) and effect.task == event.task for effect in told):
        if task is not None and _is_new(scheduler, event, task):
            del scheduler.tasks[event.task]
        told.append(Refuse(event.client, event.task, f"{REASON} (the submission changed nothing)"))
    elif task is None and not any(isinstance(effect, DeliverResult) and effect.task == event.task for effect in told):
        ended = scheduler.archive.get(event.task)
        told.append(
            DeliverResult(event.client, event.task, "error", None, None, ERROR, REASON)
            if ended is None
            else delivery(event.task, ended)
        )


def _without_repeats(effects: list[Effect]) -> list[Effect]:
    """An event that was handled twice may emit the same effect twice."""
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


def _known_before(scheduler: Scheduler, event: Event) -> tuple[list[EngineId], list[ClientId]]:
    """The engines and sessions for which the server keeps something, one that the event adds among them."""
    engines = list(scheduler.engines)
    clients = [*scheduler.clients, *scheduler.departed]
    if isinstance(event, EngineJoined):
        engines.append(event.engine)
    if isinstance(event, ClientJoined):
        clients.append(event.client)
    return engines, clients


def _end_session(scheduler: Scheduler, event: Event) -> None:
    """A session that the event ended is ended, even if the handler of the event raised each time."""
    if not isinstance(event, ClientLeft) or event.client not in scheduler.clients:
        return
    client = scheduler.clients[event.client]
    if client.paused:
        scheduler._resume(client)
    del scheduler.clients[event.client]
    client.gone = True
    _restore_departed(scheduler)


def _forget(scheduler: Scheduler, engines: list[EngineId], clients: list[ClientId]) -> None:
    """Emit `ForgetEngine` and `ForgetSession` for what the core has no record of any more."""
    out = scheduler._out
    told = {effect.engine for effect in out if isinstance(effect, ForgetEngine)}
    for engine in engines:
        if engine not in scheduler.engines and engine not in told:
            out.append(ForgetEngine(engine))
            if scheduler.monitored:
                out.append(Publish("engine_lost", engine=engine))
    out += [
        ForgetSession(client)
        for client in clients
        if client not in scheduler.clients and client not in scheduler.departed
    ]


# ---- restoring ------------------------------------------------------------------------------------------------------


def _restore(
    scheduler: Scheduler,
    suspects: list[Task | Engine],
    outcomes: dict[TaskId, tuple[Outcome, EngineId | None]],
    now: float,
) -> None:
    """Build what is derived again, and end the suspects. `outcomes`: ends that the archive may have forgotten."""
    for ended_id, _, outcome, ran_on in scheduler._settling:
        outcomes[ended_id] = (outcome, ran_on)
    scheduler._settling.clear()
    for suspect in suspects:
        if isinstance(suspect, Engine) and scheduler.engines.get(suspect.id) is suspect:
            scheduler._out.append(ForgetEngine(suspect.id))
            if scheduler.monitored:
                scheduler._out.append(Publish("engine_lost", engine=suspect.id))
    for effect in scheduler._out:
        if isinstance(effect, ForgetEngine):
            scheduler.engines.pop(effect.engine, None)
    _heed_effects(scheduler, outcomes, now)
    ending = {task.id for task in suspects if isinstance(task, Task) and scheduler.tasks.get(task.id) is task}
    for task_id in ending:
        _take_off(scheduler, scheduler.tasks[task_id])
    cancelled = {task.id for task in scheduler.tasks.values() if _lost_its_engine(scheduler, task)}
    _restore_engines(scheduler)
    _restore_departed(scheduler)
    active = _restore_turns(scheduler)
    impossible = _restore_edges(scheduler, outcomes)
    for task in list(scheduler.tasks.values()):
        if task.id in ending:
            scheduler._end(task, now, "error", error=ERROR, reason=REASON)
        elif task.engine is not None:
            continue
        elif task.id in cancelled:
            scheduler._end_cancelled(task, now, None)
        elif task.id in impossible:
            scheduler._end(task, now, "unreachable", error=impossible[task.id][0], reason=impossible[task.id][1])
        else:
            if task.deadline:
                scheduler.timeouts.add(task.deadline, task.seq, task)
            scheduler._queue(task, now)
    for client in active:
        client.ready -= 1


def _heed_effects(scheduler: Scheduler, outcomes: dict[TaskId, tuple[Outcome, EngineId | None]], now: float) -> None:
    """Records say what the effects say: which tasks have ended, and which are on an engine."""
    told, tasks, archive = scheduler._out, scheduler.tasks, scheduler.archive
    ends = [effect for effect in told if isinstance(effect, DeliverResult)]
    for effect in {end.task: end for end in ends}.values():
        task = tasks.pop(effect.task, None)
        if task is None:
            continue
        outcomes[task.id] = (effect.outcome, effect.engine)
        told += [effect] * (task.copies - sum(1 for end in ends if end.task == task.id))
        task.state, task.engine = ENDED, None
        if task.id not in archive:
            archive.add(
                task.id,
                Ended(
                    effect.client, effect.outcome, effect.engine, effect.result, effect.error, effect.reason,
                    task.attempt, task.accepted_at, task.assigned_at, now, history=task.history,
                ),
            )  # fmt: skip
    for task in [task for task in tasks.values() if task.state is ENDED or task.id in archive]:
        del tasks[task.id]
        task.state, task.engine = ENDED, None
    for assigned in [effect for effect in told if isinstance(effect, AssignTask)]:
        task, engine = tasks.get(assigned.task), scheduler.engines.get(assigned.engine)
        if task is not None and engine is not None:
            if task.engine is not engine or task.state not in PLACED:
                task.state = ASSIGNED
            task.engine, task.attempt = engine, assigned.attempt


def _take_off(scheduler: Scheduler, task: Task) -> None:
    """The task is to end now; an engine that has it may forget it."""
    engine = task.engine
    if engine is not None and engine.outstanding.get(task.id) is task:
        del engine.outstanding[task.id]
        scheduler._out.append(RecallTask(engine.id, task.id, task.attempt))
        task.ran_on = engine.id
    task.engine = None


def _lost_its_engine(scheduler: Scheduler, task: Task) -> bool:
    """Take a task off an engine that is not registered, or that it is only half on; True if it is to end cancelled."""
    engine = task.engine
    if engine is not None and task.state in PLACED and scheduler.engines.get(engine.id) is engine:
        return False
    cancelled = task.state is CANCELLING
    task.engine = task.queue = task.bound = None
    task.state = WAITING
    return cancelled


def _restore_engines(scheduler: Scheduler) -> None:
    engines = sorted(scheduler.engines.values(), key=lambda engine: engine.number)
    placed: dict[EngineId, list[Task]] = {engine.id: [] for engine in engines}
    for task in scheduler.tasks.values():
        task.queue = task.bound = None
        if task.engine is not None:
            placed[task.engine.id].append(task)
    pools = scheduler.pools = scheduler.pools.fresh()
    scheduler.engines = pools.engines
    scheduler.graces.clear()
    for engine in engines:
        order = {task_id: place for place, task_id in enumerate(engine.outstanding)}
        engine.restore(sorted(placed[engine.id], key=lambda task: order.get(task.id, len(order))))
        pools.join(engine)
        if engine.lost_until:
            scheduler.graces.add(engine.lost_until, engine.number, engine)


def _restore_departed(scheduler: Scheduler) -> None:
    """The unfinished tasks of each client, and of the sessions that ended for good. A session that was about to end has
    not ended: its event is handled again."""
    for client in scheduler.clients.values():
        client.unfinished = 0
        client.gone = False
    for task in scheduler.tasks.values():
        task.client.unfinished = 0
    scheduler.departed.clear()
    for task in scheduler.tasks.values():
        client = task.client
        client.unfinished += 1
        if client.gone:
            scheduler.departed[client.id] = scheduler.departed.get(client.id, 0) + 1


def _restore_turns(scheduler: Scheduler) -> list[Any]:
    """The clients that were active, each with a ready task more than it has: so they keep their turn (R15)."""
    clients = {id(client): client for client in scheduler.clients.values()}
    clients.update((id(task.client), task.client) for task in scheduler.tasks.values())
    floor = scheduler._turns.floor
    scheduler._turns = turns = Turns()
    turns.floor = floor if math.isfinite(floor) else 0.0
    active = []
    for client in clients.values():
        if not math.isfinite(client.vtime):
            client.vtime = turns.floor
        if client.ready > 0 and not client.paused:
            active.append(client)
        client.ready = 0
        client.active = False
    for client in active:
        client.ready = 1
    turns.restore(active)
    return active


def _restore_edges(
    scheduler: Scheduler, outcomes: dict[TaskId, tuple[Outcome, EngineId | None]]
) -> dict[TaskId, tuple[str, str]]:
    """Dependencies, inputs, and what waits for time. Returns the error and the reason of those that are impossible."""
    tasks, archive, waiters = scheduler.tasks, scheduler.archive, scheduler.waiters
    scheduler.timeouts.clear()
    scheduler.backoffs.clear()
    waiters.clear()
    archive.restore([task.spec.inputs for task in tasks.values()])
    impossible: dict[TaskId, tuple[str, str]] = {}
    for task in tasks.values():
        named = dependency.edges(task.spec)
        if not named:
            continue
        for other, role in named.items():
            if other in tasks:
                waiters.setdefault(other, []).extend((task, role))
        known = {}
        for other in named:
            ended = archive.get(other)
            if ended is not None:
                known[other] = (ended.outcome, ended.engine)
            elif other in outcomes:
                known[other] = outcomes[other]
        missing = [other for other in named if task.needs is None and other not in tasks and other not in known]
        kept = [archive.get(other) for other in task.spec.inputs]
        if missing:
            impossible[task.id] = (
                "InvalidDependency",
                f"task {format_task_id(missing[0])}, which it depends on, is not known",
            )
        elif any(ended is not None and ended.dropped and ended.outcome == "ok" for ended in kept):
            impossible[task.id] = ("InvalidDependency", "a result that it needs is no longer kept")
        needs, why = _needs_again(task, {o: r for o, r in named.items() if o in tasks or o in known}, known)
        task.needs = needs
        if why:
            impossible.setdefault(task.id, ("ImpossibleDependency", why))
    return impossible


def _needs_again(
    task: Task, named: dict[TaskId, int], known: dict[TaskId, tuple[Outcome, EngineId | None]]
) -> tuple[Needs, str | None]:
    """What the task still has to hear of, and why that is impossible. What was met stays met; an end that is forgotten
    was settled before."""
    before, spec = task.needs, task.spec
    met = (0 if before is None or before.after else AFTER) | (0 if before is None or before.inputs else INPUT)
    edges = {other: role & ~met for other, role in named.items()}
    after = sum(1 for role in edges.values() if role & AFTER)
    inputs = sum(1 for role in edges.values() if role & INPUT)
    follow = sum(1 for role in edges.values() if role & dependency.FOLLOW)
    needs = Needs(after, inputs, follow, before.ran_on if before is not None else frozenset())
    why = None
    for other, role in edges.items():
        if other in known:
            why = dependency.settle(needs, spec, role, other, *known[other]) or why
    return needs, why


# ---- the last resort ------------------------------------------------------------------------------------------------


def _reset(scheduler: Scheduler, now: float) -> None:
    """End every task; engines and clients stay."""
    told, archive = scheduler._out, scheduler.archive
    delivered = [effect.task for effect in told if isinstance(effect, DeliverResult)]
    for task in list(scheduler.tasks.values()):
        ended = Ended(
            task.client.id, "error", task.ran_on, None, ERROR, REASON,
            task.attempt, task.accepted_at, task.assigned_at, now, history=task.history,
        )  # fmt: skip
        if task.engine is not None:
            told.append(RecallTask(task.engine.id, task.id, task.attempt))
        if not task.client.gone:
            told += [delivery(task.id, ended)] * (task.copies - delivered.count(task.id))
        if task.id not in delivered:
            scheduler.ends["error"] += 1
        task.state, task.engine = ENDED, None
        task.client.ready = 0
    scheduler.tasks.clear()
    _restore_departed(scheduler)
    scheduler.waiters.clear()
    scheduler._settling.clear()
    scheduler.timeouts.clear()
    scheduler.backoffs.clear()
    archive.restore([])
    for client in scheduler.clients.values():
        client.ready = 0
    _restore_turns(scheduler)
    _restore_engines(scheduler)
