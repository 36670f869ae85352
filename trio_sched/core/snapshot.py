"""Views of the scheduler for people: `status`, `explain` (why is a task not running?) and `story` (what happened to
it?).

Rules:

- Everything returned is new, plain data, so it can leave the actor.
- `explain` of a ready task and the list of engines cost the number of engines. No view costs the number of tasks.
"""

from __future__ import annotations

from typing import Any

from trio_sched.core.completed_tasks import CompletedTask
from trio_sched.core.dependency import format_list
from trio_sched.core.ids import TaskId, format_task_id
from trio_sched.core.records import UNLIMITED, Engine, RequestClass, Task, fits
from trio_sched.core.scheduler import Scheduler
from trio_sched.core.states import ASSIGNED, CANCELLING, DELAYED, READY, RECALLING, WAITING


def status(scheduler: Scheduler, now: float) -> dict[str, Any]:
    """Counts of tasks by state and outcome, the clients, the engines, and the counters of invalid events."""
    ready = sum(request_class.ready_count + request_class.paused_count for request_class in scheduler.request_classes)
    assigned = sum(engine.load for engine in scheduler.engines.values())
    return {
        "scheme": scheduler.settings.scheme,
        "hwm": scheduler.settings.hwm,
        "draining": scheduler.draining,
        "tasks": {
            "waiting": len(scheduler.tasks) - ready - assigned,
            "ready": ready,
            "assigned": assigned,
            **scheduler.outcome_counts,
        },
        "clients": [
            {
                "client": client.id,
                "ready": client.ready_count,
                "weight": 1 / client.virtual_step,
                "paused": client.pause_reason,
            }
            for client in scheduler.clients.values()
        ],
        "engines": engines(scheduler, now),
        "counters": dict(scheduler.counters),
    }


def engines(scheduler: Scheduler, now: float) -> list[dict[str, Any]]:
    """One row for each engine, in the order in which they joined."""
    return [
        {
            "engine": engine.id,
            "kind": engine.kind,
            "state": _state_of(engine),
            "slots": engine.slots,
            "hwm": engine.hwm,
            "load": engine.load,
            "done": engine.finished_count,
            "resources": dict(engine.resources),
            "free": {what: round(amount, 9) for what, amount in engine.free.items()},
            "here_s": now - engine.joined_at,
        }
        for engine in scheduler.engines.values()
    ]


def _state_of(engine: Engine) -> str:
    if engine.lost_until:
        return "lost"
    if engine.draining:
        return "draining" if engine.load else "drained"
    return "full" if engine.load >= engine.capacity else "open"


# ---- story ----------------------------------------------------------------------------------------------------------


def story(scheduler: Scheduler, task_id: TaskId) -> list[tuple[float, str]]:
    """What happened to the task, in order, with times on the scheduler's clock; empty if the task is not known."""
    record: Task | CompletedTask | None = scheduler.tasks.get(task_id) or scheduler.completed.get(task_id)
    if record is None:
        return []
    lines = [(record.accepted_at, "accepted"), *record.history]
    if isinstance(record, CompletedTask):
        if record.attempt:
            lines.append((record.assigned_at, f"sent to engine {record.engine} (attempt {record.attempt})"))
        why = f": {record.reason}" if record.reason else ""
        lines.append((record.ended_at, f"ended as {record.outcome}{why}"))
    elif record.engine is not None:
        lines.append((record.assigned_at, f"sent to engine {record.engine.id} (attempt {record.attempt})"))
    return sorted(lines, key=lambda line: line[0])


# ---- explain --------------------------------------------------------------------------------------------------------


def explain(scheduler: Scheduler, task_id: TaskId, now: float) -> str:
    """Why the task is not running now, or how it ended, in a sentence or two."""
    task = scheduler.tasks.get(task_id)
    if task is not None:
        return _EXPLANATIONS[task.state](scheduler, task, now) + _explain_timeout(task, now)
    ended = scheduler.completed.get(task_id)
    if ended is not None:
        where = f" on engine {ended.engine}" if ended.engine is not None else ""
        why = f": {ended.reason}" if ended.reason else ""
        return f"it ended as {ended.outcome}{where}, {now - ended.ended_at:.3g} s ago{why}"
    printed = format_task_id(task_id)
    return f"no task {printed} is known: it was never submitted here, or ended so long ago that it is forgotten"


def _explain_timeout(task: Task, now: float) -> str:
    if task.deadline and task.engine is None:
        return f"; it times out in {max(0.0, task.deadline - now):.3g} s"
    return ""


