"""The registered engines: their names, their heartbeats, and which of them have timed out. No sockets, no clock.

An engine has a uuid, which is its routing id and its id in the core, and a small number, which users see. Numbers count
from 0 and are not reused.

A registration begins with the engine's request. The engine has joined when its first pong arrives: before that, it may
not have connected.
"""

from __future__ import annotations

from collections import deque

from msgspec import Struct

#: Uuids of departed engines that are kept, so that an engine that registers again is recognized.
DEPARTED_KEPT = 1000


class RegisteredEngine(Struct):
    """One registration of one engine."""

    number: int
    uuid: str
    #: Time of the registration request, in seconds.
    requested_at: float
    #: Whether a pong has arrived.
    has_joined: bool = False
    #: Whether a pong has arrived in the current period.
    answered: bool = True
    #: Periods in a row without a pong.
    missed_count: int = 0


class EngineRegistry:
    """The engines that have joined or are about to join."""

    def __init__(self) -> None:
        #: By uuid, in the order of registration.
        self.engines: dict[str, RegisteredEngine] = {}
        self.by_number: dict[int, RegisteredEngine] = {}
        #: Uuids of the engines that left last.
        self.departed: deque[str] = deque(maxlen=DEPARTED_KEPT)
        self._next_number = 0

    # ---- registration -----------------------------------------------------------------------------------------------

    def begin(self, uuid: str, wanted: int | None, now: float) -> RegisteredEngine:
        """Begin a registration.

        :param uuid: not registered yet.
        :param wanted: the number that the engine asks for; it is granted if it is free.
        """
        number = self._assign_number(wanted)
        engine = RegisteredEngine(number, uuid, now)
        self.engines[uuid] = self.by_number[number] = engine
        return engine

    def _assign_number(self, wanted: int | None) -> int:
        if wanted is None or wanted < 0 or wanted in self.by_number:
            wanted = self._next_number
        self._next_number = max(self._next_number, wanted + 1)
        return wanted

    def complete(self, engine: RegisteredEngine) -> bool:
        """Complete a registration. Returns whether an engine of this uuid has left before."""
        engine.has_joined = True
        return engine.uuid in self.departed

    def remove(self, engine: RegisteredEngine) -> None:
        """Remove an engine that left, or whose registration was given up."""
        self.engines.pop(engine.uuid, None)
        self.by_number.pop(engine.number, None)
        if engine.has_joined:
            self.departed.append(engine.uuid)

    def joined(self) -> dict[int, str]:
        """Uuids by number of the engines that have joined."""
        return {engine.number: engine.uuid for engine in self.engines.values() if engine.has_joined}

    # ---- heartbeats -------------------------------------------------------------------------------------------------

    def record_pong(self, uuid: str) -> RegisteredEngine | None:
        """Note a pong. Returns the engine that sent it; None: no engine of this uuid is registered."""
        engine = self.engines.get(uuid)
        if engine is not None:
            engine.answered = True
        return engine

    def end_period(self, missed_limit: int) -> list[RegisteredEngine]:
        """End a ping period. Returns the joined engines that have missed more than `missed_limit` periods in a row."""
        timed_out = []
        for engine in self.engines.values():
            if not engine.has_joined:
                continue
            engine.missed_count = 0 if engine.answered else engine.missed_count + 1
            engine.answered = False
            if engine.missed_count > missed_limit:
                timed_out.append(engine)
        return timed_out

    def stalled(self, now: float, timeout_s: float) -> list[RegisteredEngine]:
        """Engines that registered more than `timeout_s` ago and have not joined."""
        return [
            engine
            for engine in self.engines.values()
            if not engine.has_joined and now - engine.requested_at > timeout_s
        ]
