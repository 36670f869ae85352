"""The task queue: a request becomes a `TaskSubmitted`, a reply a `TaskFinished`; assignments and ends go out as frames.

    client --[.., <IDS|MSG>, request]--> here --TaskSubmitted--> core --AssignTask--> here --[engine, ..]--> engine
    engine --[engine, .., reply]--> here --TaskFinished--> core --DeliverResult--> here --[client, engine, ..]--> client

Requests and replies pass as they came; of a request only header and metadata are read, of a reply the parent header
and the metadata. This is where nearly all of a task's time in this process is spent, so what can be done without
calls is. A task of which the core itself says how it ends gets a reply of ours.

The identity of a client's connection is a new one for each socket, so a client is its header's session (R15).
"""

from __future__ import annotations

from typing import Any

import msgspec
import trio
from msgspec import Struct

from trio_sched.core.effects import AssignTask, DeliverResult, Refuse
from trio_sched.core.events import (
    ClientJoined,
    ClientLeft,
    Dependency,
    DependencyUnmet,
    ResultsReceived,
    TaskFinished,
    TaskSpec,
    TaskSubmitted,
)
from trio_sched.errors import WireError
from trio_sched.ipyparallel.desk import Desk
from trio_sched.ipyparallel.registration import KIND
from trio_sched.logs import get_logger
from trio_sched.server.budget import MEMORY_SHARE
from trio_sched.server.happenings import Event
from trio_sched.server.hub import TaskEffect
from trio_sched.server.memory import memory_bytes
from trio_sched.wire.jupyter import UNREADABLE, Parsed, failure, split
from trio_sched.wire.native import Frame
from trio_sched.wire.ranges import RANGES, quoted

log = get_logger(__name__)
PLAIN = TaskSpec(kind=KIND, crash_limit=None, same_engine=False)
"""What most tasks ask for: nothing."""
RECEIVED_AT_ONCE = 64
"""Results that were passed on are let go of by the core in such lots,"""
RECEIVED_BYTES = 1 << 20
"""or when they hold so much memory."""
CLIENT_IDLE_S = 3600.0
"""A client without unfinished tasks that sent none for so long is forgotten; should it come back, it is a new one."""


class Wishes(Struct, gc=False):
    """What the metadata of a request may ask for."""

    after: Any = None
    follow: Any = None
    targets: Any = None
    retries: Any = 0
    timeout: Any = None


_decode_wishes = msgspec.json.Decoder(Wishes).decode


class Route:
    """An unfinished task: what to send to the engine, and where the reply goes."""

    __slots__ = ("client", "copies", "engine", "header", "identities", "message", "size")

    def __init__(self, client: str, message: list[Frame], identities: list[bytes], header: Frame) -> None:
        self.client = client
        self.message = message
        self.identities = identities
        self.header = header
        self.size = sum(map(len, message))
        """Bytes of the message."""
        self.copies = 1
        self.engine: str | None = None
        """Where it was last sent."""


class Client:
    """A session that has submitted tasks."""

    __slots__ = ("id", "last_at", "unfinished")

    def __init__(self, session: str) -> None:
        self.id = f"ipp:{session}"
        self.unfinished = 0
        self.last_at = 0.0


