"""WebSockets, served on trio: messages in, messages out, and nobody can hold up or fill up the scheduler.

Around trio-websocket (RFC 6455), with what it leaves to its user:

* who may connect is decided before the handshake is answered, from path, origin and token;
* each peer has a queue with a limit in bytes and a task that sends from it, so `send` never waits. A peer that lets the
  queue fill up is told so and closed; one that does not take a byte for `stall_s` is cut off;
* what a peer may send is bounded in bytes and frames, and to one small message before it is admitted
  (`websocket_meter.py`);
* pongs to our pings, and bytes that it takes, are signs of life: a page need not send any, and a long message over a
  slow line is not silence;
* its reader stops, pongs and all, while its queue is full, so a handler must take messages as they come;
* its `aclose` waits without limit for the peer's answer, so a deadline is around it;
* a connection that fails, in TLS or in its framing, ends itself and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import math
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import parse_qs, urlsplit

import trio
import trio_websocket
from msgspec import Struct
from wsproto.utilities import LocalProtocolError

from trio_sched.errors import AddressInUseError, ConfigError
from trio_sched.transport.connection_limits import ConnectionLimits, TrackedConnection, address_group
from trio_sched.transport.handshake_queue import HandshakeQueue
from trio_sched.transport.websocket_meter import FrameMeter, Rates, Unfinished
from trio_sched.transport.websocket_stream import PIECE_BYTES, MeteredStream

NORMAL, GOING_AWAY, PROTOCOL_ERROR, NOT_TEXT, POLICY, TOO_LARGE = 1000, 1001, 1002, 1007, 1008, 1009
"""Close codes of RFC 6455."""
OVERHEAD_BYTES = 128
"""What a queued message costs beside its data."""
QUEUE_WINDOWS = 3
"""A queue's limit, in windows. What is windowed (results) takes two at most, one of them for a message of any size."""
_UNREAD_MESSAGES = 1
"""Messages that trio-websocket holds for a handler that is busy."""
HANDSHAKE_BURST_S = 4.0
"""Handshakes that were not made for so long can be made at once."""
REFUSED_S = 1.0
"""A peer that says too much before it is admitted has so long to take the reason."""

_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_NO_DESCRIPTORS_PAUSE_S = 0.1
_REFUSALS_AT_ONCE = 32
_REFUSALS_PAUSE_S = 0.01

Data: TypeAlias = str | bytes
Listener: TypeAlias = "trio.SocketListener | trio.SSLListener[trio.SocketStream]"
Stream: TypeAlias = "trio.SocketStream | trio.SSLStream[trio.SocketStream]"


class Handshake(Struct, frozen=True):
    """What a peer says when it connects.

    `token` is that of "Authorization: Bearer", else of "?token=" (browsers cannot set headers), else empty. `origin` is
    that of the page, None for programs, which send none.
    """

    path: str
    origin: str | None = None
    token: str = ""

    def __repr__(self) -> str:
        """Without the token."""
        return f"Handshake(path={self.path!r}, origin={self.origin!r})"


class Refusal(Struct, frozen=True):
    """Why a peer may not connect: an HTTP status and a line of text."""

    status: int
    text: str


class Limits(Struct, frozen=True):
    """What one peer may cost."""

    window_bytes: int
    rates: Rates
    ping_s: float = 2.0
    stall_s: float = 10.0
    handshake_s: float = 5.0
    close_s: float = 5.0
    unfinished_bytes: int = 64 << 20
    handshakes_per_s: float = 50.0


class Shared:
    """What all connections of a server share."""

    def __init__(self, limits: Limits) -> None:
        self.unfinished = Unfinished(limits.unfinished_bytes, limits.stall_s)
        self.handshakes = HandshakeQueue(limits.handshakes_per_s, HANDSHAKE_BURST_S, limits.handshake_s)


Admit: TypeAlias = Callable[[Handshake], Refusal | None]
Handle: TypeAlias = "Callable[[WebSocketPeer], Awaitable[None]]"
Note: TypeAlias = Callable[[str, str], None]
"""Told what went wrong on a connection: the kind, and in words."""


