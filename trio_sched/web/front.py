"""The WebSocket front: clients that are pages, or are written in other languages.

A peer shows the client's token when it connects ("Authorization: Bearer", or "?token=" for browsers, which cannot set
headers) or in its Hello, which must come within seconds. A page may connect only if its origin is configured; a program
sends none. Beyond that a WebSocket client is a client like any other: what it may have under way is bounded by its
credit, what it has not read by its queue, and its session outlives its connection.

The format of the first message, JSON text or msgpack binary, is the format of all answers.
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
from trio_sched.server.hub import Hub
from trio_sched.server.links import Link
from trio_sched.transport import websocket
from trio_sched.transport.connection import host_name
from trio_sched.transport.websocket import GOING_AWAY, NORMAL, POLICY, Handshake, Limits, Refusal, WebSocketPeer
from trio_sched.transport.websocket_meter import Budget, Rates
from trio_sched.web import messages
from trio_sched.wire.native import Bye, Error, Frame, FromClient, Hello, Message, Welcome

CPU_SHARE = 0.25
"""Of one core, for decoding the messages of one connection. One that needs more is read less often."""
CPU_BURST_S = 0.04
LARGE_BYTES = 1 << 16
"""Messages of at least that many bytes are decoded one at a time, with pauses: all of them together have that share."""
STRANGERS_KEPT = 64
"""Connections beyond the number of clients: those that have not said Hello yet, or are being closed."""
SHUTDOWN_S = 2.0
"""How long peers may take to read what is left when the scheduler ends."""

_UNLIMITED = contextlib.nullcontext()
log = get_logger(__name__)


class WebSocketLink(Link):
    """One WebSocket."""

    __slots__ = ("_is_admitted", "_limit", "_peer", "answered", "binary", "patience", "said_bye", "shown_token")

    def __init__(self, peer: WebSocketPeer, limit: int, hello_s: float) -> None:
        super().__init__()
        self._peer = peer
        self._limit = limit
        self._is_admitted = False
        self.binary = False
        self.said_bye = False
        self.shown_token = peer.handshake.token
        """Compared already when it connected; empty if it showed none."""
        self.answered = trio.Event()
        """Its Hello was. What it says before that waits, so that a page need not wait for its Welcome."""
        self.patience = trio.CancelScope(deadline=trio.current_time() + hello_s)
        """Around the reading of what it says; without limit once it is admitted."""

    def send(self, message: Message, frames: Sequence[Frame] = ()) -> int:
        """See Link."""
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
        """See Link."""
        self._is_admitted = True
        self.patience.deadline = math.inf
        self._peer.admit()
        self.answered.set()

    def close(self) -> None:
        """See Link."""
        if self.said_bye:
            self._peer.close(NORMAL, "good-bye")
        else:
            self._peer.close(POLICY, "you were silent too long, or your session is on another connection")


class WebSocketFront:
    """Listens for WebSocket clients; one of the fronts of `serve`."""

    def __init__(self, config: Config) -> None:
        """Settings: those that begin with "websocket"."""
        self._config = config
        self._token = b""
        self._peers: set[WebSocketPeer] = set()
        self._empty = trio.Event()
        self._closing = False
        self._large = trio.Lock()

    async def run(self, hub: Hub, *, task_status: trio.TaskStatus[dict[str, str]]) -> None:
        """See Front.

        :raises AddressInUseError: somebody else listens there.
        :raises ConfigError: the address, or the certificate, cannot be used.
        """
        config = self._config
        tls = websocket.tls_context(config.websocket_certificate, config.websocket_key)
        if tls is None and not _is_loopback(config.websocket_host):
            log.warning(
                "the WebSocket token travels in clear text: no websocket_certificate", host=config.websocket_host
            )
        self._token = hub.identity.tokens["client"].encode()
        listeners, url = await websocket.listen(config.websocket_host, config.websocket_port or 0, tls)
        async with trio.open_nursery() as nursery:
            outlasting = await nursery.start(self._serve, listeners, hub)
            try:
                task_status.started({"websocket": self._reachable(url)})
                await trio.sleep_forever()
            finally:
                await self._say_good_bye()
                outlasting.cancel()

    async def _serve(
        self, listeners: list[websocket.Listener], hub: Hub, *, task_status: trio.TaskStatus[trio.CancelScope]
    ) -> None:
        """Until its shield is cancelled: peers are to be told that we end."""
        config = self._config
        limits = Limits(
            window_bytes=config.window_bytes,
            ping_s=config.heartbeat_s,
            stall_s=config.heartbeat_s * config.missed_heartbeats,
            handshake_s=config.handshake_s,
            rates=Rates(
                config.websocket_max_message_bytes,
                config.websocket_hello_bytes,
                config.websocket_frames_per_s,
                config.websocket_bytes_per_s,
            ),
            unfinished_bytes=config.websocket_unfinished_bytes,
            handshakes_per_s=config.websocket_handshakes_per_s,
        )

        def note(kind: str, why: str) -> None:
            hub.note(kind, why=why)

        async def handle(peer: WebSocketPeer) -> None:
            await self._handle(peer, hub)

        with trio.CancelScope(shield=True) as shield:
            task_status.started(shield)
            await websocket.serve(listeners, limits, self._admit, handle, note, connections=hub.connections)

    async def _say_good_bye(self) -> None:
        self._closing = True
        for peer in self._peers:
            peer.close(GOING_AWAY, "the scheduler shut down")
        with trio.move_on_after(SHUTDOWN_S, shield=True):
            while self._peers:
                self._empty = trio.Event()
                await self._empty.wait()

    def _reachable(self, url: str) -> str:
        """A wildcard is no place to connect to."""
        host = self._config.advertised_host or host_name()
        return url.replace("://0.0.0.0:", f"://{host}:").replace("://[::]:", f"://{host}:")

    # ---- who may come in --------------------------------------------------------------------------------------------

    def _admit(self, handshake: Handshake) -> Refusal | None:
        config = self._config
        if handshake.path != "/":
            return Refusal(404, "there is nothing here; connect to /")
        if handshake.origin is not None and handshake.origin not in config.websocket_origins:
            return Refusal(403, "pages of this origin may not connect; websocket_origins lists those that may")
        if handshake.token and not hmac.compare_digest(handshake.token.encode(), self._token):
            return Refusal(401, "the token is not that of a client; read the connection file again")
        if self._closing:
            return Refusal(503, "the scheduler is shutting down")
        if len(self._peers) >= config.max_clients + STRANGERS_KEPT:
            return Refusal(
                503, f"there are {len(self._peers)} connections already; max_clients is {config.max_clients}"
            )
        return None

    # ---- one peer ---------------------------------------------------------------------------------------------------

    async def _handle(self, peer: WebSocketPeer, hub: Hub) -> None:
        hello_s = self._config.websocket_hello_s
        link = WebSocketLink(peer, self._config.websocket_max_message_bytes, hello_s)
        cpu = Budget(CPU_SHARE, CPU_BURST_S)
        peer.on_life(lambda: hub.connection_alive(link, trio.current_time()))
        self._peers.add(peer)
        try:
            with link.patience:
                first = True
                async for data in peer:
                    if first:
                        link.binary, first = isinstance(data, bytes), False
                    async with self._large if len(data) >= LARGE_BYTES else _UNLIMITED:
                        began = time.thread_time()
                        self._take(link, data, hub)
                        wait_s = cpu.take(time.thread_time() - began, trio.current_time())
                        if wait_s:
                            await trio.sleep(wait_s)
                    if not link.answered.is_set():
                        await link.answered.wait()
            if link.patience.cancelled_caught:
                peer.close(POLICY, f"no Hello within {hello_s:g} s")
        finally:
            self._peers.discard(peer)
            self._empty.set()
            hub.connection_lost(link, peer.closed_because)

    def _take(self, link: WebSocketLink, data: messages.Data, hub: Hub) -> None:
        try:
            message, frames = messages.decode(data)
            self._vouch(link, message)
        except WireError as error:
            hub.note(error.kind, why=str(error))
            link.send(Error(error.kind, str(error)))
            return
        hub.receive([(link, [message, *frames])], trio.current_time())

    def _vouch(self, link: WebSocketLink, message: FromClient) -> None:
        """Raises WireError."""
        if type(message) is Hello:
            if message.role != "client":
                raise WireError(f"a WebSocket is for clients, not for the role {message.role!r}", "unauthenticated")
            message.token = message.token or link.shown_token
        elif type(message) is Bye:
            link.said_bye = True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
