"""Completed tasks, in bounded memory (R1, R5, R9, R22).

Rules:

- Later dependencies, repeated submissions, `explain` and `story` need the outcome of a task after its end, so a
  `CompletedTask` is kept for it.
- At most `limit` are kept, and those whose result is an input of an unfinished task.
- A result is dropped once its client has received it and no unfinished task has it as an input; the outcome stays.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from msgspec import Struct

from trio_sched.core.events import Outcome, PayloadRef
from trio_sched.core.ids import ClientId, EngineId, TaskId

#: How many of the oldest tasks each new end examines. More than one, so that the number returns to the limit after
#: tasks that were needed for long.
_EXAMINED_PER_END = 2


class CompletedTask(Struct, gc=False):
    """The record of a task that has ended."""

    client: ClientId
    outcome: Outcome
    engine: EngineId | None
    result: PayloadRef
    error: str
    reason: str
    attempt: int
    accepted_at: float
    assigned_at: float
    ended_at: float
    #: Whether the client has received the result.
    received: bool = False
    #: Whether the result was dropped (R22).
    dropped: bool = False
    #: Times and descriptions of failures, retries, recalls and lost engines.
    history: tuple[tuple[float, str], ...] = ()


class CompletedTasks:
    """The records of completed tasks, the oldest first."""

    __slots__ = ("_consumers", "_tasks", "limit")

    def __init__(self, limit: int) -> None:
        #: How many are kept, apart from inputs of unfinished tasks.
        self.limit = limit
        self._tasks: OrderedDict[TaskId, CompletedTask] = OrderedDict()
        #: By task, completed or not: how many unfinished tasks have it as an input (R9).
        self._consumers: dict[TaskId, int] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, task: TaskId) -> bool:
        return task in self._tasks

    def items(self) -> Iterator[tuple[TaskId, CompletedTask]]:
        """Ids and records, the oldest first."""
        return iter(self._tasks.items())

    def get(self, task: TaskId) -> CompletedTask | None:
        """The record of a task, None if it has not ended or is forgotten."""
        return self._tasks.get(task)

    def add(self, task: TaskId, completed: CompletedTask) -> None:
        """Keep the record of a task that has just ended; forget the oldest ones above the limit."""
        tasks = self._tasks
        tasks[task] = completed
        if len(tasks) > self.limit:
            for _ in range(_EXAMINED_PER_END):
                oldest = next(iter(tasks))
                if oldest in self._consumers:
                    tasks.move_to_end(oldest)
                else:
                    del tasks[oldest]
                if len(tasks) <= self.limit:
                    break

    def retain(self, tasks: Iterable[TaskId]) -> None:
        """Keep the results of these tasks, which are the inputs of one unfinished task."""
        consumers = self._consumers
        for task in tasks:
            consumers[task] = consumers.get(task, 0) + 1

    def release(self, tasks: Iterable[TaskId]) -> None:
        """Undo one `retain`: the task that had these inputs has ended."""
        consumers = self._consumers
        for task in tasks:
            consumers[task] -= 1
            if not consumers[task]:
                del consumers[task]
                self._drop_unneeded(task)

    def consumer_counts(self) -> dict[TaskId, int]:
        """By task: how many unfinished tasks have it as an input."""
        return dict(self._consumers)

    def restore(self, inputs: Iterable[Iterable[TaskId]]) -> None:
        """Count the consumers again, from the inputs of each unfinished task."""
        self._consumers.clear()
        for tasks in inputs:
            self.retain(tasks)

    def mark_received(self, client: ClientId, tasks: Iterable[TaskId]) -> None:
        """Note that the client has received the results of these tasks. Tasks of other clients are ignored."""
        for task in tasks:
            completed = self._tasks.get(task)
            if completed is not None and completed.client == client:
                completed.received = True
                self._drop_unneeded(task)

    def _drop_unneeded(self, task: TaskId) -> None:
        completed = self._tasks.get(task)
        if completed is not None and completed.received and task not in self._consumers:
            completed.result = None
            completed.dropped = True
