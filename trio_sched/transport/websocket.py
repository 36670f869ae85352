"""A WebSocket server on Trio that no peer can block or fill up.

It adds to trio-websocket (RFC 6455):

* A check of path, origin and token before the handshake is answered.
* A send queue for each peer, limited in bytes, with a task that sends from it, so that `send` never waits. A peer whose
  queue is full is closed with the reason; a peer that does not read for `stall_s` is disconnected.
* Limits on the bytes and frames that a peer sends, and on one small message before it is authenticated
  (websocket_meter.py).
* Reports of activity: pongs, and bytes that the peer reads. A page need not send messages to stay connected, and a
  long message over a slow line counts as activity.
* A deadline around trio-websocket's `aclose`, which waits for the peer's answer without one.
* Isolation: a failure in TLS or in the framing ends only the connection in which it happens.

The reader of trio-websocket stops, also for pongs, while its message queue is full. So a handler must take messages as
they arrive.
"""

from __future__ import annotations

import contextlib
import errno
import math
import ssl
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import parse_qs, urlsplit

import trio
import trio_websocket
from msgspec import Struct
from wsproto.utilities import LocalProtocolError

from trio_sched.errors import AddressInUseError, ConfigError
from trio_sched.transport.connection_limits import ConnectionLimits, Note, TrackedConnection, address_group
from trio_sched.transport.handshake_queue import HandshakeQueue
from trio_sched.transport.websocket_meter import PIECE_BYTES, FrameMeter, MeteredStream, PartialMessages, ReceiveLimits

#: Close codes of RFC 6455.
NORMAL, GOING_AWAY, PROTOCOL_ERROR, NOT_TEXT, POLICY, TOO_LARGE = 1000, 1001, 1002, 1007, 1008, 1009
#: What a queued message costs in addition to its data.
OVERHEAD_BYTES = 128
#: The limit of a send queue, in windows. Windowed messages (results) take at most two, one of them for a message of any
#: size.
QUEUE_WINDOWS = 3
#: Messages that trio-websocket keeps for a busy handler.
_UNREAD_MESSAGES = 1
#: Unused handshakes are kept for this time, and can be made at once.
HANDSHAKE_BURST_S = 4.0
#: Time for an unauthenticated peer that exceeded a limit to read the reason.
REFUSED_S = 1.0

_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_NO_DESCRIPTORS_PAUSE_S = 0.1
_REFUSALS_AT_ONCE = 32
_REFUSALS_PAUSE_S = 0.01

Data: TypeAlias = str | bytes
Listener: TypeAlias = "trio.SocketListener | trio.SSLListener[trio.SocketStream]"
Stream: TypeAlias = "trio.SocketStream | trio.SSLStream[trio.SocketStream]"


class Handshake(Struct, frozen=True):
    """The parts of a handshake request that decide whether the peer may connect.

    `token` is from "Authorization: Bearer", else from "?token=" (browsers cannot set headers), else empty. `origin` is
    the origin of a page; None for programs, which send none.
    """

    path: str
    origin: str | None = None
    token: str = ""

    def __repr__(self) -> str:
        """Omit the token."""
        return f"Handshake(path={self.path!r}, origin={self.origin!r})"


class HandshakeRefusal(Struct, frozen=True):
    """Why a handshake is refused: an HTTP status and a line of text."""

    status: int
    text: str


class WebSocketLimits(Struct, frozen=True):
    """Limits of one server: on each peer, on all unfinished messages, and on the handshakes without a token."""

    window_bytes: int
    rates: ReceiveLimits
    ping_s: float = 2.0
    stall_s: float = 10.0
    handshake_s: float = 5.0
    close_s: float = 5.0
    unfinished_bytes: int = 64 << 20
    handshakes_per_s: float = 50.0


CheckHandshake: TypeAlias = Callable[[Handshake], HandshakeRefusal | None]
PeerHandler: TypeAlias = "Callable[[WebSocketPeer], Awaitable[None]]"


# ---- listening ------------------------------------------------------------------------------------------------------


def tls_context(certificate: str, key: str) -> ssl.SSLContext | None:
    """Create a server's TLS context from the paths of PEM files; None when both are empty.

    :raises ConfigError: only one path is given, or the files cannot be used.
    """
    if not certificate and not key:
        return None
    if not certificate or not key:
        missing = "websocket_key" if certificate else "websocket_certificate"
        raise ConfigError(f"{missing} is not set: TLS needs a certificate and its key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"websocket_certificate = {certificate!r}, websocket_key = {key!r}: cannot be used ({error})"
        ) from None
    return context


