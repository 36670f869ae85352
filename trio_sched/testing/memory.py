"""An in-memory transport: a ROUTER and its DEALERs with the interface of `ZmqSocket`, in one process and one thread.

Virtual time does not control the threads of libzmq, so tests of timeouts and faults use this transport. Like ZeroMQ it
keeps the order of each connection, never blocks a sender, and tells a ROUTER that a peer is gone only when the ROUTER
sends to the peer. In addition its connections can be broken: noticed (`cut`), or unnoticed (`lose`: messages vanish, as
with an unplugged cable).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import count

import trio

from trio_sched.errors import AddressInUseError, ConfigError
from trio_sched.transport.curve import ServerKeys
from trio_sched.wire.native import Frame

RECEIVE_LIMIT = 256


class _Inbox:
    """A queue of messages with one receiver."""

    def __init__(self) -> None:
        self.messages: deque[list[Frame]] = deque()
        self.closed = False
        self._changed = trio.Event()

    def put(self, message: list[Frame]) -> None:
        self.messages.append(message)
        self._changed.set()

    def close(self) -> None:
        self.closed = True
        self._changed.set()

    async def get(self, limit: int) -> list[list[Frame]]:
        await trio.lowlevel.checkpoint()
        while not self.messages:
            if self.closed:
                raise trio.ClosedResourceError
            self._changed = trio.Event()
            await self._changed.wait()
        return [self.messages.popleft() for _ in range(min(limit, len(self.messages)))]


class MemoryNetwork:
    """The routers of one test, by address."""

    def __init__(self) -> None:
        self._routers: dict[str, MemoryRouter] = {}

    def open_router(
        self, address: str, *, keys: ServerKeys | None = None, max_message_bytes: int = 0, limits: object = None
    ) -> MemoryRouter:
        """Make a bound router; stands in for `ZmqSocket.router`. Connections are not limited.

        :raises AddressInUseError: the address has a router.
        """
        if address in self._routers:
            raise AddressInUseError(f"{address} is in use by another router of this network")
        router = self._routers[address] = MemoryRouter(self, address, max_message_bytes)
        return router

    def connect(self, address: str) -> MemoryDealer:
        """Make a connected dealer.

        :raises ConfigError: the address has no router.
        """
        router = self._routers.get(address)
        if router is None:
            raise ConfigError(f"address: {address!r} has no router; the routers are at {sorted(self._routers)}")
        return MemoryDealer(router)

    def forget(self, address: str) -> None:
        """Remove a closed router."""
        self._routers.pop(address, None)


class MemoryRouter:
    """The bound socket; stands in for `ZmqSocket`."""

    def __init__(self, network: MemoryNetwork, address: str, max_message_bytes: int) -> None:
        self.address = address
        #: Count of messages sent, for tests.
        self.sent = 0
        self._network = network
        self._max_message_bytes = max_message_bytes
        self._inbox = _Inbox()
        self._dealers: dict[bytes, MemoryDealer] = {}
        self._numbers = count(1)

    def join(self, dealer: MemoryDealer) -> bytes:
        """Connect a dealer; returns its routing id."""
        routing_id = next(self._numbers).to_bytes(5, "big")
        self._dealers[routing_id] = dealer
        return routing_id

    def leave(self, routing_id: bytes) -> None:
        """Remove a dealer: sends to it fail from now on."""
        self._dealers.pop(routing_id, None)

    def arrive(self, message: list[Frame]) -> None:
        """Take a message from a dealer, with the routing id as its first frame."""
        limit = self._max_message_bytes
        if limit and any(len(frame) > limit for frame in message):
            self.leave(bytes(message[0]))  # as libzmq does with a peer whose frame is too large
            return
        self._inbox.put(message)

    async def receive(self, limit: int = RECEIVE_LIMIT) -> list[list[Frame]]:
        """Wait for messages; returns up to `limit`.

        :raises trio.ClosedResourceError: the socket is closed and empty.
        """
        return await self._inbox.get(limit)

    def receive_nowait(self, limit: int = RECEIVE_LIMIT) -> list[list[Frame]]:
        """Receive the messages that have arrived, without Trio."""
        messages = self._inbox.messages
        return [messages.popleft() for _ in range(min(limit, len(messages)))]

    def send(self, frames: Sequence[Frame]) -> bool:
        """Send frames to the dealer whose routing id is the first frame; returns whether that dealer is connected."""
        dealer = self._dealers.get(bytes(frames[0]))
        if dealer is None:
            return False
        self.sent += 1
        dealer.arrive(list(frames[1:]))
        return True

    def flush(self) -> None:
        """Do nothing: `send` delivers at once."""

    async def authenticate(self) -> None:
        """Do nothing: every dealer is admitted."""

    def proved_role(self, _peer: bytes) -> None:
        """Return None: there are no keys."""

    def close(self) -> None:
        """Close the router and end its connections."""
        self._inbox.close()
        self._network.forget(self.address)
        for dealer in list(self._dealers.values()):
            dealer.end()


class MemoryDealer:
    """A connected socket; stands in for `ZmqSocket`."""

    def __init__(self, router: MemoryRouter) -> None:
        self.address = router.address
        self._router = router
        self._inbox = _Inbox()
        self._lost = False
        self.routing_id = router.join(self)

    def arrive(self, message: list[Frame]) -> None:
        """Take a message from the router."""
        if not self._lost:
            self._inbox.put(message)

    def send(self, frames: Sequence[Frame]) -> bool:
        """Send a message; returns True, like a socket whose queue has no limit."""
        if not self._lost:
            self._router.arrive([self.routing_id, *frames])
        return True

    def send_many(self, messages: Iterable[Sequence[Frame]]) -> list[Sequence[Frame]]:
        """Send several messages; returns those that were not sent: none."""
        for frames in messages:
            self.send(frames)
        return []

    async def receive(self, limit: int = RECEIVE_LIMIT) -> list[list[Frame]]:
        """Wait for messages; returns up to `limit`.

        :raises trio.ClosedResourceError: the socket is closed and empty.
        """
        return await self._inbox.get(limit)

    def receive_nowait(self, limit: int = RECEIVE_LIMIT) -> list[list[Frame]]:
        """Receive the messages that have arrived, without Trio."""
        messages = self._inbox.messages
        return [messages.popleft() for _ in range(min(limit, len(messages)))]

    def flush(self) -> None:
        """Do nothing: `send` delivers at once."""

    def lose(self) -> None:
        """Lose all further messages in both directions, unnoticed by either side."""
        self._lost = True

    def cut(self) -> None:
        """Break the connection: the router's sends fail, and messages of this side are lost."""
        self._lost = True
        self._router.leave(self.routing_id)

    def end(self) -> None:
        """Break the connection; messages that have arrived can still be received, then ClosedResourceError is raised.

        A real dealer would wait for another router.
        """
        self.cut()
        self._inbox.close()

    def close(self) -> None:
        """Close this side of the connection."""
        self.end()