class TaskQueue:
    """The two task sockets. An `Outlet`: it is given the effects of its tasks."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._codec = desk.codec
        self._inbox = desk.hub.inbox
        self._client_side = desk.bind("router", "client", "task")
        self._engine_side = desk.bind_patient("task")
        self._routes: dict[str, Route] = {}
        """By unfinished task."""
        self._clients: dict[str, Client] = {}
        self._received: dict[str, list[str]] = {}
        """By client: tasks whose results were passed on, which the core does not know yet."""
        self._received_count = 0
        self._received_bytes = 0
        self._held_bytes = 0
        """Of unfinished tasks; clients of this front know no credit, so that more than the limit are refused."""
        self._limit_bytes = desk.config.total_bytes or memory_bytes() // MEMORY_SHARE
        self._sent = False
        desk.hub.on_flush(self.flush)
        desk.hub.register_effect_handler(self)
        desk.tasks.append(self.run)

    async def run(self) -> None:
        """The tasks."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump_requests)
            nursery.start_soon(self._pump_replies)
            nursery.start_soon(self._forget_clients)

    # ---- requests ---------------------------------------------------------------------------------------------------

    async def _pump_requests(self) -> None:
        socket, desk = self._client_side, self._desk
        while True:
            batch = await socket.receive()
            events: list[Event] = []
            for index, frames in enumerate(batch):
                try:
                    self._submit(self._codec.read(frames), frames, events)
                except WireError as error:
                    desk.drop(error, "task")
                    socket.reject(index)
                except Exception:
                    desk.broken("task")
            if events:
                self._pass_on(events)

    def submit(self, message: Parsed) -> None:
        """A request that somebody here makes; the reply goes to its identities, if it has any. Raises WireError."""
        events: list[Event] = []
        frames: list[Frame] = [*message.identities, b"<IDS|MSG>", *message.frames]
        self._submit(message, frames, events)
        self._pass_on(events)

    def _pass_on(self, events: list[Event]) -> None:
        """To the core, once the records of these requests are written: one transaction for a batch."""
        if self._desk.monitor.on:
            self._desk.monitor.commit()
        self._inbox.add_submissions(events)

    def _submit(self, message: Parsed, frames: list[Frame], events: list[Event]) -> None:
        head = message.head
        if not head.msg_id:
            raise WireError("it has no id")
        client = self._clients.get(head.session)
        if client is None:
            client = self._clients[head.session] = Client(head.session)
            events.append(ClientJoined(client.id))
        client.last_at = trio.current_time()
        msg_id, parts = head.msg_id, message.frames
        route = self._routes.get(msg_id)
        if route is not None and route.client != head.session:
            self._refuse(message, "SubmissionRefused", f"task id {msg_id} belongs to another session")
            return
        try:
            spec = spec_of(parts[3])
        except WireError as error:
            self._refuse(message, "ValueError", str(error))
            raise
        if route is None:
            route = Route(head.session, frames, message.identities, parts[1])
            if self._held_bytes and self._held_bytes + route.size > self._limit_bytes:
                self._refuse(message, "SubmissionRefused", self._full())
                return
            self._routes[msg_id] = route
            self._held_bytes += route.size
            client.unfinished += 1
        else:
            route.copies += 1
            route.identities = message.identities
        if self._desk.monitor.on:
            self._desk.monitor.submitted("task", message, head.session, None)
        events.append(TaskSubmitted(client.id, msg_id, route, spec))

    def _full(self) -> str:
        return (
            f"the controller holds {self._held_bytes:,} bytes of tasks that have not ended, and total_bytes is "
            f"{self._limit_bytes:,}: submit more when tasks have ended"
        )

    def _refuse(self, message: Parsed, ename: str, why: str) -> None:
        """A request that cannot be taken is answered: whoever signed it is waiting."""
        self._reply(message.identities, message.frames[1], failure(ename, why), {"status": "error"})
        self._client_side.flush()

    def _reply(
        self, identities: list[bytes], header: Frame, content: dict[str, Any], metadata: dict[str, Any]
    ) -> list[Frame]:
        """Send a reply of our own. Returns it."""
        message = self._codec.message("apply_reply", content, parent=header, metadata=metadata)
        if identities:
            self._client_side.send([*identities, *message])
        return message

    # ---- replies ----------------------------------------------------------------------------------------------------

    async def _pump_replies(self) -> None:
        socket, desk = self._engine_side, self._desk
        while True:
            batch = await socket.receive()
            events: list[Event] = []
            for index, frames in enumerate(batch):
                try:
                    events.append(self._finish(self._codec.read(frames)))
                except WireError as error:
                    desk.drop(error, "task")
                    socket.reject(index)
                except Exception:
                    desk.broken("task")
            if events:
                if self._received_count >= RECEIVED_AT_ONCE or self._received_bytes >= RECEIVED_BYTES:
                    events += self._let_go()
                self._inbox.add_results(events)

    def _finish(self, reply: Parsed) -> Event:
        if not reply.identities:
            raise WireError("it names no engine")
        engine = reply.identities[0].decode("utf-8", "replace")
        fate = reply.fate
        msg_id = reply.parent.msg_id
        if not msg_id:
            raise WireError("it replies to nothing")
        status = fate.status or str(reply.content.get("status"))
        if status == "ok":
            return TaskFinished(engine, msg_id, "ok", reply)
        if not fate.dependencies_met:
            return DependencyUnmet(engine, msg_id, "its functional dependency was not met")
        if status == "aborted":
            return TaskFinished(engine, msg_id, "cancelled", reply, "aborted")
        return TaskFinished(engine, msg_id, "error", reply, "it raised an exception")

    def _let_go(self) -> list[Event]:
        received, self._received = self._received, {}
        self._received_count = self._received_bytes = 0
        return [ResultsReceived(client, tuple(tasks)) for client, tasks in received.items()]

    # ---- effects ----------------------------------------------------------------------------------------------------

    def take(self, effect: TaskEffect) -> None:
        """See Outlet."""
        if isinstance(effect, AssignTask):
            self._assign(effect)
        elif isinstance(effect, DeliverResult):
            self._deliver(effect)
        elif isinstance(effect, Refuse):
            self._refused(effect)
        # The others ask for nothing here: an engine gives no task back, and its reply will do.

    def _assign(self, effect: AssignTask) -> None:
        engine: str = effect.engine  # type: ignore[assignment]
        effect.payload.engine = engine
        self._engine_side.send([engine.encode(), *effect.payload.message])
        self._sent = True
        if self._desk.monitor.on:
            self._desk.monitor.arrived(engine, effect.task)  # type: ignore[arg-type]

    def _deliver(self, effect: DeliverResult) -> None:
        route = self._leave(effect.task)  # type: ignore[arg-type]
        if route is None:
            self._desk.hub.note("delivery_without_route")
            return
        result: Parsed | None = effect.result
        engine: str | None = effect.engine  # type: ignore[assignment]
        if result is None:
            frames = self._reply(route.identities, route.header, *_ending(effect))
            result = split(frames) if self._desk.monitor.on else None
        elif route.identities:
            self._client_side.send([*route.identities, result.identities[0], b"<IDS|MSG>", *result.frames])
        if self._desk.monitor.on and result is not None:
            self._desk.monitor.finished("task", result, engine)
        self._sent = True
        self._received.setdefault(effect.client, []).append(effect.task)  # type: ignore[arg-type]
        self._received_count += 1
        if result is not None and len(result.frames) > 5:  # buffers, which may be large
            self._received_bytes += sum([len(frame) for frame in result.frames[5:]])

    def _refused(self, effect: Refuse) -> None:
        route = self._leave(effect.task)  # type: ignore[arg-type]
        if route is not None:
            frames = self._reply(
                route.identities, route.header, failure("SubmissionRefused", effect.reason), {"status": "error"}
            )
            if self._desk.monitor.on:
                self._desk.monitor.finished("task", split(frames), None)
            self._sent = True

    def whereabouts(self) -> dict[str, str | None]:
        """The unfinished tasks, and the engine that each was last sent to."""
        return {msg_id: route.engine for msg_id, route in self._routes.items()}

    def _leave(self, msg_id: str) -> Route | None:
        """One submission of this task is answered."""
        route = self._routes.get(msg_id)
        if route is None:
            return None
        route.copies -= 1
        if not route.copies:
            del self._routes[msg_id]
            self._held_bytes -= route.size
            client = self._clients.get(route.client)
            if client is not None:
                client.unfinished -= 1
        return route

    def flush(self) -> None:
        """A burst of sends is over."""
        if self._sent:
            self._sent = False
            self._engine_side.flush()
            self._client_side.flush()

    # ---- clients out of mind -----------------------------------------------------------------------------------------

    async def _forget_clients(self) -> None:
        while True:
            await trio.sleep(CLIENT_IDLE_S / 4)
            self.forget_clients(trio.current_time() - CLIENT_IDLE_S)

    def forget_clients(self, until: float) -> None:
        """Forget the clients that have nothing to wait for and sent no task since."""
        idle = [name for name, client in self._clients.items() if not client.unfinished and client.last_at < until]
        events: list[Event] = self._let_go() if idle else []
        events += [ClientLeft(self._clients.pop(name).id) for name in idle]
        if events:
            self._inbox.add_submissions(events)