# ---- listening ------------------------------------------------------------------------------------------------------


def tls_context(certificate: str, key: str) -> ssl.SSLContext | None:
    """A server's context from PEM files; None when neither is given.

    :raises ConfigError: only one is given, or they cannot be used.
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
    """(listeners, their URL with the real port).

    :raises AddressInUseError: somebody else listens there.
    :raises ConfigError: the host or the port cannot be bound.
    """
    if not host:
        raise ConfigError(
            "websocket_host is empty; 0.0.0.0 listens on every interface, 127.0.0.1 on this machine's own"
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
    if port == 0:  # a name with several addresses would get a different port on each
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
    limits: Limits,
    admit: Admit,
    handle: Handle,
    note: Note,
    *,
    connections: ConnectionLimits | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled: for each peer that `admit` has nothing against, `handle` runs in a task of its own.

    With `connections`, each connection counts there from its first byte on. Closes the listeners at the end.
    """
    shared = Shared(limits)
    connection = partial(_connection, limits, shared, admit, handle, note)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shared.handshakes.run)
        for listener in listeners:
            nursery.start_soon(_accept, listener, connections, connection, note, nursery)
        task_status.started()


async def _accept(
    listener: Listener,
    connections: ConnectionLimits | None,
    serve_connection: Callable[[Stream, AcceptedConnection], Awaitable[None]],
    note: Note,
    nursery: trio.Nursery,
) -> None:
    """Accept connections and start a task for each one that is not refused."""
    refused_in_a_row = 0
    async with listener:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in _NO_DESCRIPTORS:
                    raise
                note("no_descriptors", f"a WebSocket connection could not be accepted: {error.strerror}")
                await trio.sleep(_NO_DESCRIPTORS_PAUSE_S)
                continue
            accepted = AcceptedConnection(_socket_of(stream), connections)
            if connections is None or connections.add(accepted):
                nursery.start_soon(_serve_accepted, stream, accepted, serve_connection)
                refused_in_a_row = 0
                continue
            _socket_of(stream).close()
            refused_in_a_row += 1
            if refused_in_a_row % _REFUSALS_AT_ONCE == 0:  # a flood of newcomers does not keep the event loop busy
                await trio.sleep(_REFUSALS_PAUSE_S)


async def _serve_accepted(
    stream: Stream,
    accepted: AcceptedConnection,
    serve_connection: Callable[[Stream, AcceptedConnection], Awaitable[None]],
) -> None:
    try:
        with accepted.scope:
            await serve_connection(stream, accepted)
    finally:
        accepted.ended()


def _socket_of(stream: Stream) -> trio.socket.SocketType:
    return (stream.transport_stream if isinstance(stream, trio.SSLStream) else stream).socket


