"""A ROUTER to engines that waits for those that are not connected yet.

An engine counts as registered when its heart first beats, a few milliseconds after it began to connect; its other
connections may be up a little later, and any of them may be down for a moment. A ROUTER drops what it cannot deliver.
So what could not be sent to a registered engine is tried again, in order, until it can be or the engine is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from trio_sched.transport.zmq_socket import ZmqSocket
from trio_sched.wire.native import Frame

TRY_AGAIN_S = (0.002, 0.1)
"""The first and the longest pause before another try."""


class PatientRouter:
    """Sends as a ROUTER does, whose `send` must say whether the peer is there (`mandatory`)."""

    def __init__(self, socket: ZmqSocket, registered: Callable[[str], bool]) -> None:
        self._socket = socket
        self._registered = registered
        self._stuck: dict[bytes, list[Sequence[Frame]]] = {}
        """By engine: what could not be sent to it yet."""
        self._some_stuck = trio.Event()
        self.receive = socket.receive
        self.flush = socket.flush
        self.reject = socket.reject

    def send(self, frames: Sequence[Frame]) -> bool:
        """Send to the engine that frame 0 names, now or when it is there. False: no such engine is registered."""
        engine = bytes(frames[0])
        if not self._registered(engine.decode("utf-8", "replace")):
            return False  # whoever is connected under this name has not proved the key
        if not self._stuck and self._socket.send(frames):
            return True
        waiting = self._stuck.get(engine)
        if waiting is not None:
            waiting.append(frames)
            return True
        if self._socket.send(frames):
            return True
        self._stuck[engine] = [frames]
        self._some_stuck.set()
        return True

    def forget(self, uuid: str) -> None:
        """The engine is gone, and with it what it was to get."""
        self._stuck.pop(uuid.encode(), None)

    async def run(self) -> None:
        """The task: try again."""
        first_s, longest_s = TRY_AGAIN_S
        while True:
            self._some_stuck = trio.Event()
            if not self._stuck:
                await self._some_stuck.wait()
            pause_s = first_s
            while self._stuck:
                await trio.sleep(pause_s)
                pause_s = first_s if self._try() else min(2 * pause_s, longest_s)

    def _try(self) -> bool:
        """Whether anything could be sent."""
        sent = False
        for engine, waiting in list(self._stuck.items()):
            while waiting and self._socket.send(waiting[0]):
                del waiting[0]
                sent = True
            if not waiting:
                del self._stuck[engine]
        self._socket.flush()
        return sent
