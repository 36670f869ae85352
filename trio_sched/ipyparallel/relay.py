"""The relays: direct calls and control messages to engines by name, and what engines print and display to clients.

Frames go on as they came, unread and unverified: the HMAC is for those at the ends, who check it (R25). Only where a
monitor listens are messages read: replies and output after they were sent on, so that nobody waits for that, requests
before, so that their records are written first.

    direct, control    client -> [client, engine, <IDS|MSG>, ...] -> engine, which sees [client, <IDS|MSG>, ...]
                       engine -> [engine, client, <IDS|MSG>, ...] -> client, which sees [engine, <IDS|MSG>, ...]
    output             one subscription of ours to everything that engines publish; ZeroMQ picks what a client wants

The one thing that is ours among the output is an engine's `shutdown_reply`: with it the engine says that it leaves. To
look for the name in the header costs 0.1 us.

What is for an engine or a client that is not there vanishes, as with ipyparallel's own controller: clients learn from
the notification that an engine has left, and give up themselves what they had sent to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

import trio

from trio_sched.errors import WireError
from trio_sched.logs import get_logger
from trio_sched.wire.jupyter import DELIMITER, Codec, Parsed
from trio_sched.wire.native import Frame

if TYPE_CHECKING:
    from trio_sched.ipyparallel.monitor import Monitor, Queue

log = get_logger(__name__)
Batch: TypeAlias = Sequence[list[Frame]]
Note: TypeAlias = Callable[[str], None]
"""Counts a message that was dropped, by reason: `Hub.note`."""
SHUTDOWN = "shutdown_reply"
_SHUTDOWN = SHUTDOWN.encode("ascii")


class Socket(Protocol):
    """What is needed of a socket: `ZmqSocket` has it."""

    async def receive(self) -> list[list[Frame]]: ...
    def send(self, frames: Sequence[Frame]) -> bool: ...
    def flush(self) -> None: ...


async def pump(socket: Socket, handle: Callable[[Batch], None]) -> None:
    """Hand on what the socket receives, a batch at a time, until it is closed. Each receive is a checkpoint."""
    while True:
        try:
            batch = await socket.receive()
        except trio.ClosedResourceError:
            return
        handle(batch)


def guarded(look: Callable[[list[Frame]], None], frames: list[Frame], note: Note) -> None:
    """Look at a message: one peer's oddity, or records that cannot be written, must not end everyone's controller."""
    try:
        look(frames)
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
        if self._monitor.on:
            for frames in batch:
                guarded(self._saw_request, frames, self._note)
            self._monitor.commit()
        self._swap(batch, self._engines)

    def replies(self, batch: Batch) -> None:
        """From engines to clients."""
        self._swap(batch, self._clients)
        if self._monitor.on:
            for frames in batch:
                guarded(self._saw_reply, frames, self._note)

    def _swap(self, batch: Batch, to: Socket) -> None:
        """Exchange sender and receiver, in place, and send on."""
        send = to.send
        for frames in batch:
            if len(frames) < 3:
                self._note("malformed")
                continue
            frames[0], frames[1] = frames[1], frames[0]
            send(frames)
        to.flush()

    def _saw_request(self, frames: list[Frame]) -> None:
        message = read(self._codec, frames, self._note, 2)
        if message is not None:
            engine = engine_name(message.identities[1])
            self._monitor.submitted(self._queue, message, message.head.session, engine)

    def _saw_reply(self, frames: list[Frame]) -> None:
        message = read(self._codec, frames, self._note, 2)
        if message is not None:
            self._monitor.finished(self._queue, message, engine_name(message.identities[1]))


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
        for frames in batch:
            send(frames)
        self._clients.flush()
        watched = self._monitor.on
        for frames in batch:
            if watched or _SHUTDOWN in _header(frames):
                guarded(self._look_at, frames, self._note)

    def _look_at(self, frames: list[Frame]) -> None:
        message = read(self._codec, frames, self._note)
        if message is None:
            return
        if message.head.msg_type == SHUTDOWN:
            self._engine_left(message.head.session)  # an engine's session is its name
        elif self._monitor.on:
            self._monitor.output(message)


def engine_name(identity: bytes) -> str:
    """The engine's uuid, which is its routing id."""
    return identity.decode("utf-8", "replace")


def _header(frames: Sequence[Frame]) -> bytes:
    """The header of a published message: a topic and the delimiter lie before the signature, or the delimiter alone."""
    try:
        header = frames[3] if frames[1] == DELIMITER else frames[2] if frames[0] == DELIMITER else b""
    except IndexError:
        return b""
    return header if isinstance(header, bytes) else b""
