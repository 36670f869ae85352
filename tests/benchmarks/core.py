"""The cost of an event in the core alone, by waiting tasks, by engines, and by shape of a graph.

    python -m tests.benchmarks.core

A cycle is one submission, one answer of an engine, and the assignment that follows, while the number of waiting tasks
stays the same. The thresholds of the garbage collector are those of a scheduler's process. Times are CPU times, on
which other load of the machine has little influence.
"""

from __future__ import annotations

import gc
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Annotated, Any

import typer

from trio_sched.cli.bench import parse_numbers
from trio_sched.cli.local_cluster import COLLECTOR_THRESHOLDS
from trio_sched.cli.tables import Row, Table, as_json, print_tables
from trio_sched.core.effects import AssignTask, Effect
from trio_sched.core.events import (
    ClientJoined,
    Dependency,
    EngineJoined,
    ResultsReceived,
    TaskFinished,
    TaskSpec,
    TaskSubmitted,
)
from trio_sched.core.ids import make_task_id
from trio_sched.core.scheduler import Scheduler, Settings
from trio_sched.errors import ImpossibleDependency

CLIENT = 1
FIRST_ENGINE = 2
ACKNOWLEDGED_AT_ONCE = 100
#: Repetitions; the best one counts.
ROUNDS = 3


class Driver:
    """A core scheduler with engines that answer in the order of their assignments."""

    def __init__(self, engines: int, hwm: int = 10) -> None:
        self.scheduler = Scheduler(Settings(hwm=hwm), random.Random(0))
        self.assigned: deque[tuple[int | str, int | str]] = deque()
        self.received: list[int | str] = []
        self.submitted = 0
        self.scheduler.handle(ClientJoined(CLIENT), 0.0)
        for engine in range(FIRST_ENGINE, FIRST_ENGINE + engines):
            self.scheduler.handle(EngineJoined(engine), 0.0)

    def submit(self, spec: TaskSpec = TaskSpec()) -> int:  # noqa: B008  # immutable
        """Submit one task and return its id."""
        self.submitted += 1
        task = make_task_id(CLIENT, self.submitted)
        self._record(self.scheduler.handle(TaskSubmitted(CLIENT, task, None, spec), 0.0))
        return task

    def finish(self) -> None:
        """Answer the oldest assignment; acknowledge every hundred results at once."""
        engine, task = self.assigned.popleft()
        self._record(self.scheduler.handle(TaskFinished(engine, task, "ok"), 0.0))
        self.received.append(task)
        if len(self.received) == ACKNOWLEDGED_AT_ONCE:
            self._record(self.scheduler.handle(ResultsReceived(CLIENT, tuple(self.received)), 0.0))
            self.received.clear()

    def finish_all(self) -> None:
        """Answer all assignments."""
        while self.assigned:
            self.finish()

    def _record(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, AssignTask):
                self.assigned.append((effect.engine, effect.task))


def measure_core(waiting: list[int], engines: list[int], cycles: int, graph: int) -> list[Table]:
    """Measure cycles by waiting tasks and by engines, and graphs of `graph` tasks."""
    thresholds = gc.get_threshold()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
    try:
        by_waiting = [_cycle(depth, 2, cycles) for depth in waiting]
        by_engines = [_cycle(20 * count, count, cycles) for count in engines]
        graphs = _graphs(graph)
    finally:
        gc.set_threshold(*thresholds)
    return [
        Table(
            "core, by tasks waiting",
            "a cycle: one submission, one answer, one assignment, 1/100 acknowledgement",
            by_waiting,
        ),
        Table("core, by engines", "the same with 20 tasks waiting for each engine", by_engines),
        Table(f"core, graphs of {graph:,} tasks", "all submitted, then all run; us a task", graphs),
    ]


def _cycle(waiting: int, engines: int, cycles: int) -> Row:
    driver = Driver(engines)
    for _ in range(waiting + 10 * engines):
        driver.submit()
    gc.collect()
    gc.freeze()
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(cycles):
            driver.submit()
            driver.finish()
        best = min(best, time.process_time() - started)
    gc.unfreeze()
    return {"waiting": waiting, "engines": engines, "us a cycle": 1e6 * best / cycles, "events/s": 2.01 * cycles / best}


def _graphs(tasks: int) -> list[Row]:
    rows: list[Row] = [
        {"graph": shape.__name__.strip("_"), "us a task": min(_graph(shape, tasks) for _ in range(ROUNDS))}
        for shape in (_independent, _chain, _fan, _tree)
    ]
    rows.append({"graph": "failing chain", "us a task": min(_failing_chain(tasks) for _ in range(ROUNDS))})
    for row in rows:
        row["to independent"] = row["us a task"] / rows[0]["us a task"]
    return rows


def _graph(shape: Callable[[Driver, int], None], tasks: int) -> float:
    """Submit all tasks, then run all; return the microseconds a task."""
    gc.collect()
    driver = Driver(2)
    started = time.process_time()
    shape(driver, tasks)
    driver.finish_all()
    return 1e6 * (time.process_time() - started) / tasks


def _independent(driver: Driver, tasks: int) -> None:
    for _ in range(tasks):
        driver.submit()


def _chain(driver: Driver, tasks: int) -> None:
    """Submit tasks that each depend on the previous one."""
    task = driver.submit()
    for _ in range(tasks - 1):
        task = driver.submit(TaskSpec(after=Dependency((task,))))


def _fan(driver: Driver, tasks: int) -> None:
    """Submit tasks that all depend on one, and one that depends on all of them."""
    first = driver.submit()
    spec = TaskSpec(after=Dependency((first,)))
    middle = tuple(driver.submit(spec) for _ in range(tasks - 2))
    driver.submit(TaskSpec(after=Dependency(middle)))


def _tree(driver: Driver, tasks: int) -> None:
    """Submit a binary tree of tasks, from the leaves to the root."""
    level = [driver.submit() for _ in range((tasks + 1) // 2)]
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        level = [driver.submit(TaskSpec(after=Dependency(pair))) for pair in pairs]


def _failing_chain(tasks: int) -> float:
    """Fail the first task of a chain, which settles all others in one turn; return the microseconds a task."""
    driver = Driver(2)
    started = time.process_time()
    _chain(driver, tasks)
    engine, task = driver.assigned.popleft()
    effects = driver.scheduler.handle(TaskFinished(engine, task, "error"), 0.0)
    took_us = 1e6 * (time.process_time() - started) / tasks
    assert sum(getattr(effect, "error", "") == ImpossibleDependency.__name__ for effect in effects) == tasks - 1
    return took_us


def main(
    waiting: Annotated[Any, typer.Option(parser=parse_numbers, metavar="N,...", help="Waiting tasks.")] = "100,100000",
    engines: Annotated[Any, typer.Option(parser=parse_numbers, metavar="N,...", help="Engines.")] = "2,100,10000",
    cycles: Annotated[int, typer.Option(min=1, help="Cycles of one measurement.")] = 20_000,
    graph: Annotated[int, typer.Option(min=3, help="Tasks of a graph.")] = 100_000,
    json: Annotated[bool, typer.Option(help="Machine-readable output.")] = False,
) -> None:
    """Measure the core alone."""
    tables = measure_core(waiting, engines, cycles, graph)
    typer.echo(as_json(tables)) if json else print_tables(tables)


if __name__ == "__main__":
    typer.run(main)
