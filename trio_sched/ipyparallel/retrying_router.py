"""A ROUTER for engines that retries what it cannot deliver yet.

An engine joins with its first pong, a few milliseconds after it began to connect. Its other connections may be up a
little later, and each may be down for a moment. A ROUTER drops what it cannot deliver, so a message to a registered
engine is retried, in order, until it is sent or the engine is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from trio_sched.transport.zmq_socket import ZmqSocket
from trio_sched.wire.native import Frame

#: The first and the longest pause before a retry, in seconds.
RETRY_S = (0.002, 0.1)


class RetryingRouter:
    """A ROUTER socket, bound with `mandatory`, so that `send` returns whether the peer is connected."""

    def __init__(self, socket: ZmqSocket, is_registered: Callable[[str], bool]) -> None:
        self._socket = socket
        self._is_registered = is_registered
        #: Unsent messages by engine.
        self._unsent: dict[bytes, list[Sequence[Frame]]] = {}
        self._has_unsent = trio.Event()
        self.receive = socket.receive
        self.flush = socket.flush
        self.reject = socket.reject

    def send(self, frames: Sequence[Frame]) -> bool:
        """Send to the engine named by frame 0, now or when it is connected. Returns whether it is registered."""
        engine = bytes(frames[0])
        if not self._is_registered(engine.decode("utf-8", "replace")):
            return False  # a peer that is connected under this name has not proved the key
        if not self._unsent and self._socket.send(frames):
            return True
        waiting = self._unsent.get(engine)
        if waiting is not None:
            waiting.append(frames)
            return True
        if self._socket.send(frames):
            return True
        self._unsent[engine] = [frames]
        self._has_unsent.set()
        return True

    def discard(self, uuid: str) -> None:
        """Discard what is unsent for an engine that was removed."""
        self._unsent.pop(uuid.encode(), None)

    async def run(self) -> None:
        """Retry until cancelled."""
        first_s, longest_s = RETRY_S
        while True:
            self._has_unsent = trio.Event()
            if not self._unsent:
                await self._has_unsent.wait()
            pause_s = first_s
            while self._unsent:
                await trio.sleep(pause_s)
                pause_s = first_s if self._retry() else min(2 * pause_s, longest_s)

    def _retry(self) -> bool:
        """Send what can be sent. Returns whether anything was sent."""
        sent = False
        for engine, waiting in list(self._unsent.items()):
            while waiting and self._socket.send(waiting[0]):
                del waiting[0]
                sent = True
            if not waiting:
                del self._unsent[engine]
        self._socket.flush()
        return sent
