"""Fake clients, engines and nannies for the native protocol, which a test controls message by message.

A peer receives in the background: messages are kept until the test asks for their type. While `sends_heartbeats` is
True, the peer sends heartbeats. Payloads are the bytes or text of the test; nothing is pickled. The peers work
over `MemoryDealer` and over `ZmqSocket`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeVar

import anyio
import trio

from trio_sched.core.ids import make_task_id
from trio_sched.wire import native
from trio_sched.wire.native import Frame
from trio_sched.wire.payload import digest

M = TypeVar("M")


class PeerSocket(Protocol):
    """The part of a socket that a peer uses."""

    async def receive(self, limit: int = ...) -> list[list[Frame]]: ...
    def send(self, frames: Sequence[Frame]) -> bool: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def encode_body(value: str | bytes) -> bytes:
    """Encode the text of a test as a payload."""
    return value.encode() if isinstance(value, str) else value


class FakePeer:
    """The common base of the three peers. `ServerHarness` makes them; without it, a test starts `run` in a nursery."""

    role: Literal["client", "engine", "nanny"] = "client"

    def __init__(self, connect: Callable[[], PeerSocket], token: str, **hello: Any) -> None:
        """Connect, without a hello.

        :param connect: makes a connected socket; called again for each reconnection.
        :param hello: fields of the peer's `native.Hello`.
        """
        self._connect = connect
        # not `build_hello`: a fake names no process, and the test chooses every field
        self._hello = native.Hello(role=self.role, token=token, **hello)
        self.dealer: Any = connect()
        self.welcome = native.Welcome(0, "", "")
        #: Whether the last hello was answered; the scheduler may ignore messages that were sent before that.
        self.joined = False
        #: Whether the peer sends heartbeats.
        self.sends_heartbeats = True
        #: Whether the peer sends its hello again when the scheduler answers "unknown_peer".
        self.rejoins = True
        #: All received messages, decoded, in order.
        self.received_messages: list[Any] = []
        self._unread: list[tuple[Any, Sequence[Frame]]] = []
        self._arrived = trio.Event()
        #: Set when the scheduler has closed the connection; only the in-memory transport notices that.
        self.closed = trio.Event()

    @property
    def number(self) -> int:
        """The session number; 0: not welcomed yet."""
        return self.welcome.session

    # ---- messages ---------------------------------------------------------------------------------------------------

    def send(self, message: native.FromPeer, frames: Sequence[Frame] = ()) -> None:
        """Send a message."""
        self.send_frames([native.encode(message), *frames])

    def send_frames(self, frames: Sequence[Frame]) -> None:
        """Send frames, which need not be a message."""
        self.dealer.send(frames)
        self.dealer.flush()

    def decode(self, data: Frame) -> Any:
        """Decode a received message."""
        return native.decode_to_client(data)

    async def expect(self, kind: type[M], timeout_s: float = 60.0) -> M:
        """Wait for the next unread message of this type; messages of other types stay unread."""
        with trio.fail_after(timeout_s):
            while True:
                for at, (message, _) in enumerate(self._unread):
                    if isinstance(message, kind):
                        del self._unread[at]
                        return message
                self._arrived = trio.Event()
                await self._arrived.wait()

    def take_unread(self, kind: type[M]) -> list[M]:
        """Return the unread messages of this type, which are read then."""
        found = [message for message, _ in self._unread if isinstance(message, kind)]
        self._unread = [entry for entry in self._unread if not isinstance(entry[0], kind)]
        return found

    def on_message(self, message: Any, frames: Sequence[Frame]) -> None:
        """React to a received message without a call by the test."""
        if isinstance(message, native.Welcome):
            self.welcome = message
            self.joined = True
        elif isinstance(message, native.Error) and message.kind == "unknown_peer" and self.joined and self.rejoins:
            self.send(self.hello())

    def on_messages(self, batch: Sequence[Sequence[Frame]]) -> None:
        """Handle received messages."""
        for frames in batch:
            message = self.decode(frames[0])
            self.received_messages.append(message)
            self._unread.append((message, frames[1:]))
            self.on_message(message, frames[1:])

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Receive messages and send heartbeats until cancelled; then close the connection."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_heartbeats)
                task_status.started()
                await self._listen()
                nursery.cancel_scope.cancel()
        finally:
            self.dealer.close()

    async def _listen(self) -> None:
        while True:
            dealer = self.dealer
            try:
                self.on_messages(await dealer.receive())
            except (trio.ClosedResourceError, anyio.ClosedResourceError):
                if self.dealer is dealer:  # not replaced by `reconnect`
                    self.closed.set()
                    return
            self._arrived.set()

    async def _send_heartbeats(self) -> None:
        while True:
            await trio.sleep(self.welcome.heartbeat_s)
            if self.sends_heartbeats and self.number and not self.closed.is_set():
                self.send(self.ping())

    def ping(self) -> native.Ping:
        """Build a heartbeat."""
        return native.Ping()

    # ---- joining ----------------------------------------------------------------------------------------------------

    async def join(self) -> native.Welcome:
        """Send the hello, and wait for the welcome. With a session, resume it."""
        self.send(self.hello())
        return await self.expect(native.Welcome)

    def hello(self) -> native.Hello:
        """Build the hello, with the session if there is one."""
        self.joined = False
        hello = self._hello
        if self.number:
            hello.session, hello.secret, hello.scheduler = self.number, self.welcome.secret, self.welcome.scheduler
        return hello

    def reconnect(self) -> None:
        """Replace the connection by a new one."""
        self.joined = False
        old, self.dealer = self.dealer, self._connect()
        old.close()

    async def rejoin(self) -> native.Welcome:
        """Replace the connection by a new one, and resume the session."""
        self.reconnect()
        return await self.join()

    def leave(self, cancel: bool = False) -> None:
        """End the session with a Bye, and send no more heartbeats.

        :param cancel: cancel a client's unfinished tasks.
        """
        self.sends_heartbeats = self.rejoins = False
        self.send(native.Bye(cancel))


class FakeClient(FakePeer):
    """A client that numbers its tasks, collects results, and acknowledges them while `acknowledging`."""

    role = "client"

    def __init__(self, connect: Callable[[], PeerSocket], token: str, **hello: Any) -> None:
        super().__init__(connect, token, **hello)
        #: By full id.
        self.results: dict[int, native.TaskResult] = {}
        #: Full ids of the received results, in order, with repetitions.
        self.deliveries: list[int] = []
        self.frames: dict[int, Sequence[Frame]] = {}
        self.received = 0
        self.acknowledging = True
        self.accepted = 0
        self._counter = 0
        self._functions: dict[bytes, bytes] = {}
        #: Submitted calls, in order.
        self.sent: list[native.Call] = []

    def on_message(self, message: Any, frames: Sequence[Frame]) -> None:
        """Collect results, and send unaccepted calls again after a welcome."""
        super().on_message(message, frames)
        self.accepted = max(self.accepted, getattr(message, "accepted", 0))
        if isinstance(message, native.Welcome):
            self._submit(self.sent[message.accepted :], dict(self._functions))
        if isinstance(message, native.Results) and message.seq > self.received:
            self.received = message.seq
            for framed in native.attach(message.results, frames):
                result: Any = framed
                if isinstance(framed, native.FramedRecord):
                    result = framed.record
                    self.frames[result.id] = framed.frames
                self.results[result.id] = result
                self.deliveries.append(result.id)

    def ping(self) -> native.Ping:
        """Build a heartbeat, which acknowledges results while `acknowledging`."""
        return native.Ping(self.received if self.acknowledging else 0)

    def hello(self) -> native.Hello:
        """Build the hello, with the counts of received results and accepted calls."""
        hello = super().hello()
        hello.received = self.received
        hello.accepted = self.accepted if self.number else -1
        return hello

    def calls(self, *bodies: str | bytes, fn: bytes = b"", **options: Any) -> list[native.Call]:
        """Build calls with the next counters. `options` are fields of `native.Options`."""
        calls = []
        for body in bodies:
            self._counter += 1
            chosen = native.Options(**options) if options else None
            calls.append(native.Call(self._counter, digest(fn) if fn else b"", encode_body(body), options=chosen))
        return calls

    async def submit(self, *bodies: str | bytes, fn: bytes = b"", **options: Any) -> int:
        """Submit tasks in one message; returns the full id of the last one. `options` are as in `calls`."""
        task = self.submit_nowait(*bodies, fn=fn, **options)
        await trio.lowlevel.checkpoint()
        return task

    def submit_nowait(self, *bodies: str | bytes, fn: bytes = b"", **options: Any) -> int:
        """Submit like `submit`, without a checkpoint."""
        calls = self.calls(*bodies, fn=fn, **options)
        functions = {digest(fn): fn} if fn and digest(fn) not in self._functions else {}
        self._functions.update(functions)
        self.sent += calls
        self._submit(calls, functions)
        return self.task_id(calls[-1].id)

    def _submit(self, calls: list[native.Call], functions: dict[bytes, bytes]) -> None:
        if calls and self.joined:
            self.send(native.Submit(calls, functions, received=self.received if self.acknowledging else 0))

    def task_id(self, counter: int) -> int:
        """The full id of the task with this counter."""
        return make_task_id(self.number, counter)

    async def result_of(self, task: int, timeout_s: float = 3600.0) -> native.TaskResult:
        """Wait for the result of a task, given by full id."""
        with trio.fail_after(timeout_s):
            while task not in self.results:
                self._arrived = trio.Event()
                await self._arrived.wait()
        return self.results[task]

    async def query(self, what: str, task: int = 0) -> Any:
        """Send a query; returns the data of the answer, or its error."""
        self.send(native.Query(1, what, task))
        reply = await self.expect(native.Reply)
        return reply.error or reply.data


class FakeEngine(FakePeer):
    """An engine that returns results on command, or at once with the body of the call if `eager`."""

    role = "engine"

    def __init__(self, connect: Callable[[], PeerSocket], token: str, *, eager: bool = False, **hello: Any) -> None:
        hello.setdefault("python", "3.11.7")
        super().__init__(connect, token, **hello)
        self.eager = eager
        #: Assigned calls without a result, by full id.
        self.calls: dict[int, native.Call] = {}
        self.functions: dict[bytes, bytes] = {}
        self.environments: dict[int, native.ClientEnvironment] = {}
        self.acked = 0
        self.recalled: list[int] = []
        #: (task, attempt) of the calls that were assigned more than once.
        self.repeated: set[tuple[int, int]] = set()
        self._seen: set[tuple[int, int]] = set()
        self._queue: list[native.Call] = []
        self._unacked: list[tuple[native.TaskResult, Sequence[Frame]]] = []

    def decode(self, data: Frame) -> Any:
        """Decode a message for an engine."""
        return native.decode_to_engine(data)

    def on_message(self, message: Any, frames: Sequence[Frame]) -> None:
        """Take assigned calls, and send unacknowledged results again after a welcome."""
        super().on_message(message, frames)
        self._note_acked(getattr(message, "acked", 0))
        if isinstance(message, native.Welcome):
            self._resume(message)
        elif isinstance(message, native.Assign):
            native.attach(message.tasks, frames)
            for call in message.tasks:
                (self.repeated if (call.id, call.attempt) in self._seen else self._seen).add((call.id, call.attempt))
            self.functions.update(message.functions)
            for dropped in message.drop:
                self.functions.pop(dropped, None)
            self.environments.update(message.places)
            self.calls.update({call.id: call for call in message.tasks})
            if not self.eager:
                self._queue += message.tasks
            else:
                self._send_results([self._result_of(call, call.body) for call in message.tasks])
        elif isinstance(message, native.Recall):
            self.recalled += message.tasks

    def _note_acked(self, acked: int) -> None:
        if acked > self.acked:
            del self._unacked[: acked - self.acked]
            self.acked = acked

    def _resume(self, welcome: native.Welcome) -> None:
        if not welcome.resumed:
            self.calls.clear()
            self._queue.clear()
            self._unacked.clear()
            self._seen.clear()
            self.acked = 0
            return
        self._note_acked(welcome.accepted)
        if self._unacked:
            results = [result for result, _ in self._unacked]
            self.send(native.Finished(results), [frame for _, frames in self._unacked for frame in frames])

    def hello(self) -> native.Hello:
        """Build the hello, with the tasks that the engine holds."""
        hello = super().hello()
        hello.holding = [*self.calls, *(result.id for result, _ in self._unacked)]
        return hello

    # ---- calls ------------------------------------------------------------------------------------------------------

    async def next_call(self, timeout_s: float = 60.0) -> native.Call:
        """Wait for the next assigned call."""
        with trio.fail_after(timeout_s):
            while not self._queue:
                self._arrived = trio.Event()
                await self._arrived.wait()
        return self._queue.pop(0)

    def queued(self) -> list[int]:
        """Full ids of the assigned calls that `next_call` has not returned."""
        return [call.id for call in self._queue]

    def take_call(self) -> native.Call:
        """The next assigned call.

        :raises IndexError: there is none.
        """
        return self._queue.pop(0)

    async def finish(self, call: native.Call, value: str | bytes = b"", frames: Sequence[Frame] = ()) -> None:
        """Send the value as the result of a call, with a checkpoint."""
        self._send_results([self._result_of(call, value, len(frames))], frames)
        await trio.lowlevel.checkpoint()

    async def fail(self, call: native.Call, message: str = "it failed") -> None:
        """Answer with an error."""
        self.answer_error(call, message)
        await trio.lowlevel.checkpoint()

    async def decline(self, call: native.Call) -> None:
        """Decline a call because of an unmet dependency (R19), with a checkpoint."""
        self.answer_unmet(call)
        await trio.lowlevel.checkpoint()

    def answer_ok(self, call: native.Call) -> None:
        """Send the body of a call as its result."""
        self._send_results([self._result_of(call, call.body)])

    def answer_error(self, call: native.Call, message: str = "it failed") -> None:
        """Send an error as the result of a call."""
        error = native.RemoteError("ValueError", message)
        self._send_results([native.TaskResult(call.id, "error", error=error, attempt=call.attempt)])

    def answer_unmet(self, call: native.Call) -> None:
        """Decline a call because of an unmet dependency (R19)."""
        self._send_results([native.TaskResult(call.id, "unmet", reason="not here", attempt=call.attempt)])

    def answer_recall(self, *tasks: int, kept: Sequence[int] = ()) -> None:
        """Answer a `Recall`: give `tasks` back, and name those that are `kept`."""
        for task in tasks:
            self.calls.pop(task, None)
        self._queue = [call for call in self._queue if call.id not in tasks]
        self.send(native.Recalled(list(tasks), list(kept)))

    def _result_of(self, call: native.Call, value: str | bytes, frames: int = 0) -> native.TaskResult:
        return native.TaskResult(call.id, "ok", encode_body(value), frames, attempt=call.attempt)

    def _send_results(self, results: list[native.TaskResult], frames: Sequence[Frame] = ()) -> None:
        for result in results:
            self.calls.pop(result.id, None)
            self._unacked.append((result, frames))
        if self.joined:
            self.send(native.Finished(results), frames)


class FakeNanny(FakePeer):
    """A nanny without workers."""

    role = "nanny"

    def decode(self, data: Frame) -> Any:
        """Decode a message for a nanny."""
        return native.decode_to_engine(data)

    def report_death(self, engine: FakeEngine, reason: str = "killed", running: list[int] | None = None) -> None:
        """Report the death of a worker.

        :param running: full ids of the tasks that ran; None: unknown.
        """
        self.send(native.WorkerDied(engine.number, reason, running))
