"""The native front: clients, engines and nannies on one ZeroMQ ROUTER.

One task, the pump, drains the socket and hands each batch to the hub; each receive is a checkpoint. A peer is known
by the routing id that ZeroMQ gave its connection, as long as that lasts; who it is comes from its Hello.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import trio

from trio_sched.server.config import Config
from trio_sched.server.hub import Hub
from trio_sched.server.links import Link, Raw
from trio_sched.transport.connection import Role
from trio_sched.transport.zmq_socket import ZmqSocket
from trio_sched.wire.native import Frame, Message, encode

STRANGERS_KEPT = 1024
"""Peers that have not said Hello (properly), or were cut off, and are remembered all the same, so that one that says
it twice is one peer, and what it said before is known as whose it is."""


class RouterSocket(Protocol):
    """What the front needs of a ROUTER: `ZmqSocket`, or the in-memory one of trio_sched.testing."""

    address: str

    async def receive(self, limit: int = ...) -> list[list[Frame]]: ...
    def send(self, frames: Sequence[Frame]) -> bool: ...
    def flush(self) -> None: ...
    async def authenticate(self) -> None: ...
    def proved_role(self, peer: bytes) -> Role | None: ...
    def close(self) -> None: ...


OpenRouter = Callable[..., RouterSocket]


class NativeLink(Link):
    """One connection to the ROUTER."""

    __slots__ = ("_front", "routing_id")

    def __init__(self, front: NativeFront, routing_id: bytes, proved_role: Role | None) -> None:
        super().__init__(proved_role)
        self._front = front
        self.routing_id = routing_id

    def send(self, message: Message, frames: Sequence[Frame] = ()) -> int:
        """See Link."""
        data = encode(message)
        if not self._front.send([self.routing_id, data, *frames]):
            return 0
        return len(data) + sum([len(frame) for frame in frames]) if frames else len(data)

    def admitted(self) -> None:
        """See Link."""
        self._front.remember(self)

    def close(self) -> None:
        """See Link."""
        self._front.forget(self)


class NativeFront:
    """Listens on a ROUTER."""

    def __init__(self, config: Config, open_router: OpenRouter = ZmqSocket.router) -> None:
        self._config = config
        self._open_router = open_router
        self._socket: RouterSocket | None = None
        self._links: dict[bytes, NativeLink] = {}
        self._strangers: OrderedDict[bytes, NativeLink] = OrderedDict()

    async def run(self, hub: Hub, *, task_status: trio.TaskStatus[dict[str, str]]) -> None:
        """See Front."""
        socket = self.listen(hub)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(socket.authenticate)
                task_status.started({"native": socket.address})
                while True:  # the pump
                    self.take(await socket.receive(), hub, trio.current_time())
        finally:
            self._socket = None  # from now on nobody is there
            _remove_socket_file(socket.address)
            socket.close()

    def listen(self, hub: Hub) -> RouterSocket:
        """Bind the socket."""
        identity = hub.identity
        keys = identity.keys.for_server() if identity.keys else None
        socket = self._open_router(
            identity.native_address(),
            keys=keys,
            max_message_bytes=self._config.max_message_bytes,
            limits=hub.connections,
        )
        self._socket = socket
        hub.on_flush(socket.flush)
        return socket

    def take(self, batch: Sequence[Sequence[Frame]], hub: Hub, now: float) -> None:
        """Hand on a batch of messages as they came from the socket."""
        links = self._links
        messages: list[Raw] = []
        for frames in batch:
            routing_id: Any = frames[0]
            messages.append((links.get(routing_id) or self._stranger(routing_id), frames[1:]))
        hub.receive(messages, now)

    def _stranger(self, routing_id: bytes) -> NativeLink:
        link = self._strangers.get(routing_id)
        if link is None:
            proved_role = self._socket.proved_role(routing_id) if self._socket is not None else None
            link = NativeLink(self, routing_id, proved_role)
            self._keep(link)
        return link

    def _keep(self, link: NativeLink) -> None:
        self._strangers[link.routing_id] = link
        if len(self._strangers) > STRANGERS_KEPT:
            self._strangers.popitem(last=False)

    # ---- for links --------------------------------------------------------------------------------------------------

    def send(self, frames: Sequence[Frame]) -> bool:
        """Hand a message to the socket; False: no such peer."""
        return self._socket is not None and self._socket.send(frames)

    def remember(self, link: NativeLink) -> None:
        """It has a session."""
        self._strangers.pop(link.routing_id, None)
        self._links[link.routing_id] = link

    def forget(self, link: NativeLink) -> None:
        """It has none any more, but what it said before may be on its way."""
        if self._links.get(link.routing_id) is link:
            del self._links[link.routing_id]
            self._keep(link)


def _remove_socket_file(address: str) -> None:
    """libzmq leaves the file of a local socket behind. Before the close: afterwards it could be a successor's."""
    if address.startswith("ipc://"):
        Path(address.removeprefix("ipc://")).unlink(missing_ok=True)
