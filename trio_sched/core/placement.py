"""The schemes, by which one of the engines with room gets a task (R11).

Rules:

- A scheme keeps an index of its own over the engines of one request class that have room, so a choice does not cost the
  number of engines. `update` records each change of an engine; `pick` chooses an engine that is not excluded.
- Randomness comes only from the `random.Random` and the numpy `Generator` that the scheduler was given, so a seed
  determines every choice.
"""

from __future__ import annotations

import random
from bisect import bisect_right, insort
from collections.abc import Callable, Collection
from heapq import heapify, heappop, heappush
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from trio_sched.core.ids import EngineId
from trio_sched.core.records import Engine, PlacementPolicy

if TYPE_CHECKING:
    import numpy

#: Draws that may hit excluded engines before the other engines are collected in a list.
_MAX_DRAWS = 32
#: Added to the load by `weighted`, so that an idle engine has a finite weight.
WEIGHT_OFFSET = 1e-6


class LowestKey:
    """`leastload` and `lru`: the engine with the lowest load, or the least recently used one, from a heap.

    Each update pushes an entry. An entry is valid while the engine's load and time of use are those of the entry;
    outdated entries are dropped when they reach the top. When entries far outnumber engines the heap is built from the
    engines, which costs O(1) for each update.
    """

    __slots__ = ("_by_load", "_candidates", "_heap")

    def __init__(self, by_load: bool) -> None:
        self._by_load = by_load
        self._heap: list[tuple[int, int, Engine]] = []
        self._candidates: dict[EngineId, Engine] = {}

    def update(self, engine: Engine, available: bool) -> None:
        """Add or remove the engine, and record its present `load` and `last_used`."""
        if not available:
            self._candidates.pop(engine.id, None)
            return
        self._candidates[engine.id] = engine
        heap = self._heap
        heappush(heap, (engine.load if self._by_load else 0, engine.last_used, engine))
        if len(heap) > 4 * len(self._candidates) + 64:
            by_load = self._by_load
            self._heap = [(e.load if by_load else 0, e.last_used, e) for e in self._candidates.values()]
            heapify(self._heap)

    def pick(self, excluded: frozenset[EngineId]) -> Engine | None:
        """The engine with the lowest key."""
        heap, candidates, by_load = self._heap, self._candidates, self._by_load
        passed: list[tuple[int, int, Engine]] = []
        chosen: Engine | None = None
        while heap:
            load, last_used, engine = heap[0]
            if (
                engine.last_used != last_used
                or (by_load and engine.load != load)
                or candidates.get(engine.id) is not engine
            ):
                heappop(heap)
            elif engine.id in excluded:
                passed.append(heappop(heap))
            else:
                chosen = engine
                break
        for entry in passed:
            heappush(heap, entry)
        return chosen

    def has_candidate(self, excluded: frozenset[EngineId]) -> bool:
        """Whether an engine is not excluded."""
        return _has_candidate(self._candidates, excluded)


class RandomIndex:
    """The engines with room in a list, from which random ones are drawn at O(1)."""

    __slots__ = ("_engines", "_index", "_rng")

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._engines: list[Engine] = []
        self._index: dict[EngineId, int] = {}

    def update(self, engine: Engine, available: bool) -> None:
        """Add or remove the engine, and record its present `load` and `last_used`."""
        position = self._index.get(engine.id)
        if available and position is None:
            self._index[engine.id] = len(self._engines)
            self._engines.append(engine)
        elif not available and position is not None:
            del self._index[engine.id]
            last = self._engines.pop()
            if last is not engine:
                self._engines[position] = last
                self._index[last.id] = position

    def has_candidate(self, excluded: frozenset[EngineId]) -> bool:
        """Whether an engine is not excluded."""
        return _has_candidate(self._index, excluded)

    def _draw(self, excluded: frozenset[EngineId]) -> Engine:
        """One of the engines that are not excluded, uniformly. At least one engine is not excluded."""
        engines, random_ = self._engines, self._rng.random
        for _ in range(_MAX_DRAWS):
            engine = engines[int(random_() * len(engines))]
            if engine.id not in excluded:
                return engine
        return self._rng.choice([engine for engine in engines if engine.id not in excluded])


class PlainRandom(RandomIndex):
    """`plainrandom`: one engine, drawn uniformly."""

    __slots__ = ()

    def pick(self, excluded: frozenset[EngineId]) -> Engine | None:
        """Any of the engines."""
        return self._draw(excluded) if self.has_candidate(excluded) else None


class TwoBin(RandomIndex):
    """`twobin`: two drawn uniformly, with replacement; the less recently used of the two."""

    __slots__ = ()

    def pick(self, excluded: frozenset[EngineId]) -> Engine | None:
        """The less recently used of two."""
        if not self.has_candidate(excluded):
            return None
        first, second = self._draw(excluded), self._draw(excluded)
        return first if first.last_used <= second.last_used else second


