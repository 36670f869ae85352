"""The WebSocket front over real sockets: authentication, limits, and sessions that survive their connection."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from trio_sched.errors import AddressInUseError, ConfigError
from trio_sched.server.config import Config
from trio_sched.server.native import NativeFront
from trio_sched.server.serve import serve
from trio_sched.testing import FakeClient
from trio_sched.transport.zmq_socket import ZmqSocket
from trio_sched.web import front
from trio_sched.web.front import WebSocketFront
from trio_sched.wire import native, payload
from trio_sched.wire.native import TaskResult

BY_NAME = {"id": 1, "call": "math:hypot", "args": [3, 4]}
REQUEST = (
    "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
)


def plain(call: native.Call, value: Any) -> TaskResult:
    """Return an engine's result of a call by name."""
    return TaskResult(call.id, body=msgspec.msgpack.encode(value), codec="msgpack", attempt=call.attempt)


async def refusal(url: str, path: str = "/", headers: str = "") -> tuple[int, str]:
    """Send a handshake that is refused. Return the status and the body of the response."""
    stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2].strip("/")))
    await stream.send_all(REQUEST.format(path=path, headers=headers).encode())
    answer = b""
    while data := await stream.receive_some():
        answer += data
    await stream.aclose()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


# ---- messages -------------------------------------------------------------------------------------------------------


