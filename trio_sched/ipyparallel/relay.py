"""The relays: direct calls and control messages to engines by name, and what engines print and display to clients.

A message goes on as it came, once it is known to be one: signed with the key and not sent before (R25). What is not
would cost an engine or a client many times what it costs here; it is counted, and a connection that keeps sending such
is reset. With `--no-secure`, or CURVE alone, nothing is signed: then output must at least be what a client can read.
Records of requests are written before these are sent on; those of replies and output afterwards.

    direct, control    client -> [client, engine, <IDS|MSG>, ...] -> engine, which sees [client, <IDS|MSG>, ...]
                       engine -> [engine, client, <IDS|MSG>, ...] -> client, which sees [engine, <IDS|MSG>, ...]
    output             one subscription of ours to everything that engines publish; ZeroMQ picks what a client wants

The one thing that is ours among the output is an engine's `shutdown_reply`: with it the engine says that it leaves.

What is for an engine or a client that is not there vanishes, as with ipyparallel's own controller: clients learn from
the notification that an engine has left, and give up themselves what they had sent to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

import trio

from trio_sched.errors import WireError
from trio_sched.logs import get_logger
from trio_sched.wire.jupyter import Codec, Parsed
from trio_sched.wire.native import Frame

if TYPE_CHECKING:
    from trio_sched.ipyparallel.monitor import Monitor, Queue

log = get_logger(__name__)
Batch: TypeAlias = Sequence[list[Frame]]
Note: TypeAlias = Callable[[str], None]
"""Counts a message that was dropped, by reason: `Hub.note`."""
SHUTDOWN = "shutdown_reply"
T = TypeVar("T")
_OUTPUT_FIELDS: dict[str, tuple[str, ...]] = {"stream": ("name", "text"), "status": ("execution_state",)}
"""What clients take for granted in the content of output, by message type: text."""


class Socket(Protocol):
    """What is needed of a socket: `ZmqSocket` has it."""

    async def receive(self) -> list[list[Frame]]: ...
    def send(self, frames: Sequence[Frame]) -> bool: ...
    def flush(self) -> None: ...
    def reject(self, index: int) -> None: ...


async def pump(socket: Socket, handle: Callable[[Batch], None]) -> None:
    """Hand on what the socket receives, a batch at a time, until it is closed. Each receive is a checkpoint."""
    while True:
        try:
            batch = await socket.receive()
        except trio.ClosedResourceError:
            return
        handle(batch)


def guarded(look: Callable[[T], None], message: T, note: Note) -> None:
    """Look at a message: one peer's oddity, or records that cannot be written, must not end everyone's controller."""
    try:
        look(message)
    except Exception:
        note("internal_error")
        log.exception("a message could not be handled")


def read(codec: Codec, frames: list[Frame], note: Note, identities: int = 0) -> Parsed | None:
    """The message, verified, with so many identities before it and heads that can be read; None (and counted) if it
    is anything else."""
    try:
        message = codec.read(frames)
        if len(message.identities) < identities:
            raise WireError(f"it has {len(message.identities)} identities; there must be {identities}")
        message.head, message.parent  # noqa: B018  # decodes them, so that it fails here if at all
    except WireError as error:
        note(error.kind)
        return None
    return message


class Relay:
    """Between the two ROUTERs of one queue: "mux" or "control"."""

    def __init__(
        self, queue: Queue, clients: Socket, engines: Socket, codec: Codec, note: Note, monitor: Monitor
    ) -> None:
        self._queue = queue
        self._clients = clients
        self._engines = engines
        self._codec = codec
        self._note = note
        self._monitor = monitor

    async def run(self) -> None:
        """Relay both ways until the sockets are closed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, self._clients, self.requests)
            nursery.start_soon(pump, self._engines, self.replies)

    def requests(self, batch: Batch) -> None:
        """From clients to engines."""
        messages = self._read(batch, self._clients)
        if self._monitor.on:
            for message, _ in messages:
                guarded(self._saw_request, message, self._note)
            self._monitor.commit()
        self._swap(messages, self._engines)

    def replies(self, batch: Batch) -> None:
        """From engines to clients."""
        messages = self._read(batch, self._engines)
        self._swap(messages, self._clients)
        if self._monitor.on:
            for message, _ in messages:
                guarded(self._saw_reply, message, self._note)

    def _read(self, batch: Batch, of: Socket) -> list[tuple[Parsed, list[Frame]]]:
        """The messages, each with its frames; others are rejected."""
        messages = []
        for index, frames in enumerate(batch):
            message = read(self._codec, frames, self._note, 2)
            if message is None:
                of.reject(index)
            else:
                messages.append((message, frames))
        return messages

    @staticmethod
    def _swap(messages: Sequence[tuple[Parsed, list[Frame]]], to: Socket) -> None:
        """Exchange sender and receiver, in place, and send on."""
        send = to.send
        for _, frames in messages:
            frames[0], frames[1] = frames[1], frames[0]
            send(frames)
        to.flush()

    def _saw_request(self, message: Parsed) -> None:
        engine = engine_name(message.identities[1])
        self._monitor.submitted(self._queue, message, message.head.session, engine)

    def _saw_reply(self, message: Parsed) -> None:
        self._monitor.finished(self._queue, message, engine_name(message.identities[0]))


class Output:
    """From a SUB to which engines publish to the PUB that clients subscribe to."""

    def __init__(
        self,
        engines: Socket,
        clients: Socket,
        codec: Codec,
        note: Note,
        monitor: Monitor,
        engine_left: Callable[[str], None],
    ) -> None:
        self._engines = engines
        self._clients = clients
        self._codec = codec
        self._note = note
        self._monitor = monitor
        self._engine_left = engine_left

    async def run(self) -> None:
        """Relay until the sockets are closed."""
        await pump(self._engines, self.publish)

    def publish(self, batch: Batch) -> None:
        """From engines to whoever is subscribed."""
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
            if self._monitor.on or message.head.msg_type == SHUTDOWN:
                guarded(self._look_at, message, self._note)

    def _look_at(self, message: Parsed) -> None:
        if message.head.msg_type == SHUTDOWN:
            self._engine_left(message.head.session)  # an engine's session is its name
        elif self._monitor.on:
            self._monitor.output(message)


def engine_name(identity: bytes) -> str:
    """The engine's uuid, which is its routing id."""
    return identity.decode("utf-8", "replace")


def is_output(message: Parsed, note: Note) -> bool:
    """Whether clients can read a published message that nobody signed; counted if not."""
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
