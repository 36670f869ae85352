"""The invariants of the scheduler, which hold after every event.

`check` computes everything from scratch, slowly. Tests, the simulator and `recovery` call it.
"""

from __future__ import annotations

import math
from collections import Counter

from trio_sched.core.records import Task, fits
from trio_sched.core.scheduler import Scheduler
from trio_sched.core.states import DELAYED, ENDED, PLACED, READY, WAITING
from trio_sched.errors import InvariantError


def check(scheduler: Scheduler) -> None:
    """Check all invariants.

    :raises InvariantError: the state contradicts itself; the message names the invariant and the value.
    """
    _check_tasks(scheduler)
    _check_engines(scheduler)
    _check_request_classes(scheduler)
    _check_waiters(scheduler)
    _check_idle(scheduler)


def _require(holds: bool, what: str, value: object) -> None:
    if not holds:
        raise InvariantError(f"{what}: {value!r}")


def _check_tasks(scheduler: Scheduler) -> None:
    ready: Counter[object] = Counter()
    for task_id, task in scheduler.tasks.items():
        _require(task.id == task_id and task.state is not ENDED, "an unfinished task is ended or misfiled", task_id)
        _require(task_id not in scheduler.completed, "a task is both unfinished and ended", task_id)
        _require((task.engine is not None) == (task.state in PLACED), "state and engine disagree", task_id)
        _require((task.queue is not None) == (task.state is READY), "state and queue disagree", task_id)
        _require(task.watched is None or task.state in (WAITING, DELAYED), "watches targets in a wrong state", task_id)
        if task.engine is not None:
            _require(task.engine.outstanding.get(task_id) is task, "its engine does not know it", task_id)
            _require(scheduler.engines.get(task.engine.id) is task.engine, "it is on an unregistered engine", task_id)
        if task.state is READY:
            ready[task.client] += 1
            _require(task.pending is None or task.pending.is_met(task.spec), "ready with pending dependencies", task_id)
        if task.state is WAITING and not (task.spec.follow and task.pending and task.pending.follow):
            _require(task.pending is not None and not task.pending.is_met(task.spec), "waits for nothing", task_id)
        if task.watched is not None:
            _require(task.watched.target_watchers.get(task_id) is task, "its request class does not know it", task_id)
        if task.spec.targets is not None and task.state in (WAITING, DELAYED):
            _require(task.watched is not None, "its targets are not watched", task_id)
    unfinished = Counter(task.client for task in scheduler.tasks.values())
    departed = Counter(task.client.id for task in scheduler.tasks.values() if task.client.has_left)
    _require(
        scheduler.departed_task_counts == departed,
        "the count of tasks of ended sessions is off",
        scheduler.departed_task_counts,
    )
    for client in {task.client for task in scheduler.tasks.values()} | set(scheduler.clients.values()):
        _require(client.ready_count == ready[client], "a client's count of ready tasks is off", client.id)
        _require(
            client.unfinished_count == unfinished[client], "a client's count of unfinished tasks is off", client.id
        )
        _require(
            client.has_left == (scheduler.clients.get(client.id) is not client),
            "has_left disagrees with the open sessions",
            client.id,
        )
        _require(
            math.isfinite(client.virtual_time) and client.virtual_step > 0,
            "a client's virtual time is not a number",
            client.id,
        )


def _check_engines(scheduler: Scheduler) -> None:
    for engine_id, engine in scheduler.engines.items():
        _require(engine.load == len(engine.outstanding), "load is not the number outstanding", engine_id)
        _require(engine.load <= engine.capacity, "over its high-water mark", engine_id)
        _require(
            engine.accepts_tasks == (not engine.lost_until and not engine.draining),
            "accepts_tasks disagrees with lost and draining",
            engine_id,
        )
        _require(all(task.engine is engine for task in engine.outstanding.values()), "holds others' tasks", engine_id)
        _require(len(engine.running) <= engine.slots, "runs more than its slots", engine_id)
        for name, amount in engine.resources.items():
            held = sum(dict(task.spec.resources).get(name, 0.0) for task in engine.running.values())
            slack = max(1e-6, 1e-9 * amount)
            _require(abs(engine.free[name] + held - amount) < slack, "resources leak", (engine_id, name))
            _require(engine.free[name] > -slack, "more resources held than there are", (engine_id, name))
        if engine.resources and len(engine.running) < engine.slots:
            waiting = [task for task in engine.outstanding.values() if task.id not in engine.running]
            fitting = [task.id for task in waiting if fits(task.spec.resources, engine.free)]
            _require(not fitting, "a task could run and does not", fitting)


