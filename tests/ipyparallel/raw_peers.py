"""Clients and engines on raw ZeroMQ sockets, whose messages are written and verified by jupyter_client's Session.

They run in the test's thread, with timeouts; the code under test runs in the thread of an event loop (`TrioThread`).
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio
import zmq
from jupyter_client.session import Session

from trio_sched.ipyparallel.records.recorder import NullRecorder, QueueName
from trio_sched.transport.zmq_socket_set import SocketSet
from trio_sched.wire.jupyter import Codec, JupyterMessage

KEY = b"a key of this test"
ANYWHERE = "tcp://127.0.0.1:0"
TIMEOUT_MS = 10_000
#: Time after which a message that was sent has normally arrived.
QUIET_MS = 50


class RecorderDouble(NullRecorder):
    """A recorder that only keeps the calls of its methods."""

    def __init__(self, on: bool) -> None:
        super().__init__()
        self.on = on
        self.calls: list[tuple[Any, ...]] = []
        self.buffers = 0

    def submitted(self, queue: QueueName, message: JupyterMessage, client: str, engine: str | None = None) -> None:
        self.buffers += len(message.buffers)
        self.calls.append(("submitted", queue, message.head.msg_id, client, engine))

    def finished(self, queue: QueueName, reply: JupyterMessage, engine: str | None) -> None:
        self.calls.append(("finished", queue, reply.parent.msg_id, engine))

    def output(self, message: JupyterMessage) -> None:
        self.calls.append(("output", message.head.msg_type, message.parent.msg_id))


class TrioThread:
    """The thread of the code under test: `SocketSet`, codec, counters, recorder, and the objects that `start` adds."""

    def __init__(self, on: bool) -> None:
        self.sockets: Any = None
        self.codec = Codec(KEY)
        self.counters: Counter[str] = Counter()
        self.recorder = RecorderDouble(on)
        self._token: Any = None
        self._nursery: Any = None

    def note(self, reason: str) -> None:
        self.counters[reason] += 1

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the thread of the event loop."""
        return trio.from_thread.run_sync(function, *args, trio_token=self._token)

    def wait_until(self, condition: Callable[[], Any]) -> None:
        """Wait until a condition is true; it is evaluated in this thread."""
        limit = time.monotonic() + TIMEOUT_MS / 1e3
        while not condition():
            assert time.monotonic() < limit
            time.sleep(0.001)

    def start(self, make: Callable[[TrioThread], Any]) -> Any:
        """Make an object that has a method `run`, and run it."""

        def begin() -> Any:
            made = make(self)
            self._nursery.start_soon(made.run)
            return made

        return self.call(begin)

    async def main(self, ready: threading.Event) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with SocketSet() as self.sockets:
            async with trio.open_nursery() as self._nursery:
                ready.set()
                await trio.sleep_forever()

    def stop(self) -> None:
        self.call(lambda: self._nursery.cancel_scope.cancel())


@contextmanager
def running_thread(on: bool = False) -> Iterator[TrioThread]:
    """Run a `TrioThread`, with the recorder on or off."""
    running = TrioThread(on)
    ready = threading.Event()
    thread = threading.Thread(target=trio.run, args=(running.main, ready), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield running
    finally:
        running.stop()
        thread.join(10)
        assert not thread.is_alive()


class Peer:
    """A socket, with a session that writes and reads its messages."""

    def __init__(self, context: zmq.Context[Any], kind: int, address: str, name: str = "", key: bytes = KEY) -> None:
        self.session = Session(key=key, session=name or None) if name else Session(key=key)
        self.socket = context.socket(kind)
        self.socket.linger = 0
        if kind in (zmq.ROUTER, zmq.DEALER) and name:
            self.socket.routing_id = name.encode()
        if kind == zmq.SUB:
            self.socket.subscribe(b"")
        self.socket.connect(address)

    def send(self, msg_type: str, *identities: bytes, **parts: Any) -> Any:
        """Send a message, with these identities before it. Returns the message."""
        return self.session.send(self.socket, msg_type, ident=list(identities), **parts)

    def frames(self) -> list[bytes]:
        """Receive a message; returns its frames."""
        assert self.socket.poll(TIMEOUT_MS), "no message arrived"
        return self.socket.recv_multipart()

    def receive(self) -> tuple[list[bytes], dict[str, Any]]:
        """Receive a message and verify its signature; returns identities and message."""
        identities, parts = self.session.feed_identities(self.frames())
        return identities, self.session.deserialize(parts)

    def receives_nothing(self) -> bool:
        return not self.socket.poll(QUIET_MS)


@contextmanager
def peers() -> Iterator[Callable[..., Peer]]:
    """Creates peers on one context, and closes them."""
    context: zmq.Context[Any] = zmq.Context()
    made: list[Peer] = []

    def make(kind: int, socket: Any, name: str = "", key: bytes = KEY) -> Peer:
        made.append(Peer(context, kind, socket.address, name, key))
        return made[-1]

    try:
        yield make
    finally:
        for peer in made:
            peer.socket.close()
        context.term()