class Weighted:
    """`weighted`: two drawn with probability proportional to 1/(load + 1e-6), with replacement; the less loaded of the
    two, ties to the first.

    Engines are in buckets by load, so a draw costs the number of different loads, not the number of engines.
    """

    __slots__ = ("_buckets", "_draws", "_generator", "_index")

    def __init__(self, rng: random.Random, generator: numpy.random.Generator | None) -> None:
        if generator is None:
            import numpy

            generator = numpy.random.default_rng(rng.getrandbits(64))
        self._generator = generator
        self._draws: list[float] = []
        self._buckets: dict[int, list[Engine]] = {}
        self._index: dict[EngineId, tuple[int, int]] = {}

    def update(self, engine: Engine, available: bool) -> None:
        """Add or remove the engine, and record its present `load` and `last_used`."""
        position = self._index.get(engine.id)
        if position is not None:
            if available and position[0] == engine.load:
                return
            self._remove(engine, *position)
        if available:
            bucket = self._buckets.setdefault(engine.load, [])
            self._index[engine.id] = (engine.load, len(bucket))
            bucket.append(engine)

    def _remove(self, engine: Engine, load: int, index: int) -> None:
        del self._index[engine.id]
        bucket = self._buckets[load]
        last = bucket.pop()
        if last is not engine:
            bucket[index] = last
            self._index[last.id] = (load, index)
        if not bucket:
            del self._buckets[load]

    def has_candidate(self, excluded: frozenset[EngineId]) -> bool:
        """Whether an engine is not excluded."""
        return _has_candidate(self._index, excluded)

    def pick(self, excluded: frozenset[EngineId]) -> Engine | None:
        """The less loaded of two."""
        if not self.has_candidate(excluded):
            return None
        loads = list(self._buckets)
        sums = list(accumulate(len(self._buckets[load]) / (load + WEIGHT_OFFSET) for load in loads))
        first, second = self._draw(excluded, loads, sums), self._draw(excluded, loads, sums)
        return first if first.load <= second.load else second

    def _draw(self, excluded: frozenset[EngineId], loads: list[int], sums: list[float]) -> Engine:
        for _ in range(_MAX_DRAWS):
            bucket = self._buckets[loads[min(bisect_right(sums, self._random() * sums[-1]), len(loads) - 1)]]
            engine = bucket[int(self._random() * len(bucket))]
            if engine.id not in excluded:
                return engine
        others = [e for bucket in self._buckets.values() for e in bucket if e.id not in excluded]
        sums = list(accumulate(1 / (e.load + WEIGHT_OFFSET) for e in others))
        return others[min(bisect_right(sums, self._random() * sums[-1]), len(others) - 1)]

    def _random(self) -> float:
        """A number from numpy's generator, which makes 1024 at a time: single ones cost ten times as much."""
        if not self._draws:
            self._draws = self._generator.random(1024).tolist()
        return self._draws.pop()


class RoundRobin:
    """`pure`: the engines in turn, in the order in which they joined. Load and hwm do not matter, since the engines
    have unlimited capacity; an engine that declined the task is passed over (R19).
    """

    __slots__ = ("_engines", "_last", "_numbers")

    def __init__(self) -> None:
        self._engines: dict[int, Engine] = {}
        self._numbers: list[int] = []
        self._last = 0

    def update(self, engine: Engine, available: bool) -> None:
        """Add or remove the engine, and record its present `load` and `last_used`."""
        here = engine.number in self._engines
        if available and not here:
            self._engines[engine.number] = engine
            insort(self._numbers, engine.number)
        elif not available and here:
            del self._engines[engine.number]
            self._numbers.remove(engine.number)

    def has_candidate(self, excluded: frozenset[EngineId]) -> bool:
        """Whether an engine is not excluded."""
        if not excluded:
            return bool(self._numbers)
        return any(engine.id not in excluded for engine in self._engines.values())

    def pick(self, excluded: frozenset[EngineId]) -> Engine | None:
        """The next engine in turn."""
        numbers = self._numbers
        position = bisect_right(numbers, self._last)
        for step in range(len(numbers)):
            engine = self._engines[numbers[(position + step) % len(numbers)]]
            if engine.id not in excluded:
                self._last = engine.number
                return engine
        return None


def _has_candidate(engines: Collection[EngineId], excluded: frozenset[EngineId]) -> bool:
    """Whether one of `engines` is not excluded. Costs O(number of excluded ones)."""
    if not excluded:
        return bool(engines)
    return len(engines) > len(excluded) or any(engine not in excluded for engine in engines)


Scheme: TypeAlias = Literal["leastload", "lru", "plainrandom", "twobin", "weighted", "pure"]

SCHEMES: Final[dict[Scheme, Callable[[random.Random, numpy.random.Generator | None], PlacementPolicy]]] = {
    "leastload": lambda rng, generator: LowestKey(by_load=True),
    "lru": lambda rng, generator: LowestKey(by_load=False),
    "plainrandom": lambda rng, generator: PlainRandom(rng),
    "twobin": lambda rng, generator: TwoBin(rng),
    "weighted": lambda rng, generator: Weighted(rng, generator),
    "pure": lambda rng, generator: RoundRobin(),
}
