"""A scheduler that does what a test tells it: a real ROUTER in a thread, with a minimum of the protocol.

It welcomes every peer, answers heartbeats, and puts all other messages into an inbox; the test assigns calls and waits
for messages.
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

from trio_sched.engine import control_messages
from trio_sched.engine.control_messages import NannyJoined, StartWorker
from trio_sched.transport.connection_info import ConnectionInfo
from trio_sched.transport.zmq_socket import ZmqSocket
from trio_sched.wire import native, payload
from trio_sched.wire.native import Assign, Call, Finished, Frame, Hello, Message, Ping, Pong, TaskResult, Value, Welcome

M = TypeVar("M")
WAIT_S = 20.0


@dataclass
class Peer:
    """An engine or a nanny that has sent its hello."""

    session: int
    address: bytes
    hello: Hello
    known: set[bytes] = field(default_factory=set)
    acked: int = 0


@dataclass
class Answer:
    """A result with its frames."""

    result: TaskResult
    frames: Sequence[Frame]

    @property
    def value(self) -> Any:
        body, buffers = payload.unpack(self.result.body, self.frames)
        return msgspec.msgpack.decode(body) if self.result.codec == "msgpack" else payload.loads(body, buffers)


class ScriptedScheduler:
    """The scheduler. The test's thread calls the methods; `_main` runs in another thread."""

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
        self.connection = ConnectionInfo(name="scripted", role="engine", address=address, token=token)
        self._refusing = refusing
        self.instance = instance
        self.heartbeat_s = heartbeat_s
        #: Whether all messages are ignored.
        self.is_silent = False
        self.sends_acks = True
        self.limit_bytes = 0
        self.peers: dict[int, Peer] = {}
        #: Addresses whose messages are ignored, as if the connection were broken.
        self.ignored_addresses: set[bytes] = set()
        #: Released at each heartbeat.
        self.heartbeats = threading.Semaphore(0)
        self._by_address: dict[bytes, Peer] = {}
        self._next_session = first_session
        self._next_task = 1
        self._inbox: queue.SimpleQueue[tuple[Peer, Message, Sequence[Frame]]] = queue.SimpleQueue()
        self._unread: list[tuple[Peer, Message, Sequence[Frame]]] = []
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
                    if not self.is_silent and bytes(frames[0]) not in self.ignored_addresses:
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
            self.heartbeats.release()
            self._reply(address, Pong())
            return
        if isinstance(message, Finished):
            peer.acked += len(message.results)
            if self.sends_acks:
                self._reply(address, native.Acked(peer.acked))
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
            accepted=peer.acked,
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

    def forget_address(self, peer: Peer) -> None:
        """Forget the peer's address, as a ROUTER does when a connection breaks; the session stays."""
        self._call(self._by_address.pop, peer.address)

    def expect(self, kind: type[M], peer: Peer | None = None, where: Callable[[M], bool] = lambda m: True) -> M:
        return self.expect_from(kind, peer, where)[1]

    def expect_from(
        self, kind: type[M], peer: Peer | None = None, where: Callable[[M], bool] = lambda m: True
    ) -> tuple[Peer, M, Sequence[Frame]]:
        """Wait for the next message of this kind (from this peer); other messages stay unread."""
        for index, item in enumerate(self._unread):
            if self._fits(item, kind, peer, where):
                return self._unread.pop(index)  # type: ignore[return-value]  # `_fits` has checked the type
        while True:
            try:
                item = self._inbox.get(timeout=WAIT_S)
            except queue.Empty:
                raise AssertionError(f"no {kind.__name__} arrived; unread: {self._unread}") from None
            if self._fits(item, kind, peer, where):
                return item  # type: ignore[return-value]  # likewise
            self._unread.append(item)

    @staticmethod
    def _fits(item: Any, kind: type[Any], peer: Peer | None, where: Callable[[Any], bool]) -> bool:
        return isinstance(item[1], kind) and (peer is None or item[0].session == peer.session) and where(item[1])

    def engine(self, role: str = "engine") -> Peer:
        """Wait for the next hello of this role; returns the peer."""
        return self.expect_from(Hello, where=lambda hello: hello.role == role)[0]

    def has_no_messages(self) -> bool:
        return self._inbox.empty() and not self._unread

    # ---- calls ------------------------------------------------------------------------------------------------------

    def call(
        self, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> tuple[Call, dict[bytes, bytes], tuple[Frame, ...]]:
        """Build a call: (the call, its function by digest, its frames)."""
        pickled = payload.dump_function(function)
        digest = payload.digest(pickled)
        body, frames = payload.pack(*payload.dumps((args, kwargs)))
        call = Call(id=self.task_id(), fn=digest, body=body, frames=len(frames), attempt=1)
        return call, {digest: pickled}, frames

    def task_id(self, session: int = 7) -> int:
        self._next_task += 1
        return session << 32 | self._next_task

    def assign(self, peer: Peer, *calls: tuple[Call, dict[bytes, bytes], tuple[Frame, ...]], **more: Any) -> list[int]:
        """Send the calls in one message; returns their ids."""
        functions = {d: f for _, fns, _ in calls for d, f in fns.items() if d not in peer.known}
        peer.known.update(functions)
        frames = [frame for _, _, frames in calls for frame in frames]
        self.send(peer, Assign([call for call, _, _ in calls], functions, **more), frames)
        return [call.id for call, _, _ in calls]

    def answers(self, peer: Peer, *tasks: int) -> list[Answer]:
        """Wait for the results of these tasks; returns them in the order in which they arrive."""
        wanted = set(tasks)
        answers: list[Answer] = []
        while wanted:
            _, finished, frames = self.expect_from(Finished, peer)
            at = 0
            for result in finished.results:
                if result.id in wanted:
                    wanted.remove(result.id)
                    answers.append(Answer(result, frames[at : at + result.frames]))
                at += result.frames
        return answers

    def run(self, peer: Peer, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Answer:
        (task,) = self.assign(peer, self.call(function, *args, **kwargs))
        return self.answers(peer, task)[0]

    def value_of(self, answer: Answer) -> Value:
        return Value(body=answer.result.body, frames=answer.result.frames, codec=answer.result.codec)


class Worker:
    """A real worker process without a nanny; the test sends the control messages."""

    started: ClassVar[list[Worker]] = []

    def __init__(self, start: StartWorker, *, argv: Sequence[str] = ()) -> None:
        self._stderr: str | None = None
        Worker.started.append(self)
        command = [sys.executable, "-m", "trio_sched.engine.worker", *argv]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        assert self.process.stdin
        if not argv:
            self.send(start)

    def send(self, message: StartWorker | NannyJoined) -> None:
        assert self.process.stdin
        self.process.stdin.write(control_messages.encode(message))
        self.process.stdin.flush()

    def wait(self) -> int:
        return self.process.wait(WAIT_S)

    def stop(self) -> str:
        """Kill the worker; returns what it has written to its own standard error."""
        if self._stderr is None:
            self.process.kill()
            assert self.process.stdin
            assert self.process.stderr
            with self.process.stderr as stderr:
                self._stderr = stderr.read().decode()
            self.process.stdin.close()
            self.process.wait(WAIT_S)
        return self._stderr


class Gate:
    """A pair of named pipes, at which a task in any process waits for the test."""

    def __init__(self, directory: Path) -> None:
        #: The arguments of `pass_gate`.
        self.pipes = [str(directory / f"{os.urandom(3).hex()}.pipe") for _ in range(2)]
        for pipe in self.pipes:
            os.mkfifo(pipe)

    def entered(self) -> None:
        """Wait until the task has reached the gate."""
        with open(self.pipes[0]) as pipe:
            pipe.read()

    def release(self, text: str = "") -> None:
        with open(self.pipes[1], "w") as pipe:
            pipe.write(text)


def by_value(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a function pickled by value, because workers cannot import the tests."""
    function.__module__ = "__main__"
    return function


@by_value
def pass_gate(entered: str, released: str) -> str:
    """A task: waits at the gate, and returns the text with which the test releases it."""
    with open(entered, "w"):
        pass
    with open(released) as pipe:
        return pipe.read()


def address_in(directory: Path) -> str:
    return f"ipc://{directory}/s{os.urandom(3).hex()}.sock"
