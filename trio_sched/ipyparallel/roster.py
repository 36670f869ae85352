"""Who is registered. An engine is its uuid (its connections and the core know it by that) and a small number, which
people see; numbers count from 0 and are not used again.
"""

from __future__ import annotations

from collections import deque

from msgspec import Struct

DEPARTED_KEPT = 1000


class Engine(Struct):
    """One registration of one engine."""

    number: int
    uuid: str
    since: float
    registered: bool = False
    """Its heart has beaten: before that it may not have connected."""
    beats: bool = True
    """Whether it answered the last ping."""
    missed: int = 0


class Roster:
    """The engines that are registered, or about to be."""

    def __init__(self) -> None:
        self.engines: dict[str, Engine] = {}
        """By uuid, in the order in which they came."""
        self.by_number: dict[int, Engine] = {}
        self.departed: deque[str] = deque(maxlen=DEPARTED_KEPT)
        """Uuids of the last that left."""
        self._next = 0

    def begin(self, uuid: str, wanted: int | None, now: float) -> Engine:
        """A registration begins. The uuid must be new."""
        number = self._number(wanted)
        engine = Engine(number, uuid, now)
        self.engines[uuid] = self.by_number[number] = engine
        return engine

    def _number(self, wanted: int | None) -> int:
        if wanted is None or wanted < 0 or wanted in self.by_number:
            wanted = self._next
        self._next = max(self._next, wanted + 1)
        return wanted

    def remove(self, engine: Engine) -> None:
        """It is gone."""
        self.engines.pop(engine.uuid, None)
        self.by_number.pop(engine.number, None)
        if engine.registered:
            self.departed.append(engine.uuid)

    def present(self) -> dict[int, str]:
        """Uuids by number, of those whose heart has beaten."""
        return {engine.number: engine.uuid for engine in self.engines.values() if engine.registered}
