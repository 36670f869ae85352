"""Fake clients, engines and nannies that speak the native protocol and do exactly what a test tells them.

A peer hears in the background: what comes in is sorted by type and waits to be asked for. It sends its beats as long
as `beating`. Payloads are whatever bytes or text a test likes; nothing is pickled. Works over `MemoryDealer` as over
`ZmqSocket`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import anyio
import trio

from trio_sched.core.ids import make_task_id
from trio_sched.wire import native
from trio_sched.wire.native import Frame
from trio_sched.wire.payload import digest

M = TypeVar("M")
ACK_EVERY = 1000


class Dealer(Protocol):
    """What a peer needs of its socket."""

    async def receive(self, limit: int = ...) -> list[list[Frame]]: ...
    def send(self, frames: Sequence[Frame]) -> bool: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def body_of(value: str | bytes) -> bytes:
    """A payload from what a test wrote."""
    return value.encode() if isinstance(value, str) else value


class FakePeer:
    """What all three have in common. Made by `World`, or with `connect`, a function that makes dealers, and `run` as
    a task."""

    role = "client"

    def __init__(self, connect: Callable[[], Dealer], token: str, **hello: Any) -> None:
        self._connect = connect
        self._hello = native.Hello(role=self.role, token=token, **hello)  # type: ignore[arg-type]  # one of the roles
        self.dealer: Any = connect()
        self.welcome = native.Welcome(0, "", "")
        self.joined = False
        """Whether its last Hello was answered; what is said before that may go unheard."""
        self.beating = True
        self.returning = True
        """Whether it says Hello again by itself when it is told to."""
        self.heard: list[Any] = []
        """Everything that came, decoded, in order."""
        self._unread: list[tuple[Any, Sequence[Frame]]] = []
        self._news = trio.Event()
        self.closed = trio.Event()
        """Set when the scheduler has closed the connection for good (the in-memory transport tells)."""

    @property
    def number(self) -> int:
        """Its session."""
        return self.welcome.session

    # ---- talking ----------------------------------------------------------------------------------------------------

    def say(self, message: native.FromPeer, frames: Sequence[Frame] = ()) -> None:
        """Send a message."""
        self.say_raw([native.encode(message), *frames])

    def say_raw(self, frames: Sequence[Frame]) -> None:
        """Send whatever it is."""
        self.dealer.send(frames)
        self.dealer.flush()

    def decode(self, data: Frame) -> Any:
        """A message that came."""
        return native.decode_to_client(data)

    async def hear(self, kind: type[M], timeout_s: float = 60.0) -> M:
        """The next message of that type that was not asked for yet; others wait."""
        with trio.fail_after(timeout_s):
            while True:
                for at, (message, _) in enumerate(self._unread):
                    if isinstance(message, kind):
                        del self._unread[at]
                        return message
                self._news = trio.Event()
                await self._news.wait()

    def unheard(self, kind: type[M]) -> list[M]:
        """All messages of that type that came and were not asked for, now asked for."""
        found = [message for message, _ in self._unread if isinstance(message, kind)]
        self._unread = [entry for entry in self._unread if not isinstance(entry[0], kind)]
        return found

    def notice(self, message: Any, frames: Sequence[Frame]) -> None:
        """A message came: what a peer does with it by itself."""
        if isinstance(message, native.Welcome):
            self.welcome = message
            self.joined = True
        elif isinstance(message, native.Error) and message.kind == "unknown_peer" and self.joined and self.returning:
            self.say(self.hello())

    def take(self, batch: Sequence[Sequence[Frame]]) -> None:
        """Messages came."""
        for frames in batch:
            message = self.decode(frames[0])
            self.heard.append(message)
            self._unread.append((message, frames[1:]))
            self.notice(message, frames[1:])

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The task: hears and beats, until cancelled. The connection is closed then."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._beat)
                task_status.started()
                await self._listen()
                nursery.cancel_scope.cancel()
        finally:
            self.dealer.close()

    async def _listen(self) -> None:
        while True:
            dealer = self.dealer
            try:
                self.take(await dealer.receive())
            except (trio.ClosedResourceError, anyio.ClosedResourceError):
                if self.dealer is dealer:  # for good
                    self.closed.set()
                    return
            self._news.set()

    async def _beat(self) -> None:
        while True:
            await trio.sleep(self.welcome.heartbeat_s)
            if self.beating and self.number and not self.closed.is_set():
                self.say(self.ping())

    def ping(self) -> native.Ping:
        """A heartbeat."""
        return native.Ping()

    # ---- joining ----------------------------------------------------------------------------------------------------

    async def join(self) -> native.Welcome:
        """Say Hello and wait to be welcomed. Once it has a session it resumes that."""
        self.say(self.hello())
        return await self.hear(native.Welcome)

    def hello(self) -> native.Hello:
        """Its Hello, as the one it was if it was one."""
        self.joined = False
        hello = self._hello
        if self.number:
            hello.session, hello.secret, hello.scheduler = self.number, self.welcome.secret, self.welcome.scheduler
        return hello

    def reconnect(self) -> None:
        """Take a new connection; the old one is closed."""
        self.joined = False
        old, self.dealer = self.dealer, self._connect()
        old.close()

    async def rejoin(self) -> native.Welcome:
        """Take a new connection and resume the session."""
        self.reconnect()
        return await self.join()

    def leave(self, cancel: bool = False) -> None:
        """Say good-bye."""
        self.beating = self.returning = False
        self.say(native.Bye(cancel))


class FakeClient(FakePeer):
    """A client that counts its tasks, collects results, and acknowledges them unless told not to."""

    role = "client"

    def __init__(self, connect: Callable[[], Dealer], token: str, **hello: Any) -> None:
        super().__init__(connect, token, **hello)
        self.ends: dict[int, native.TaskEnd] = {}
        """By full id."""
        self.deliveries: list[int] = []
        """Ids of the ends that came, in order, repeats and all."""
        self.frames: dict[int, Sequence[Frame]] = {}
        self.received = 0
        self.acknowledging = True
        self.accepted = 0
        self._counter = 0
        self._functions: dict[bytes, bytes] = {}
        self.sent: list[native.Call] = []
        """Calls in the order in which they were submitted."""

    def notice(self, message: Any, frames: Sequence[Frame]) -> None:
        """See FakePeer."""
        super().notice(message, frames)
        self.accepted = max(self.accepted, getattr(message, "accepted", 0))
        if isinstance(message, native.Welcome):
            self._submit(self.sent[message.accepted :], dict(self._functions))
        if isinstance(message, native.Results) and message.seq > self.received:
            self.received = message.seq
            for dealt in native.attach(message.results, frames):
                end: Any = dealt
                if isinstance(dealt, native.Attached):
                    end = dealt.record
                    self.frames[end.id] = dealt.frames
                self.ends[end.id] = end
                self.deliveries.append(end.id)

    def ping(self) -> native.Ping:
        """See FakePeer."""
        return native.Ping(self.received if self.acknowledging else 0)

    def hello(self) -> native.Hello:
        """See FakePeer."""
        hello = super().hello()
        hello.received = self.received
        hello.accepted = self.accepted if self.number else -1
        return hello

    def calls(self, *bodies: str | bytes, fn: bytes = b"", **options: Any) -> list[native.Call]:
        """Calls with the next counters. `options` as in native.Options."""
        made = []
        for body in bodies:
            self._counter += 1
            chosen = native.Options(**options) if options else None
            made.append(native.Call(self._counter, digest(fn) if fn else b"", body_of(body), options=chosen))
        return made

    async def submit(self, *bodies: str | bytes, fn: bytes = b"", **options: Any) -> int:
        """Submit tasks in one message; returns the full id of the last one."""
        task = self.submit_nowait(*bodies, fn=fn, **options)
        await trio.lowlevel.checkpoint()
        return task

    def submit_nowait(self, *bodies: str | bytes, fn: bytes = b"", **options: Any) -> int:
        """The same without a checkpoint."""
        calls = self.calls(*bodies, fn=fn, **options)
        functions = {digest(fn): fn} if fn and digest(fn) not in self._functions else {}
        self._functions.update(functions)
        self.sent += calls
        self._submit(calls, functions)
        return self.full(calls[-1].id)

    def _submit(self, calls: list[native.Call], functions: dict[bytes, bytes]) -> None:
        if calls and self.joined:
            self.say(native.Submit(calls, functions, received=self.received if self.acknowledging else 0))

    def full(self, counter: int) -> int:
        """The full id of an own task."""
        return make_task_id(self.number, counter)

    async def end_of(self, task: int, timeout_s: float = 3600.0) -> native.TaskEnd:
        """How the task ended, once it has."""
        with trio.fail_after(timeout_s):
            while task not in self.ends:
                self._news = trio.Event()
                await self._news.wait()
        return self.ends[task]

    async def ask(self, what: str, task: int = 0) -> Any:
        """The answer to a query."""
        self.say(native.Query(1, what, task))
        reply = await self.hear(native.Reply)
        return reply.error or reply.data


class FakeEngine(FakePeer):
    """An engine that answers on command, or (`eager`) at once with the body that it was sent."""

    role = "engine"

    def __init__(self, connect: Callable[[], Dealer], token: str, *, eager: bool = False, **hello: Any) -> None:
        hello.setdefault("python", "3.11.7")
        super().__init__(connect, token, **hello)
        self.eager = eager
        self.calls: dict[int, native.Call] = {}
        """Assigned and unanswered, by full id."""
        self.functions: dict[bytes, bytes] = {}
        self.places: dict[int, native.Place] = {}
        self.acked = 0
        self.recalled: list[int] = []
        self.repeated: set[tuple[int, int]] = set()
        """(task, attempt) that it was given although it had been given it already."""
        self._seen: set[tuple[int, int]] = set()
        self._queue: list[native.Call] = []
        self._unacked: list[tuple[native.TaskEnd, Sequence[Frame]]] = []

    def decode(self, data: Frame) -> Any:
        """See FakePeer."""
        return native.decode_to_engine(data)

    def notice(self, message: Any, frames: Sequence[Frame]) -> None:
        """See FakePeer."""
        super().notice(message, frames)
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
            self.places.update(message.places)
            self.calls.update({call.id: call for call in message.tasks})
            if not self.eager:
                self._queue += message.tasks
            else:
                self._answer([self._ended(call, call.body) for call in message.tasks])
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
            ends = [end for end, _ in self._unacked]
            self.say(native.Finished(ends), [frame for _, frames in self._unacked for frame in frames])

    def hello(self) -> native.Hello:
        """See FakePeer."""
        hello = super().hello()
        hello.holding = [*self.calls, *(end.id for end, _ in self._unacked)]
        return hello

    # ---- working ----------------------------------------------------------------------------------------------------

    async def next_call(self, timeout_s: float = 60.0) -> native.Call:
        """The next call that it was given, in order."""
        with trio.fail_after(timeout_s):
            while not self._queue:
                self._news = trio.Event()
                await self._news.wait()
        return self._queue.pop(0)

    def queued(self) -> list[int]:
        """Calls given and not yet taken by `next_call`."""
        return [call.id for call in self._queue]

    def take_call(self) -> native.Call:
        """The next call, if there is one now."""
        return self._queue.pop(0)

    async def finish(self, call: native.Call, value: str | bytes = b"", frames: Sequence[Frame] = ()) -> None:
        """Answer ok."""
        self._answer([self._ended(call, value, len(frames))], frames)
        await trio.lowlevel.checkpoint()

    async def fail(self, call: native.Call, message: str = "it failed") -> None:
        """Answer with an error."""
        self.end_error(call, message)
        await trio.lowlevel.checkpoint()

    async def decline(self, call: native.Call) -> None:
        """Answer that a dependency is unmet here."""
        self.end_unmet(call)
        await trio.lowlevel.checkpoint()

    def end_ok(self, call: native.Call) -> None:
        """Answer with what was sent."""
        self._answer([self._ended(call, call.body)])

    def end_error(self, call: native.Call, message: str = "it failed") -> None:
        """Answer with an error."""
        error = native.RemoteError("ValueError", message)
        self._answer([native.TaskEnd(call.id, "error", error=error, attempt=call.attempt)])

    def end_unmet(self, call: native.Call) -> None:
        """Answer that a dependency is unmet here."""
        self._answer([native.TaskEnd(call.id, "unmet", reason="not here", attempt=call.attempt)])

    def give_back(self, *tasks: int, kept: Sequence[int] = ()) -> None:
        """Answer a Recall."""
        for task in tasks:
            self.calls.pop(task, None)
        self._queue = [call for call in self._queue if call.id not in tasks]
        self.say(native.Recalled(list(tasks), list(kept)))

    def _ended(self, call: native.Call, value: str | bytes, frames: int = 0) -> native.TaskEnd:
        return native.TaskEnd(call.id, "ok", body_of(value), frames, attempt=call.attempt)

    def _answer(self, ends: list[native.TaskEnd], frames: Sequence[Frame] = ()) -> None:
        for end in ends:
            self.calls.pop(end.id, None)
            self._unacked.append((end, frames))
        if self.joined:
            self.say(native.Finished(ends), frames)


class FakeNanny(FakePeer):
    """A nanny."""

    role = "nanny"

    def decode(self, data: Frame) -> Any:
        """See FakePeer."""
        return native.decode_to_engine(data)

    def report_death(self, engine: FakeEngine, reason: str = "killed", running: list[int] | None = None) -> None:
        """Say that a worker died."""
        self.say(native.Died(engine.number, reason, running))
