"""Connection limits on real ZeroMQ sockets: refused, closed and unaffected connections."""

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
from trio_sched.transport.connection_limits import MIN_EVICTION_AGE_S, ConnectionLimits, connection_bounds
from trio_sched.transport.reachability import describe_unanswered
from trio_sched.transport.zmq_blocking import BlockingDealer
from trio_sched.transport.zmq_monitor import AcceptGate
from trio_sched.transport.zmq_socket import ZmqSocket
from trio_sched.transport.zmq_socket_set import SocketSet

WAIT_S = 20.0
MAX_CONNECTIONS = 8


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Limited:
    """Limits with a clock and counted events."""

    def __init__(
        self, max_connections: int = MAX_CONNECTIONS, descriptors: int = 20_000, handshake_s: float = 60.0
    ) -> None:
        self.clock = Clock()
        self.notes: Counter[str] = Counter()
        bounds = connection_bounds(descriptors, max_connections, handshake_s=handshake_s)
        self.limits = ConnectionLimits(bounds, lambda kind, why: self.notes.update([kind]), self.clock)

    def until_open(self, count: int) -> None:
        until(lambda: self.limits.open_count == count)


def until(condition: Callable[[], Any]) -> None:
    """Wait for a condition that another thread fulfils."""
    limit = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < limit
        threading.Event().wait(0.002)


def monitor_of(router: ZmqSocket) -> zmq_monitor.ConnectionMonitor:
    assert router._monitor is not None
    return router._monitor


def connect(address: str) -> socket.socket:
    """Open a connection that sends nothing."""
    if address.startswith("ipc://"):
        raw = socket.socket(socket.AF_UNIX)
        raw.settimeout(WAIT_S)
        raw.connect(address.removeprefix("ipc://"))
        return raw
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), WAIT_S)


def is_closed(raw: socket.socket) -> bool:
    """Wait until the peer has closed the connection."""
    with contextlib.suppress(ConnectionError):
        while raw.recv(4096):
            pass
    return True


@contextlib.contextmanager
def silent(address: str, count: int) -> Iterator[list[socket.socket]]:
    """Open `count` connections that send nothing."""
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


def test_silent_connections_are_closed_in_favor_of_new_ones_and_active_ones_stay(run: Any, endpoint: Any) -> None:
    async def main() -> None:
        limited = Limited()
        router = endpoint.router(limits=limited.limits)
        async with serving(router):
            await anyio.to_thread.run_sync(attack, limited, router)
        until(lambda: limited.limits.open_count == 0)

    def attack(limited: Limited, router: ZmqSocket) -> None:
        with BlockingDealer(endpoint.connection(router)) as first, silent(router.address, MAX_CONNECTIONS - 1) as raw:
            assert answered(first)
            limited.until_open(MAX_CONNECTIONS)
            until(lambda: answered(first) and len(monitor_of(router)._silent) == MAX_CONNECTIONS - 1)
            limited.clock.now += MIN_EVICTION_AGE_S
            with BlockingDealer(endpoint.connection(router)) as second:
                assert answered(second)
                assert is_closed(raw[0])
                limited.clock.now += MIN_EVICTION_AGE_S
                with silent(router.address, 3 * MAX_CONNECTIONS):
                    assert answered(first)
                    assert answered(second)
                    assert limited.limits.open_count <= MAX_CONNECTIONS
        assert limited.notes["silent_connection_closed"] >= 1

    run(main)


def test_new_connections_are_refused_until_an_active_one_ends(run: Any, endpoint: Any) -> None:
    async def main() -> None:
        limited = Limited(2)
        router = endpoint.router(limits=limited.limits)
        async with serving(router):
            await anyio.to_thread.run_sync(crowd, limited, router)

    def crowd(limited: Limited, router: ZmqSocket) -> None:
        with BlockingDealer(endpoint.connection(router)) as second, contextlib.ExitStack() as stack:
            with BlockingDealer(endpoint.connection(router)) as first:
                # the first messages may arrive before the events of their connections
                until(lambda: answered(first) and answered(second) and limited.limits.open_count == 2)
                until(lambda: answered(first) and answered(second) and not monitor_of(router).has_silent_connections)
                late = stack.enter_context(BlockingDealer(endpoint.connection(router)))
                late.send([b"late"])
                until(lambda: limited.notes["connection_refused"])
                limited.clock.now += MIN_EVICTION_AGE_S
                assert answered(second)
            received = None
            for _ in range(20):  # a message to a refused connection is lost
                late.send([b"late"])
                received = late.receive(1.0)
                if received:
                    break
            assert received == [b"late"]
            assert answered(second)

    run(main)


