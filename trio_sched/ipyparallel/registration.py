"""Engines come and go, clients connect and ask: the registration ROUTER, and the PUB that notifies clients.

An engine asks for a number, gets it at once, and connects. It counts as registered, for the core and for clients, when
its heart first beats; one whose heart does not is forgotten. It goes by its own word (or its nanny's), by its
`shutdown_reply`, or when its heart stops.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import trio

from trio_sched.core.events import EngineJoined, EngineLost
from trio_sched.errors import WireError
from trio_sched.ipyparallel.desk import Desk
from trio_sched.ipyparallel.queries import Answer
from trio_sched.ipyparallel.roster import Engine
from trio_sched.logs import get_logger
from trio_sched.server.happenings import Event
from trio_sched.wire.jupyter import Json, Parsed, failure
from trio_sched.wire.native import Frame

log = get_logger(__name__)
KIND = "ipyparallel"
"""What the core calls our engines and our tasks' payloads."""
Ask: TypeAlias = Callable[[Parsed], Answer]
SHUTDOWN_DELAY_S = 0.1
"""For the reply to reach the client before the sockets close."""
_LONGEST_UUID = 255
"""A ROUTER knows no longer peers."""
_HIGHEST_NUMBER = (1 << 31) - 1


class Registration:
    """The registration and notification sockets."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._socket = desk.bind_both("router", "registration")
        self._notifier = desk.bind("xpub", "client", "notification")
        self._stopping = trio.Event()
        self._nursery: trio.Nursery
        desk.engine_gone = self.engine_gone
        desk.tasks.append(self.run)
        self._ask: Ask = _nobody_asked

    def ask(self, ask: Ask) -> None:
        """`ask` answers all requests but those of engines that come and go."""
        self._ask = ask

    async def run(self) -> None:
        """The task."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._stop)
            self._nursery.start_soon(self._desk.pump_subscriptions, self._notifier)
            await self._desk.pump(self._socket, "registration", self._take, proves=True)

    # ---- requests ---------------------------------------------------------------------------------------------------

    def _take(self, frames: list[Frame]) -> None:
        message = self._desk.codec.read(frames)
        kind = message.head.msg_type
        answer: Answer | None
        try:
            if kind == "registration_request":
                answer = self._register(message)
            elif kind == "unregistration_request":
                answer = self._unregister(message)
            else:
                answer = self._ask(message)
        except (WireError, ValueError) as error:
            self._desk.hub.note("malformed", channel="registration", request=kind, why=str(error))
            answer = Answer("hub_error", failure(type(error).__name__, str(error)))
        except Exception as error:
            self._desk.broken("registration")
            answer = Answer("hub_error", failure(type(error).__name__, str(error)))
        if answer is not None and answer.later is not None:
            self._nursery.start_soon(self._reply_later, message, answer.msg_type, answer.later)
        elif answer is not None:
            self._reply(message, answer)

    def _reply(self, message: Parsed, answer: Answer) -> None:
        reply = self._desk.codec.message(
            answer.msg_type, answer.content, parent=message.frames[1], buffers=answer.buffers
        )
        self._socket.send([*message.identities, *reply])
        if answer.then is not None:
            answer.then()

    async def _reply_later(self, message: Parsed, msg_type: str, later: Callable[[], Awaitable[Json]]) -> None:
        self._reply(message, Answer(msg_type, await later()))
        self._socket.flush()

    def notify(self, msg_type: str, content: Mapping[str, Any], parent: Frame = b"{}") -> None:
        """Tell all clients."""
        self._notifier.send([msg_type.encode(), *self._desk.codec.message(msg_type, content, parent=parent)])

    # ---- engines ----------------------------------------------------------------------------------------------------

    def _register(self, message: Parsed) -> Answer:
        content, roster = message.content, self._desk.roster
        uuid, wanted = content.get("uuid"), content.get("id")
        if not isinstance(uuid, str) or not 0 < len(uuid.encode()) <= _LONGEST_UUID:
            raise ValueError("the request names no uuid that will do")
        if not (wanted is None or (type(wanted) is int and 0 <= wanted <= _HIGHEST_NUMBER)):
            raise ValueError(f"an id is a whole number from 0 to {_HIGHEST_NUMBER}, not {wanted!r}")
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
        events: list[Event] = [EngineJoined(engine.uuid, hwm=self._desk.config.hwm, kind=KIND)]
        if engine.uuid in self._desk.roster.departed:  # the core may still be waiting for its former self
            events.insert(0, EngineLost(engine.uuid, "it registered anew", confirmed=True))
        self._desk.hub.inbox.add_notifications(events)
        self.notify("registration_notification", {"id": engine.number, "uuid": engine.uuid})
        log.info("engine joined", number=engine.number, uuid=engine.uuid)

    def _unregister(self, message: Parsed) -> Answer | None:
        number = message.content.get("id")
        engine = self._desk.roster.by_number.get(number) if type(number) is int else None
        if engine is None:
            self._desk.hub.note("unknown_engine_left", channel="registration")
        else:
            self.engine_gone(engine.uuid, "it unregistered")
        return None

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

    # ---- the end ----------------------------------------------------------------------------------------------------

    def shut_down(self) -> None:
        """A client asked for it, and was answered."""
        self.notify("shutdown_notification", {"status": "ok"})
        self._stopping.set()

    async def _stop(self) -> None:
        await self._stopping.wait()
        await trio.sleep(SHUTDOWN_DELAY_S)
        self._desk.hub.stop("a client asked for it")


def _nobody_asked(message: Parsed) -> Answer:
    raise ValueError(f"unknown message type {message.head.msg_type!r}")
