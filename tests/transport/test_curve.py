"""CURVE and ZAP: only peers with a key of one of the two roles are admitted."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
import zmq
from msgspec.structs import replace

from trio_sched.transport import curve
from trio_sched.transport.zmq_blocking import BlockingDealer
from trio_sched.transport.zmq_socket import ZmqSocket

WAIT_S = 10.0
REQUEST = [b"1.0", b"7", b"trio_sched", b"10.0.0.1", b"", b"CURVE", b"k" * 32]
ROLES: dict[bytes, Any] = {b"k" * 32: "engine"}


def test_a_known_key_is_admitted_with_its_role() -> None:
    assert curve.zap_reply(REQUEST, ROLES) == [b"1.0", b"7", b"200", b"OK", b"engine", b""]


@pytest.mark.parametrize(
    ("at", "value"),
    [(6, b"x" * 32), (6, b""), (5, b"PLAIN"), (5, b"NULL"), (2, b""), (2, b"other"), (0, b"2.0")],
)
def test_other_requests_are_refused(at: int, value: bytes) -> None:
    request = [*REQUEST]
    request[at] = value
    assert curve.zap_reply(request, ROLES)[:3] == [b"1.0", b"7", b"400"]


@pytest.mark.parametrize("request_", [[], [b"1.0"], REQUEST[:-1], [*REQUEST, b"more"]])
def test_a_malformed_request_is_refused(request_: list[bytes]) -> None:
    assert curve.zap_reply(request_, ROLES)[2] == b"400"


def test_keys_are_new_and_their_reprs_omit_secrets() -> None:
    keys = curve.new_keys()
    pairs = [keys.server, *keys.roles.values()]
    assert len({pair.secret for pair in pairs} | {pair.public for pair in pairs}) == 6
    assert not any(pair.secret in repr(keys) for pair in pairs)
    assert keys.server.secret not in repr(keys.for_server())


@pytest.mark.parametrize("role", ["client", "engine"])
def test_both_roles_are_admitted(run: Any, secured: Any, role: str) -> None:
    async def main() -> None:
        with secured.router() as router, BlockingDealer(secured.connection(router, role)) as dealer:
            async with anyio.create_task_group() as group:
                group.start_soon(router.authenticate)
                dealer.send([b"hello"])
                with anyio.fail_after(WAIT_S):
                    [[_, body]] = await router.receive()
                assert body == b"hello"
                router.close()

    run(main)


def test_messages_of_an_unknown_key_do_not_arrive(run: Any, secured: Any) -> None:
    async def main() -> None:
        other = curve.new_keys().roles["client"]
        with secured.router() as router:
            right = secured.connection(router)
            wrong = replace(right, public_key=other.public, secret_key=other.secret)
            async with anyio.create_task_group() as group:
                group.start_soon(router.authenticate)
                with ZmqSocket.dealer(wrong) as refused, ZmqSocket.dealer(right) as admitted:
                    refused.send([b"hello"])
                    with anyio.fail_after(WAIT_S):
                        while not router.refused_key_count:
                            await anyio.lowlevel.checkpoint()
                    admitted.send([b"hello"])
                    with anyio.fail_after(WAIT_S):
                        assert [body for _, body in await router.receive()] == [b"hello"]
                router.close()

    run(main)


def _refused(socket: zmq.Socket[bytes], address: str) -> bool:
    """Whether the handshake of `socket` with `address` fails, or its connection is closed."""
    failed = (
        zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        | zmq.EVENT_DISCONNECTED
    )
    with socket.get_monitor_socket(failed | zmq.EVENT_HANDSHAKE_SUCCEEDED) as monitor:
        socket.connect(address)
        assert monitor.poll(WAIT_S * 1000)
        event = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
        socket.disable_monitor()
        return bool(event & failed)


@pytest.mark.parametrize("which", ["plain", "wrong server key"])
def test_a_handshake_without_keys_or_with_another_server_key_fails(run: Any, secured: Any, which: str) -> None:
    async def main() -> None:
        with secured.router() as router, zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            if which == "wrong server key":
                other = curve.new_keys().server.public
                curve.set_client_options(socket, replace(secured.connection(router), server_key=other))
            async with anyio.create_task_group() as group:
                group.start_soon(router.authenticate)
                assert await anyio.to_thread.run_sync(_refused, socket, router.address)
                router.close()

    run(main)


def test_a_router_without_its_zap_handler_admits_no_connection(run: Any, secured: Any) -> None:
    async def main() -> None:
        with secured.router() as router, ZmqSocket.dealer(secured.connection(router)) as dealer:
            dealer.send([b"hello"])
            assert router._authenticator is not None
            with anyio.fail_after(WAIT_S):
                [[_, _, *request]] = await router._authenticator.receive()  # the request is not answered
            assert request[5] == b"CURVE"
            assert router._option(zmq.EVENTS) & zmq.POLLIN == 0

    run(main)


def test_the_keys_of_one_scheduler_are_refused_by_another(run: Any, secured: Any) -> None:
    async def main() -> None:
        other = curve.new_keys()
        with secured.router() as first, ZmqSocket.router("tcp://127.0.0.1:0", keys=other.for_server()) as second:
            wrong = replace(secured.connection(first), address=second.address, server_key=other.server.public)
            async with anyio.create_task_group() as group:
                group.start_soon(first.authenticate)
                group.start_soon(second.authenticate)
                with ZmqSocket.dealer(wrong) as dealer, ZmqSocket.dealer(secured.connection(first)) as right:
                    dealer.send([b"hello"])
                    right.send([b"hello"])
                    with anyio.fail_after(WAIT_S):
                        assert len(await first.receive()) == 1
                        while not second.refused_key_count:
                            await anyio.lowlevel.checkpoint()
                first.close()
                second.close()
            assert first.refused_key_count == 0

    run(main)
