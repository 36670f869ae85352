"""The heaps behind `next_deadline()`: exact, at O(log n) a deadline (R21).

An entry is never removed from the middle. Whether it still holds is asked of its item when it surfaces: its time must
still be the one at which the entry was made. A heap that has doubled is swept of outdated entries, which costs O(1) an
entry.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

Item = TypeVar("Item")
_SWEEP = 64


class Deadlines(Generic[Item]):
    """Items by the time at which something is due for them.

    `due_at(item)` is the time that is true for the item now, 0 when nothing is due for it any more.
    """

    __slots__ = ("_due_at", "_heap", "_sweep_at")

    def __init__(self, due_at: Callable[[Item], float]) -> None:
        self._due_at = due_at
        self._heap: list[tuple[float, int, Item]] = []
        self._sweep_at = _SWEEP

    def __len__(self) -> int:
        return len(self._heap)

    def clear(self) -> None:
        """Forget all."""
        self._heap.clear()

    def add(self, when: float, order: int, item: Item) -> None:
        """Something is due for `item` at `when`; among equals the smaller `order`, which is the item's own, goes
        first.
        """
        heappush(self._heap, (when, order, item))
        if len(self._heap) > self._sweep_at:
            current = {entry[1]: entry for entry in self._heap if self._due_at(entry[2]) == entry[0]}
            self._heap = list(current.values())
            heapify(self._heap)
            self._sweep_at = 2 * len(self._heap) + _SWEEP

    def next(self) -> float | None:
        """The earliest time at which something is due."""
        heap = self._heap
        while heap:
            when, _, item = heap[0]
            if self._due_at(item) == when:
                return when
            heappop(heap)
        return None

    def pop_due(self, now: float) -> Item | None:
        """Take out the next item for which something is due by `now`."""
        when = self.next()
        if when is None or when > now:
            return None
        return heappop(self._heap)[2]