def test_libzmq_closes_a_connection_whose_handshake_times_out(run: Any, endpoint: Any) -> None:
    async def main() -> None:
        limited = Limited(handshake_s=0.05)
        router = endpoint.router(limits=limited.limits)
        async with serving(router):
            with silent(router.address, 3) as raw:
                await anyio.to_thread.run_sync(lambda: [is_closed(one) for one in raw])
                await anyio.to_thread.run_sync(limited.until_open, 0)

    run(main)


def test_a_reused_descriptor_is_not_shut_down() -> None:
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


def test_a_descriptor_that_is_not_a_connection_is_not_counted(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        assert zmq_monitor.DescriptorConnection.of(file.fileno()) is None
    assert zmq_monitor.DescriptorConnection.of(1 << 20) is None


def test_the_sockets_of_a_set_share_the_limits() -> None:
    limited = Limited()
    with SocketSet(limits=limited.limits) as sockets:
        addresses = [sockets.bind(kind, "tcp://127.0.0.1:0").address for kind in ("router", "pub", "xpub")]
        with contextlib.ExitStack() as stack:
            raw = []
            for address, count in zip(addresses, (3, 6, MAX_CONNECTIONS), strict=True):
                raw += stack.enter_context(silent(address, 3))
                limited.until_open(count)
            until(lambda: limited.notes["connection_refused"] == 1)
            limited.clock.now += MIN_EVICTION_AGE_S
            with silent(addresses[0], 1):
                assert is_closed(raw[0])
        with pytest.raises(AddressInUseError):
            sockets.bind("router", addresses[0])
    assert limited.limits.open_count == 0


def test_a_slow_monitor_delays_libzmq_and_does_not_block_the_close(local: Any, monkeypatch: Any) -> None:
    """The monitor has more events than it holds when the socket is closed."""
    slow = threading.Event()
    count = zmq_monitor.ConnectionMonitor._count

    def wait(self: Any, accepted: bool, descriptor: int) -> None:
        slow.wait(WAIT_S)
        count(self, accepted, descriptor)

    monkeypatch.setattr(zmq_monitor.ConnectionMonitor, "_count", wait)
    limited = Limited(max_connections=10_000)
    router = local.router(limits=limited.limits)
    for _ in range(1200):
        with contextlib.suppress(BlockingIOError):
            raw = socket.socket(socket.AF_UNIX)
            with raw:
                raw.setblocking(False)
                raw.connect(router.address.removeprefix("ipc://"))
    slow.set()
    router.close()
    assert limited.limits.open_count == 0


# ---- the gate -------------------------------------------------------------------------------------------------------


def test_a_closed_gate_refuses_new_connections_and_keeps_accepted_ones(tmp_path: Path) -> None:
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
    limited = Limited(descriptors=1024)
    router = local.router(limits=limited.limits)
    monkeypatch.setattr(zmq_monitor.os, "listdir", lambda _path: range(1000))
    gate = monitor_of(router)._gate
    assert gate is not None
    with connect(router.address), contextlib.closing(router):
        until(lambda: gate.is_closed)


# ---- the diagnosis for clients --------------------------------------------------------------------------------------


def test_the_diagnosis_of_an_unanswered_address_names_the_cause(tmp_path: Path) -> None:
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


def test_the_event_numbers_of_libzmq_are_as_documented() -> None:
    assert (int(zmq.EVENT_ACCEPTED), int(zmq.EVENT_DISCONNECTED)) == (0x20, 0x200)
