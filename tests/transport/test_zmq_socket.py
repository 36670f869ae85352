"""ZmqSocket with real sockets: messages arrive once and in order, a reader always wakes, and closing is safe."""

from __future__ import annotations

import select
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import zmq

from trio_sched.transport.multipart import LARGE_BYTES
from trio_sched.transport.zmq_socket import ZmqSocket

WAIT_S = 10.0


async def receive(socket: ZmqSocket, count: int = 1) -> list[list[Any]]:
    """Receive at least `count` messages."""
    messages: list[list[Any]] = []
    with anyio.fail_after(WAIT_S):
        while len(messages) < count:
            messages += await socket.receive()
    return messages


async def until_waiting(socket: ZmqSocket) -> None:
    """Wait until the reader of `socket` waits."""
    with anyio.fail_after(WAIT_S):
        while socket._wait_scope is None:
            await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()


async def until_available(socket: ZmqSocket) -> None:
    """Wait until a message is available."""
    with anyio.fail_after(WAIT_S):
        while not socket._option(zmq.EVENTS) & zmq.POLLIN:
            await anyio.lowlevel.checkpoint()
    socket._is_drained = False  # EVENTS was read without the knowledge of the socket


def until_readable(socket: ZmqSocket) -> bool:
    """Wait until the descriptor has an edge, without consuming it."""
    return bool(select.select([socket._descriptor], [], [], WAIT_S)[0])


def test_messages_are_sent_and_received(run: Any, endpoint: Any) -> None:
    async def main() -> None:
        with endpoint.router() as router, ZmqSocket.dealer(endpoint.connection(router)) as dealer:
            async with anyio.create_task_group() as group:
                group.start_soon(router.authenticate)
                assert dealer.send([b"hello", b"", b"more"])
                dealer.flush()
                [[peer, *frames]] = await receive(router)
                assert frames == [b"hello", b"", b"more"]
                assert router.send([peer, b"welcome"])
                router.flush()
                assert await receive(dealer) == [[b"welcome"]]
                router.close()

    run(main)


def test_small_frames_are_bytes_and_large_ones_are_not_copied(run: Any, local: Any) -> None:
    small, large = b"s" * (LARGE_BYTES - 1), bytearray(b"l" * LARGE_BYTES)

    async def main() -> None:
        with local.router() as router, ZmqSocket.dealer(local.connection(router)) as dealer:
            dealer.send([b"head", small, memoryview(large)])
            [[_, head, first, second]] = await receive(router)
            assert (type(head), type(first), type(second)) == (bytes, bytes, memoryview)
            assert (head, first, second) == (b"head", small, large)

    run(main)


def test_messages_arrive_in_order_and_at_most_limit_at_once(run: Any, local: Any) -> None:
    async def main() -> None:
        with local.router() as router, ZmqSocket.dealer(local.connection(router)) as dealer:
            dealer.send_many([b"%d" % number] for number in range(1000))
            bodies: list[bytes] = []
            with anyio.fail_after(WAIT_S):
                while len(bodies) < 1000:
                    batch = await router.receive(limit=7)
                    assert 1 <= len(batch) <= 7
                    bodies += [body for _, body in batch]
            assert bodies == [b"%d" % number for number in range(1000)]

    run(main)


def test_a_reader_misses_a_consumed_edge_and_flush_wakes_it(run: Any, local: Any) -> None:
    """The edge-triggered descriptor and its remedy, as described in zmq_socket.py."""

    async def main() -> None:
        with local.router() as router, ZmqSocket.dealer(local.connection(router)) as dealer:
            dealer.send([b"hello"])
            [[peer, _]] = await receive(router)
            got: list[Any] = []

            async def read() -> None:
                got.extend(await router.receive())

            async with anyio.create_task_group() as group:
                group.start_soon(read)
                await until_waiting(router)
                dealer.send([b"news"])
                assert until_readable(router)
                router.send([peer, b"crossing"])  # reads the state of the socket, and so consumes the edge
                router._option(zmq.EVENTS)
                assert not select.select([router._descriptor], [], [], 0)[0], "libzmq no longer consumes the edge"
                await anyio.wait_all_tasks_blocked()
                assert got == []
                router.flush()
                with anyio.fail_after(WAIT_S):
                    while not got:
                        await anyio.lowlevel.checkpoint()
            assert got == [[peer, b"news"]]

    run(main)


def test_a_flush_before_the_wait_is_not_lost(run: Any, local: Any) -> None:
    async def main() -> None:
        with local.router() as router, ZmqSocket.dealer(local.connection(router)) as dealer:
            dealer.send([b"hello"])
            [[peer, _]] = await receive(router)
            async with anyio.create_task_group() as group:

                async def crossing() -> None:
                    while router._wait_scope is None:
                        await anyio.lowlevel.checkpoint()
                    dealer.send([b"news"])
                    assert until_readable(router)
                    router.send_many([[peer, b"crossing"]])

                group.start_soon(crossing)
                assert await receive(router) == [[peer, b"news"]]

    run(main)


def test_sending_to_an_unknown_peer_returns_false(run: Any, local: Any) -> None:
    async def main() -> None:
        with local.router() as router:
            assert router.send([b"nobody", b"hello"]) is False
            assert router.send_many([[b"nobody", b"1"], [b"none", b"2"]]) == [[b"nobody", b"1"], [b"none", b"2"]]

    run(main)


