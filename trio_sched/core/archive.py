"""Ended tasks: what later dependencies, repeated submissions and stories need of them, in bounded memory (R1, R5,
R22).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from trio_sched.core.events import ClientId, TaskId
from trio_sched.core.task import Ended

_LOOKS = 2
"""How many of the oldest each new end looks at: more than one, so that a bound once passed is reached again."""


class Archive:
    """The ended tasks that are remembered, the oldest first: `keep` of them, and those still needed."""

    __slots__ = ("_ended", "keep")

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._ended: OrderedDict[TaskId, Ended] = OrderedDict()

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
                oldest, old = ended_.popitem(last=False)
                if old.keepers:
                    ended_[oldest] = old
                if len(ended_) <= self.keep:
                    break

    def release(self, tasks: Iterable[TaskId]) -> None:
        """A task that had these as inputs has ended."""
        for task in tasks:
            ended = self._ended.get(task)
            if ended is not None:
                ended.keepers -= 1
                self._drop_unneeded(ended)

    def received(self, client: ClientId, tasks: Iterable[TaskId]) -> None:
        """The client has these ends in hand."""
        for task in tasks:
            ended = self._ended.get(task)
            if ended is not None and ended.client == client:
                ended.received = True
                self._drop_unneeded(ended)

    def _drop_unneeded(self, ended: Ended) -> None:
        if ended.received and not ended.keepers:
            ended.result = None
            ended.dropped = True
