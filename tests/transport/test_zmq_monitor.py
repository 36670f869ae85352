"""Bounded connections of real ZeroMQ sockets: who gets in, who gives way, and that what was let in goes on."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import zmq

from trio_sched.errors import AddressInUseError
from trio_sched.transport import zmq_monitor
from trio_sched.transport.connection_limits import TIME_TO_SPEAK_S, ConnectionLimits, connection_bounds
from trio_sched.transport.reach import describe_unanswered
from trio_sched.transport.zmq_blocking import BlockingDealer
from trio_sched.transport.zmq_bound import SocketSet
from trio_sched.transport.zmq_monitor import AcceptGate
from trio_sched.transport.zmq_socket import ZmqSocket

WAIT_S = 20.0
MOST = 8


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Bounded:
    """Limits that count what they note."""

    def __init__(self, most: int = MOST, descriptors: int = 20_000, handshake_s: float = 60.0) -> None:
        self.clock = Clock()
        self.notes: Counter[str] = Counter()
        bounds = connection_bounds(descriptors, most, handshake_s=handshake_s)
        self.limits = ConnectionLimits(bounds, lambda kind, why: self.notes.update([kind]), self.clock)

    def until_open(self, count: int) -> None:
        until(lambda: self.limits.open_count == count)


def until(condition: Callable[[], Any]) -> None:
    """Wait for what another thread is about to do."""
    limit = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < limit
        threading.Event().wait(0.002)


def connect(address: str) -> socket.socket:
    """A connection that says nothing."""
    if address.startswith("ipc://"):
        raw = socket.socket(socket.AF_UNIX)
        raw.settimeout(WAIT_S)
        raw.connect(address.removeprefix("ipc://"))
        return raw
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), WAIT_S)


def is_closed(raw: socket.socket) -> bool:
    """Whether the other side has closed it; waits for that."""
    with contextlib.suppress(ConnectionError):
        while raw.recv(4096):
            pass
    return True


@contextlib.contextmanager
def silent(address: str, count: int) -> Iterator[list[socket.socket]]:
    """So many connections that say nothing."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(address)) for _ in range(count)]


async def echo(router: ZmqSocket) -> None:
    with contextlib.suppress(anyio.ClosedResourceError):
        while True:
            router.send_many(await router.receive())


def answered(dealer: BlockingDealer, text: bytes = b"hello") -> bool:
    dealer.send([text])
    return dealer.receive(WAIT_S) == [text]


@contextlib.asynccontextmanager
async def serving(router: ZmqSocket) -> Any:
    async with anyio.create_task_group() as group:
        group.start_soon(router.authenticate)
        group.start_soon(echo, router)
        try:
            yield group
        finally:
            router.close()


def test_silent_connections_give_way_and_those_that_speak_stay(run: Any, endpoint: Any) -> None:
    async def main() -> None:
        bounded = Bounded()
        router = endpoint.router(limits=bounded.limits)
        async with serving(router):
            await anyio.to_thread.run_sync(attack, bounded, router)
        until(lambda: bounded.limits.open_count == 0)

    def attack(bounded: Bounded, router: ZmqSocket) -> None:
        with BlockingDealer(endpoint.connection(router)) as first, silent(router.address, MOST - 1) as raw:
            assert answered(first)
            bounded.until_open(MOST)
            until(lambda: answered(first) and len(router._monitor._silent) == MOST - 1)  # type: ignore[union-attr]
            bounded.clock.now += TIME_TO_SPEAK_S
            with BlockingDealer(endpoint.connection(router)) as second:
                assert answered(second)
                assert is_closed(raw[0])
                bounded.clock.now += TIME_TO_SPEAK_S
                with silent(router.address, 3 * MOST):
                    assert answered(first)
                    assert answered(second)
                    assert bounded.limits.open_count <= MOST
        assert bounded.notes["silent_connection_closed"] >= 1

    run(main)


def test_when_all_speak_newcomers_are_refused_and_get_in_when_there_is_room(run: Any, endpoint: Any) -> None:
    async def main() -> None:
        bounded = Bounded(2)
        router = endpoint.router(limits=bounded.limits)
        async with serving(router):
            await anyio.to_thread.run_sync(crowd, bounded, router)

    def crowd(bounded: Bounded, router: ZmqSocket) -> None:
        with BlockingDealer(endpoint.connection(router)) as second, contextlib.ExitStack() as stack:
            with BlockingDealer(endpoint.connection(router)) as first:
                # the first messages may come before we know of their connections
                until(lambda: answered(first) and answered(second) and bounded.limits.open_count == 2)
                until(lambda: answered(first) and answered(second) and not router._monitor.has_silent_connections)  # type: ignore[union-attr]
                late = stack.enter_context(BlockingDealer(endpoint.connection(router)))
                late.send([b"late"])
                until(lambda: bounded.notes["connection_refused"])
                bounded.clock.now += TIME_TO_SPEAK_S
                assert answered(second)
            received = None
            for _ in range(20):  # what was said to a connection that was refused is lost
                late.send([b"late"])
                received = late.receive(1.0)
                if received:
                    break
            assert received == [b"late"]
            assert answered(second)

    run(main)


