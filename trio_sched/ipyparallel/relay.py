"""The relays: direct calls and control messages to engines by uuid, and output from engines to clients.

A message is relayed unchanged after it was verified: signed with the key, and not seen before (R25). A malformed
message would cost an engine or a client many times what it costs here, so it is counted and dropped, and a connection
that keeps sending such messages is reset. With `--no-secure`, or CURVE alone, messages are not signed; output must then
at least be readable for clients. Records of requests are written before the requests are sent, those of replies and
output afterwards.

    direct, control    client -> [client, engine, <IDS|MSG>, ...] -> engine, which gets [client, <IDS|MSG>, ...]
                       engine -> [engine, client, <IDS|MSG>, ...] -> client, which gets [engine, <IDS|MSG>, ...]
    output             one subscription to everything that engines publish; ZeroMQ filters by the clients' subscriptions

Of the output only an engine's `shutdown_reply` is used here: it announces that the engine leaves.

A message for an engine or a client that is not connected is dropped, as by ipyparallel's own controller: clients are
notified that an engine has left, and fail the calls that they had sent to it themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, TypeVar

import trio

from trio_sched.errors import WireError
from trio_sched.ipyparallel.records.recorder import QueueName, TaskRecorder
from trio_sched.logs import get_logger
from trio_sched.wire.jupyter import Codec, JupyterMessage
from trio_sched.wire.native import Frame

log = get_logger(__name__)
Batch: TypeAlias = Sequence[list[Frame]]
#: Counts a message that was dropped, by reason.
Note: TypeAlias = Callable[[str], None]
SHUTDOWN = "shutdown_reply"
T = TypeVar("T")
#: The fields that clients read as text from the content of output, by message type.
_OUTPUT_FIELDS: dict[str, tuple[str, ...]] = {"stream": ("name", "text"), "status": ("execution_state",)}


class Socket(Protocol):
    """The part of `ZmqSocket` that the relays use."""

    async def receive(self) -> list[list[Frame]]: ...
    def send(self, frames: Sequence[Frame]) -> bool: ...
    def flush(self) -> None: ...
    def reject(self, index: int) -> None: ...


async def pump(socket: Socket, handle: Callable[[Batch], None]) -> None:
    """Pass each batch that a socket receives to `handle`, until the socket is closed. Each receive is a checkpoint."""
    while True:
        try:
            batch = await socket.receive()
        except trio.ClosedResourceError:
            return
        handle(batch)


def guarded(handle: Callable[[T], None], message: T, note: Note) -> None:
    """Call `handle`; count and log an exception: one message, or a failed write, must not end the controller (R33)."""
    try:
        handle(message)
    except Exception:
        note("internal_error")
        log.exception("a message could not be handled")


def read(codec: Codec, frames: list[Frame], note: Note, identities: int = 0) -> JupyterMessage | None:
    """Parse and verify a message that has at least `identities` identities, and whose headers can be read.

    Returns None for any other message, which is counted (R25).
    """
    try:
        message = codec.read(frames)
        if len(message.identities) < identities:
            raise WireError(f"{len(message.identities)} identities; at least {identities} are needed")
        message.head, message.parent  # noqa: B018  # decodes them, so that an error is raised here
    except WireError as error:
        note(error.kind)
        return None
    return message


class Relay:
    """Relays between the two ROUTERs of one queue: "mux" or "control"."""

    def __init__(
        self, queue: QueueName, clients: Socket, engines: Socket, codec: Codec, note: Note, recorder: TaskRecorder
    ) -> None:
        self._queue = queue
        self._clients = clients
        self._engines = engines
        self._codec = codec
        self._note = note
        self._recorder = recorder

    async def run(self) -> None:
        """Relay both ways until the sockets are closed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, self._clients, self.relay_requests)
            nursery.start_soon(pump, self._engines, self.relay_replies)

    def relay_requests(self, batch: Batch) -> None:
        """Relay messages of clients to engines."""
        messages = self._read(batch, self._clients)
        if self._recorder.on:
            for message, _ in messages:
                guarded(self._record_request, message, self._note)
            self._recorder.commit()
        self._send_swapped(messages, self._engines)

    def relay_replies(self, batch: Batch) -> None:
        """Relay messages of engines to clients."""
        messages = self._read(batch, self._engines)
        self._send_swapped(messages, self._clients)
        if self._recorder.on:
            for message, _ in messages:
                guarded(self._record_reply, message, self._note)

    def _read(self, batch: Batch, socket: Socket) -> list[tuple[JupyterMessage, list[Frame]]]:
        """Parse the messages of a batch and reject malformed ones. Returns each message with its frames."""
        messages = []
        for index, frames in enumerate(batch):
            message = read(self._codec, frames, self._note, 2)
            if message is None:
                socket.reject(index)
            else:
                messages.append((message, frames))
        return messages

    @staticmethod
    def _send_swapped(messages: Sequence[tuple[JupyterMessage, list[Frame]]], socket: Socket) -> None:
        """Exchange sender and receiver of each message, in place, and send it."""
        send = socket.send
        for _, frames in messages:
            frames[0], frames[1] = frames[1], frames[0]
            send(frames)
        socket.flush()

    def _record_request(self, message: JupyterMessage) -> None:
        engine = engine_name(message.identities[1])
        self._recorder.submitted(self._queue, message, message.head.session, engine)

    def _record_reply(self, message: JupyterMessage) -> None:
        self._recorder.finished(self._queue, message, engine_name(message.identities[0]))


class OutputRelay:
    """Relays output from the SUB that engines publish to, to the PUB that clients subscribe to."""

    def __init__(
        self,
        engines: Socket,
        clients: Socket,
        codec: Codec,
        note: Note,
        recorder: TaskRecorder,
        engine_left: Callable[[str], None],
    ) -> None:
        """`engine_left` is called with the uuid of an engine that announces that it leaves."""
        self._engines = engines
        self._clients = clients
        self._codec = codec
        self._note = note
        self._recorder = recorder
        self._engine_left = engine_left

    async def run(self) -> None:
        """Relay until the sockets are closed."""
        await pump(self._engines, self.publish)

    def publish(self, batch: Batch) -> None:
        """Relay output of engines to the clients that subscribed to it."""
        send = self._clients.send
        messages = []
        for index, frames in enumerate(batch):
            message = read(self._codec, frames, self._note)
            if message is None or not (self._codec.key or is_output(message, self._note)):
                self._engines.reject(index)
                continue
            send(frames)
            messages.append(message)
        self._clients.flush()
        for message in messages:
            if self._recorder.on or message.head.msg_type == SHUTDOWN:
                guarded(self._handle, message, self._note)

    def _handle(self, message: JupyterMessage) -> None:
        if message.head.msg_type == SHUTDOWN:
            self._engine_left(message.head.session)  # the session of an engine is its uuid
        elif self._recorder.on:
            self._recorder.output(message)


def engine_name(identity: bytes) -> str:
    """Return the uuid of the engine with this routing id."""
    return identity.decode("utf-8", "replace")


def is_output(message: JupyterMessage, note: Note) -> bool:
    """Return whether clients can read an unsigned published message; one that they cannot is counted."""
    try:
        message.parent_header, message.metadata  # noqa: B018  # decodes them
        header, content = message.header, message.content
    except WireError as error:
        note(error.kind)
        return False
    fields = _OUTPUT_FIELDS.get(message.head.msg_type, ())
    if type(header.get("date")) is str and all(type(content.get(field)) is str for field in fields):
        return True
    note("malformed")
    return False
