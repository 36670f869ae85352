"""The task queue: a request becomes a `TaskSubmitted`, a reply a `TaskFinished`; assignments and results become frames.

    client --[.., <IDS|MSG>, request]--> here --TaskSubmitted--> core --AssignTask--> here --[engine, ..]--> engine
    engine --[engine, .., reply]--> here --TaskFinished--> core --DeliverResult--> here --[client, engine, ..]--> client

Requests and replies are relayed unchanged. Of a request only header and metadata are decoded, of a reply the parent
header and the metadata. Nearly all of a task's time in this process is spent here, so that calls are avoided where they
can be. A task that ends without a reply of an engine (R24) gets a reply that is made here.

A client's connections have a new identity on each socket, so a client is identified by its header's session (R15).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from trio_sched.core.ids import ClientId, TaskId, is_foreign
from trio_sched.errors import WireError
from trio_sched.ipyparallel.controller_context import ControllerContext
from trio_sched.ipyparallel.registration import KIND
from trio_sched.ipyparallel.retrying_router import RetryingRouter
from trio_sched.logs import get_logger
from trio_sched.server.budget import MEMORY_SHARE
from trio_sched.server.events import Event
from trio_sched.server.memory import memory_bytes
from trio_sched.transport.zmq_socket import ZmqSocket
from trio_sched.wire.jupyter import DECODE_ERRORS, JupyterMessage, error_content, split
from trio_sched.wire.native import Frame
from trio_sched.wire.ranges import RANGES, quoted

log = get_logger(__name__)
#: The specification of a task that asks for nothing, as most tasks do.
PLAIN = TaskSpec(kind=KIND, crash_limit=None, same_engine=False)
#: Delivered results are reported to the core when there are this many,
RECEIVED_AT_ONCE = 64
#: or when they hold this many bytes.
RECEIVED_BYTES = 1 << 20
#: A client without unfinished tasks is forgotten when it has sent none for this long. If it sends one later, it is new.
CLIENT_IDLE_S = 3600.0


class RequestMetadata(Struct, gc=False):
    """The fields of a request's metadata that are used here."""

    after: Any = None
    follow: Any = None
    targets: Any = None
    retries: Any = 0
    timeout: Any = None


_decode_metadata = msgspec.json.Decoder(RequestMetadata).decode


class Route:
    """An unfinished task: the message for its engine, and where its reply goes."""

    __slots__ = ("client", "engine", "header", "identities", "message", "size_bytes", "submissions")

    def __init__(self, client: str, message: list[Frame], identities: list[bytes], header: Frame) -> None:
        self.client = client
        self.message = message
        self.identities = identities
        self.header = header
        self.size_bytes = sum(map(len, message))
        #: Accepted submissions of this task that are not answered (R1).
        self.submissions = 1
        #: Uuid of the engine that the task was last sent to.
        self.engine: str | None = None


class ClientPeer:
    """A session that has submitted tasks."""

    __slots__ = ("id", "last_at", "unfinished_count")

    def __init__(self, session: str) -> None:
        self.id = f"ipp:{session}"
        self.unfinished_count = 0
        #: Time of its last submission.
        self.last_at = 0.0


