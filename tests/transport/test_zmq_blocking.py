"""BlockingDealer: the owner waits for messages, other threads wake it, and its import is cheap."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

import anyio
import pytest

from trio_sched.transport import zmq_blocking
from trio_sched.transport.multipart import LARGE_BYTES
from trio_sched.transport.zmq_blocking import BlockingDealer

WAIT_S = 10.0


@pytest.fixture(params=["eventfd", "socketpair"])
def wakeup(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with both kinds of wake-up descriptor."""
    if request.param == "socketpair":
        monkeypatch.setattr(zmq_blocking.sys, "platform", "darwin")


def test_the_module_imports_no_event_loop() -> None:
    slow = {"trio", "anyio", "asyncio", "numpy", "structlog", "typer", "ssl"}
    code = f"import sys, trio_sched.transport.zmq_blocking; print(*sorted(set(sys.modules) & {slow}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_messages_are_sent_and_received(endpoint: Any) -> None:
    async def serve(dealer_done: threading.Event) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(router.authenticate)
            for _ in range(2):
                for message in await router.receive():
                    router.send(message)
                router.flush()
            await anyio.to_thread.run_sync(dealer_done.wait)
            router.close()

    with endpoint.router() as router:
        connection = endpoint.connection(router)
        done = threading.Event()
        thread = threading.Thread(target=anyio.run, args=(serve, done))
        thread.start()
        try:
            with BlockingDealer(connection) as dealer:
                large = b"l" * LARGE_BYTES
                for frames in ([b"hello", b""], [b"head", large]):
                    dealer.send(frames)
                    assert dealer.receive(WAIT_S) == frames
                assert dealer.receive(0.0) is None
                assert dealer.drain() == []
        finally:
            done.set()
            thread.join()


def test_a_wait_times_out(local: Any) -> None:
    with local.router() as router, BlockingDealer(local.connection(router)) as dealer:
        started = time.monotonic()
        assert dealer.wait(0.02) is False
        assert 0.02 <= time.monotonic() - started < WAIT_S
        assert dealer.wait(0.0) is False
        assert dealer.wait(-1.0) is False
        assert dealer.receive(0.001) is None


@pytest.mark.usefixtures("wakeup")
def test_a_wake_before_the_wait_ends_one_wait_at_once(local: Any) -> None:
    with local.router() as router, BlockingDealer(local.connection(router)) as dealer:
        dealer.wake()
        dealer.wake()
        assert dealer.wait(WAIT_S) is True
        assert dealer.wait(0.0) is False


@pytest.mark.usefixtures("wakeup")
def test_a_wake_ends_a_running_wait(local: Any) -> None:
    with local.router() as router, BlockingDealer(local.connection(router)) as dealer:

        def wake() -> None:
            while not dealer._is_waiting:
                os.sched_yield()
            dealer.wake()

        thread = threading.Thread(target=wake)
        thread.start()
        assert dealer.wait(WAIT_S) is True
        thread.join()


def test_a_wake_makes_a_system_call_only_while_the_owner_waits(local: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with local.router() as router, BlockingDealer(local.connection(router)) as dealer:
        calls: list[int] = []
        monkeypatch.setattr(dealer._wakeup, "set", lambda: calls.append(1))
        dealer.wake()
        assert dealer.wait(0.0) is True
        dealer.wake()
        assert calls == []
        dealer._is_waiting = True  # the state while the owner waits, and until it runs again
        dealer.wake()
        dealer.wake()
        assert calls == [1]


@pytest.mark.usefixtures("wakeup")
def test_no_wake_is_lost(local: Any) -> None:
    """Several threads pass numbers and wake the owner each time. It must not wait while a number is in the inbox."""
    inbox: list[int] = []
    each, threads = 3_000, 3
    with local.router() as router, BlockingDealer(local.connection(router)) as dealer:

        def produce() -> None:
            for number in range(each):
                inbox.append(number)
                dealer.wake()
                if number % 7 == 0:
                    os.sched_yield()

        producers = [threading.Thread(target=produce) for _ in range(threads)]
        for producer in producers:
            producer.start()
        taken = 0
        while taken < each * threads:
            assert dealer.wait(WAIT_S) is True
            count = len(inbox)
            del inbox[:count]
            taken += count
        for producer in producers:
            producer.join()


@pytest.mark.usefixtures("wakeup")
def test_a_wake_after_the_close_has_no_effect(local: Any) -> None:
    with local.router() as router:
        dealer = BlockingDealer(local.connection(router))
        descriptor = dealer._wakeup.descriptor
        dealer.close()
        dealer.close()
        dealer._is_waiting = True  # the state that a thread has read just before the close
        dealer.wake()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_closed_dealers_leave_no_descriptors(local: Any) -> None:
    def descriptors() -> int:
        return len(os.listdir("/dev/fd"))

    with local.router() as router:
        connection = local.connection(router)
        before = descriptors()
        for _ in range(5):
            with BlockingDealer(connection) as dealer:
                dealer.wait(0.0)
        until = time.monotonic() + WAIT_S  # a thread of libzmq closes the ends of the router, at some time
        while descriptors() > before and time.monotonic() < until:
            threading.Event().wait(0.01)
        assert descriptors() <= before
