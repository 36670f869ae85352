"""The broadcast view: one request of a client that goes to many engines, and their replies, one by one or as one.

The request names its targets in its metadata: [[uuid, id], ...]. Each of them gets a message of its own, signed anew,
with the msg_id ORIGINAL_UUID, so that each reply names what it replies to; the metadata carry `original_msg_id`. The
list of targets stays behind: no engine reads it, and with 500 of them it would be sent 500 times.

Plain replies go on as they came, but for the engine's identity. Coalescing, the client wants one reply: the
buffers of all, in the order of the targets (which `broadcast_targets` repeats), once the last has come; an error of
any wins over everything, an abortion over success. What is known of such a request is a `Gathering`. It counts a reply
only from the engine that was asked, once (R26).

The records get each target's request without its buffers: what is sent to 500 engines is not to be stored 500 times.

If a target leaves, or is not there to begin with, clients raise EngineError by themselves when they are notified, so
that there is nothing to reply: the gathering is *void*, and swallows what the others still say.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio
from msgspec import Struct

from trio_sched.errors import WireError
from trio_sched.ipyparallel.relay import Batch, Note, Socket, engine_name, guarded, pump, read
from trio_sched.wire.jupyter import Codec, Parsed, failure
from trio_sched.wire.native import Frame

if TYPE_CHECKING:
    from trio_sched.ipyparallel.monitor import Monitor, Queue

QUEUE: Queue = "broadcast"
_encode = msgspec.json.Encoder().encode
_RANK = {"ok": 2, "aborted": 1}
"""Which reply speaks for all: the lowest. What is neither is an error."""


class Gathering(Struct):
    """A coalescing request that is waiting for replies."""

    client: bytes
    header: Frame
    """The request's, to be the parent header of the reply."""
    targets: dict[str, Any]
    """uuid -> id, in the order of the request."""
    replies: dict[str, Parsed]
    void: bool = False