class AcceptedConnection(TrackedConnection):
    """A connection that was accepted, for the limits."""

    __slots__ = ("_limits", "_token", "scope")

    def __init__(self, socket: trio.socket.SocketType, limits: ConnectionLimits | None) -> None:
        try:
            address = address_group(str(socket.getpeername()[0]))
        except OSError:  # it is gone already
            address = ""
        super().__init__(address)
        self.scope = trio.CancelScope()
        """Around the task that serves it."""
        self._limits = limits
        self._token = trio.lowlevel.current_trio_token()

    def establish(self) -> None:
        """The peer has shown a token."""
        if self._limits is not None:
            self._limits.establish(self)

    def ended(self) -> None:
        """The connection is closed."""
        if self._limits is not None:
            self._limits.remove(self)

    def close(self) -> None:
        """Cancel its task, which closes it. From any thread: another listener's newcomer may take its place."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self.scope.cancel)


async def _connection(
    limits: Limits,
    shared: Shared,
    admit: Admit,
    handle: Handle,
    note: Note,
    stream: Stream,
    accepted: AcceptedConnection,
) -> None:
    """One connection, from its first byte to its last; whatever goes wrong with it ends here."""
    metered = MeteredStream(stream, limits.stall_s, FrameMeter(stream.receive_some, limits.rates, shared.unfinished))
    try:
        handshake = await _read_request(metered, limits, shared, admit, note, accepted)
        if handshake is None:
            return
        async with trio.open_nursery() as nursery:
            peer = None
            with trio.move_on_after(limits.handshake_s) as patience:
                metered.meter.refuse = partial(_refuse_early, note, patience)
                peer = await _shake_hands(nursery, metered, handshake, limits, note, accepted)
            if patience.cancelled_caught and trio.current_time() >= patience.deadline:
                note("no_handshake", f"no WebSocket handshake within {limits.handshake_s:g} s")
            if peer is not None:
                await peer.run(handle)
            nursery.cancel_scope.cancel()
    except* (trio_websocket.ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # it went away, in whatever it was doing
    except* LocalProtocolError:
        pass  # trio-websocket answered a ping that came while we were closing
    except* Exception as group:
        note("websocket_failure", _in_words(group))
    finally:
        metered.meter.end()
        with trio.move_on_after(limits.close_s):
            await stream.aclose()


def _refuse_early(note: Note, patience: trio.CancelScope, too_large: bool, reason: str) -> None:
    """Its first frames came behind its request, and were too many, before the handshake was answered."""
    note(_kind(too_large), reason)
    patience.cancel()


def _kind(too_large: bool) -> str:
    return "too_large" if too_large else "malformed"


def _in_words(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_in_words(part) for part in error.exceptions)
    return f"{type(error).__name__}: {error}"


async def _read_request(
    stream: MeteredStream,
    limits: Limits,
    shared: Shared,
    admit: Admit,
    note: Note,
    accepted: AcceptedConnection,
) -> Handshake | None:
    """What the peer says in its request, once it may connect; None: it may not, or it is gone.

    A peer that shows a token does not wait for a turn. With TLS the token arrives after the costly part, so all peers
    wait, before it.
    """

    async def has_turn() -> bool:
        is_granted = await shared.handshakes.wait_turn(accepted.address, lambda: stream.has_hung_up)
        if not is_granted and not stream.has_hung_up:
            note("no_handshake", f"more than {limits.handshakes_per_s:g} handshakes a second without a token")
        return is_granted

    with trio.move_on_after(limits.handshake_s) as patience:
        if stream.is_encrypted:
            await stream.wait_until_heard()
            if not await has_turn():
                return None
        request = await stream.meter.request()
        if not request:
            return None
        handshake = _parse_request(request)
        if not (handshake.token or stream.is_encrypted) and not await has_turn():
            return None
        refusal = admit(handshake)
        if refusal is None:
            return handshake
        note("refused", refusal.text)
        await stream.send_all(_refusal_response(refusal))
    if patience.cancelled_caught:
        note("no_handshake", f"no WebSocket handshake within {limits.handshake_s:g} s")
    return None


async def _shake_hands(
    nursery: trio.Nursery,
    stream: MeteredStream,
    handshake: Handshake,
    limits: Limits,
    note: Note,
    accepted: AcceptedConnection,
) -> WebSocketPeer:
    """Answer the request of a peer that may connect."""
    request = await trio_websocket.wrap_server_stream(
        nursery,
        stream,
        message_queue_size=_UNREAD_MESSAGES,
        max_message_size=limits.rates.message_bytes,
        receive_buffer_size=PIECE_BYTES,
    )
    if handshake.token:
        accepted.establish()
    return WebSocketPeer(await request.accept(), stream, handshake, limits, note, accepted.establish)


def _parse_request(request: bytes) -> Handshake:
    """What is asked in the head of an HTTP request; whether it is a valid one is for trio-websocket to say."""
    first, *lines = request.decode("latin-1").splitlines()
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    target = urlsplit("".join(first.split(" ")[1:2]))
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        token = parse_qs(target.query).get("token", [""])[0]
    return Handshake(target.path, headers.get("origin"), token.strip())


def _refusal_response(refusal: Refusal) -> bytes:
    body = refusal.text.encode() + b"\n"
    head = (
        f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}\r\n"
        f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


# ---- one peer -------------------------------------------------------------------------------------------------------


class WebSocketPeer:
    """One connection. Iterate over it for what the peer says; that ends when the connection does."""

    def __init__(
        self,
        connection: trio_websocket.WebSocketConnection,
        stream: MeteredStream,
        handshake: Handshake,
        limits: Limits,
        note: Note,
        establish: Callable[[], None] = lambda: None,
    ) -> None:
        self.handshake = handshake
        self._establish = establish
        """Call it when the peer has proved who it is: its connection does not give way to newcomers from then on."""
        self.closed_because = ""
        """Why the connection ended, once it has."""
        self._connection = connection
        self._stream = stream
        self._limits = limits
        self._note = note
        self._is_admitted = False
        stream.meter.refuse = self._refuse
        self._queue, self._queued = trio.open_memory_channel[Data](math.inf)
        self._queued_bytes = 0
        self._closing: tuple[int, str] | None = None
        self._discard = False
        self._patience = trio.CancelScope()
        """Around the sender: after `close`, what is left to be sent must be gone by its deadline."""

    def admit(self) -> None:
        """The peer has proved who it is: the limits of strangers no longer hold for it."""
        self._is_admitted = True
        self._establish()
        self._stream.meter.admit()

    def on_life(self, heard: Callable[[], None]) -> None:
        """Call `heard` at each sign of life that is not a message: a pong, or bytes that the peer takes or sends."""
        self._stream.progress = self._stream.meter.heard = heard

    def send(self, data: Data) -> bool:
        """Queue a message. False: it is closed, or closed now because its queue is full."""
        if self._closing is not None:
            return False
        window = self._limits.window_bytes
        counted = min(len(data) + OVERHEAD_BYTES, window)
        if self._queued_bytes + counted > QUEUE_WINDOWS * window:
            self._discard = True
            self.close(POLICY, f"you read too slowly: {self._queued_bytes} bytes wait for you")
            self._note("slow_reader", self.closed_because)
            return False
        self._queued_bytes += counted
        self._queue.send_nowait(data)
        return True

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Close after what is queued has been sent, or after `close_s`. The first code and reason count."""
        if self._closing is None:
            self._closing = (code, reason)
            self.closed_because = self.closed_because or reason
            self._patience.deadline = trio.current_time() + self._limits.close_s
            self._queue.close()

    def _refuse(self, too_large: bool, reason: str) -> None:
        self._note(_kind(too_large), reason)
        self.close(TOO_LARGE if too_large else POLICY, reason)
        if not self._is_admitted:
            self._patience.deadline = trio.current_time() + REFUSED_S

    def __aiter__(self) -> WebSocketPeer:
        return self

    async def __anext__(self) -> Data:
        try:
            return await self._connection.get_message()
        except trio_websocket.ConnectionClosed as closed:
            reason = closed.reason
            said = f"{reason.code} {reason.reason or reason.name}" if reason else "it broke the protocol"
            self.closed_because = self.closed_because or self._stream.broken_because or said
            raise StopAsyncIteration from None

    async def run(self, handle: Handle) -> None:
        """Handle the peer, send to it, and listen to its heart, until it is closed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            nursery.start_soon(self._handle, handle)
            await self._send_queued()
            nursery.cancel_scope.cancel()
        ended = self._connection.closed
        if ended is not None and ended.code in (PROTOCOL_ERROR, NOT_TEXT):
            self._note("malformed", self.closed_because)
        elif self._stream.broken_because and not self._discard:
            self._note("slow_reader", self._stream.broken_because)

    async def _handle(self, handle: Handle) -> None:
        try:
            await handle(self)
        finally:
            self.close()

    async def _send_queued(self) -> None:
        window = self._limits.window_bytes
        with self._patience:
            async for data in self._queued:
                self._queued_bytes -= min(len(data) + OVERHEAD_BYTES, window)
                if self._discard:
                    continue
                try:
                    await self._connection.send_message(data)
                except trio_websocket.ConnectionClosed:
                    break
            code, reason = self._closing or (NORMAL, "")
            await self._connection.aclose(code, reason)

    async def _beat(self) -> None:
        while True:
            await trio.sleep(self._limits.ping_s)
            try:
                await self._connection.ping()
            except trio_websocket.ConnectionClosed:
                return
            self._stream.progress()