def _explain_waiting(scheduler: Scheduler, task: Task, now: float) -> str:
    spec = task.spec
    named = [
        ("after", spec.after.tasks if spec.after else (), spec.after is None or spec.after.all),
        ("follow", spec.follow.tasks if spec.follow else (), spec.follow is None or spec.follow.all),
        ("inputs", spec.inputs, True),
    ]
    parts = []
    for what, tasks, all_ in named:
        unfinished = [other for other in tasks if other in scheduler.tasks]
        if unfinished and (all_ or len(unfinished) == len(tasks) or what == "follow"):
            states = format_list(
                [f"{format_task_id(other)} ({scheduler.tasks[other].state.value})" for other in unfinished]
            )
            any_ = "" if all_ else ", any of which will do"
            parts.append(f"{len(unfinished)} of {len(tasks)} dependencies ({what}{any_}): {states}")
    return "it waits for " + "; and for ".join(parts or ["dependencies that are being settled"])


def _explain_delayed(scheduler: Scheduler, task: Task, now: float) -> str:
    last = task.history[-1][1] if task.history else "it failed"
    return f"it waits {max(0.0, task.wake_at - now):.3g} s longer before its next attempt ({last})"


def _explain_ready(scheduler: Scheduler, task: Task, now: float) -> str:
    queue = task.queue
    if queue is None:
        raise AssertionError("a ready task is in no queue")
    request_class = queue.request_class
    if scheduler.draining:
        return "the scheduler is shutting down and sends nothing more"
    if task.client.paused:
        return f"nothing of its client is sent to engines: {task.client.pause_reason or 'the client is paused'}"
    if not scheduler.engines:
        return "there are no engines"
    requirements = _format_requirements(request_class)
    if not request_class.members:
        return f"no engine has {requirements}" + _format_offers(scheduler, request_class)
    excluded = request_class.effective_exclusions(task.excluded, task.avoided)
    candidates = [engine for engine_id, engine in request_class.members.items() if engine_id not in excluded]
    if not candidates:
        return f"every engine that matches {requirements} has declined it, or it failed there: it waits for another one"
    return _explain_no_room(candidates, request_class, requirements)


def _explain_no_room(candidates: list[Engine], request_class: RequestClass, requirements: str) -> str:
    """Why none of the candidates has room."""
    lost = sum(1 for engine in candidates if engine.lost_until)
    draining = sum(1 for engine in candidates if engine.draining and not engine.lost_until)
    here = [engine for engine in candidates if engine.accepts_tasks]
    full = sum(1 for engine in here if engine.load >= engine.capacity)
    held = sum(1 for engine in here if engine.load < engine.capacity and not fits(request_class.resources, engine.free))
    whole = f"all {len(candidates)} engines" if len(candidates) > 1 else "the only engine"
    whole += f" that match{'' if len(candidates) > 1 else 'es'} {requirements}" if requirements != "anything" else ""
    if full == len(candidates):
        return f"{whole} {'are' if len(candidates) > 1 else 'is'} full (at the high-water mark)"
    reasons = [
        f"{full} full (at the high-water mark)" if full else "",
        f"{held} whose resources running tasks hold: smaller requests may go before it" if held else "",
        f"{lost} lost" if lost else "",
        f"{draining} draining" if draining else "",
    ]
    return f"of {whole}: " + ", ".join(reason for reason in reasons if reason)


def _explain_assigned(scheduler: Scheduler, task: Task, now: float) -> str:
    engine = task.engine
    if engine is None:
        raise AssertionError("a placed task is on no engine")
    ahead = 0
    for other in engine.outstanding:
        if other == task.id:
            break
        ahead += 1
    if task.id in engine.presumed_running():
        place = f"it is on engine {engine.id} and should be running, {now - task.assigned_at:.3g} s since it was sent"
    else:
        place = (
            f"it is on engine {engine.id}, behind {ahead} others (at most {_format_capacity(engine)} are sent there)"
        )
    more = {RECALLING: "; it is being recalled", CANCELLING: "; it is being cancelled"}.get(task.state, "")
    return place + more + (f"; the engine is lost: {engine.lost_reason}" if engine.lost_until else "")


_EXPLANATIONS = {
    WAITING: _explain_waiting,
    DELAYED: _explain_delayed,
    READY: _explain_ready,
    ASSIGNED: _explain_assigned,
    RECALLING: _explain_assigned,
    CANCELLING: _explain_assigned,
}


def _format_requirements(request_class: RequestClass) -> str:
    parts = [f"a kind of {request_class.kind!r}"] if request_class.kind else []
    parts += [f"{what}={amount:g}" for what, amount in request_class.resources]
    if request_class.targets is not None:
        parts.append(f"engine {format_list(sorted(map(str, request_class.targets)), ' or ')}")
    return " and ".join(parts) or "anything"


def _format_offers(scheduler: Scheduler, request_class: RequestClass) -> str:
    offers = []
    for what, _ in request_class.resources:
        most = max((engine.resources.get(what, 0.0) for engine in scheduler.engines.values()), default=0.0)
        offers.append(f"{what}={most:g}")
    return f" (the most that one offers: {', '.join(offers)})" if offers else ""


def _format_capacity(engine: Engine) -> str:
    return "any number" if engine.capacity == UNLIMITED else str(engine.capacity)