def test_sending_to_a_disconnected_peer_returns_false(run: Any, endpoint: Any) -> None:
    async def main() -> None:
        with endpoint.router() as router:
            async with anyio.create_task_group() as group:
                group.start_soon(router.authenticate)
                with ZmqSocket.dealer(endpoint.connection(router)) as dealer:
                    dealer.send([b"hello"])
                    [[peer, _]] = await receive(router)
                    assert router.send([peer, b"welcome"])
                with anyio.fail_after(WAIT_S):
                    while router.send([peer, b"hello"]):
                        await anyio.lowlevel.checkpoint()
                router.close()

    run(main)


def test_a_slow_peer_receives_all_of_200_000_messages(run: Any, local: Any) -> None:
    """With libzmq's default high-water marks 3,500 arrive, without an error."""

    async def main() -> None:
        with local.router() as router, ZmqSocket.dealer(local.connection(router)) as dealer:
            dealer.send([b"hello"])
            [[peer, _]] = await receive(router)
            assert router.send_many([peer, b"%d" % number] for number in range(200_000)) == []
            got = await receive(dealer, 200_000)
            assert [got[0], got[-1], len(got)] == [[b"0"], [b"199999"], 200_000]

    run(main)


def test_a_message_that_is_too_large_closes_only_the_connection_of_its_sender(run: Any, local: Any) -> None:
    async def main() -> None:
        with local.router(max_message_bytes=1000) as router:
            connection = local.connection(router)
            with ZmqSocket.dealer(connection) as good, ZmqSocket.dealer(connection) as bad:
                bad.send([b"bad"])
                [[peer, _]] = await receive(router)
                bad.send([b"x" * 1001])
                bad.send([b"after"])  # lost with the connection, or sent over the next connection
                with anyio.fail_after(WAIT_S):
                    while router.send([peer, b"hello"]):
                        await anyio.lowlevel.checkpoint()
                good.send([b"y" * 1000])
                bodies = [body for _, body in await receive(router)]
                assert b"y" * 1000 in bodies
                assert b"x" * 1001 not in bodies

    run(main)


def test_a_dealer_may_connect_before_the_scheduler_starts(run: Any, local: Any) -> None:
    async def main() -> None:
        with local.router() as router:
            connection = local.connection(router)
        with ZmqSocket.dealer(connection) as dealer:
            dealer.send([b"early"])
            with local.router() as router:
                [[_, body]] = await receive(router)
                assert body == b"early"

    run(main)


def test_a_cancelled_receive_loses_no_message(run: Any, local: Any) -> None:
    async def main() -> None:
        with local.router() as router, ZmqSocket.dealer(local.connection(router)) as dealer:
            dealer.send([b"hello"])
            await receive(router)
            dealer.send([b"news"])
            await until_available(router)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await router.receive()
            assert scope.cancelled_caught
            [[_, body]] = await receive(router)
            assert body == b"news"

    run(main)


def test_a_receive_that_is_cancelled_after_its_drain_loses_no_message(run: Any, local: Any) -> None:
    async def main() -> None:
        with local.router() as router, ZmqSocket.dealer(local.connection(router)) as dealer:
            got: list[Any] = []

            async def read(scope: anyio.CancelScope) -> None:
                with scope:
                    got.extend(await router.receive())

            for number in range(20):  # the order in which trio runs tasks is random: about half of these hit
                dealer.send([b"%d" % number])
                await until_available(router)
                scope = anyio.CancelScope()
                async with anyio.create_task_group() as group:
                    group.start_soon(read, scope)
                    await anyio.lowlevel.checkpoint()
                    scope.cancel()
                if len(got) <= number:
                    got += await receive(router)
            assert [body for _, body in got] == [b"%d" % number for number in range(20)]

    run(main)


def test_receive_is_a_checkpoint_even_in_a_flood(run: Any, local: Any) -> None:
    async def main() -> None:
        with local.router() as router, ZmqSocket.dealer(local.connection(router)) as dealer:
            dealer.send_many([b"x"] for _ in range(100))
            turns = 0

            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await anyio.lowlevel.checkpoint()

            async with anyio.create_task_group() as group:
                group.start_soon(other)
                for _ in range(100):
                    await router.receive(limit=1)
                group.cancel_scope.cancel()
            assert turns >= 90

    run(main)


def test_a_second_reader_is_refused(run: Any, local: Any) -> None:
    async def main() -> None:
        with local.router() as router:
            async with anyio.create_task_group() as group:
                group.start_soon(router.receive)
                await until_waiting(router)
                with pytest.raises(anyio.BusyResourceError):
                    await router.receive()
                group.cancel_scope.cancel()

    run(main)


def test_closing_ends_the_reader_and_frees_the_address(run: Any, endpoint: Any) -> None:
    async def main() -> None:
        router = endpoint.router()
        async with anyio.create_task_group() as group:
            group.start_soon(router.authenticate)

            async def read() -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await router.receive()

            group.start_soon(read)
            await until_waiting(router)
            router.close()
            router.close()
        assert router._context.context.closed
        with pytest.raises(anyio.ClosedResourceError):
            await router.receive()
        with pytest.raises(anyio.ClosedResourceError):
            router.send([b"peer", b"late"])
        with endpoint.router():
            pass

    run(main)


def test_messages_sent_before_the_close_arrive(run: Any, local: Any) -> None:
    async def main() -> None:
        with local.router() as router:
            with ZmqSocket.dealer(local.connection(router)) as dealer:
                dealer.send([b"hello"])
                [[peer, _]] = await receive(router)
                dealer.send_many([b"bye"] for _ in range(1000))
            assert await receive(router, 1000) == [[peer, b"bye"]] * 1000

    run(main)
