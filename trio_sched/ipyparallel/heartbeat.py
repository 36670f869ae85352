"""Which engines are alive: each echoes each ping.

Pings go out once in a period, and at once when an engine subscribes to them: it need not wait for the next period to
be registered. Many subscriptions within a moment share one ping, because each goes to everybody. An engine that missed
more than `missed_pings` in a row is gone; when our own round comes late by more than a period, this process was
stopped or the machine slept, and nobody could be heard: that round judges nobody.
"""

from __future__ import annotations

import trio

from trio_sched.errors import WireError
from trio_sched.ipyparallel.desk import Desk
from trio_sched.ipyparallel.registration import Registration
from trio_sched.wire.native import Frame

GATHER_S = 0.02
"""The shortest time between two pings."""


class Heartbeat:
    """The ping and pong sockets."""

    def __init__(self, desk: Desk, registration: Registration) -> None:
        self._desk = desk
        self._registration = registration
        self._ping = desk.bind("xpub", "engine", "hb_ping")
        self._pong = desk.bind("router", "engine", "hb_pong")
        self._subscribed = trio.Event()
        self._pinged_at = 0.0
        desk.tasks.append(self.run)

    async def run(self) -> None:
        """The task."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._desk.pump_subscriptions, self._ping, lambda: self._subscribed.set())
            nursery.start_soon(self._desk.pump, self._pong, "hb_pong", self._take_pong)
            nursery.start_soon(self._welcome)
            await self._go_round()

    # ---- pings ------------------------------------------------------------------------------------------------------

    def _send_ping(self) -> None:
        self._pinged_at = trio.current_time()
        self._ping.send([b"%.6f" % self._pinged_at])
        self._ping.flush()

    async def _welcome(self) -> None:
        while True:
            await self._subscribed.wait()
            await trio.sleep_until(self._pinged_at + GATHER_S)
            self._subscribed = trio.Event()
            self._send_ping()

    async def _go_round(self) -> None:
        period_s = self._desk.config.ping_ms / 1e3
        due = trio.current_time() + period_s
        while True:
            await trio.sleep_until(due)
            now = trio.current_time()
            if now - due <= period_s:
                self._judge()
            self._registration.give_up_stalled(now)
            self._send_ping()
            due = max(due + period_s, now)

    # ---- pongs ------------------------------------------------------------------------------------------------------

    def _take_pong(self, frames: list[Frame]) -> None:
        """[uuid, ping]. Whatever comes from an engine's heart says that it beats."""
        engine = self._desk.roster.engines.get(bytes(frames[0]).decode("utf-8", "replace"))
        if engine is None:
            raise WireError("no engine has registered under this name", "unknown_heart")
        engine.beats = True
        if not engine.registered:
            self._registration.beats(engine)

    def _judge(self) -> None:
        """A period is over: who did not answer?"""
        for engine in list(self._desk.roster.engines.values()):
            if not engine.registered:
                continue
            engine.missed = 0 if engine.beats else engine.missed + 1
            engine.beats = False
            if engine.missed > self._desk.config.missed_pings:
                self._registration.engine_gone(engine.uuid, f"its heart missed {engine.missed} beats")