def _check_request_classes(scheduler: Scheduler) -> None:
    queued: list[Task] = []
    kept = set(scheduler.request_classes)
    for engine in scheduler.engines.values():
        _require(
            kept.issuperset(engine.request_classes), "an engine keeps a request class that was discarded", engine.id
        )
    for request_class in scheduler.request_classes:
        matching = {engine_id for engine_id, engine in scheduler.engines.items() if request_class.matches(engine)}
        _require(set(request_class.members) == matching, "a request class's members are off", request_class.key)
        _require(
            all(request_class in engine.request_classes for engine in request_class.members.values()),
            "an engine misses a request class",
            request_class.key,
        )
        _require(
            request_class.ready_count == sum(queue.ready_count for queue in request_class.queues.values()),
            "a request class's count is off",
            request_class.key,
        )
        _require(
            request_class.paused_count == sum(queue.paused_count for queue in request_class.queues.values()),
            "a request class's paused count is off",
            request_class.key,
        )
        _require(
            request_class is scheduler.request_classes.unconstrained
            or bool(request_class.ready_count or request_class.paused_count or request_class.target_watchers)
            or request_class.targets is None,
            "an empty request class was kept",
            request_class.key,
        )
        for (excluded, avoided), queue in request_class.queues.items():
            tasks = list(queue.tasks())
            queued += tasks
            held = sum(1 for task in tasks if task.client.paused)
            _require(
                len(tasks) == queue.ready_count + queue.paused_count,
                "a queue's count is off",
                (request_class.key, len(tasks)),
            )
            _require(
                held == queue.paused_count,
                "the tasks of paused clients are not those withheld",
                (request_class.key, held),
            )
            _require(bool(tasks) or queue is request_class.main_queue, "an empty queue was kept", (excluded, avoided))
            for task in tasks:
                _require(task.queue is queue, "a task is in a queue that it does not know", task.id)
                _require((task.excluded, task.avoided) == (excluded, avoided), "exclusions differ", task.id)
        for task in request_class.target_watchers.values():
            _require(task.watched is request_class, "watched by another request class", task.id)
            _require(not request_class.is_unsatisfiable(task.excluded), "no target is left and it waits", task.id)
    ready = [task for task in scheduler.tasks.values() if task.state is READY]
    _require(len(queued) == len(ready), "ready tasks and queues disagree", (len(queued), len(ready)))


def _check_waiters(scheduler: Scheduler) -> None:
    wanted = Counter(other for task in scheduler.tasks.values() for other in task.spec.inputs)
    _require(
        scheduler.completed.consumer_counts() == wanted,
        "the count of consumers is off",
        scheduler.completed.consumer_counts(),
    )
    for task_id, ended in scheduler.completed.items():
        _require(
            not (ended.dropped and task_id in wanted and ended.outcome == "ok"), "dropped a needed result", task_id
        )
    for task_id in scheduler.dependents:
        _require(task_id in scheduler.tasks, "waiters of a task that is not unfinished", task_id)


def _check_idle(scheduler: Scheduler) -> None:
    """No ready task has an engine with room, so dispatch is complete (R12, R13)."""
    _require(
        not scheduler.request_classes.dispatchable,
        "a request class is still dispatchable",
        len(scheduler.request_classes.dispatchable),
    )
    if scheduler.draining:
        return
    for request_class in scheduler.request_classes:
        taking = {engine.id for engine in request_class.members.values() if request_class.takes(engine)}
        for queue in request_class.queues.values():
            if queue.ready_count:
                left = taking - request_class.effective_exclusions(queue.excluded, queue.avoided)
                _require(not left, "a ready task has an engine with room", (queue.head().id, left))
