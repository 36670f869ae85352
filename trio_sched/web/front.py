"""The WebSocket front: clients that are pages, or are written in other languages.

A peer shows the token of clients in its request ("Authorization: Bearer", or "?token=" for browsers, which cannot set
headers) or in its Hello, which must arrive within seconds. A page may connect only if its origin is configured; a
program sends no origin. In all other respects a WebSocket client is like any client: its credit limits its unfinished
tasks, its queue limits its unread messages, and its session outlives its connection.

The format of the first message, JSON text or msgpack binary, is the format of all messages to the peer.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import math
import time
from collections.abc import Sequence

import trio

from trio_sched.errors import WireError
from trio_sched.logs import get_logger
from trio_sched.server.config import Config
from trio_sched.server.ingress import Ingress
from trio_sched.server.peer_connection import PeerConnection
from trio_sched.transport import websocket
from trio_sched.transport.connection_info import host_name
from trio_sched.transport.websocket import (
    GOING_AWAY,
    NORMAL,
    POLICY,
    Handshake,
    HandshakeRefusal,
    WebSocketLimits,
    WebSocketPeer,
)
from trio_sched.transport.websocket_meter import ReceiveLimits, TokenBucket
from trio_sched.web import messages
from trio_sched.wire.native import Bye, Error, Frame, FromClient, Hello, Message, Welcome

#: Share of one core for decoding the messages of one connection. A connection that needs more is read less often.
CPU_SHARE = 0.25
CPU_BURST_S = 0.04
#: Messages of at least this size are decoded one at a time, with pauses. All of them together get `CPU_SHARE`.
LARGE_BYTES = 1 << 16
#: Connections in addition to the number of clients, for peers before their Hello and connections that are being closed.
EXTRA_CONNECTIONS = 64
#: How long peers may take to read their queued messages when the scheduler shuts down.
SHUTDOWN_S = 2.0

_UNLIMITED = contextlib.nullcontext()
log = get_logger(__name__)


class WebSocketConnection(PeerConnection):
    """The connection of one WebSocket peer."""

    __slots__ = (
        "_is_admitted",
        "_limit",
        "_peer",
        "answered",
        "binary",
        "hello_scope",
        "received_bye",
        "request_token",
    )

    def __init__(self, peer: WebSocketPeer, limit: int, hello_s: float) -> None:
        super().__init__()
        self._peer = peer
        self._limit = limit
        self._is_admitted = False
        self.binary = False
        self.received_bye = False
        #: The token of the request, which was checked already; empty if the request had none.
        self.request_token = peer.handshake.token
        #: Set when the Hello was answered. Later messages wait until then, so a page need not wait for its Welcome.
        self.answered = trio.Event()
        #: Around the reading of messages; without a deadline after the Welcome.
        self.hello_scope = trio.CancelScope(deadline=trio.current_time() + hello_s)

    def send(self, message: Message, frames: Sequence[Frame] = ()) -> int:
        """Queue a message. Return its size in bytes; 0: the connection is closed."""
        if type(message) is Welcome:
            message.max_message_bytes = self._limit
        data = messages.encode(message, frames, binary=self.binary)
        if not self._peer.send(data):
            return 0
        if type(message) is Error and not self._is_admitted:
            self.answered.set()
            self._peer.close(POLICY, message.message)
        return len(data)

    def admitted(self) -> None:
        """Lift the limits of unauthenticated peers."""
        self._is_admitted = True
        self.hello_scope.deadline = math.inf
        self._peer.mark_authenticated()
        self.answered.set()

    def close(self) -> None:
        """Close the WebSocket after its queued messages are sent."""
        if self.received_bye:
            self._peer.close(NORMAL, "session closed")
        else:
            self._peer.close(POLICY, "no heartbeat for too long, or the session is on another connection")


class WebSocketFront:
    """Listens for WebSocket clients; one of the fronts of `serve`."""

    effect_handler = None  # all peers have sessions

    def __init__(self, config: Config) -> None:
        """Use the settings that begin with "websocket"."""
        self._config = config
        self._token = b""
        self._peers: set[WebSocketPeer] = set()
        self._empty = trio.Event()
        self._closing = False
        self._large = trio.Lock()

    async def run(self, ingress: Ingress, *, task_status: trio.TaskStatus[dict[str, str]]) -> None:
        """Serve WebSocket clients until cancelled. Report the URL when the front listens.

        :raises AddressInUseError: another process listens there.
        :raises ConfigError: the address, or the certificate, cannot be used.
        """
        config = self._config
        tls = websocket.tls_context(config.websocket_certificate, config.websocket_key)
        if tls is None and not _is_loopback(config.websocket_host):
            log.warning(
                "the WebSocket token is sent unencrypted: websocket_certificate is not set", host=config.websocket_host
            )
        self._token = ingress.identity.tokens["client"].encode()
        listeners, url = await websocket.listen(config.websocket_host, config.websocket_port or 0, tls)
        async with trio.open_nursery() as nursery:
            shield = await nursery.start(self._serve, listeners, ingress)
            try:
                task_status.started({"websocket": self._reachable(url)})
                await trio.sleep_forever()
            finally:
                await self._close_peers()
                shield.cancel()

    async def _serve(
        self, listeners: list[websocket.Listener], ingress: Ingress, *, task_status: trio.TaskStatus[trio.CancelScope]
    ) -> None:
        """Serve until the shield is cancelled, which is after the close frames of a shutdown are sent."""
        config = self._config
        limits = WebSocketLimits(
            window_bytes=config.window_bytes,
            ping_s=config.heartbeat_s,
            stall_s=config.heartbeat_s * config.missed_heartbeats,
            handshake_s=config.handshake_s,
            rates=ReceiveLimits(
                config.websocket_max_message_bytes,
                config.websocket_hello_bytes,
                config.websocket_frames_per_s,
                config.websocket_bytes_per_s,
            ),
            unfinished_bytes=config.websocket_unfinished_bytes,
            handshakes_per_s=config.websocket_handshakes_per_s,
        )

        def note(kind: str, why: str) -> None:
            ingress.note(kind, why=why)

        async def handle(peer: WebSocketPeer) -> None:
            await self._handle(peer, ingress)

        with trio.CancelScope(shield=True) as shield:
            task_status.started(shield)
            await websocket.serve(
                listeners, limits, self._check_handshake, handle, note, connections=ingress.connections
            )

    async def _close_peers(self) -> None:
        self._closing = True
        for peer in self._peers:
            peer.close(GOING_AWAY, "the scheduler shut down")
        with trio.move_on_after(SHUTDOWN_S, shield=True):
            while self._peers:
                self._empty = trio.Event()
                await self._empty.wait()

    def _reachable(self, url: str) -> str:
        """Replace a wildcard address, to which no client can connect, by the advertised host."""
        host = self._config.advertised_host or host_name()
        return url.replace("://0.0.0.0:", f"://{host}:").replace("://[::]:", f"://{host}:")

    def flush(self) -> None:
        """See Front. A queued message wakes the task that writes it, so there is nothing to do."""

    # ---- handshakes -------------------------------------------------------------------------------------------------

    def _check_handshake(self, handshake: Handshake) -> HandshakeRefusal | None:
        config = self._config
        if handshake.path != "/":
            return HandshakeRefusal(404, "this path does not exist; connect to /")
        if handshake.origin is not None and handshake.origin not in config.websocket_origins:
            return HandshakeRefusal(403, "pages of this origin may not connect; websocket_origins lists those that may")
        if handshake.token and not hmac.compare_digest(handshake.token.encode(), self._token):
            return HandshakeRefusal(401, "the token is not that of a client; read the connection file again")
        if self._closing:
            return HandshakeRefusal(503, "the scheduler is shutting down")
        if len(self._peers) >= config.max_clients + EXTRA_CONNECTIONS:
            return HandshakeRefusal(
                503, f"there are {len(self._peers)} connections already; max_clients is {config.max_clients}"
            )
        return None

    # ---- one peer ---------------------------------------------------------------------------------------------------

    async def _handle(self, peer: WebSocketPeer, ingress: Ingress) -> None:
        hello_s = self._config.websocket_hello_s
        connection = WebSocketConnection(peer, self._config.websocket_max_message_bytes, hello_s)
        cpu = TokenBucket(CPU_SHARE, CPU_BURST_S)
        peer.on_activity(lambda: ingress.connection_alive(connection, trio.current_time()))
        self._peers.add(peer)
        try:
            with connection.hello_scope:
                first = True
                async for data in peer:
                    if first:
                        connection.binary, first = isinstance(data, bytes), False
                    async with self._large if len(data) >= LARGE_BYTES else _UNLIMITED:
                        began = time.thread_time()
                        self._receive(connection, data, ingress)
                        wait_s = cpu.take(time.thread_time() - began, trio.current_time())
                        if wait_s:
                            await trio.sleep(wait_s)
                    if not connection.answered.is_set():
                        await connection.answered.wait()
            if connection.hello_scope.cancelled_caught:
                peer.close(POLICY, f"no Hello within {hello_s:g} s")
        finally:
            self._peers.discard(peer)
            self._empty.set()
            ingress.connection_lost(connection, peer.close_reason)

    def _receive(self, connection: WebSocketConnection, data: messages.Data, ingress: Ingress) -> None:
        try:
            message, frames = messages.decode(data)
            self._authenticate(connection, message)
        except WireError as error:
            ingress.note(error.kind, why=str(error))
            connection.send(Error(error.kind, str(error)))
            return
        ingress.receive([(connection, [message, *frames])], trio.current_time())

    def _authenticate(self, connection: WebSocketConnection, message: FromClient) -> None:
        """Check the role of a Hello, and add the token of the request.

        :raises WireError: the role is not client.
        """
        if type(message) is Hello:
            if message.role != "client":
                raise WireError(f"a WebSocket is for clients, not for the role {message.role!r}", "unauthenticated")
            message.token = message.token or connection.request_token
        elif type(message) is Bye:
            connection.received_bye = True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