async def listen(host: str, port: int, tls: ssl.SSLContext | None = None) -> tuple[list[Listener], str]:
    """Open listeners. Return them and their URL with the real port.

    :raises AddressInUseError: another process listens there.
    :raises ConfigError: the host or the port cannot be bound.
    """
    if not host:
        raise ConfigError(
            "websocket_host is empty; 0.0.0.0 listens on every interface, 127.0.0.1 on the loopback interface"
        )
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUseError(
                f"websocket_port = {port}: it is in use by another process; choose another, or 0 for any"
            ) from None
        raise ConfigError(
            f"websocket_host = {host!r}, websocket_port = {port}: cannot listen there ({error})"
        ) from None
    if port == 0:  # each address of a name would get its own port
        for other in listeners[1:]:
            await other.aclose()
        del listeners[1:]
    real_port = listeners[0].socket.getsockname()[1]
    url = f"{'ws' if tls is None else 'wss'}://{f'[{host}]' if ':' in host else host}:{real_port}/"
    if tls is None:
        return list(listeners), url
    return [trio.SSLListener(listener, tls, https_compatible=True) for listener in listeners], url


async def serve(
    listeners: list[Listener],
    limits: WebSocketLimits,
    check: CheckHandshake,
    handle: PeerHandler,
    note: Note,
    *,
    connections: ConnectionLimits | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled: run `handle` in its own task for each peer to which `check` has no refusal.

    `note(kind, why=text)` counts the failure of a connection. With `connections`, each connection counts there from
    its acceptance on. The listeners are closed at the end.
    """
    server = _Server(limits, check, handle, note, connections)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.handshakes.run)
        for listener in listeners:
            nursery.start_soon(server.accept_from, listener, nursery)
        task_status.started()


class _Server:
    """The connections of one `serve`, and the limits that they share."""

    def __init__(
        self,
        limits: WebSocketLimits,
        check: CheckHandshake,
        handle: PeerHandler,
        note: Note,
        connections: ConnectionLimits | None,
    ) -> None:
        self.handshakes = HandshakeQueue(limits.handshakes_per_s, HANDSHAKE_BURST_S, limits.handshake_s)
        self._partial_messages = PartialMessages(limits.unfinished_bytes, limits.stall_s)
        self._limits = limits
        self._check = check
        self._handle = handle
        self._note = note
        self._connections = connections

    async def accept_from(self, listener: Listener, nursery: trio.Nursery) -> None:
        """Accept connections, and start a task for each one that the limits admit."""
        refused_in_a_row = 0
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno not in _NO_DESCRIPTORS:
                        raise
                    self._note("no_descriptors", why=f"a WebSocket connection was not accepted: {error.strerror}")
                    await trio.sleep(_NO_DESCRIPTORS_PAUSE_S)
                    continue
                tracked = TrackedStream(_socket_of(stream), self._connections)
                if self._connections is None or self._connections.add(tracked):
                    nursery.start_soon(self._serve_tracked, stream, tracked)
                    refused_in_a_row = 0
                    continue
                _socket_of(stream).close()
                refused_in_a_row += 1
                if refused_in_a_row % _REFUSALS_AT_ONCE == 0:  # a flood of connections does not block the event loop
                    await trio.sleep(_REFUSALS_PAUSE_S)

    async def _serve_tracked(self, stream: Stream, tracked: TrackedStream) -> None:
        try:
            with tracked.scope:
                await self._serve(stream, tracked)
        finally:
            tracked.release()

    async def _serve(self, stream: Stream, tracked: TrackedStream) -> None:
        """Serve one connection from its first byte to its last. Its failures are counted here and not raised."""
        peer = WebSocketPeer(stream, self._limits, self._partial_messages, self._note, tracked)
        try:
            handshake = await self._read_handshake(peer, tracked)
            if handshake is None:
                return
            async with trio.open_nursery() as nursery:
                if await peer.accept(nursery, handshake):
                    await peer.run(self._handle)
                nursery.cancel_scope.cancel()
        except* (trio_websocket.ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the peer closed the connection
        except* LocalProtocolError:
            pass  # trio-websocket answered a ping that arrived after the close
        except* Exception as group:
            self._note("websocket_failure", why=_describe(group))
        finally:
            await peer.aclose()

    async def _read_handshake(self, peer: WebSocketPeer, tracked: TrackedStream) -> Handshake | None:
        """Read the request of a peer and check it; None: it is refused, or the peer closed the connection.

        A peer that shows a token does not wait for a turn. With TLS the token arrives after the costly part, so every
        peer waits, before that part.
        """
        stream = peer.stream
        with trio.move_on_after(self._limits.handshake_s) as timeout:
            if stream.is_encrypted:
                await stream.wait_readable()
                if not await self._wait_turn(stream, tracked):
                    return None
            request = await peer.meter.request()
            if not request:
                return None
            handshake = _parse_request(request)
            if not (handshake.token or stream.is_encrypted) and not await self._wait_turn(stream, tracked):
                return None
            refusal = self._check(handshake)
            if refusal is None:
                return handshake
            self._note("refused", why=refusal.text)
            await stream.send_all(_refusal_response(refusal))
        if timeout.cancelled_caught:
            self._note("no_handshake", why=_no_handshake(self._limits))
        return None

    async def _wait_turn(self, stream: MeteredStream, tracked: TrackedStream) -> bool:
        is_granted = await self.handshakes.wait_turn(tracked.address, lambda: stream.is_closed_by_peer)
        if not is_granted and not stream.is_closed_by_peer:
            rate = self._limits.handshakes_per_s
            self._note("no_handshake", why=f"more than {rate:g} handshakes a second without a token")
        return is_granted


def _socket_of(stream: Stream) -> trio.socket.SocketType:
    return (stream.transport_stream if isinstance(stream, trio.SSLStream) else stream).socket


class TrackedStream(TrackedConnection):
    """An accepted connection, as the connection limits see it."""

    __slots__ = ("_limits", "_token", "scope")

    def __init__(self, socket: trio.socket.SocketType, limits: ConnectionLimits | None) -> None:
        try:
            address = address_group(str(socket.getpeername()[0]))
        except OSError:  # the peer has closed the connection already
            address = ""
        super().__init__(address)
        #: Around the task that serves the connection.
        self.scope = trio.CancelScope()
        self._limits = limits
        self._token = trio.lowlevel.current_trio_token()

    def establish(self) -> None:
        """Mark the connection as established, because its peer has shown a token."""
        if self._limits is not None:
            self._limits.establish(self)

    def release(self) -> None:
        """Stop counting the connection, which has ended."""
        if self._limits is not None:
            self._limits.remove(self)

    def close(self) -> None:
        """Cancel the task, which closes the connection. From any thread: another listener may accept its successor."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self.scope.cancel)


def _no_handshake(limits: WebSocketLimits) -> str:
    return f"no WebSocket handshake within {limits.handshake_s:g} s"


def _describe(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_describe(part) for part in error.exceptions)
    return f"{type(error).__name__}: {error}"


def _parse_request(request: bytes) -> Handshake:
    """Parse the head of an HTTP request. trio-websocket checks whether it is valid."""
    first, *lines = request.decode("latin-1").splitlines()
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    target = urlsplit("".join(first.split(" ")[1:2]))
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        token = parse_qs(target.query).get("token", [""])[0]
    return Handshake(target.path, headers.get("origin"), token.strip())


def _refusal_response(refusal: HandshakeRefusal) -> bytes:
    body = refusal.text.encode() + b"\n"
    head = (
        f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}\r\n"
        f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


# ---- one peer -------------------------------------------------------------------------------------------------------


class WebSocketPeer:
    """One connection and its peer. Iterate over it for the received messages; the iteration ends with the connection.

    A handler gets the peer after the handshake. `mark_authenticated` lifts the limits of unauthenticated peers.
    """

    #: The request of the peer. Set by `accept`.
    handshake: Handshake

    def __init__(
        self,
        stream: Stream,
        limits: WebSocketLimits,
        partial_messages: PartialMessages,
        note: Note,
        tracked: TrackedStream,
    ) -> None:
        #: Why the connection was closed; empty while it is open.
        self.close_reason = ""
        #: The reading side of `stream`.
        self.meter = FrameMeter(
            stream.receive_some,
            limits.rates,
            partial_messages,
            on_violation=self._close_for_violation,
            on_activity=self._report_activity,
        )
        self.stream = MeteredStream(stream, self.meter, limits.stall_s, on_progress=self._report_activity)
        self._limits = limits
        self._note = note
        self._tracked = tracked
        self._handshake_scope = trio.CancelScope()
        #: None before the handshake is complete.
        self._connection: trio_websocket.WebSocketConnection | None = None
        self._is_authenticated = False
        self._on_activity: Callable[[], None] = lambda: None
        self._queue, self._queued = trio.open_memory_channel[Data](math.inf)
        self._queued_bytes = 0
        #: Code and reason of `close`.
        self._closing: tuple[int, str] | None = None
        self._discards_queue = False
        #: Around the sender. After `close` it has a deadline for the queued messages.
        self._send_scope = trio.CancelScope()

    # ---- for the server ---------------------------------------------------------------------------------------------

    async def accept(self, nursery: trio.Nursery, handshake: Handshake) -> bool:
        """Answer the request of a peer that may connect. False: the handshake failed or timed out, and was counted."""
        self.handshake = handshake
        deadline = self._handshake_scope.deadline = trio.current_time() + self._limits.handshake_s
        with self._handshake_scope:
            request = await trio_websocket.wrap_server_stream(
                nursery,
                self.stream,
                message_queue_size=_UNREAD_MESSAGES,
                max_message_size=self._limits.rates.message_bytes,
                receive_buffer_size=PIECE_BYTES,
            )
            if handshake.token:
                self._tracked.establish()
            self._connection = await request.accept()
        if self._handshake_scope.cancelled_caught and trio.current_time() >= deadline:
            self._note("no_handshake", why=_no_handshake(self._limits))
        return self._connection is not None

    async def run(self, handle: PeerHandler) -> None:
        """Run the handler, send queued messages and ping, until the connection is closed."""
        connection = self._accepted_connection()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ping, connection)
            nursery.start_soon(self._run_handler, handle)
            await self._send_queued(connection)
            nursery.cancel_scope.cancel()
        ended = connection.closed
        if ended is not None and ended.code in (PROTOCOL_ERROR, NOT_TEXT):
            self._note("malformed", why=self.close_reason)
        elif self.stream.broken_because and not self._discards_queue:
            self._note("slow_reader", why=self.stream.broken_because)

    async def aclose(self) -> None:
        """Close the stream, within `close_s`, and release what the peer holds of the shared limits."""
        self.meter.release()
        with trio.move_on_after(self._limits.close_s):
            await self.stream.aclose()

    def _accepted_connection(self) -> trio_websocket.WebSocketConnection:
        assert self._connection is not None, "the handshake is not complete"
        return self._connection

    # ---- for the handler --------------------------------------------------------------------------------------------

    def mark_authenticated(self) -> None:
        """Lift the limits of unauthenticated peers, and mark the connection as established."""
        self._is_authenticated = True
        self._tracked.establish()
        self.meter.mark_authenticated()

    def on_activity(self, callback: Callable[[], None]) -> None:
        """Call `callback` at all activity other than messages: a pong, or bytes that the peer reads or sends."""
        self._on_activity = callback

    def send(self, data: Data) -> bool:
        """Queue a message. False: the connection is closed, possibly by this call because the queue is full."""
        if self._closing is not None:
            return False
        window = self._limits.window_bytes
        counted = min(len(data) + OVERHEAD_BYTES, window)
        if self._queued_bytes + counted > QUEUE_WINDOWS * window:
            self._discards_queue = True
            self.close(POLICY, f"the peer reads too slowly: {self._queued_bytes} bytes are queued for it")
            self._note("slow_reader", why=self.close_reason)
            return False
        self._queued_bytes += counted
        self._queue.send_nowait(data)
        return True

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Close the connection when the queued messages are sent, or after `close_s`. Only the first call counts."""
        if self._closing is None:
            self._closing = (code, reason)
            self.close_reason = self.close_reason or reason
            self._send_scope.deadline = trio.current_time() + self._limits.close_s
            self._queue.close()

    def __aiter__(self) -> WebSocketPeer:
        return self

    async def __anext__(self) -> Data:
        try:
            return await self._accepted_connection().get_message()
        except trio_websocket.ConnectionClosed as closed:
            reason = closed.reason
            text = f"{reason.code} {reason.reason or reason.name}" if reason else "it broke the protocol"
            self.close_reason = self.close_reason or self.stream.broken_because or text
            raise StopAsyncIteration from None

    # ---- events of the stream ---------------------------------------------------------------------------------------

    def _report_activity(self) -> None:
        self._on_activity()

    def _close_for_violation(self, too_large: bool, reason: str) -> None:
        """Close a connection whose peer exceeded a limit. The peer may do so behind its request, before the answer."""
        self._note("too_large" if too_large else "malformed", why=reason)
        if self._connection is None:
            self._handshake_scope.cancel()
            return
        self.close(TOO_LARGE if too_large else POLICY, reason)
        if not self._is_authenticated:
            self._send_scope.deadline = trio.current_time() + REFUSED_S

    # ---- tasks ------------------------------------------------------------------------------------------------------

    async def _run_handler(self, handle: PeerHandler) -> None:
        try:
            await handle(self)
        finally:
            self.close()

    async def _send_queued(self, connection: trio_websocket.WebSocketConnection) -> None:
        window = self._limits.window_bytes
        with self._send_scope:
            async for data in self._queued:
                self._queued_bytes -= min(len(data) + OVERHEAD_BYTES, window)
                if self._discards_queue:
                    continue
                try:
                    await connection.send_message(data)
                except trio_websocket.ConnectionClosed:
                    break
            code, reason = self._closing or (NORMAL, "")
            await connection.aclose(code, reason)

    async def _ping(self, connection: trio_websocket.WebSocketConnection) -> None:
        while True:
            await trio.sleep(self._limits.ping_s)
            try:
                await connection.ping()
            except trio_websocket.ConnectionClosed:
                return
            self._report_activity()
