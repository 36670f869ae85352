"""The edge-trigger trap under load: both directions at full speed, and no reader may sleep while something is there for
it.

Each test is a closed loop: a bounded number of messages is under way, each is answered once. A reader that misses an
edge stops the loop for ever, which the limit on each receive turns into a failure.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from trio_sched.transport.zmq_blocking import BlockingDealer
from trio_sched.transport.zmq_socket import ZmqSocket

STALL_S = 5.0
"""A stall lasts for ever; a busy machine pauses for less than this."""
UNDER_WAY = 1000


async def echo(router: ZmqSocket) -> None:
    """Answer every message twice in effect: at once from the reader, and a notice from another task that only sends."""
    peers: set[bytes] = set()

    async def chatter() -> None:
        while True:
            router.send_many([peer, b"notice"] for peer in peers)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(chatter)
        try:
            while True:
                for message in await router.receive():
                    peers.add(bytes(message[0]))
                    router.send(message)
                router.flush()
        except anyio.ClosedResourceError:
            group.cancel_scope.cancel()


async def asynchronous_load(router: ZmqSocket, dealer: ZmqSocket, seconds: float) -> int:
    """Keep messages under way for a while, then wait for the rest. Returns how many came back."""
    sent = received = 0
    until = time.monotonic() + seconds

    async def write() -> None:
        nonlocal sent
        while time.monotonic() < until:
            for _ in range(min(1 + sent % 40, UNDER_WAY - (sent - received))):
                dealer.send([b"%d" % sent])
                sent += 1
            dealer.flush()
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(router.authenticate)
        group.start_soon(echo, router)
        group.start_soon(write)
        while time.monotonic() < until or received < sent:
            with anyio.fail_after(STALL_S):
                messages = await dealer.receive()
            bodies = [body for [body] in messages if body != b"notice"]
            assert bodies == [b"%d" % number for number in range(received, received + len(bodies))]
            received += len(bodies)
        router.close()
    return received


def blocking_load(dealer: BlockingDealer, seconds: float) -> int:
    """The same from a thread without an event loop, fed by another thread that wakes it."""
    inbox: list[bytes] = []
    received = handed = 0
    until = time.monotonic() + seconds

    def feed() -> None:
        nonlocal handed
        while time.monotonic() < until:
            if handed - received < UNDER_WAY:
                inbox.append(b"%d" % handed)
                handed += 1
                dealer.wake()
            else:
                os.sched_yield()

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        while feeder.is_alive() or received < handed:
            pending = received < handed
            woken = dealer.wait(STALL_S if pending else 0.05)
            assert woken or not pending, f"{handed - received} messages under way, and nothing for {STALL_S} s"
            count = len(inbox)
            for body in inbox[:count]:
                dealer.send([body])
            del inbox[:count]
            bodies = [body for [body] in dealer.drain() if body != b"notice"]
            assert bodies == [b"%d" % number for number in range(received, received + len(bodies))]
            received += len(bodies)
    finally:
        feeder.join()
    return received


def run_asynchronous(run: Any, endpoint: Any, seconds: float) -> int:
    async def main() -> int:
        with endpoint.router() as router, ZmqSocket.dealer(endpoint.connection(router)) as dealer:
            return await asynchronous_load(router, dealer, seconds)

    count: int = run(main)
    return count


def run_blocking(run: Any, endpoint: Any, seconds: float) -> int:
    async def main() -> int:
        with endpoint.router() as router, BlockingDealer(endpoint.connection(router)) as dealer:
            async with anyio.create_task_group() as group:
                group.start_soon(router.authenticate)
                group.start_soon(echo, router)
                count = await anyio.to_thread.run_sync(blocking_load, dealer, seconds)
                router.close()
            return count

    count: int = run(main)
    return count


@pytest.mark.parametrize("load", [run_asynchronous, run_blocking])
def test_no_reader_stalls(run: Any, endpoint: Any, load: Callable[..., int]) -> None:
    assert load(run, endpoint, 0.5) > 500


@pytest.mark.slow
@pytest.mark.parametrize("load", [run_asynchronous, run_blocking])
def test_no_reader_stalls_for_15_seconds(run: Any, endpoint: Any, load: Callable[..., int]) -> None:
    assert load(run, endpoint, 15.0) > 10_000
