"""An in-memory transport: a ROUTER and its DEALERs with the interface of `ZmqSocket`, in one process and one thread.

Virtual time does not see libzmq's threads, so tests of timeouts and faults use this. Like ZeroMQ it keeps the order
of each connection, never blocks a sender, and tells a ROUTER that a peer is gone only when it sends to it. Beyond
that its connections can be cut: noticed (`cut`), or not (`lose`: what is sent goes nowhere, as when a cable is
pulled).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import count
from typing import TypeAlias

import trio

from trio_sched.errors import AddressInUseError, ConfigError
from trio_sched.transport.curve import ServerKeys

Frame: TypeAlias = bytes | bytearray | memoryview
RECEIVE_LIMIT = 256


class _Inbox:
    """Messages that wait to be received, and whoever waits for them."""

    def __init__(self) -> None:
        self.messages: deque[list[Frame]] = deque()
        self.closed = False
        self._came = trio.Event()

    def put(self, message: list[Frame]) -> None:
        self.messages.append(message)
        self._came.set()

    def close(self) -> None:
        self.closed = True
        self._came.set()

    async def get(self, limit: int) -> list[list[Frame]]:
        await trio.lowlevel.checkpoint()
        while not self.messages:
            if self.closed:
                raise trio.ClosedResourceError
            self._came = trio.Event()
            await self._came.wait()
        return [self.messages.popleft() for _ in range(min(limit, len(self.messages)))]


class MemoryNetwork:
    """Where routers are found by address."""

    def __init__(self) -> None:
        self._routers: dict[str, MemoryRouter] = {}

    def open_router(
        self, address: str, *, keys: ServerKeys | None = None, max_message_bytes: int = 0, limits: object = None
    ) -> MemoryRouter:
        """A bound router, in the place of `ZmqSocket.router`. Connections are not limited.

        :raises AddressInUseError: there is one at that address.
        """
        if address in self._routers:
            raise AddressInUseError(f"{address} is in use by another router of this network")
        router = self._routers[address] = MemoryRouter(self, address, max_message_bytes)
        return router

    def connect(self, address: str) -> MemoryDealer:
        """A connected dealer.

        :raises ConfigError: nobody listens there.
        """
        router = self._routers.get(address)
        if router is None:
            raise ConfigError(f"address: nobody listens at {address!r}; there are {sorted(self._routers)}")
        return MemoryDealer(router)

    def forget(self, address: str) -> None:
        """The router there is closed."""
        self._routers.pop(address, None)


class MemoryRouter:
    """The bound side."""

    def __init__(self, network: MemoryNetwork, address: str, max_message_bytes: int) -> None:
        self.address = address
        self.sent = 0
        """Messages sent, for tests that count them."""
        self._network = network
        self._max_message_bytes = max_message_bytes
        self._inbox = _Inbox()
        self._dealers: dict[bytes, MemoryDealer] = {}
        self._numbers = count(1)

    def join(self, dealer: MemoryDealer) -> bytes:
        """A dealer connects; returns its routing id."""
        routing_id = next(self._numbers).to_bytes(5, "big")
        self._dealers[routing_id] = dealer
        return routing_id

    def leave(self, routing_id: bytes) -> None:
        """Its connection is gone, and the router knows."""
        self._dealers.pop(routing_id, None)

    def arrive(self, message: list[Frame]) -> None:
        """A message from a dealer, its routing id first."""
        limit = self._max_message_bytes
        if limit and any(len(frame) > limit for frame in message):
            self.leave(bytes(message[0]))  # as libzmq does with a peer whose frame is too large
            return
        self._inbox.put(message)

    async def receive(self, limit: int = RECEIVE_LIMIT) -> list[list[Frame]]:
        """See ZmqSocket."""
        return await self._inbox.get(limit)

    def receive_nowait(self, limit: int = RECEIVE_LIMIT) -> list[list[Frame]]:
        """What is there, for those who drive without Trio."""
        messages = self._inbox.messages
        return [messages.popleft() for _ in range(min(limit, len(messages)))]

    def send(self, frames: Sequence[Frame]) -> bool:
        """See ZmqSocket."""
        dealer = self._dealers.get(bytes(frames[0]))
        if dealer is None:
            return False
        self.sent += 1
        dealer.arrive(list(frames[1:]))
        return True

    def flush(self) -> None:
        """See ZmqSocket: nothing to be done here."""

    async def authenticate(self) -> None:
        """See ZmqSocket: whoever has the network may come in."""

    def proved_role(self, _peer: bytes) -> None:
        """See ZmqSocket: there are no keys here."""

    def close(self) -> None:
        """See ZmqSocket."""
        self._inbox.close()
        self._network.forget(self.address)
        for dealer in list(self._dealers.values()):
            dealer.end()


class MemoryDealer:
    """A connecting side."""

    def __init__(self, router: MemoryRouter) -> None:
        self.address = router.address
        self._router = router
        self._inbox = _Inbox()
        self._lost = False
        self.routing_id = router.join(self)

    def arrive(self, message: list[Frame]) -> None:
        """A message from the router."""
        if not self._lost:
            self._inbox.put(message)

    def send(self, frames: Sequence[Frame]) -> bool:
        """See ZmqSocket."""
        if not self._lost:
            self._router.arrive([self.routing_id, *frames])
        return True

    def send_many(self, messages: Iterable[Sequence[Frame]]) -> list[Sequence[Frame]]:
        """See ZmqSocket."""
        for frames in messages:
            self.send(frames)
        return []

    async def receive(self, limit: int = RECEIVE_LIMIT) -> list[list[Frame]]:
        """See ZmqSocket."""
        return await self._inbox.get(limit)

    def receive_nowait(self, limit: int = RECEIVE_LIMIT) -> list[list[Frame]]:
        """What is there, for those who drive without Trio."""
        messages = self._inbox.messages
        return [messages.popleft() for _ in range(min(limit, len(messages)))]

    def flush(self) -> None:
        """See ZmqSocket: nothing to be done here."""

    def lose(self) -> None:
        """From now on what is sent, either way, goes nowhere, and nobody is told."""
        self._lost = True

    def cut(self) -> None:
        """The connection is gone: the router's sends fail, and what this side sends goes nowhere."""
        self._lost = True
        self._router.leave(self.routing_id)

    def end(self) -> None:
        """The router is closed: what it sent can still be received, then nothing more (a real dealer would wait)."""
        self.cut()
        self._inbox.close()

    def close(self) -> None:
        """See ZmqSocket."""
        self.end()