class TaskQueue:
    """Exchanges tasks and results with the core. The front passes it the effects for these tasks."""

    def __init__(self, context: ControllerContext, clients: ZmqSocket, engines: RetryingRouter) -> None:
        self._context = context
        self._codec = context.codec
        self._inbox = context.ingress.inbox
        self._client_side = clients
        self._engine_side = engines
        #: By id of unfinished task.
        self._routes: dict[str, Route] = {}
        #: By session.
        self._clients: dict[str, ClientPeer] = {}
        #: Delivered tasks by client that are not yet reported to the core.
        self._received: dict[ClientId, list[TaskId]] = {}
        self._received_count = 0
        self._received_bytes = 0
        #: Bytes of unfinished tasks. Clients of this front have no credit, so tasks beyond the limit are refused.
        self._held_bytes = 0
        self._limit_bytes = context.config.total_bytes or memory_bytes() // MEMORY_SHARE
        self._sent = False
        #: The methods that carry out effects, for the front. A recall is not sent: an engine gives nothing back, and
        #: will reply. The other effects need no message.
        self.effect_handlers: Mapping[type, Callable[[Any], None]] = {
            AssignTask: self._assign,
            DeliverResult: self._deliver,
            Refuse: self._deliver_refusal,
        }

    async def run(self) -> None:
        """Take requests and replies, and forget idle clients, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump_requests)
            nursery.start_soon(self._pump_replies)
            nursery.start_soon(self._forget_idle_clients)

    # ---- requests ---------------------------------------------------------------------------------------------------

    async def _pump_requests(self) -> None:
        socket, context = self._client_side, self._context
        while True:
            batch = await socket.receive()
            events: list[Event] = []
            for index, frames in enumerate(batch):
                try:
                    self._submit(self._codec.read(frames), frames, events)
                except WireError as error:
                    context.count_malformed(error, "task")
                    socket.reject(index)
                except Exception:
                    context.count_internal_error("task")
            if events:
                self._send_events(events)

    def submit(self, message: JupyterMessage) -> None:
        """Submit a request that was made in this process; the reply goes to its identities, if it has any.

        :raises WireError: it has no id, or its metadata cannot be read.
        """
        events: list[Event] = []
        frames: list[Frame] = [*message.identities, b"<IDS|MSG>", *message.frames]
        self._submit(message, frames, events)
        self._send_events(events)

    def _send_events(self, events: list[Event]) -> None:
        """Send submissions to the core after their records are written, in one transaction for a batch."""
        if self._context.recorder.on:
            self._context.recorder.commit()
        self._inbox.add_client_events(events)

    def _submit(self, message: JupyterMessage, frames: list[Frame], events: list[Event]) -> None:
        head = message.head
        if not head.msg_id:
            raise WireError("the request has no msg_id")
        client = self._clients.get(head.session)
        if client is None:
            client = self._clients[head.session] = ClientPeer(head.session)
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
            if self._held_bytes and self._held_bytes + route.size_bytes > self._limit_bytes:
                self._refuse(message, "SubmissionRefused", self._limit_message())
                return
            self._routes[msg_id] = route
            self._held_bytes += route.size_bytes
            client.unfinished_count += 1
        else:
            route.submissions += 1
            route.identities = message.identities
        if self._context.recorder.on:
            self._context.recorder.submitted("task", message, head.session, None)
        events.append(TaskSubmitted(client.id, msg_id, route, spec))

    def _limit_message(self) -> str:
        return (
            f"the controller holds {self._held_bytes:,} bytes of tasks that have not ended, and total_bytes is "
            f"{self._limit_bytes:,}: submit more when tasks have ended"
        )

    def _refuse(self, message: JupyterMessage, ename: str, why: str) -> None:
        """Answer a signed request that is not accepted (R25)."""
        self._reply(message.identities, message.frames[1], error_content(ename, why), {"status": "error"})
        self._client_side.flush()

    def _reply(
        self, identities: list[bytes], header: Frame, content: dict[str, Any], metadata: dict[str, Any]
    ) -> list[Frame]:
        """Send a reply that is made here, if there is a client to send it to. Returns its frames."""
        message = self._codec.message("apply_reply", content, parent=header, metadata=metadata)
        if identities:
            self._client_side.send([*identities, *message])
        return message

    # ---- replies ----------------------------------------------------------------------------------------------------

    async def _pump_replies(self) -> None:
        socket, context = self._engine_side, self._context
        while True:
            batch = await socket.receive()
            events: list[Event] = []
            for index, frames in enumerate(batch):
                try:
                    events.append(self._event_of(self._codec.read(frames)))
                except WireError as error:
                    context.count_malformed(error, "task")
                    socket.reject(index)
                except Exception:
                    context.count_internal_error("task")
            if events:
                if self._received_count >= RECEIVED_AT_ONCE or self._received_bytes >= RECEIVED_BYTES:
                    events += self._take_received()
                self._inbox.add_engine_events(events)

    def _event_of(self, reply: JupyterMessage) -> Event:
        if not reply.identities:
            raise WireError("the reply names no engine")
        engine = reply.identities[0].decode("utf-8", "replace")
        reply_status = reply.reply_status
        msg_id = reply.parent.msg_id
        if not msg_id:
            raise WireError("the reply names no request")
        status = reply_status.status or str(reply.content.get("status"))
        if status == "ok":
            return TaskFinished(engine, msg_id, "ok", reply)
        if not reply_status.dependencies_met:
            return DependencyUnmet(engine, msg_id, "its functional dependency was not met")
        if status == "aborted":
            return TaskFinished(engine, msg_id, "cancelled", reply, "aborted")
        return TaskFinished(engine, msg_id, "error", reply, "it raised an exception")

    def _take_received(self) -> list[Event]:
        """Return the events that report delivered results to the core, so that it drops them (R22)."""
        received, self._received = self._received, {}
        self._received_count = self._received_bytes = 0
        return [ResultsReceived(client, tuple(tasks)) for client, tasks in received.items()]

    # ---- effects ----------------------------------------------------------------------------------------------------

    def _assign(self, effect: AssignTask) -> None:
        engine, task = effect.engine, effect.task
        assert is_foreign(engine), "only engines of this front match the kind of its tasks (R16)"
        effect.payload.engine = engine
        self._engine_side.send([engine.encode(), *effect.payload.message])
        self._sent = True
        if self._context.recorder.on and is_foreign(task):
            self._context.recorder.assigned(engine, task)

    def _deliver(self, effect: DeliverResult) -> None:
        route = self._answer_submission(effect.task)
        if route is None:
            self._context.ingress.note("delivery_without_route")
            return
        result: JupyterMessage | None = effect.result
        if result is None:
            frames = self._reply(route.identities, route.header, *_content_and_metadata(effect))
            result = split(frames) if self._context.recorder.on else None
        elif route.identities:
            self._client_side.send([*route.identities, result.identities[0], b"<IDS|MSG>", *result.frames])
        if self._context.recorder.on and result is not None:
            engine = effect.engine
            self._context.recorder.finished(
                "task", result, engine if engine is not None and is_foreign(engine) else None
            )
        self._sent = True
        self._received.setdefault(effect.client, []).append(effect.task)
        self._received_count += 1
        if result is not None and len(result.frames) > 5:  # buffers, which may be large
            self._received_bytes += sum([len(frame) for frame in result.frames[5:]])

    def _deliver_refusal(self, effect: Refuse) -> None:
        route = self._answer_submission(effect.task)
        if route is not None:
            frames = self._reply(
                route.identities, route.header, error_content("SubmissionRefused", effect.reason), {"status": "error"}
            )
            if self._context.recorder.on:
                self._context.recorder.finished("task", split(frames), None)
            self._sent = True

    def unfinished(self) -> dict[str, str | None]:
        """Return the ids of the unfinished tasks, each with the uuid of the engine that it was last sent to."""
        return {msg_id: route.engine for msg_id, route in self._routes.items()}

    def _answer_submission(self, msg_id: TaskId) -> Route | None:
        """Count one submission of a task as answered. Returns its route; None: the task is not known."""
        if not is_foreign(msg_id) or (route := self._routes.get(msg_id)) is None:
            return None
        route.submissions -= 1
        if not route.submissions:
            del self._routes[msg_id]
            self._held_bytes -= route.size_bytes
            client = self._clients.get(route.client)
            if client is not None:
                client.unfinished_count -= 1
        return route

    def flush(self) -> None:
        """Flush both sockets after a burst of sends."""
        if self._sent:
            self._sent = False
            self._engine_side.flush()
            self._client_side.flush()

    # ---- idle clients -----------------------------------------------------------------------------------------------

    async def _forget_idle_clients(self) -> None:
        while True:
            await trio.sleep(CLIENT_IDLE_S / 4)
            self.forget_clients(trio.current_time() - CLIENT_IDLE_S)

    def forget_clients(self, until: float) -> None:
        """Forget the clients without unfinished tasks whose last submission was before `until`."""
        idle = [
            name for name, client in self._clients.items() if not client.unfinished_count and client.last_at < until
        ]
        events: list[Event] = self._take_received() if idle else []
        events += [ClientLeft(self._clients.pop(name).id) for name in idle]
        if events:
            self._inbox.add_client_events(events)


def spec_of(metadata: Frame) -> TaskSpec:
    """Decode the metadata of a request.

    :raises WireError: they cannot be read, or a value is of the wrong type or out of its range (R32).
    """
    try:
        wanted = _decode_metadata(metadata)
    except DECODE_ERRORS as error:
        raise WireError(f"the metadata cannot be read: {error}") from None
    after, follow = _dependency(wanted.after, "after"), _dependency(wanted.follow, "follow")
    targets, retries, timeout = wanted.targets, wanted.retries or 0, wanted.timeout or None
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


def _dependency(value: Any, name: str) -> Dependency | None:
    """Decode a dependency: a dictionary with flags, or the ids alone. Returns None for an empty one.

    :raises WireError: the ids are not text.
    """
    if not value:
        return None
    flags = {"all": True, "success": True, "failure": False}
    if type(value) is dict:
        for flag in flags:
            flags[flag] = bool(value.get(flag, flags[flag]))
        value = value.get("dependencies")
        if not value:
            return None
    if type(value) is str:
        value = [value]
    if type(value) is not list or not all(type(task) is str for task in value):
        raise WireError(f"{name} must be a list of message ids")
    return Dependency(tuple(dict.fromkeys(value)), **flags)


def _content_and_metadata(effect: DeliverResult) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return content and metadata of the reply to a task that ended without a reply of an engine."""
    if effect.outcome == "cancelled":
        return {**error_content("TaskAborted", effect.reason), "status": "aborted"}, {"status": "aborted"}
    metadata: dict[str, Any] = {"status": "error"}
    if effect.engine is not None:
        metadata["engine"] = effect.engine
    return error_content(effect.error or "TaskError", effect.reason), metadata
