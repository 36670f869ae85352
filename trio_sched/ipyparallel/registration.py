"""Engines come and go, clients connect and ask: the registration ROUTER, and the PUB that notifies clients.

An engine asks for a number, gets it at once, and connects. It counts as registered, for the core and for clients, when
its heart first beats; one whose heart does not is forgotten. It goes by its own word (or its nanny's), by its
`shutdown_reply`, or when its heart stops.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import structlog
import trio

from trio_sched.core.events import EngineJoined, EngineLost
from trio_sched.errors import TrioSchedError, WireError
from trio_sched.ipyparallel.desk import Answer, Desk
from trio_sched.ipyparallel.roster import Engine
from trio_sched.wire.jupyter import Parsed, failure
from trio_sched.wire.native import Frame

log = structlog.get_logger(__name__)
KIND = "ipyparallel"
"""What the core calls our engines and our tasks' payloads."""
SHUTDOWN_DELAY_S = 0.1
"""For the reply to reach the client before the sockets close."""
_LONGEST_UUID = 255
"""A ROUTER knows no longer peers."""


class Registration:
    """The registration and notification sockets."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._socket = desk.bind_both("router", "registration")
        self._notifier = desk.bind("pub", "client", "notification")
        self._nursery: trio.Nursery | None = None
        desk.engine_gone = self.engine_gone
        desk.questions.update(
            registration_request=self._register,
            unregistration_request=self._unregister,
            connection_request=self._connect,
            shutdown_request=self._shut_down,
        )

    async def run(self) -> None:
        """The task."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._desk.pump(self._socket, "registration", self._take)

    # ---- requests ---------------------------------------------------------------------------------------------------

    def _take(self, frames: list[Frame]) -> None:
        message = self._desk.codec.read(frames)
        kind = message.head.msg_type
        question = self._desk.questions.get(kind)
        try:
            if question is None:
                raise KeyError(f"unknown message type {kind!r}")
            answer = question(message)
        except Exception as error:
            self._fail(message, error)
            return
        if isinstance(answer, Answer):
            self._send(message, answer)
        elif answer is not None and self._nursery is not None:
            self._nursery.start_soon(self._answer_later, message, answer)

    async def _answer_later(self, message: Parsed, answer: Awaitable[Answer]) -> None:
        try:
            self._send(message, await answer)
        except Exception as error:
            self._fail(message, error)
        self._socket.flush()

    def _send(self, message: Parsed, answer: Answer) -> None:
        reply = self._desk.codec.message(
            answer.msg_type, answer.content, parent=message.frames[1], buffers=answer.buffers
        )
        self._socket.send([*message.identities, *reply])

    def _fail(self, message: Parsed, error: Exception) -> None:
        """Tell who asked why there is no answer."""
        kind = "malformed" if isinstance(error, WireError) else "request_failed"
        self._desk.hub.note(kind, channel="registration", request=message.head.msg_type, why=repr(error))
        if not isinstance(error, (TrioSchedError, KeyError, IndexError, TypeError, ValueError)):
            log.error("request failed", request=message.head.msg_type, exc_info=error)
        evalue = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        self._send(message, Answer("hub_error", failure(type(error).__name__, evalue)))

    def notify(self, msg_type: str, content: Mapping[str, Any], parent: Frame = b"{}") -> None:
        """Tell all clients."""
        self._notifier.send([msg_type.encode(), *self._desk.codec.message(msg_type, content, parent=parent)])

    # ---- engines ----------------------------------------------------------------------------------------------------

    def _register(self, message: Parsed) -> Answer:
        content, roster = message.content, self._desk.roster
        uuid, wanted = content.get("uuid"), content.get("id")
        if not isinstance(uuid, str) or not 0 < len(uuid.encode()) <= _LONGEST_UUID:
            raise ValueError("the request names no uuid that will do")
        if not (wanted is None or type(wanted) is int):
            raise ValueError(f"an id is a whole number, not {wanted!r}")
        if uuid in roster.engines:
            self._desk.hub.note("engine_joined_twice", uuid=uuid)
            return Answer("registration_reply", failure("KeyError", f"uuid {uuid!r} in use"))
        engine = roster.begin(uuid, wanted, trio.current_time())
        log.debug("engine registers", number=engine.number, uuid=uuid)
        inside = {"interface": self._desk.config.interface("engine"), **self._desk.ports["engine"]}
        return Answer(
            "registration_reply",
            {"status": "ok", "id": engine.number, "hb_period": self._desk.config.ping_ms, "connection_info": inside},
        )

    def beats(self, engine: Engine) -> None:
        """Its heart beat for the first time: it has connected."""
        engine.registered = True
        self._desk.hub.inbox.add_notifications([EngineJoined(engine.uuid, hwm=self._desk.config.hwm, kind=KIND)])
        self.notify("registration_notification", {"id": engine.number, "uuid": engine.uuid})
        log.info("engine joined", number=engine.number, uuid=engine.uuid)

    def _unregister(self, message: Parsed) -> None:
        engine = self._desk.roster.by_number.get(message.content.get("id"))  # type: ignore[arg-type]
        if engine is None:
            self._desk.hub.note("unknown_engine_left", channel="registration")
        else:
            self.engine_gone(engine.uuid, "it unregistered")

    def engine_gone(self, uuid: str, reason: str) -> None:
        """An engine left, or is dead. Its results may still be on their way: the core keeps its tasks for a while."""
        engine = self._desk.roster.engines.get(uuid)
        if engine is None:
            return
        self._desk.roster.remove(engine)
        log.info("engine left", number=engine.number, uuid=uuid, reason=reason)
        if engine.registered:
            self._desk.hub.inbox.add_notifications([EngineLost(uuid, reason)])
            self.notify("unregistration_notification", {"id": engine.number, "uuid": uuid})
        for tell in self._desk.on_engine_gone:
            tell(uuid)

    def give_up_stalled(self, now: float) -> None:
        """Forget registrations whose heart does not beat."""
        patience_s = self._desk.config.patience_s()
        stalled = [
            engine
            for engine in self._desk.roster.engines.values()
            if not engine.registered and now - engine.since > patience_s
        ]
        for engine in stalled:
            self._desk.hub.note("registration_stalled", uuid=engine.uuid)
            self.engine_gone(engine.uuid, "its heart never beat")

    # ---- clients ----------------------------------------------------------------------------------------------------

    def _connect(self, message: Parsed) -> Answer:
        engines = {str(number): uuid for number, uuid in self._desk.roster.present().items()}
        return Answer("connection_reply", {"status": "ok", "engines": engines})

    def _shut_down(self, message: Parsed) -> Answer:
        self.notify("shutdown_notification", {"status": "ok"}, message.frames[1])
        if self._nursery is not None:
            self._nursery.start_soon(self._stop_soon)
        return Answer("shutdown_reply", {"status": "ok"})

    async def _stop_soon(self) -> None:
        await trio.sleep(SHUTDOWN_DELAY_S)
        self._desk.hub.stop("a client asked for it")


def numbers(engines: Sequence[Engine]) -> list[int]:
    """The engines as people see them."""
    return [engine.number for engine in engines]
