"""Heartbeats: each engine answers each ping with a pong.

A ping is published once in a period, and at once when an engine subscribes, so that it need not wait for the next
period to join. Subscriptions within `PING_INTERVAL_S` share one ping, because each ping goes to every engine.

An engine that misses more than `missed_pings` periods in a row is removed. A period in which this process was suspended
is not counted, because it could not receive pongs.
"""

from __future__ import annotations

import trio

from trio_sched.errors import WireError
from trio_sched.ipyparallel.controller_context import ControllerContext
from trio_sched.ipyparallel.registration import Registration
from trio_sched.transport.zmq_socket import ZmqSocket
from trio_sched.wire.heartbeat import Heartbeat
from trio_sched.wire.native import Frame

#: The shortest time between two pings, in seconds.
PING_INTERVAL_S = 0.02


class HeartbeatMonitor:
    """Sends pings, receives pongs, and removes engines that do not answer."""

    def __init__(
        self, context: ControllerContext, ping_socket: ZmqSocket, pong_socket: ZmqSocket, registration: Registration
    ) -> None:
        self._context = context
        self._registration = registration
        self._ping_socket = ping_socket
        self._pong_socket = pong_socket
        self._subscribed = trio.Event()
        self._pinged_at = 0.0

    async def run(self) -> None:
        """Send pings and receive pongs until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._context.pump_subscriptions, self._ping_socket, lambda: self._subscribed.set())
            nursery.start_soon(self._context.pump, self._pong_socket, "hb_pong", self._take_pong)
            nursery.start_soon(self._ping_subscribers)
            await self._ping_each_period()

    # ---- pings ------------------------------------------------------------------------------------------------------

    def _send_ping(self) -> None:
        self._pinged_at = trio.current_time()
        self._ping_socket.send([b"%.6f" % self._pinged_at])
        self._ping_socket.flush()

    async def _ping_subscribers(self) -> None:
        while True:
            await self._subscribed.wait()
            await trio.sleep_until(self._pinged_at + PING_INTERVAL_S)
            self._subscribed = trio.Event()
            self._send_ping()

    async def _ping_each_period(self) -> None:
        heartbeat = Heartbeat(trio.current_time(), period_s=self._context.config.ping_ms / 1e3)
        while True:
            await trio.sleep_until(heartbeat.due_at)
            now = trio.current_time()
            if not heartbeat.tick(now):
                self._remove_timed_out()
            self._registration.remove_stalled(now)
            self._send_ping()
            heartbeat.sent(now)

    def _remove_timed_out(self) -> None:
        for engine in self._context.registry.end_period(self._context.config.missed_pings):
            self._registration.remove_engine(engine.uuid, f"missed {engine.missed_count} heartbeats in a row")

    # ---- pongs ------------------------------------------------------------------------------------------------------

    def _take_pong(self, frames: list[Frame]) -> None:
        """Take [uuid, ping]. Any message on this socket counts as a pong."""
        engine = self._context.registry.record_pong(bytes(frames[0]).decode("utf-8", "replace"))
        if engine is None:
            raise WireError("no engine is registered under this uuid", "unknown_heart")
        if not engine.has_joined:
            self._registration.complete(engine)