def spec_of(metadata: Frame) -> TaskSpec:
    """What a request's metadata ask for. Raises WireError."""
    try:
        wishes = _decode_wishes(metadata)
    except UNREADABLE as error:
        raise WireError(f"the metadata cannot be read: {error}") from None
    after, follow = _dependency(wishes.after, "after"), _dependency(wishes.follow, "follow")
    targets, retries, timeout = wishes.targets, wishes.retries or 0, wishes.timeout or None
    if not (after or follow or targets or retries or timeout):
        return PLAIN
    if type(retries) is not int or retries not in RANGES["retries"]:
        raise WireError(f"retries must be a whole number {RANGES['retries']}, not {quoted(retries)}")
    if timeout is not None and not (type(timeout) in (int, float) and timeout in RANGES["timeout_s"]):
        raise WireError(f"timeout must be a number of seconds {RANGES['timeout_s']}, not {quoted(timeout)}")
    if isinstance(targets, str):
        targets = [targets]
    if targets and not (type(targets) is list and all(type(target) is str for target in targets)):
        raise WireError("targets must be a list of uuids")
    return TaskSpec(
        after=after,
        follow=follow,
        targets=frozenset(targets) if targets else None,
        retries=retries,
        timeout_s=timeout,
        kind=KIND,
        crash_limit=None,
        same_engine=False,
    )


def _dependency(wish: Any, what: str) -> Dependency | None:
    """A dependency as clients write it: a dictionary with flags, or the ids alone. None for an empty one."""
    if not wish:
        return None
    flags = {"all": True, "success": True, "failure": False}
    if type(wish) is dict:
        for flag in flags:
            flags[flag] = bool(wish.get(flag, flags[flag]))
        wish = wish.get("dependencies")
        if not wish:
            return None
    if type(wish) is str:
        wish = [wish]
    if type(wish) is not list or not all(type(task) is str for task in wish):
        raise WireError(f"{what} must be a list of message ids")
    return Dependency(tuple(dict.fromkeys(wish)), **flags)


def _ending(effect: DeliverResult) -> tuple[dict[str, Any], dict[str, Any]]:
    """Content and metadata of the reply for a task whose end is the scheduler's word."""
    if effect.outcome == "cancelled":
        return {**failure("TaskAborted", effect.reason), "status": "aborted"}, {"status": "aborted"}
    metadata: dict[str, Any] = {"status": "error"}
    if effect.engine is not None:
        metadata["engine"] = effect.engine
    return failure(effect.error or "TaskError", effect.reason), metadata
