"""The native front: clients, engines and nannies on one ZeroMQ ROUTER.

One task drains the socket and passes each batch to the ingress; each receive is a checkpoint. A connection is
identified by its ZeroMQ routing id, and the role and session of its peer by the Hello.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import trio

from trio_sched.server.config import Config
from trio_sched.server.ingress import Ingress
from trio_sched.server.peer_connection import PeerConnection, RawMessage
from trio_sched.transport.connection_info import Role
from trio_sched.transport.zmq_socket import ZmqSocket
from trio_sched.wire.native import Frame, Message, encode

#: Connections without a session that are remembered, so that a repeated Hello comes over the same connection, and late
#: messages match their session.
UNAUTHENTICATED_KEPT = 1024


class RouterSocket(Protocol):
    """The methods of a ROUTER that the front uses: those of `ZmqSocket` and of the in-memory socket of `testing`."""

    address: str

    async def receive(self, limit: int = ...) -> list[list[Frame]]: ...
    def send(self, frames: Sequence[Frame]) -> bool: ...
    def flush(self) -> None: ...
    async def authenticate(self) -> None: ...
    def proved_role(self, peer: bytes) -> Role | None: ...
    def close(self) -> None: ...


OpenRouter = Callable[..., RouterSocket]


class NativeConnection(PeerConnection):
    """One connection to the ROUTER."""

    __slots__ = ("_front", "routing_id")

    def __init__(self, front: NativeFront, routing_id: bytes, proved_role: Role | None) -> None:
        super().__init__(proved_role)
        self._front = front
        self.routing_id = routing_id

    def send(self, message: Message, frames: Sequence[Frame] = ()) -> int:
        """See PeerConnection."""
        data = encode(message)
        if not self._front.send([self.routing_id, data, *frames]):
            return 0
        return len(data) + sum([len(frame) for frame in frames]) if frames else len(data)

    def admitted(self) -> None:
        """See PeerConnection."""
        self._front.remember(self)

    def close(self) -> None:
        """See PeerConnection."""
        self._front.forget(self)


class NativeFront:
    """Listens on a ROUTER."""

    effect_handler = None  # all peers have sessions

    def __init__(self, config: Config, open_router: OpenRouter = ZmqSocket.router) -> None:
        self._config = config
        self._open_router = open_router
        self._socket: RouterSocket | None = None
        self._connections: dict[bytes, NativeConnection] = {}
        self._unauthenticated: OrderedDict[bytes, NativeConnection] = OrderedDict()

    async def run(self, ingress: Ingress, *, task_status: trio.TaskStatus[dict[str, str]]) -> None:
        """See Front."""
        socket = self.listen(ingress)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(socket.authenticate)
                task_status.started({"native": socket.address})
                while True:
                    self.take(await socket.receive(), ingress, trio.current_time())
        finally:
            self._socket = None  # sends fail from now on
            _remove_socket_file(socket.address)
            socket.close()

    def listen(self, ingress: Ingress) -> RouterSocket:
        """Bind the socket."""
        identity = ingress.identity
        keys = identity.keys.for_server() if identity.keys else None
        socket = self._open_router(
            identity.native_address(),
            keys=keys,
            max_message_bytes=self._config.max_message_bytes,
            limits=ingress.connections,
        )
        self._socket = socket
        return socket

    def flush(self) -> None:
        """See Front."""
        if self._socket is not None:
            self._socket.flush()

    def take(self, batch: Sequence[Sequence[Frame]], ingress: Ingress, now: float) -> None:
        """Pass a batch of messages, as received from the socket, to the ingress."""
        connections = self._connections
        messages: list[RawMessage] = []
        for frames in batch:
            routing_id: Any = frames[0]
            messages.append((connections.get(routing_id) or self._unauthenticated_connection(routing_id), frames[1:]))
        ingress.receive(messages, now)

    def _unauthenticated_connection(self, routing_id: bytes) -> NativeConnection:
        connection = self._unauthenticated.get(routing_id)
        if connection is None:
            proved_role = self._socket.proved_role(routing_id) if self._socket is not None else None
            connection = NativeConnection(self, routing_id, proved_role)
            self._keep(connection)
        return connection

    def _keep(self, connection: NativeConnection) -> None:
        self._unauthenticated[connection.routing_id] = connection
        if len(self._unauthenticated) > UNAUTHENTICATED_KEPT:
            self._unauthenticated.popitem(last=False)

    # ---- for connections ---------------------------------------------------------------------------------------------

    def send(self, frames: Sequence[Frame]) -> bool:
        """Pass a message to the socket. Returns False if the peer is not connected."""
        return self._socket is not None and self._socket.send(frames)

    def remember(self, connection: NativeConnection) -> None:
        """Keep a connection that has a session."""
        self._unauthenticated.pop(connection.routing_id, None)
        self._connections[connection.routing_id] = connection

    def forget(self, connection: NativeConnection) -> None:
        """Keep a connection whose session ended, or uses another one, only among the last such connections."""
        if self._connections.get(connection.routing_id) is connection:
            del self._connections[connection.routing_id]
            self._keep(connection)


def _remove_socket_file(address: str) -> None:
    """Remove the file of a local socket, which libzmq leaves behind. This has to happen before the socket is closed:
    afterwards the file could be that of another scheduler."""
    if address.startswith("ipc://"):
        Path(address.removeprefix("ipc://")).unlink(missing_ok=True)
