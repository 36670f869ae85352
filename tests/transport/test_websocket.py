"""The WebSocket server over real sockets: handshakes, limits of a peer, and isolation of failures."""

from __future__ import annotations

import errno
import select
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    open_websocket_url,
)

from trio_sched.errors import AddressInUseError, ConfigError
from trio_sched.transport import websocket
from trio_sched.transport.connection_limits import MIN_EVICTION_AGE_S, ConnectionLimits, connection_bounds
from trio_sched.transport.websocket import Handshake, HandshakeRefusal, WebSocketLimits, WebSocketPeer
from trio_sched.transport.websocket_meter import FrameMeter, MeteredStream, PartialMessages, ReceiveLimits

WAIT_S = 30.0
TLS = Path(__file__).parent / "tls"
#: More than the buffers of two sockets hold.
BIG = "x" * 50_000_000
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
)


class Served:
    """A server for one test: its address, and the events that it counted."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.port = int(url.rpartition(":")[2].strip("/"))
        self.notes: list[tuple[str, str]] = []
        self.handshakes: list[Handshake] = []
        self.refusal: HandshakeRefusal | None = None

    def admit(self, handshake: Handshake) -> HandshakeRefusal | None:
        self.handshakes.append(handshake)
        return self.refusal

    def note(self, kind: str, why: str) -> None:
        self.notes.append((kind, why))

    async def noted(self, kind: str) -> str:
        """Wait for an event of this kind, and return its reason."""
        while True:
            for known, why in self.notes:
                if known == kind:
                    return why
            await trio.sleep(0.001)


async def echo(peer: WebSocketPeer) -> None:
    async for data in peer:
        peer.send(data)


@asynccontextmanager
async def serving(
    handle: Callable[[WebSocketPeer], Awaitable[None]] = echo,
    tls: ssl.SSLContext | None = None,
    connections: ConnectionLimits | None = None,
    *,
    admitted: bool = True,
    rates: dict[str, Any] | None = None,
    **limits: Any,
) -> AsyncIterator[Served]:
    """Run a server. `admitted`: every peer is authenticated from its first message on."""
    chosen = WebSocketLimits(
        **{"window_bytes": 1 << 20, "rates": ReceiveLimits(**{"message_bytes": 1 << 20, **(rates or {})}), **limits}
    )

    async def handle_peer(peer: WebSocketPeer) -> None:
        if admitted:
            peer.mark_authenticated()
        await handle(peer)

    listeners, url = await websocket.listen("127.0.0.1", 0, tls)
    server = Served(url)
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            serve = partial(websocket.serve, connections=connections)
            await nursery.start(serve, listeners, chosen, server.admit, handle_peer, server.note)
            yield server
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[WebSocketConnection]:
    """Connect a client, and close its socket, which its library leaves open when the server closes first."""
    async with open_websocket_url(url, **options) as client:
        try:
            yield client
        finally:
            with trio.move_on_after(WAIT_S):
                await client.aclose()
            await trio.aclose_forcefully(client._stream)


async def after_handshake(server: Served) -> trio.SocketStream:
    """Connect a client without a library, and complete its handshake."""
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    await stream.send_all(REQUEST)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += await stream.receive_some(1)
    assert answer.startswith(b"HTTP/1.1 101")
    assert b"deflate" not in answer, "compression would allow a few bytes to become gigabytes"
    return stream


async def read_to_the_end(stream: trio.SocketStream) -> bytes:
    """Read until the server closes the connection, or resets it because of unread bytes. Return the bytes."""
    received = b""
    try:
        while data := await stream.receive_some():
            received += data
    except trio.BrokenResourceError:
        pass
    await stream.aclose()
    return received


async def check_served(server: Served, **options: Any) -> None:
    """Check that the server serves another client."""
    async with connected(server.url, **options) as client:
        await client.send_message("hello")
        assert await client.get_message() == "hello"


async def until_closed(client: WebSocketConnection) -> tuple[int, str | None]:
    """Read until the server closes the connection. Return its code and reason."""
    try:
        while True:
            await client.get_message()
    except ConnectionClosed as closed:
        reason = closed.reason
    assert reason is not None
    return reason.code, reason.reason


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main)


# ---- messages -------------------------------------------------------------------------------------------------------


def test_text_and_binary_messages_are_echoed() -> None:
    async def main() -> None:
        async with serving() as server, connected(server.url) as client:
            for data in ("text", b"binary", "", "ü" * 1000, b"\0" * 500_000):
                await client.send_message(data)
                assert await client.get_message() == data

    run(main)


def test_queued_messages_arrive_before_the_close() -> None:
    async def talk(peer: WebSocketPeer) -> None:
        for number in range(1000):
            assert peer.send(str(number))
        peer.close(1001, "that was all")
        assert not peer.send("late")
        peer.close(1000, "the first reason counts")

    async def main() -> None:
        async with serving(talk) as server, connected(server.url) as client:
            assert [await client.get_message() for _ in range(1000)] == [str(number) for number in range(1000)]
            assert await until_closed(client) == (1001, "that was all")

    run(main)


def test_the_close_reason_of_the_peer_is_kept() -> None:
    send_reason, reasons = trio.open_memory_channel[str](1)

    async def listen(peer: WebSocketPeer) -> None:
        async for _ in peer:
            pass
        send_reason.send_nowait(peer.close_reason)

    async def main() -> None:
        async with serving(listen) as server:
            async with connected(server.url) as client:
                await client.aclose(4001, "had enough")
            assert await reasons.receive() == "4001 had enough"

    run(main)


# ---- handshakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/", [], Handshake("/")),
        ("/x?token=secret&more=1", [], Handshake("/x", None, "secret")),
        ("/", [(b"Authorization", b"Bearer secret")], Handshake("/", None, "secret")),
        ("/?token=other", [(b"authorization", b"bearer  secret")], Handshake("/", None, "secret")),
        ("/?token=a%20b", [(b"Authorization", b"Basic abc")], Handshake("/", None, "a b")),
        ("/", [(b"Origin", b"https://evil.example")], Handshake("/", "https://evil.example")),
        ("/", [(b"Origin", b"null")], Handshake("/", "null")),
    ],
)
def test_a_handshake_has_path_origin_and_token(
    path: str, headers: list[tuple[bytes, bytes]], expected: Handshake
) -> None:
    async def main() -> None:
        async with serving() as server:
            await answers_at(server, path, headers)
            assert server.handshakes == [expected]
            assert "secret" not in repr(server.handshakes)

    async def answers_at(server: Served, path: str, headers: list[tuple[bytes, bytes]]) -> None:
        async with connected(server.url.rstrip("/") + path, extra_headers=headers):
            pass

    run(main)


def test_a_refusal_is_an_http_response_with_the_reason() -> None:
    async def main() -> None:
        async with serving() as server:
            server.refusal = HandshakeRefusal(403, "not you")
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
            await stream.send_all(REQUEST)
            answer = await read_to_the_end(stream)
            assert answer.startswith(b"HTTP/1.1 403")
            assert answer.endswith(b"\r\n\r\nnot you\n")
            assert await server.noted("refused") == "not you"
            server.refusal = None
            await check_served(server)

    run(main)


# ---- the rate of handshakes -----------------------------------------------------------------------------------------


#: Permits one handshake, and the next one after several seconds.
ONE_HANDSHAKE: dict[str, Any] = {"handshakes_per_s": 1 / websocket.HANDSHAKE_BURST_S}


def test_connections_without_a_request_take_no_turn() -> None:
    async def main() -> None:
        async with serving(**ONE_HANDSHAKE) as server:
            for _ in range(50):
                await (await trio.open_tcp_stream("127.0.0.1", server.port)).aclose()
            silent = [await trio.open_tcp_stream("127.0.0.1", server.port) for _ in range(50)]
            await check_served(server)
            for stream in silent:
                await trio.aclose_forcefully(stream)
            assert server.notes == []

    run(main)


def test_peers_with_a_token_do_not_wait_for_peers_without_one() -> None:
    async def main() -> None:
        async with serving(handshake_s=20.0, **ONE_HANDSHAKE) as server:
            await check_served(server)
            waiting = [await trio.open_tcp_stream("127.0.0.1", server.port) for _ in range(6)]
            for stream in waiting:
                await stream.send_all(REQUEST)
            async with connected(server.url + "?token=shown"), connected(server.url + "?token=shown") as page:
                await page.send_message("in")
                assert await page.get_message() == "in"
            for stream in waiting:
                await trio.aclose_forcefully(stream)

    run(main)


def test_in_a_full_queue_the_oldest_handshake_is_refused() -> None:
    async def main() -> None:
        async with serving(handshake_s=4.0, **ONE_HANDSHAKE) as server:  # one request may wait
            await check_served(server)
            oldest = await trio.open_tcp_stream("127.0.0.1", server.port)
            await oldest.send_all(REQUEST)
            newest = await trio.open_tcp_stream("127.0.0.1", server.port)
            await newest.send_all(REQUEST)
            assert await read_to_the_end(oldest) == b""
            assert "handshakes a second without a token" in await server.noted("no_handshake")
            await trio.aclose_forcefully(newest)

    run(main)


@pytest.mark.skipif(not hasattr(select, "POLLRDHUP"), reason="the system does not report it")
def test_a_close_by_the_peer_is_detected_behind_unread_bytes() -> None:
    async def main() -> None:
        here, there = trio.socket.socketpair()
        async with trio.SocketStream(here) as stream:
            meter = FrameMeter(
                stream.receive_some,
                ReceiveLimits(1 << 20),
                PartialMessages(1 << 20),
                on_violation=lambda _too_large, _reason: None,
                on_activity=lambda: None,
            )
            metered = MeteredStream(stream, meter, 1.0, on_progress=lambda: None)
            await there.send(b"a request")
            assert not metered.is_closed_by_peer
            there.close()
            assert metered.is_closed_by_peer

    run(main)


# ---- limits of a peer -----------------------------------------------------------------------------------------------


def test_a_message_that_is_too_large_closes_the_connection_with_the_reason() -> None:
    async def main() -> None:
        async with serving(rates={"message_bytes": 1000}) as server:
            async with connected(server.url) as client:
                await client.send_message("y" * 1000)
                assert len(await client.get_message()) == 1000
                await client.send_message("x" * 3_000_000)
                code, reason = await until_closed(client)
                assert code == websocket.TOO_LARGE
                assert "1000 bytes" in (reason or "")
            assert "1000 bytes" in await server.noted("too_large")
            await check_served(server)

    run(main)


def test_a_peer_with_a_full_queue_is_closed_with_the_reason() -> None:
    accepted: list[int] = []

    async def flood(peer: WebSocketPeer) -> None:
        count = 0
        while peer.send(b"x" * 10_000):
            count += 1
        accepted.append(count)
        async for _ in peer:
            pass

    async def main() -> None:
        async with serving(flood, window_bytes=100_000) as server:
            async with connected(server.url) as client:
                code, reason = await until_closed(client)
            assert code == websocket.POLICY
            assert "the peer reads too slowly" in (reason or "")
            assert "the peer reads too slowly" in await server.noted("slow_reader")
            assert 25 <= accepted[0] <= 30

    run(main)


def test_a_message_larger_than_the_queue_is_sent() -> None:
    async def talk(peer: WebSocketPeer) -> None:
        assert peer.send("small")
        assert peer.send("y" * 5_000_000)
        assert peer.send("small")

    async def main() -> None:
        async with (
            serving(talk, window_bytes=10_000) as server,
            connected(server.url, max_message_size=1 << 30) as client,
        ):
            assert [len(await client.get_message()) for _ in range(3)] == [5, 5_000_000, 5]

    run(main)


def test_a_peer_that_does_not_read_is_disconnected() -> None:
    async def talk(peer: WebSocketPeer) -> None:
        peer.send(BIG)
        async for _ in peer:
            pass

    async def main() -> None:
        async with serving(talk, stall_s=0.2) as server:
            stream = await after_handshake(server)
            assert "nothing in 0.2 s" in await server.noted("slow_reader")
            await stream.aclose()
            assert [kind for kind, _ in server.notes] == ["slow_reader"]

    run(main)


def test_bytes_that_the_peer_reads_are_activity() -> None:
    active_at: list[float] = []

    async def talk(peer: WebSocketPeer) -> None:
        peer.on_activity(lambda: active_at.append(trio.current_time()))
        peer.send(BIG)
        async for _ in peer:
            pass

    async def main() -> None:
        async with (
            serving(talk, ping_s=3600.0) as server,
            connected(server.url, max_message_size=1 << 30) as client,
        ):
            assert len(await client.get_message()) == len(BIG)
        assert active_at

    run(main)


def test_bytes_that_only_the_kernel_takes_are_not_activity() -> None:
    active_at: list[float] = []

    async def talk(peer: WebSocketPeer) -> None:
        peer.on_activity(lambda: active_at.append(trio.current_time()))
        peer.send("x" * 1000)
        async for _ in peer:
            pass

    async def main() -> None:
        async with serving(talk, ping_s=0.01) as server:
            stream = await after_handshake(server)
            received = b""
            while b"\x89\x04" not in received:  # a ping, which the client does not answer
                received += await stream.receive_some()
            await stream.aclose()
        assert active_at == []

    run(main)


def test_pongs_are_activity() -> None:
    async def talk(peer: WebSocketPeer) -> None:
        active = trio.Event()
        peer.on_activity(active.set)
        await active.wait()
        peer.send("alive")

    async def main() -> None:
        async with serving(talk, ping_s=0.01) as server, connected(server.url) as client:
            assert await client.get_message() == "alive"

    run(main)


def test_a_close_that_the_peer_does_not_answer_has_a_deadline() -> None:
    async def talk(peer: WebSocketPeer) -> None:
        peer.close(1001, "bye")

    async def main() -> None:
        async with serving(talk, close_s=0.1) as server:
            stream = await after_handshake(server)
            assert (await read_to_the_end(stream)).endswith(b"bye")

    run(main)


# ---- isolation of failures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01 not TLS here", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(100_000)]
)
def test_an_invalid_handshake_ends_only_its_own_connection(garbage: bytes) -> None:
    async def main() -> None:
        async with serving(handshake_s=0.2) as server:
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
            with suppress(trio.BrokenResourceError):
                await stream.send_all(garbage)
            await read_to_the_end(stream)
            await check_served(server)

    run(main)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x81\x05hello", 1002),  # not masked, as a client's frames must be
        (b"\x81\x82\0\0\0\0\xff\xff", 1007),  # text that is not UTF-8
        (b"\x83\x80\0\0\0\0", 1002),  # a frame of an undefined type
        (b"\xc1\x80\0\0\0\0", 1002),  # compressed, without the extension
    ],
)
def test_a_broken_frame_ends_only_its_own_connection(frame: bytes, code: int) -> None:
    async def main() -> None:
        async with serving(close_s=0.2) as server:
            stream = await after_handshake(server)
            await stream.send_all(frame)
            await read_to_the_end(stream)
            assert (await server.noted("malformed")).startswith(str(code))
            await check_served(server)

    run(main)


def test_a_connection_without_a_request_times_out() -> None:
    async def main() -> None:
        async with serving(handshake_s=0.1) as server:
            assert await read_to_the_end(await trio.open_tcp_stream("127.0.0.1", server.port)) == b""
            assert "0.1 s" in await server.noted("no_handshake")

    run(main)


def test_a_handler_that_fails_ends_its_own_connection() -> None:
    async def fail(peer: WebSocketPeer) -> None:
        async for data in peer:
            if data == "fail":
                raise ValueError("the handler failed")
            peer.send(data)

    async def main() -> None:
        async with serving(fail) as server:
            async with connected(server.url) as client:
                await client.send_message("fail")
                await until_closed(client)
            assert "the handler failed" in await server.noted("websocket_failure")
            await check_served(server)

    run(main)


# ---- listening ------------------------------------------------------------------------------------------------------


def test_tls_connections_are_served() -> None:
    async def main() -> None:
        tls = websocket.tls_context(str(TLS / "localhost.crt"), str(TLS / "localhost.key"))
        async with serving(tls=tls, handshake_s=0.5) as server:
            assert server.url.startswith("wss://127.0.0.1:")
            trusting = ssl.create_default_context(cafile=str(TLS / "localhost.crt"))
            await check_served(server, ssl_context=trusting)
            untrusting = await trio.open_ssl_over_tcp_stream("127.0.0.1", server.port)
            with pytest.raises(trio.BrokenResourceError):
                await untrusting.do_handshake()
            await trio.aclose_forcefully(untrusting)
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            await read_to_the_end(stream)
            await check_served(server, ssl_context=trusting)

    run(main)


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        ("localhost.crt", "", "websocket_key is not set"),
        ("", "localhost.key", "websocket_certificate is not set"),
        ("none.crt", "localhost.key", "No such file"),
        ("localhost.key", "localhost.crt", "cannot be used"),
    ],
)
def test_an_unusable_certificate_is_an_error(certificate: str, key: str, message: str) -> None:
    paths = [str(TLS / name) if name else "" for name in (certificate, key)]
    with pytest.raises(ConfigError, match=message):
        websocket.tls_context(*paths)


def test_without_a_certificate_there_is_no_tls() -> None:
    assert websocket.tls_context("", "") is None


def test_a_port_in_use_is_an_error() -> None:
    async def main() -> None:
        async with serving() as server:
            with pytest.raises(AddressInUseError, match=f"websocket_port = {server.port}"):
                await websocket.listen("127.0.0.1", server.port)

    run(main)


@pytest.mark.parametrize("host", ["", "192.0.2.1", "no such host"])
def test_an_invalid_host_is_an_error(host: str) -> None:
    with pytest.raises(ConfigError, match="websocket_host"):
        trio.run(websocket.listen, host, 0)


def test_a_name_with_several_addresses_has_one_port() -> None:
    async def main() -> None:
        listeners, url = await websocket.listen("localhost", 0)
        assert len(listeners) == 1
        assert url.startswith("ws://localhost:")
        for listener in listeners:
            await listener.aclose()

    run(main)


# ---- limits of connections ------------------------------------------------------------------------------------------


async def until_open(limits: ConnectionLimits, count: int) -> None:
    """Wait until `count` connections are counted."""
    while True:
        if limits.open_count == count:
            return
        await trio.sleep(0.001)


def test_silent_connections_are_closed_in_favor_of_new_ones_and_those_with_a_token_stay() -> None:
    async def main() -> None:
        now = 100.0
        notes: list[str] = []
        limits = ConnectionLimits(connection_bounds(20_000, 4), lambda kind, why: notes.append(kind), lambda: now)
        async with serving(connections=limits) as server:
            async with connected(server.url + "?token=shown") as page:
                silent = [await trio.open_tcp_stream("127.0.0.1", server.port) for _ in range(3)]
                await until_open(limits, 4)
                refused = await trio.open_tcp_stream("127.0.0.1", server.port)
                assert await read_to_the_end(refused) == b""
                now += MIN_EVICTION_AGE_S
                async with connected(server.url + "?token=shown") as other:
                    assert await read_to_the_end(silent[0]) == b""
                    for client in (page, other):
                        await client.send_message("hello")
                        assert await client.get_message() == "hello"
                for stream in silent[1:]:
                    await stream.aclose()
            assert notes == ["connection_refused", "silent_connection_closed"]
            await until_open(limits, 0)

    trio.run(main)


def test_a_listener_continues_after_a_lack_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_NO_DESCRIPTORS_PAUSE_S", 0.0)
    accept = trio.SocketListener.accept
    failures = iter([errno.EMFILE, errno.ENFILE])

    async def fail_first(self: trio.SocketListener) -> trio.SocketStream:
        for number in failures:
            raise OSError(number, "none left")
        return await accept(self)

    monkeypatch.setattr(trio.SocketListener, "accept", fail_first)

    async def main() -> None:
        async with serving() as server:
            await check_served(server)
            assert [kind for kind, _ in server.notes].count("no_descriptors") == 2

    trio.run(main)