def test_a_call_by_name_is_submitted_in_json(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it, it.bearer() as page:
            engine = await it.engine()
            welcome = await page.join()
            await page.submit(BY_NAME)
            call = await engine.next_call()
            assert (call.call, call.args) == ("math:hypot", [3, 4])
            engine.send(native.Finished([plain(call, {"length": 5.0})]))
            [end] = await page.results(1)
            assert end["value"] == {"length": 5.0}
            assert end["id"] == (welcome["session"] << 32) + 1

    run(main)


def test_a_pickled_call_is_submitted_in_json(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it, it.bearer() as page:
            engine = await it.engine(eager=True)
            await page.join()
            function = base64.b64encode(payload.digest(b"f")).decode()
            body = base64.b64encode(b"\xff\0pickle").decode()
            await page.submit(
                {"id": 1, "fn": function, "body": body}, functions={function: base64.b64encode(b"f").decode()}
            )
            [end] = await page.results(1)
            assert base64.b64decode(end["body"]) == b"\xff\0pickle"
            assert engine.functions == {payload.digest(b"f"): b"f"}

    run(main)


def test_a_binary_client_receives_binary_messages(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it, it.bearer() as page:
            await it.engine(eager=True)
            send, receive = page.connection.send_message, page.connection.get_message
            await send(native.encode(native.Hello("client")))
            welcome = native.decode_to_client(await receive())
            assert isinstance(welcome, native.Welcome)
            await send(native.encode(native.Submit([native.Call(1, body=b"\xff", attached=[b"a", b"b"])])))
            while True:
                message = native.decode_to_client(await receive())
                if isinstance(message, native.Results):
                    break
            [end] = message.results
            assert (end.body, end.outcome) == (b"\xff", "ok")

    run(main)


def test_frames_are_part_of_their_record(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it, it.bearer() as page:
            engine = await it.engine()
            await page.join()
            attached = [base64.b64encode(part).decode() for part in (b"x" * 100_000, b"y")]
            await page.submit({"id": 1, "body": base64.b64encode(b"call").decode(), "attached": attached})
            call = await engine.next_call()
            assert (call.body, call.frames) == (b"call", 2)
            await engine.finish(call, b"", [b"body" * 10_000, b"buffer"])
            [end] = await page.results(1)
            assert base64.b64decode(end["body"]) == b"body" * 10_000
            assert [base64.b64decode(part) for part in end["attached"]] == [b"buffer"]

    run(main)


def test_messages_behind_a_hello_wait_for_the_welcome(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it, it.bearer() as page:
            await it.engine(eager=True)
            sent = [{"type": "hello", "role": "client"}]
            sent += [{"type": "submit", "tasks": [{"id": number, "body": ""}]} for number in range(1, 101)]
            await page.connection._stream.send_all(b"".join(frame(json.dumps(message)) for message in sent))
            assert len(await page.results(100)) == 100

    run(main)


def test_a_malformed_message_is_answered_and_changes_nothing(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it, it.bearer() as page:
            await page.join()
            for text, kind in (("{", "malformed"), ('{"type": "dance"}', "unknown_type"), ("[1e999]", "malformed")):
                await page.connection.send_message(text)
                assert (await page.receive("error"))["kind"] == kind
            await page.send("query", request=7, what="status")
            reply = await page.receive("reply")
            assert (reply["request"], reply["data"]["counters"]["malformed"]) == (7, 2)

    run(main)


def test_the_welcome_has_the_message_limit_of_the_front(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab(websocket_max_message_bytes=10_000) as it:
            async with it.bearer() as page:
                assert (await page.join())["max_message_bytes"] == 10_000
                await page.submit({"id": 1, "body": "A" * 20_000})
                code, reason = await page.closed()
                assert code == 1009
                assert "10000 bytes" in reason
            assert await it.counted("too_large") == 1
            async with it.bearer() as page:
                await page.join()

    run(main)


# ---- handshakes -----------------------------------------------------------------------------------------------------


def test_the_token_is_accepted_in_three_places(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab(websocket_token="a b&c=ü") as it:
            assert it.token == "a b&c=ü"
            async with it.connect(query="?token=a%20b%26c%3D%C3%BC") as page:
                await page.join()
            async with it.connect() as page:
                await page.join(token=it.token)
        async with lab() as it, it.connect(headers={"Authorization": f"Bearer {it.token}"}) as page:
            await page.join()

    run(main)


def test_a_wrong_token_is_refused(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it:
            engine_token = it.running.engine_connection.token
            for wrong in ("wrong", engine_token, it.token + "x", it.token[:-1], "%FF"):
                status, body = await refusal(it.url, f"/?token={wrong}")
                assert (status, "token" in body) == (401, True)
                assert (await refusal(it.url, "/", f"Authorization: Bearer {wrong}\r\n"))[0] == 401
            async with it.connect() as page:
                await page.send("hello", role="client", token="wrong")
                assert (await page.receive("error"))["kind"] == "unauthenticated"
                assert (await page.closed())[0] == 1008
            async with it.connect() as page:
                await page.send("hello", role="client")
                assert (await page.receive("error"))["kind"] == "unauthenticated"
                assert (await page.closed())[0] == 1008
            assert it.running.status()["clients"] == []

    run(main)


@pytest.mark.parametrize("role", ["engine", "nanny"])
def test_only_clients_may_connect(run: Any, lab: Any, role: str) -> None:
    async def main() -> None:
        async with lab() as it, it.bearer() as page:
            await page.send("hello", role=role, token=it.running.engine_connection.token)
            assert (await page.receive("error"))["kind"] == "unauthenticated"
            assert (await page.closed())[0] == 1008

    run(main)


def test_the_first_message_must_be_a_hello(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it:
            for text in ('{"type": "ping"}', "nonsense", '{"type": "submit", "tasks": []}'):
                async with it.bearer() as page:
                    await page.connection.send_message(text)
                    await page.receive("error")
                    assert (await page.closed())[0] == 1008

    run(main)


def test_the_hello_has_a_time_limit(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab(websocket_hello_s=0.5) as it:
            async with it.bearer() as page:
                code, reason = await page.closed()
                assert code == 1008
                assert "no Hello" in reason
            async with it.bearer() as page:
                await page.join()
                await trio.sleep(0.6)
                await page.send("ping")
                await page.receive("pong")

    run(main)


def test_pages_of_other_origins_are_refused(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab(websocket_origins=("https://lab.example", "http://localhost:8000")) as it:
            for evil in ("https://evil.example", "null", "https://lab.example.evil", "http://lab.example", ""):
                status, body = await refusal(it.url, f"/?token={it.token}", f"Origin: {evil}\r\n")
                assert (status, "websocket_origins" in body) == (403, True)
            async with it.bearer() as page:
                await page.join()
            good = {"Authorization": f"Bearer {it.token}", "Origin": "https://lab.example"}
            async with it.connect(headers=good) as page:
                await page.join()

    run(main)


def test_other_paths_are_refused(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it:
            assert (await refusal(it.url, "/other"))[0] == 404

    run(main)


def test_the_number_of_connections_is_limited(run: Any, lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(front, "EXTRA_CONNECTIONS", 1)
        async with lab(max_clients=1) as it, it.bearer() as first, it.bearer() as second:
            await first.join()
            await second.send("hello", role="client")
            assert (await second.receive("error"))["kind"] == "too_many"
            async with it.bearer() as third:
                assert (await refusal(it.url))[0] == 503
                del third
                await first.send("ping")
                await first.receive("pong")

    run(main)


# ---- sessions -------------------------------------------------------------------------------------------------------


def test_results_wait_for_a_disconnected_client(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it:
            engine = await it.engine()
            async with it.bearer() as page:
                welcome = await page.join()
                await page.submit(BY_NAME, {**BY_NAME, "id": 2})
                calls = [await engine.next_call(), await engine.next_call()]
                engine.send(native.Finished([plain(calls[0], "first")]))
                assert (await page.receive("results"))["results"][0]["value"] == "first"
            with trio.fail_after(5):  # at once, not after the heartbeat timeout
                await it.until(lambda: not it.running.status()["clients"][0]["connected"])
            engine.send(native.Finished([plain(calls[1], "second")]))
            async with it.bearer() as page:
                resume = {key: welcome[key] for key in ("session", "secret", "scheduler")}
                again = await page.join(**resume)
                assert (again["session"], again["resumed"], again["accepted"]) == (welcome["session"], True, 2)
                ends = await page.results(2)
                assert [end["value"] for end in ends] == ["first", "second"], "the first was not acknowledged"

    run(main)


def test_a_session_is_on_one_connection_at_a_time(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it, it.bearer() as first, it.bearer() as second:
            welcome = await first.join()
            await second.join(session=welcome["session"], secret=welcome["secret"])
            code, reason = await first.closed()
            assert (code, "another connection" in reason) == (1008, True)
            await second.send("ping")
            await second.receive("pong")

    run(main)


def test_a_bye_is_answered_with_a_normal_close(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it, it.bearer() as page:
            await page.join()
            await page.send("bye")
            assert await page.closed() == (1000, "session closed")
            assert it.running.status()["clients"] == []

    run(main)


def test_a_page_that_only_sends_pongs_stays_connected(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab(heartbeat_s=0.1, missed_heartbeats=5) as it, it.bearer() as page:
            await page.join()
            await trio.sleep(1.5)  # three times the heartbeat timeout, in which only pongs arrive
            await page.send("ping")
            await page.receive("pong")
            assert it.running.status()["clients"][0]["connected"]

    run(main)


def test_a_shutdown_closes_every_connection_with_the_reason(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it, it.bearer() as page:
            await page.join()
            it.running.stop("enough")
            assert await page.closed() == (1001, "the scheduler shut down")
            assert {message["reason"] for message in page.received if message["type"] == "closing"} == {"enough"}

    run(main)


# ---- slow readers ---------------------------------------------------------------------------------------------------


def test_a_slow_reader_delays_no_other_client_and_gets_its_results_later(run: Any, lab: Any) -> None:
    count, size = 150, 100_000

    async def main() -> None:
        fast = {"websocket_bytes_per_s": 1 << 30}
        async with lab(window_bytes=1 << 20, heartbeat_s=0.25, missed_heartbeats=30, **fast) as it:
            await it.engine(eager=True)
            welcome = await submit_without_reading(it)
            async with it.bearer() as page:
                again = await page.join(**welcome)
                assert again["resumed"]
                ends = await page.results(count)
                assert sorted(end["id"] & 0xFFFF_FFFF for end in ends) == list(range(1, count + 1))

    async def submit_without_reading(it: Any) -> dict[str, Any]:
        """Run a client that submits and does not read, until it is disconnected. Return the keys of its session."""
        stream = await trio.open_tcp_stream("127.0.0.1", int(it.url.rpartition(":")[2].strip("/")))
        await stream.send_all(REQUEST.format(path=f"/?token={it.token}", headers="").encode())
        received = b""
        while b"\r\n\r\n" not in received:
            received += await stream.receive_some()
        await stream.send_all(frame(json.dumps({"type": "hello", "role": "client"})))
        while not received.endswith(b"}"):
            received += await stream.receive_some()
        welcome = json.loads(received[received.index(b'{"type":"welcome"') :])
        body = base64.b64encode(bytes(size)).decode()
        for number in range(1, count + 1):
            await stream.send_all(frame(json.dumps({"type": "submit", "tasks": [{"id": number, "body": body}]})))
        native_client = FakeClient(lambda: ZmqSocket.dealer(it.running.connection), it.running.connection.token)
        await it.nursery.start(native_client.run)
        await native_client.join()
        await native_client.result_of(await native_client.submit("meanwhile"), 10.0)
        await it.until(lambda: not it.running.status()["clients"][0]["connected"])
        await native_client.result_of(await native_client.submit("afterwards"), 10.0)
        await stream.aclose()
        return {key: welcome[key] for key in ("session", "secret")}

    run(main)


def frame(text: str) -> bytes:
    """Return a text frame of a client, masked with zeros."""
    data = text.encode()
    length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xff" + len(data).to_bytes(8, "big")
    return b"\x81" + length + bytes(4) + data


def test_a_client_that_queries_and_does_not_read_is_closed(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab(window_bytes=1 << 14) as it:
            async with it.bearer(message_queue_size=1) as page:
                await page.join()
                number = 0
                while not it.running.server.ingress.counters["slow_reader"]:
                    number += 1
                    await page.send("query", request=number, what="status")
                code, reason = await page.closed()
                assert code == 1008
                assert "too slowly" in reason
            assert await it.counted("slow_reader") == 1

    run(main)


# ---- listening ------------------------------------------------------------------------------------------------------


def test_the_connection_file_contains_the_url(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it:
            assert it.url == it.running.addresses["websocket"]
            assert it.url.startswith("ws://127.0.0.1:")
            assert it.running.engine_connection.websocket == ""
        async with lab(websocket_host="0.0.0.0", advertised_host="lab.example") as it:
            assert it.url.startswith("ws://lab.example:")

    run(main)


def test_invalid_settings_are_errors(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it:
            port = int(it.url.rpartition(":")[2].strip("/"))
            for error, settings in (
                (AddressInUseError, {"websocket_port": port}),
                (ConfigError, {"websocket_certificate": "none.pem", "websocket_key": "none.pem"}),
                (ConfigError, {"websocket_host": "192.0.2.1"}),
            ):
                config = Config(name="other", **{"websocket_port": 0, **settings})
                with pytest.raises(error, match="websocket"):
                    await serve(config, [NativeFront(config), WebSocketFront(config)])

    run(main)


def test_the_front_serves_tls(run: Any, lab: Any) -> None:
    import ssl

    tls = Path(__file__).parents[1] / "transport" / "tls"
    settings = {"websocket_certificate": str(tls / "localhost.crt"), "websocket_key": str(tls / "localhost.key")}

    async def main() -> None:
        async with lab(**settings) as it:
            assert it.url.startswith("wss://")
            trusting = ssl.create_default_context(cafile=settings["websocket_certificate"])
            async with it.bearer(ssl_context=trusting) as page:
                await page.join()

    run(main)


# ---- unauthenticated peers and large messages -----------------------------------------------------------------------


def test_an_unauthenticated_peer_that_floods_is_closed_and_others_are_served(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it:
            stream = await trio.open_tcp_stream("127.0.0.1", int(it.url.rpartition(":")[2].strip("/")))
            await stream.send_all(REQUEST.format(path="/", headers="").encode())
            with suppress(trio.BrokenResourceError):
                await stream.send_all(b"\x01\x80\x00\x00\x00\x00" + b"\x00\x80\x00\x00\x00\x00" * 5000)
                while await stream.receive_some():
                    pass
            await stream.aclose()
            assert await it.counted("malformed") == 1
            async with it.connect() as page:
                await page.join(token=it.token)

    run(main)


def test_the_hello_has_a_smaller_size_limit_than_later_messages(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it:
            await it.engine(eager=True)
            async with it.bearer() as page:
                await page.send("hello", role="client")
                await page.submit({"id": 1, "body": "A" * 100_000})
                await page.results(1)
            async with it.bearer() as page:
                await page.send("hello", role="client", name="x" * 20_000)
                assert (await page.closed())[0] == 1009

    run(main)


def test_large_messages_are_decoded_one_at_a_time_and_small_ones_do_not_wait(run: Any, lab: Any) -> None:
    async def main() -> None:
        async with lab() as it:
            await it.engine(eager=True)
            large = {"call": "no:where", "args": [[[]] * 100_000]}
            async with it.bearer() as one, it.bearer() as two, it.bearer() as small, trio.open_nursery() as nursery:
                for page in (one, two, small):
                    await page.join()
                for page in (one, two):
                    nursery.start_soon(page.submit, {"id": 1, **large}, {"id": 2, **large})
                await small.submit({"id": 1, "body": "AAAA"})
                await small.results(1)
                for page in (one, two):
                    await page.results(2)

    run(main)
