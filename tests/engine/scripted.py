"""A scheduler that does what a test tells it: a real ROUTER in a thread of its own, and the protocol's bare manners.

It welcomes whoever says hello, answers beats, and puts everything else into an inbox; the test assigns and expects.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec
import trio

from trio_sched.engine import orders
from trio_sched.engine.orders import NannyJoined, StartWorker
from trio_sched.transport.connection import Connection
from trio_sched.transport.zmq_socket import ZmqSocket
from trio_sched.wire import native, payload
from trio_sched.wire.native import Assign, Call, Finished, Frame, Hello, Message, Ping, Pong, TaskEnd, Value, Welcome

M = TypeVar("M")
WAIT_S = 20.0


@dataclass
class Peer:
    """Who said hello: an engine or a nanny."""

    session: int
    address: bytes
    hello: Hello
    known: set[bytes] = field(default_factory=set)
    taken: int = 0


@dataclass
class Got:
    """An answer, opened."""

    end: TaskEnd
    frames: Sequence[Frame]

    @property
    def value(self) -> Any:
        body, buffers = payload.unpack(self.end.body, self.frames)
        return msgspec.msgpack.decode(body) if self.end.codec == "msgpack" else payload.loads(body, buffers)


class Scripted:
    """The scheduler. Its methods are the test's thread's; `_main` runs in the other."""

    def __init__(
        self,
        address: str,
        *,
        instance: str = "one",
        heartbeat_s: float = 0.2,
        first_session: int = 1,
        token: str = "sesame",
        refusing: bool = False,
    ) -> None:
        self.connection = Connection(name="scripted", role="engine", address=address, token=token)
        self._refusing = refusing
        self.instance = instance
        self.heartbeat_s = heartbeat_s
        self.deaf = False
        """Answer nobody."""
        self.acking = True
        self.limit_bytes = 0
        self.peers: dict[int, Peer] = {}
        self.deaf_to: set[bytes] = set()
        """Addresses that are not heard, as if the line were broken."""
        self.beats = threading.Semaphore(0)
        """Released at each beat."""
        self._by_address: dict[bytes, Peer] = {}
        self._next_session = first_session
        self._next_task = 1
        self._inbox: queue.SimpleQueue[tuple[Peer, Message, Sequence[Frame]]] = queue.SimpleQueue()
        self._kept: list[tuple[Peer, Message, Sequence[Frame]]] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,), daemon=True)
        self._thread.start()
        assert self._ready.wait(WAIT_S)

    def close(self) -> None:
        trio.from_thread.run_sync(self._scope.cancel, trio_token=self._token)
        self._thread.join()

    # ---- the other thread -------------------------------------------------------------------------------------------

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with ZmqSocket.router(self.connection.address) as self._socket, trio.CancelScope() as self._scope:
            self._ready.set()
            while True:
                for frames in await self._socket.receive():
                    if not self.deaf and bytes(frames[0]) not in self.deaf_to:
                        self._on_message(bytes(frames[0]), native.decode_from_peer(frames[1]), frames[2:])
                self._socket.flush()

    def _on_message(self, address: bytes, message: Message, frames: Sequence[Frame]) -> None:
        if isinstance(message, Hello):
            if self._refusing or message.token != self.connection.token:
                self._reply(address, native.Error("unauthenticated", "the token is wrong"))
            elif address not in self._by_address:
                self._welcome(address, message)
            return
        peer = self._by_address.get(address)
        if peer is None:
            self._reply(address, native.Error("unknown_peer", "say hello"))
            return
        if isinstance(message, Ping):
            self.beats.release()
            self._reply(address, Pong())
            return
        if isinstance(message, Finished):
            peer.taken += len(message.results)
            if self.acking:
                self._reply(address, native.Acked(peer.taken))
        self._inbox.put((peer, message, frames))

    def _welcome(self, address: bytes, hello: Hello) -> None:
        old = self.peers.get(hello.session)
        resumed = old is not None and hello.scheduler == self.instance
        if old is not None and resumed:
            self._by_address.pop(old.address, None)
            peer = old
            peer.address, peer.hello = address, hello
        else:
            peer = Peer(self._next_session, address, hello)
            self._next_session += 1
        self.peers[peer.session] = self._by_address[address] = peer
        welcome = Welcome(
            session=peer.session,
            secret="s",
            scheduler=self.instance,
            resumed=resumed,
            accepted=peer.taken,
            heartbeat_s=self.heartbeat_s,
            max_message_bytes=self.limit_bytes,
        )
        self._reply(address, welcome)
        self._inbox.put((peer, hello, ()))

    def _reply(self, address: bytes, message: Message, frames: Sequence[Frame] = ()) -> None:
        self._socket.send([address, native.encode(message), *frames])

    # ---- the test's thread ------------------------------------------------------------------------------------------

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        return trio.from_thread.run_sync(function, *args, trio_token=self._token)

    def send(self, peer: Peer, message: Message, frames: Sequence[Frame] = ()) -> None:
        def send() -> None:
            self._reply(peer.address, message, frames)
            self._socket.flush()

        self._call(send)

    def forget(self, peer: Peer) -> None:
        """As a ROUTER forgets whose connection broke; the session stays."""
        self._call(self._by_address.pop, peer.address)

    def expect(self, kind: type[M], peer: Peer | None = None, where: Callable[[M], bool] = lambda m: True) -> M:
        return self.expect_from(kind, peer, where)[1]

    def expect_from(
        self, kind: type[M], peer: Peer | None = None, where: Callable[[M], bool] = lambda m: True
    ) -> tuple[Peer, M, Sequence[Frame]]:
        """The next message of this kind (from this peer); what else comes is kept for later."""
        for index, item in enumerate(self._kept):
            if self._fits(item, kind, peer, where):
                return self._kept.pop(index)  # type: ignore[return-value]
        while True:
            try:
                item = self._inbox.get(timeout=WAIT_S)
            except queue.Empty:
                raise AssertionError(f"no {kind.__name__} came; kept: {self._kept}") from None
            if self._fits(item, kind, peer, where):
                return item  # type: ignore[return-value]
            self._kept.append(item)

    @staticmethod
    def _fits(item: Any, kind: type[Any], peer: Peer | None, where: Callable[[Any], bool]) -> bool:
        return isinstance(item[1], kind) and (peer is None or item[0].session == peer.session) and where(item[1])

    def engine(self, role: str = "engine") -> Peer:
        """The next one that says hello."""
        return self.expect_from(Hello, where=lambda hello: hello.role == role)[0]

    def nothing_came(self) -> bool:
        return self._inbox.empty() and not self._kept

    # ---- calls ------------------------------------------------------------------------------------------------------

    def call(
        self, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> tuple[Call, dict[bytes, bytes], tuple[Frame, ...]]:
        """(the call, its function by digest, its frames)."""
        pickled = payload.dump_function(function)
        digest = payload.digest(pickled)
        body, frames = payload.pack(*payload.dumps((args, kwargs)))
        call = Call(id=self.task_id(), fn=digest, body=body, frames=len(frames), attempt=1)
        return call, {digest: pickled}, frames

    def task_id(self, session: int = 7) -> int:
        self._next_task += 1
        return session << 32 | self._next_task

    def assign(self, peer: Peer, *calls: tuple[Call, dict[bytes, bytes], tuple[Frame, ...]], **more: Any) -> list[int]:
        """Send the calls in one message; their ids."""
        functions = {d: f for _, fns, _ in calls for d, f in fns.items() if d not in peer.known}
        peer.known.update(functions)
        frames = [frame for _, _, frames in calls for frame in frames]
        self.send(peer, Assign([call for call, _, _ in calls], functions, **more), frames)
        return [call.id for call, _, _ in calls]

    def answers(self, peer: Peer, *tasks: int) -> list[Got]:
        """The answers for these tasks, in the order in which they come."""
        wanted = set(tasks)
        got: list[Got] = []
        while wanted:
            _, finished, frames = self.expect_from(Finished, peer)
            at = 0
            for end in finished.results:
                if end.id in wanted:
                    wanted.remove(end.id)
                    got.append(Got(end, frames[at : at + end.frames]))
                at += end.frames
        return got

    def run(self, peer: Peer, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Got:
        (task,) = self.assign(peer, self.call(function, *args, **kwargs))
        return self.answers(peer, task)[0]

    def value_of(self, got: Got) -> Value:
        return Value(body=got.end.body, frames=got.end.frames, codec=got.end.codec)


class Worker:
    """A real worker process, started as a nanny would start it but for a nanny."""

    started: ClassVar[list[Worker]] = []

    def __init__(self, start: StartWorker, *, argv: Sequence[str] = ()) -> None:
        self._said: str | None = None
        Worker.started.append(self)
        command = [sys.executable, "-m", "trio_sched.engine.worker", *argv]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        assert self.process.stdin
        if not argv:
            self.tell(start)

    def tell(self, order: StartWorker | NannyJoined) -> None:
        assert self.process.stdin
        self.process.stdin.write(orders.encode(order))
        self.process.stdin.flush()

    def wait(self) -> int:
        return self.process.wait(WAIT_S)

    def stop(self) -> str:
        """End it whatever it does; what it wrote to its own standard error."""
        if self._said is None:
            self.process.kill()
            assert self.process.stdin
            assert self.process.stderr
            with self.process.stderr as stderr:
                self._said = stderr.read().decode()
            self.process.stdin.close()
            self.process.wait(WAIT_S)
        return self._said


class Gate:
    """Where a task waits for the test, whichever process it runs in: a pair of named pipes."""

    def __init__(self, directory: Path) -> None:
        self.pipes = [str(directory / f"{os.urandom(3).hex()}.pipe") for _ in range(2)]
        """The arguments of `pass_gate`."""
        for pipe in self.pipes:
            os.mkfifo(pipe)

    def entered(self) -> None:
        """Until the task is there."""
        with open(self.pipes[0]) as pipe:
            pipe.read()

    def release(self, text: str = "") -> None:
        with open(self.pipes[1], "w") as pipe:
            pipe.write(text)


def whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a function pickled by value: workers cannot import the tests."""
    function.__module__ = "__main__"
    return function


@whole
def pass_gate(came: str, go: str) -> str:
    """A task: wait at the gate, return what the test releases it with."""
    with open(came, "w"):
        pass
    with open(go) as pipe:
        return pipe.read()


def address_in(directory: Path) -> str:
    return f"ipc://{directory}/s{os.urandom(3).hex()}.sock"