def test_a_handshake_that_does_not_end_is_closed_by_libzmq(run: Any, endpoint: Any) -> None:
    async def main() -> None:
        bounded = Bounded(handshake_s=0.05)
        router = endpoint.router(limits=bounded.limits)
        async with serving(router):
            with silent(router.address, 3) as raw:
                await anyio.to_thread.run_sync(lambda: [is_closed(one) for one in raw])
                await anyio.to_thread.run_sync(bounded.until_open, 0)

    run(main)


def test_a_descriptor_that_was_used_again_is_not_shut_down() -> None:
    mine, other = socket.socketpair()
    with mine, other:
        connection = zmq_monitor.DescriptorConnection.of(mine.fileno())
        assert connection is not None
        assert connection.is_open()
        number = mine.fileno()
        new, peer = socket.socketpair()
        with new, peer:
            os.dup2(new.fileno(), number)
            assert not connection.is_open()
            connection.close()
            peer.send(b"still there")
            assert mine.recv(100) == b"still there"


def test_what_is_no_connection_is_not_counted(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        assert zmq_monitor.DescriptorConnection.of(file.fileno()) is None
    assert zmq_monitor.DescriptorConnection.of(1 << 20) is None


def test_a_set_of_sockets_shares_the_limits() -> None:
    bounded = Bounded()
    with SocketSet(limits=bounded.limits) as sockets:
        addresses = [sockets.bind(kind, "tcp://127.0.0.1:0").address for kind in ("router", "pub", "xpub")]
        with contextlib.ExitStack() as stack:
            raw = []
            for address, count in zip(addresses, (3, 6, MOST), strict=True):
                raw += stack.enter_context(silent(address, 3))
                bounded.until_open(count)
            until(lambda: bounded.notes["connection_refused"] == 1)
            bounded.clock.now += TIME_TO_SPEAK_S
            with silent(addresses[0], 1):
                assert is_closed(raw[0])
        with pytest.raises(AddressInUseError):
            sockets.bind("router", addresses[0])
    assert bounded.limits.open_count == 0


def test_a_monitor_that_nobody_reads_in_time_holds_libzmq_up_and_not_the_end(local: Any, monkeypatch: Any) -> None:
    """More events than the monitor holds, at the moment of the end."""
    slow = threading.Event()
    count = zmq_monitor.ConnectionMonitor._count

    def wait(self: Any, accepted: bool, descriptor: int) -> None:
        slow.wait(WAIT_S)
        count(self, accepted, descriptor)

    monkeypatch.setattr(zmq_monitor.ConnectionMonitor, "_count", wait)
    bounded = Bounded(most=10_000)
    router = local.router(limits=bounded.limits)
    for _ in range(1200):
        with contextlib.suppress(BlockingIOError):
            raw = socket.socket(socket.AF_UNIX)
            with raw:
                raw.setblocking(False)
                raw.connect(router.address.removeprefix("ipc://"))
    slow.set()
    router.close()
    assert bounded.limits.open_count == 0


# ---- the gate -------------------------------------------------------------------------------------------------------


def test_a_closed_gate_turns_newcomers_away_and_keeps_who_is_inside(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        gate = AcceptGate(path)
        with connect(f"ipc://{path}") as inside:
            served = listener.accept()[0]
            gate.close()
            gate.close()
            assert gate.is_closed
            with connect(f"ipc://{path}") as newcomer:
                gate.refuse_pending()
                assert is_closed(newcomer)
            gate.refuse_pending()
            with served:
                inside.send(b"x")
                assert served.recv(1) == b"x"
            gate.open()
            gate.open()
            assert not gate.is_closed
            with connect(f"ipc://{path}"):
                listener.accept()[0].close()
        gate.close()
        gate.discard()
    assert [file.name for file in tmp_path.iterdir()] == ["s"]


def test_a_gate_that_cannot_be_closed_stays_open(tmp_path: Path) -> None:
    gate = AcceptGate(str(tmp_path / "nothing" / "s"))
    gate.close()
    assert not gate.is_closed
    gate.refuse_pending()


def test_the_gate_closes_when_the_reserve_is_used_up(local: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(zmq_monitor, "_GATE_S", 3600.0)
    bounded = Bounded(descriptors=1024)
    router = local.router(limits=bounded.limits)
    monkeypatch.setattr(zmq_monitor.os, "listdir", lambda _path: range(1000))
    with connect(router.address), contextlib.closing(router):
        until(lambda: router._monitor._gate.is_closed)  # type: ignore[union-attr]


# ---- what a client is told ------------------------------------------------------------------------------------------


def test_why_nobody_answers(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    assert "nothing listens" in describe_unanswered(f"ipc://{path}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        assert "nothing listens" in describe_unanswered(f"ipc://{path}")
        listener.listen()
        gate = AcceptGate(path)
        gate.close()
        ended = threading.Event()

        def refuse_pending() -> None:
            while not ended.wait(0.01):
                gate.refuse_pending()

        thread = threading.Thread(target=refuse_pending)
        thread.start()
        assert "max_connections" in describe_unanswered(f"ipc://{path}")
        ended.set()
        thread.join()
        gate.open()
        assert describe_unanswered(f"ipc://{path}") == ""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "nothing listens" in describe_unanswered(f"tcp://127.0.0.1:{port}")
    assert "could not be resolved here" in describe_unanswered("tcp://nowhere.invalid:1")


def test_libzmq_is_what_we_think() -> None:
    assert (int(zmq.EVENT_ACCEPTED), int(zmq.EVENT_DISCONNECTED)) == (0x20, 0x200)
