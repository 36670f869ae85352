"""Heaps of deadlines, for `Scheduler.next_deadline`: exact, at O(log n) for each deadline (R21).

Rules:

- An entry is never removed from the middle of a heap. An entry is valid while the item's own deadline is that of the
  entry; outdated entries are dropped when they reach the top.
- A heap that has doubled in size is swept of outdated entries, which costs O(1) for each entry.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

Item = TypeVar("Item")
#: Entries that a heap may have before it is swept for the first time.
_SWEEP = 64


class Deadlines(Generic[Item]):
    """Items, by the time at which something is due for them.

    `due_at(item)` is the deadline that the item has now; 0: the item has no deadline.
    """

    __slots__ = ("_due_at", "_heap", "_sweep_at")

    def __init__(self, due_at: Callable[[Item], float]) -> None:
        self._due_at = due_at
        self._heap: list[tuple[float, int, Item]] = []
        self._sweep_at = _SWEEP

    def __len__(self) -> int:
        return len(self._heap)

    def clear(self) -> None:
        """Remove all entries."""
        self._heap.clear()

    def add(self, when: float, order: int, item: Item) -> None:
        """Add the deadline `when` of an item. Of equal deadlines the one with the smaller `order` is first; `order` is
        unique to the item.
        """
        heappush(self._heap, (when, order, item))
        if len(self._heap) > self._sweep_at:
            current = {entry[1]: entry for entry in self._heap if self._due_at(entry[2]) == entry[0]}
            self._heap = list(current.values())
            heapify(self._heap)
            self._sweep_at = 2 * len(self._heap) + _SWEEP

    def next(self) -> float | None:
        """The earliest deadline, None without any."""
        heap = self._heap
        while heap:
            when, _, item = heap[0]
            if self._due_at(item) == when:
                return when
            heappop(heap)
        return None

    def pop_due(self, now: float) -> Item | None:
        """Remove and return the item with the earliest deadline; None if that is later than `now`."""
        when = self.next()
        if when is None or when > now:
            return None
        return heappop(self._heap)[2]