class Broadcast:
    """Between the ROUTER that clients connect to and the one that engines do."""

    def __init__(
        self,
        clients: Socket,
        engines: Socket,
        codec: Codec,
        note: Note,
        monitor: Monitor,
        registered: Callable[[str], bool] = lambda uuid: True,
    ) -> None:
        self._clients = clients
        self._engines = engines
        self._codec = codec
        self._note = note
        self._monitor = monitor
        self._registered = registered
        self._awaited: dict[str, tuple[str, Gathering]] = {}
        """msg_id of the message to one engine -> that engine, and what its reply is for."""
        self._outgoing: list[list[Frame]] = []
        """Messages to engines, sent once the records of their batch are written."""

    async def run(self) -> None:
        """Relay both ways until the sockets are closed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, self._clients, self.requests)
            nursery.start_soon(pump, self._engines, self.replies)

    # ---- requests ---------------------------------------------------------------------------------------------------

    def requests(self, batch: Batch) -> None:
        """From clients to engines."""
        for index, frames in enumerate(batch):
            message = read(self._codec, frames, self._note, 1)
            if message is None:
                self._clients.reject(index)
            else:
                guarded(self._request, message, self._note)
        if self._monitor.on:
            self._monitor.commit()
        outgoing, self._outgoing = self._outgoing, []
        for frames in outgoing:
            self._engines.send(frames)
        self._engines.flush()
        self._clients.flush()

    def _request(self, message: Parsed) -> None:
        try:
            self._spread(message)
        except (WireError, OverflowError, msgspec.EncodeError) as error:
            self._refuse(message, str(error))

    def _spread(self, message: Parsed) -> None:
        """To each target its own message."""
        header, metadata = dict(message.header), dict(message.metadata)
        targets = _targets(metadata.pop("targets", None))
        original = message.head.msg_id
        metadata["original_msg_id"] = original
        client, watched = message.identities[0], self._monitor.on
        gathering = None
        if metadata.get("is_coalescing"):
            gathering = Gathering(client, message.frames[1], targets, {})
        said, content = _encode(metadata), message.frames[4]
        for uuid in targets:
            if not self._registered(uuid):
                self._note("unknown_target")
                if gathering is not None:
                    gathering.void = True
                continue
            header["msg_id"] = msg_id = f"{original}_{uuid}"
            parts = [_encode(header), message.frames[2], said, content]
            frames = self._codec.resigned(parts, message.buffers)
            self._outgoing.append([uuid.encode(), client, *frames])
            if gathering is not None:
                self._awaited[msg_id] = uuid, gathering
            if watched:
                without_buffers = Parsed([client], frames[1 : 1 + len(parts) + 1])
                self._monitor.submitted(QUEUE, without_buffers, message.head.session, uuid)

    def _refuse(self, message: Parsed, reason: str) -> None:
        """It is genuine, so its sender is worth an answer (R25)."""
        self._note("malformed")
        reply = self._codec.message(
            message.head.msg_type.replace("_request", "_reply"),
            failure("ValueError", f"the request cannot be broadcast: {reason}"),
            parent=message.frames[1],
            metadata={"status": "error"},
        )
        self._clients.send([message.identities[0], *reply])

    # ---- replies ----------------------------------------------------------------------------------------------------

    def replies(self, batch: Batch) -> None:
        """From engines to clients."""
        for index, frames in enumerate(batch):
            message = read(self._codec, frames, self._note, 2)
            if message is None:
                self._engines.reject(index)
            elif self._awaited and (awaited := self._awaited.get(message.parent.msg_id)):
                guarded(partial(self._gather, awaited), message, self._note)
            else:
                self._clients.send(frames[1:])
                if self._monitor.on:
                    guarded(self._saw_reply, message, self._note)
        self._clients.flush()

    def _saw_reply(self, message: Parsed) -> None:
        self._monitor.finished(QUEUE, message, engine_name(message.identities[0]))

    def _gather(self, awaited: tuple[str, Gathering], message: Parsed) -> None:
        """A part of a coalesced reply."""
        uuid, gathering = awaited
        if engine_name(message.identities[0]) != uuid:
            self._note("reply_from_another_engine")
            return
        del self._awaited[message.parent.msg_id]
        if self._monitor.on:
            self._monitor.finished(QUEUE, message, uuid)
        if not gathering.void:
            gathering.replies[uuid] = message
            if len(gathering.replies) == len(gathering.targets):
                self._clients.send([gathering.client, *self._coalesced(gathering)])

    def _coalesced(self, gathering: Gathering) -> list[Frame]:
        """One reply for all, signed by us."""
        replies = [gathering.replies[uuid] for uuid in gathering.targets]
        speaker = min(replies, key=lambda reply: _RANK.get(_status(reply), 0))
        try:
            metadata = dict(speaker.metadata)
        except WireError:
            metadata = {"status": "error", "is_broadcast": True, "is_coalescing": True}
        metadata["broadcast_targets"] = [[uuid, number] for uuid, number in gathering.targets.items()]
        parts = [speaker.frames[1], gathering.header, _encode(metadata), speaker.frames[4]]
        fine = _status(speaker) == "ok"
        return self._codec.resigned(parts, [buffer for reply in replies for buffer in reply.buffers] if fine else ())

    # ---- engines that leave -----------------------------------------------------------------------------------------

    def engine_gone(self, uuid: str) -> None:
        """It will not reply any more. Costs a look at every coalescing request that is open."""
        for msg_id in [msg_id for msg_id, (engine, _) in self._awaited.items() if engine == uuid]:
            _, gathering = self._awaited.pop(msg_id)
            gathering.void = True
            gathering.replies.clear()


def _targets(targets: object) -> dict[str, Any]:
    """The request's targets, each once. Raises WireError."""
    pairs: list[Any] = targets if isinstance(targets, list) else []
    if pairs and all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        return dict(pairs)
    raise WireError("its metadata must have targets: a list of [uuid, id]")


def _status(reply: Parsed) -> str:
    """How it went: engines say so in the metadata, and in the content anyway."""
    try:
        return reply.fate.status or str(reply.content.get("status"))
    except WireError:
        return "error"
