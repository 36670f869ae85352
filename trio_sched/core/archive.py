"""Ended tasks: what later dependencies, repeated submissions and stories need of them, in bounded memory (R1, R5,
R22).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from trio_sched.core.ids import ClientId, TaskId
from trio_sched.core.task import Ended

_LOOKS = 2
"""How many of the oldest each new end looks at: more than one, so that a bound once passed is reached again."""


class Archive:
    """The ended tasks that are remembered, the oldest first: `keep` of them, and those still needed."""

    __slots__ = ("_ended", "_wanted", "keep")

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._ended: OrderedDict[TaskId, Ended] = OrderedDict()
        self._wanted: dict[TaskId, int] = {}
        """By task, ended or not: how often unfinished tasks name it as an input (R9)."""

    def __len__(self) -> int:
        return len(self._ended)

    def __contains__(self, task: TaskId) -> bool:
        return task in self._ended

    def items(self) -> Iterator[tuple[TaskId, Ended]]:
        """All of them, the oldest first."""
        return iter(self._ended.items())

    def get(self, task: TaskId) -> Ended | None:
        """What is remembered of a task."""
        return self._ended.get(task)

    def add(self, task: TaskId, ended: Ended) -> None:
        """Remember an end, and forget older ones over the bound."""
        ended_ = self._ended
        ended_[task] = ended
        if len(ended_) > self.keep:
            for _ in range(_LOOKS):
                oldest = next(iter(ended_))
                if oldest in self._wanted:
                    ended_.move_to_end(oldest)
                else:
                    del ended_[oldest]
                if len(ended_) <= self.keep:
                    break

    def want(self, tasks: Iterable[TaskId]) -> None:
        """An unfinished task has these as inputs: their results are kept for it."""
        wanted = self._wanted
        for task in tasks:
            wanted[task] = wanted.get(task, 0) + 1

    def release(self, tasks: Iterable[TaskId]) -> None:
        """A task that had these as inputs has ended."""
        wanted = self._wanted
        for task in tasks:
            wanted[task] -= 1
            if not wanted[task]:
                del wanted[task]
                self._drop_unneeded(task)

    def wanted(self) -> dict[TaskId, int]:
        """How often each task is named as an input of an unfinished one."""
        return dict(self._wanted)

    def restore(self, tasks: Iterable[Iterable[TaskId]]) -> None:
        """Count anew what unfinished tasks have as inputs: an item for each of them."""
        self._wanted.clear()
        for inputs in tasks:
            self.want(inputs)

    def received(self, client: ClientId, tasks: Iterable[TaskId]) -> None:
        """The client has these ends in hand."""
        for task in tasks:
            ended = self._ended.get(task)
            if ended is not None and ended.client == client:
                ended.received = True
                self._drop_unneeded(task)

    def _drop_unneeded(self, task: TaskId) -> None:
        ended = self._ended.get(task)
        if ended is not None and ended.received and task not in self._wanted:
            ended.result = None
            ended.dropped = True
