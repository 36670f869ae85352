"""The edge-triggered descriptor under load: messages in both directions at full speed, and no reader may wait while a
message is available.

Each test is a closed loop: a limited number of messages is unanswered at any time, and each is answered once. A reader
that misses an edge stops the loop forever, which the time limit on each receive turns into a failure.
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

#: A stall lasts forever; a pause of a busy machine is shorter than this.
STALL_S = 5.0
MAX_UNANSWERED = 1000


async def echo(router: ZmqSocket) -> None:
    """Answer every message from the reader, while another task, which only sends, sends notices."""
    peers: set[bytes] = set()

    async def send_notices() -> None:
        while True:
            router.send_many([peer, b"notice"] for peer in peers)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(send_notices)
        try:
            while True:
                for message in await router.receive():
                    peers.add(bytes(message[0]))
                    router.send(message)
                router.flush()
        except anyio.ClosedResourceError:
            group.cancel_scope.cancel()


async def asynchronous_load(router: ZmqSocket, dealer: ZmqSocket, seconds: float) -> int:
    """Send messages for some seconds, then wait for the remaining answers. Return the number of answers."""
    sent = received = 0
    until = time.monotonic() + seconds

    async def write() -> None:
        nonlocal sent
        while time.monotonic() < until:
            for _ in range(min(1 + sent % 40, MAX_UNANSWERED - (sent - received))):
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
    """Do the same in a thread without an event loop, which another thread feeds and wakes."""
    inbox: list[bytes] = []
    received = queued = 0
    until = time.monotonic() + seconds

    def feed() -> None:
        nonlocal queued
        while time.monotonic() < until:
            if queued - received < MAX_UNANSWERED:
                inbox.append(b"%d" % queued)
                queued += 1
                dealer.wake()
            else:
                os.sched_yield()

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        while feeder.is_alive() or received < queued:
            pending = received < queued
            woken = dealer.wait(STALL_S if pending else 0.05)
            assert woken or not pending, f"{queued - received} messages unanswered, and none received for {STALL_S} s"
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
