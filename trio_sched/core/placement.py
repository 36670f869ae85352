"""The schemes: which of the engines with room gets the task (R11).

Each scheme keeps its own index over the engines of one pool that have room, so that choosing does not cost the number
of engines. The scheduler tells it of every change with `update`; `pick` chooses, passing over the barred engines.
Randomness comes from the `random.Random` and the numpy `Generator` given to the scheduler.
"""

from __future__ import annotations

import random
from bisect import bisect_right, insort
from collections.abc import Callable, Collection
from heapq import heapify, heappop, heappush
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

from trio_sched.core.engines import Engine
from trio_sched.core.ids import EngineId

if TYPE_CHECKING:
    import numpy

_TRIES = 32
"""Random draws that may hit barred engines before the others are listed."""
WEIGHT_OFFSET = 1e-6
"""Added to the load by `weighted`, so that an idle engine has a finite weight."""


class Room(Protocol):
    """The engines of one pool that have room."""

    def update(self, engine: Engine, has_room: bool) -> None:
        """The engine's room, load or time of use may have changed."""

    def pick(self, barred: frozenset[EngineId]) -> Engine | None:
        """Choose an engine that is not barred; None if there is none. Changes nothing but the state of randomness."""

    def any_but(self, barred: frozenset[EngineId]) -> bool:
        """Whether `pick` would find one."""


class Ordered:
    """`leastload` and `lru`: a heap of keys, whose outdated entries are dropped when they surface.

    An engine's entry is current while its load and time of use are those of the entry; each update pushes a new one.
    When entries far outnumber engines the heap is built anew, which costs O(1) an update.
    """

    __slots__ = ("_by_load", "_heap", "_room")

    def __init__(self, by_load: bool) -> None:
        self._by_load = by_load
        self._heap: list[tuple[int, int, Engine]] = []
        self._room: dict[EngineId, Engine] = {}

    def update(self, engine: Engine, has_room: bool) -> None:
        """See Room."""
        if not has_room:
            self._room.pop(engine.id, None)
            return
        self._room[engine.id] = engine
        heap = self._heap
        heappush(heap, (engine.load if self._by_load else 0, engine.used, engine))
        if len(heap) > 4 * len(self._room) + 64:
            by_load = self._by_load
            self._heap = [(e.load if by_load else 0, e.used, e) for e in self._room.values()]
            heapify(self._heap)

    def pick(self, barred: frozenset[EngineId]) -> Engine | None:
        """See Room."""
        heap, room, by_load = self._heap, self._room, self._by_load
        passed: list[tuple[int, int, Engine]] = []
        chosen: Engine | None = None
        while heap:
            load, used, engine = heap[0]
            if engine.used != used or (by_load and engine.load != load) or room.get(engine.id) is not engine:
                heappop(heap)
            elif engine.id in barred:
                passed.append(heappop(heap))
            else:
                chosen = engine
                break
        for entry in passed:
            heappush(heap, entry)
        return chosen

    def any_but(self, barred: frozenset[EngineId]) -> bool:
        """See Room."""
        return _any_but(self._room, barred)


class _Drawn:
    """The engines with room in an array, to draw from."""

    __slots__ = ("_engines", "_place", "_rng")

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._engines: list[Engine] = []
        self._place: dict[EngineId, int] = {}

    def update(self, engine: Engine, has_room: bool) -> None:
        """See Room."""
        place = self._place.get(engine.id)
        if has_room and place is None:
            self._place[engine.id] = len(self._engines)
            self._engines.append(engine)
        elif not has_room and place is not None:
            del self._place[engine.id]
            last = self._engines.pop()
            if last is not engine:
                self._engines[place] = last
                self._place[last.id] = place

    def any_but(self, barred: frozenset[EngineId]) -> bool:
        """See Room."""
        return _any_but(self._place, barred)

    def _draw(self, barred: frozenset[EngineId]) -> Engine:
        """Uniform over the engines that are not barred, of which there is at least one."""
        engines, random_ = self._engines, self._rng.random
        for _ in range(_TRIES):
            engine = engines[int(random_() * len(engines))]
            if engine.id not in barred:
                return engine
        return self._rng.choice([engine for engine in engines if engine.id not in barred])


class PlainRandom(_Drawn):
    """`plainrandom`: any, uniformly."""

    __slots__ = ()

    def pick(self, barred: frozenset[EngineId]) -> Engine | None:
        """See Room."""
        return self._draw(barred) if self.any_but(barred) else None


class TwoBin(_Drawn):
    """`twobin`: two drawn uniformly, with replacement; the less recently used of the two."""

    __slots__ = ()

    def pick(self, barred: frozenset[EngineId]) -> Engine | None:
        """See Room."""
        if not self.any_but(barred):
            return None
        first, second = self._draw(barred), self._draw(barred)
        return first if first.used <= second.used else second


