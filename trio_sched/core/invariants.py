"""What must hold after every event. `check` recomputes it all from scratch, slowly; tests and the simulator call it."""

from __future__ import annotations

import math
from collections import Counter

from trio_sched.core.engines import fits
from trio_sched.core.scheduler import Scheduler
from trio_sched.core.task import DELAYED, ENDED, PLACED, READY, WAITING, Task
from trio_sched.errors import InvariantError


def check(scheduler: Scheduler) -> None:
    """Raises InvariantError when the scheduler's state contradicts itself."""
    _check_tasks(scheduler)
    _check_engines(scheduler)
    _check_pools(scheduler)
    _check_waiters(scheduler)
    _check_idle(scheduler)


def _require(holds: bool, what: str, value: object) -> None:
    if not holds:
        raise InvariantError(f"{what}: {value!r}")


def _check_tasks(scheduler: Scheduler) -> None:
    ready: Counter[object] = Counter()
    for task_id, task in scheduler.tasks.items():
        _require(task.id == task_id and task.state is not ENDED, "an unfinished task is ended or misfiled", task_id)
        _require(task_id not in scheduler.archive, "a task is both unfinished and ended", task_id)
        _require((task.engine is not None) == (task.state in PLACED), "state and engine disagree", task_id)
        _require((task.queue is not None) == (task.state is READY), "state and queue disagree", task_id)
        _require(task.bound is None or task.state in (WAITING, DELAYED), "bound in a wrong state", task_id)
        if task.engine is not None:
            _require(task.engine.outstanding.get(task_id) is task, "its engine does not know it", task_id)
            _require(scheduler.engines.get(task.engine.id) is task.engine, "it is on an unregistered engine", task_id)
        if task.state is READY:
            ready[task.client] += 1
            _require(task.needs is None or task.needs.met(task.spec), "ready with open needs", task_id)
        if task.state is WAITING and not (task.spec.follow and task.needs and task.needs.follow):
            _require(task.needs is not None and not task.needs.met(task.spec), "waits for nothing", task_id)
        if task.bound is not None:
            _require(task.bound.bound.get(task_id) is task, "its pool does not know it", task_id)
        if task.spec.targets is not None and task.state in (WAITING, DELAYED):
            _require(task.bound is not None, "nothing tells it that its targets are gone", task_id)
    unfinished = Counter(task.client for task in scheduler.tasks.values())
    departed = Counter(task.client.id for task in scheduler.tasks.values() if task.client.gone)
    _require(scheduler.departed == departed, "the count of tasks of ended sessions is off", scheduler.departed)
    for client in {task.client for task in scheduler.tasks.values()} | set(scheduler.clients.values()):
        _require(client.ready == ready[client], "a client's count of ready tasks is off", client.id)
        _require(client.unfinished == unfinished[client], "a client's count of unfinished tasks is off", client.id)
        _require(client.gone == (scheduler.clients.get(client.id) is not client), "gone or not", client.id)
        _require(math.isfinite(client.vtime) and client.step > 0, "a client's virtual time is no number", client.id)


def _check_engines(scheduler: Scheduler) -> None:
    for engine_id, engine in scheduler.engines.items():
        _require(engine.load == len(engine.outstanding), "load is not the number outstanding", engine_id)
        _require(engine.load <= engine.capacity, "over its high-water mark", engine_id)
        _require(engine.open == (not engine.lost_until and not engine.draining), "open or not", engine_id)
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


def _check_pools(scheduler: Scheduler) -> None:
    queued: list[Task] = []
    kept = set(scheduler.pools)
    for engine in scheduler.engines.values():
        _require(kept.issuperset(engine.pools), "an engine keeps a pool that is gone", engine.id)
    for pool in scheduler.pools:
        matching = {engine_id for engine_id, engine in scheduler.engines.items() if pool.matches(engine)}
        _require(set(pool.members) == matching, "a pool's members are off", pool.key)
        _require(all(pool in engine.pools for engine in pool.members.values()), "an engine misses a pool", pool.key)
        _require(pool.live == sum(queue.live for queue in pool.queues.values()), "a pool's count is off", pool.key)
        _require(pool.held == sum(queue.held for queue in pool.queues.values()), "a pool's held are off", pool.key)
        _require(
            pool is scheduler.pools.anyone or bool(pool.live or pool.held or pool.bound) or pool.targets is None,
            "an empty pool was kept",
            pool.key,
        )
        for (refused, failed), queue in pool.queues.items():
            tasks = list(queue.tasks())
            queued += tasks
            held = sum(1 for task in tasks if task.client.paused)
            _require(len(tasks) == queue.live + queue.held, "a queue's count is off", (pool.key, len(tasks)))
            _require(held == queue.held, "the tasks of paused clients are not those held", (pool.key, held))
            _require(bool(tasks) or queue is pool.plain, "an empty queue was kept", (refused, failed))
            for task in tasks:
                _require(task.queue is queue, "a task is in a queue that it does not know", task.id)
                _require((task.refused, task.failed) == (refused, failed), "exclusions differ", task.id)
        for task in pool.bound.values():
            _require(task.bound is pool, "bound to another pool", task.id)
            _require(not pool.hopeless(task.refused), "no target is left and it waits", task.id)
    ready = [task for task in scheduler.tasks.values() if task.state is READY]
    _require(len(queued) == len(ready), "ready tasks and queues disagree", (len(queued), len(ready)))


def _check_waiters(scheduler: Scheduler) -> None:
    wanted = Counter(other for task in scheduler.tasks.values() for other in task.spec.inputs)
    _require(scheduler.archive.wanted() == wanted, "the count of inputs is off", scheduler.archive.wanted())
    for task_id, ended in scheduler.archive.items():
        _require(
            not (ended.dropped and task_id in wanted and ended.outcome == "ok"), "dropped a needed result", task_id
        )
    for task_id in scheduler.waiters:
        _require(task_id in scheduler.tasks, "waiters of a task that is not unfinished", task_id)


def _check_idle(scheduler: Scheduler) -> None:
    """No ready task has an engine with room: dispatch left nothing undone (R12, R13)."""
    _require(not scheduler.pools.hot, "a pool is still hot", len(scheduler.pools.hot))
    if scheduler.draining:
        return
    for pool in scheduler.pools:
        taking = {engine.id for engine in pool.members.values() if pool.takes(engine)}
        for queue in pool.queues.values():
            if queue.live:
                left = taking - pool.barred(queue.refused, queue.failed)
                _require(not left, "a ready task has an engine with room", (queue.head().id, left))
