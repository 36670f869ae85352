"""The broadcast view: one request of a client goes to many engines, which reply one by one or with one coalesced reply.

The request names its targets in its metadata: [[uuid, id], ...]. Each target gets a message of its own, newly signed,
with the msg_id ORIGINAL_UUID, so that each reply names its request; the metadata carry `original_msg_id`. The list of
targets is removed: engines do not read it, and for 500 engines it would be sent 500 times.

Plain replies are relayed unchanged, except that the engine's identity is removed. For a coalescing request the client
gets one reply after the last engine's: the buffers of all replies, in the order of the targets (which
`broadcast_targets` repeats). An error of one engine takes precedence over everything, an abortion over success. The
state of such a request is a `CoalescedReply`. A reply counts only once, and only from the engine that was asked (R26).

Records have each target's request without its buffers, which would otherwise be stored once for each target.

If a target leaves, or is not registered to begin with, clients raise EngineError themselves when they are notified.
They need no reply then: the coalesced reply is *void*, and the replies of the other engines are dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import trio
from msgspec import Struct

from trio_sched.errors import WireError
from trio_sched.ipyparallel.records.recorder import QueueName, TaskRecorder
from trio_sched.ipyparallel.relay import Batch, Note, Socket, engine_name, guarded, pump, read
from trio_sched.wire.jupyter import Codec, JupyterMessage, error_content
from trio_sched.wire.native import Frame

QUEUE: QueueName = "broadcast"
_encode = msgspec.json.Encoder().encode
#: The reply with the lowest rank gives the coalesced reply its content. Any other status is an error, of rank 0.
_RANK = {"ok": 2, "aborted": 1}


class CoalescedReply(Struct):
    """The reply to a coalescing request, while replies of engines are missing."""

    client: bytes
    #: The request's header, which becomes the parent header of the reply.
    header: Frame
    #: Ids by uuid, in the order of the request.
    targets: dict[str, Any]
    replies: dict[str, JupyterMessage]
    is_void: bool = False


class BroadcastRelay:
    """Relays between the ROUTER that clients connect to and the one that engines connect to."""

    def __init__(
        self,
        clients: Socket,
        engines: Socket,
        codec: Codec,
        note: Note,
        recorder: TaskRecorder,
        is_registered: Callable[[str], bool] = lambda uuid: True,
    ) -> None:
        self._clients = clients
        self._engines = engines
        self._codec = codec
        self._note = note
        self._recorder = recorder
        self._is_registered = is_registered
        #: The engine that is asked and the coalesced reply, by msg_id of the message to that engine.
        self._awaited: dict[str, tuple[str, CoalescedReply]] = {}
        #: Messages to engines, which are sent after the records of their batch are written.
        self._outgoing: list[list[Frame]] = []

    async def run(self) -> None:
        """Relay both ways until the sockets are closed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, self._clients, self.relay_requests)
            nursery.start_soon(pump, self._engines, self.relay_replies)

    # ---- requests ---------------------------------------------------------------------------------------------------

    def relay_requests(self, batch: Batch) -> None:
        """Send the requests of clients to their targets."""
        for index, frames in enumerate(batch):
            message = read(self._codec, frames, self._note, 1)
            if message is None:
                self._clients.reject(index)
            else:
                guarded(self._broadcast_or_refuse, message, self._note)
        if self._recorder.on:
            self._recorder.commit()
        outgoing, self._outgoing = self._outgoing, []
        for frames in outgoing:
            self._engines.send(frames)
        self._engines.flush()
        self._clients.flush()

    def _broadcast_or_refuse(self, message: JupyterMessage) -> None:
        try:
            self._broadcast(message)
        except (WireError, OverflowError, msgspec.EncodeError) as error:
            self._refuse(message, str(error))

    def _broadcast(self, message: JupyterMessage) -> None:
        """Queue a message for each target of a request.

        :raises WireError: the metadata cannot be read, or have no list of targets.
        """
        header, metadata = dict(message.header), dict(message.metadata)
        targets = _targets(metadata.pop("targets", None))
        original = message.head.msg_id
        metadata["original_msg_id"] = original
        client, is_recorded = message.identities[0], self._recorder.on
        coalesced = None
        if metadata.get("is_coalescing"):
            coalesced = CoalescedReply(client, message.frames[1], targets, {})
        encoded_metadata, content = _encode(metadata), message.frames[4]
        for uuid in targets:
            if not self._is_registered(uuid):
                self._note("unknown_target")
                if coalesced is not None:
                    coalesced.is_void = True
                continue
            header["msg_id"] = msg_id = f"{original}_{uuid}"
            parts = [_encode(header), message.frames[2], encoded_metadata, content]
            frames = self._codec.sign_parts(parts, message.buffers)
            self._outgoing.append([uuid.encode(), client, *frames])
            if coalesced is not None:
                self._awaited[msg_id] = uuid, coalesced
            if is_recorded:
                without_buffers = JupyterMessage([client], frames[1 : 1 + len(parts) + 1])
                self._recorder.submitted(QUEUE, without_buffers, message.head.session, uuid)

    def _refuse(self, message: JupyterMessage, reason: str) -> None:
        """Answer a signed request that cannot be broadcast (R25)."""
        self._note("malformed")
        reply = self._codec.message(
            message.head.msg_type.replace("_request", "_reply"),
            error_content("ValueError", f"the request cannot be broadcast: {reason}"),
            parent=message.frames[1],
            metadata={"status": "error"},
        )
        self._clients.send([message.identities[0], *reply])

    # ---- replies ----------------------------------------------------------------------------------------------------

    def relay_replies(self, batch: Batch) -> None:
        """Relay plain replies to clients, and collect the parts of coalesced ones."""
        for index, frames in enumerate(batch):
            message = read(self._codec, frames, self._note, 2)
            if message is None:
                self._engines.reject(index)
            elif self._awaited and (awaited := self._awaited.get(message.parent.msg_id)):
                guarded(partial(self._collect, awaited), message, self._note)
            else:
                self._clients.send(frames[1:])
                if self._recorder.on:
                    guarded(self._record_reply, message, self._note)
        self._clients.flush()

    def _record_reply(self, message: JupyterMessage) -> None:
        self._recorder.finished(QUEUE, message, engine_name(message.identities[0]))

    def _collect(self, awaited: tuple[str, CoalescedReply], message: JupyterMessage) -> None:
        """Keep a part of a coalesced reply, and send the coalesced reply when it is complete."""
        uuid, coalesced = awaited
        if engine_name(message.identities[0]) != uuid:
            self._note("reply_from_another_engine")
            return
        del self._awaited[message.parent.msg_id]
        if self._recorder.on:
            self._recorder.finished(QUEUE, message, uuid)
        if not coalesced.is_void:
            coalesced.replies[uuid] = message
            if len(coalesced.replies) == len(coalesced.targets):
                self._clients.send([coalesced.client, *self._build_reply(coalesced)])

    def _build_reply(self, coalesced: CoalescedReply) -> list[Frame]:
        """Build the one signed reply from those of all engines."""
        replies = [coalesced.replies[uuid] for uuid in coalesced.targets]
        decisive = min(replies, key=lambda reply: _RANK.get(_status(reply), 0))
        try:
            metadata = dict(decisive.metadata)
        except WireError:
            metadata = {"status": "error", "is_broadcast": True, "is_coalescing": True}
        metadata["broadcast_targets"] = [[uuid, number] for uuid, number in coalesced.targets.items()]
        parts = [decisive.frames[1], coalesced.header, _encode(metadata), decisive.frames[4]]
        is_ok = _status(decisive) == "ok"
        return self._codec.sign_parts(parts, [buffer for reply in replies for buffer in reply.buffers] if is_ok else ())

    # ---- engines that leave -----------------------------------------------------------------------------------------

    def engine_removed(self, uuid: str) -> None:
        """Void the coalesced replies that wait for an engine. Costs a look at each part that is missing."""
        for msg_id in [msg_id for msg_id, (engine, _) in self._awaited.items() if engine == uuid]:
            _, coalesced = self._awaited.pop(msg_id)
            coalesced.is_void = True
            coalesced.replies.clear()


def _targets(targets: object) -> dict[str, Any]:
    """Return the ids of a request's targets by uuid, each target once.

    :raises WireError: it is not a list of pairs of a uuid and an id.
    """
    pairs: list[Any] = targets if isinstance(targets, list) else []
    if pairs and all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        return dict(pairs)
    raise WireError("the metadata must have targets: a list of [uuid, id]")


def _status(reply: JupyterMessage) -> str:
    """Return the status of a reply from its metadata, or from its content if the metadata lack it."""
    try:
        return reply.reply_status.status or str(reply.content.get("status"))
    except WireError:
        return "error"