class Weighted:
    """`weighted`: two drawn by 1/(load + 1e-6), with replacement; the less loaded, ties to the first.

    Engines stand in buckets by load, so that a draw costs the number of different loads, not of engines.
    """

    __slots__ = ("_buckets", "_draws", "_generator", "_place")

    def __init__(self, rng: random.Random, generator: numpy.random.Generator | None) -> None:
        if generator is None:
            import numpy

            generator = numpy.random.default_rng(rng.getrandbits(64))
        self._generator = generator
        self._draws: list[float] = []
        self._buckets: dict[int, list[Engine]] = {}
        self._place: dict[EngineId, tuple[int, int]] = {}

    def update(self, engine: Engine, has_room: bool) -> None:
        """See Room."""
        place = self._place.get(engine.id)
        if place is not None:
            if has_room and place[0] == engine.load:
                return
            self._remove(engine, *place)
        if has_room:
            bucket = self._buckets.setdefault(engine.load, [])
            self._place[engine.id] = (engine.load, len(bucket))
            bucket.append(engine)

    def _remove(self, engine: Engine, load: int, index: int) -> None:
        del self._place[engine.id]
        bucket = self._buckets[load]
        last = bucket.pop()
        if last is not engine:
            bucket[index] = last
            self._place[last.id] = (load, index)
        if not bucket:
            del self._buckets[load]

    def any_but(self, barred: frozenset[EngineId]) -> bool:
        """See Room."""
        return _any_but(self._place, barred)

    def pick(self, barred: frozenset[EngineId]) -> Engine | None:
        """See Room."""
        if not self.any_but(barred):
            return None
        loads = list(self._buckets)
        sums = list(accumulate(len(self._buckets[load]) / (load + WEIGHT_OFFSET) for load in loads))
        first, second = self._draw(barred, loads, sums), self._draw(barred, loads, sums)
        return first if first.load <= second.load else second

    def _draw(self, barred: frozenset[EngineId], loads: list[int], sums: list[float]) -> Engine:
        for _ in range(_TRIES):
            bucket = self._buckets[loads[min(bisect_right(sums, self._random() * sums[-1]), len(loads) - 1)]]
            engine = bucket[int(self._random() * len(bucket))]
            if engine.id not in barred:
                return engine
        others = [e for bucket in self._buckets.values() for e in bucket if e.id not in barred]
        sums = list(accumulate(1 / (e.load + WEIGHT_OFFSET) for e in others))
        return others[min(bisect_right(sums, self._random() * sums[-1]), len(others) - 1)]

    def _random(self) -> float:
        """Numpy's numbers by the thousand: one at a time they cost ten times as much."""
        if not self._draws:
            self._draws = self._generator.random(1024).tolist()
        return self._draws.pop()


class Dealt:
    """`pure`: in turn, in the order of joining; whether there is room is not looked at, but an engine that declined the
    task is passed over (R19).

    Its `pick` moves the turn on.
    """

    __slots__ = ("_engines", "_last", "_numbers")

    def __init__(self) -> None:
        self._engines: dict[int, Engine] = {}
        self._numbers: list[int] = []
        self._last = 0

    def update(self, engine: Engine, has_room: bool) -> None:
        """See Room."""
        here = engine.number in self._engines
        if has_room and not here:
            self._engines[engine.number] = engine
            insort(self._numbers, engine.number)
        elif not has_room and here:
            del self._engines[engine.number]
            self._numbers.remove(engine.number)

    def any_but(self, barred: frozenset[EngineId]) -> bool:
        """See Room."""
        if not barred:
            return bool(self._numbers)
        return any(engine.id not in barred for engine in self._engines.values())

    def pick(self, barred: frozenset[EngineId]) -> Engine | None:
        """See Room."""
        numbers = self._numbers
        place = bisect_right(numbers, self._last)
        for step in range(len(numbers)):
            engine = self._engines[numbers[(place + step) % len(numbers)]]
            if engine.id not in barred:
                self._last = engine.number
                return engine
        return None


def _any_but(engines: Collection[EngineId], barred: frozenset[EngineId]) -> bool:
    """Costs at most one look more than there are barred ones."""
    if not barred:
        return bool(engines)
    return len(engines) > len(barred) or any(engine not in barred for engine in engines)


Scheme: TypeAlias = Literal["leastload", "lru", "plainrandom", "twobin", "weighted", "pure"]

SCHEMES: Final[dict[Scheme, Callable[[random.Random, numpy.random.Generator | None], Room]]] = {
    "leastload": lambda rng, generator: Ordered(by_load=True),
    "lru": lambda rng, generator: Ordered(by_load=False),
    "plainrandom": lambda rng, generator: PlainRandom(rng),
    "twobin": lambda rng, generator: TwoBin(rng),
    "weighted": lambda rng, generator: Weighted(rng, generator),
    "pure": lambda rng, generator: Dealt(),
}
