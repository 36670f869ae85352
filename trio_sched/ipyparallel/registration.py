"""Registration: engines join and leave, clients are notified and ask questions.

An engine asks for a number, gets it at once, and connects. It has joined, for the core and for clients, with its first
pong; a registration without a pong is given up. An engine leaves by its own `unregistration_request` (or its nanny's),
by its `shutdown_reply`, or when its heartbeats stop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import trio

from trio_sched.core.events import EngineJoined, EngineLost
from trio_sched.errors import WireError
from trio_sched.ipyparallel.controller_context import ControllerContext
from trio_sched.ipyparallel.engine_registry import RegisteredEngine
from trio_sched.ipyparallel.queries import Answer
from trio_sched.logs import get_logger
from trio_sched.server.events import Event
from trio_sched.transport.zmq_socket import ZmqSocket
from trio_sched.wire.jupyter import Json, JupyterMessage, error_content
from trio_sched.wire.native import Frame

log = get_logger(__name__)
#: The kind of this front's engines and of its tasks' payloads, for the core (R16).
KIND = "ipyparallel"
AnswerQuery: TypeAlias = Callable[[JupyterMessage], Answer]
#: Time for the reply to a shutdown request to reach the client before the sockets close.
SHUTDOWN_DELAY_S = 0.1
#: The longest routing id of a ROUTER's peer, in bytes.
_LONGEST_UUID = 255
_HIGHEST_NUMBER = (1 << 31) - 1


class ClientNotifier:
    """Notifies all clients of engines that join and leave, and of the controller's shutdown."""

    def __init__(self, context: ControllerContext, socket: ZmqSocket) -> None:
        self._context = context
        self._socket = socket
        self._stopping = trio.Event()

    async def run(self) -> None:
        """Take subscriptions until cancelled; stop the server after a shutdown was announced."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._context.pump_subscriptions, self._socket)
            await self._stopping.wait()
            await trio.sleep(SHUTDOWN_DELAY_S)
            self._context.ingress.stop("a client asked for it")

    def notify(self, msg_type: str, content: Mapping[str, Any]) -> None:
        """Send a notification to all clients."""
        self._socket.send([msg_type.encode(), *self._context.codec.message(msg_type, content)])

    def shut_down(self) -> None:
        """Announce the shutdown that a client asked for, and stop the server soon."""
        self.notify("shutdown_notification", {"status": "ok"})
        self._stopping.set()


class Registration:
    """Answers the requests on the registration socket, and adds and removes engines."""

    def __init__(
        self,
        context: ControllerContext,
        socket: ZmqSocket,
        notifier: ClientNotifier,
        answer: AnswerQuery,
        on_removed: Sequence[Callable[[str], None]],
    ) -> None:
        """`answer` answers all requests but those of engines that join and leave. The functions in `on_removed` are
        called with the uuid of each engine that was removed.
        """
        self._context = context
        self._socket = socket
        self._notifier = notifier
        self._answer = answer
        self._on_removed = on_removed
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Answer requests until cancelled."""
        async with trio.open_nursery() as self._nursery:
            await self._context.pump(self._socket, "registration", self._take, proves=True)

    # ---- requests ---------------------------------------------------------------------------------------------------

    def _take(self, frames: list[Frame]) -> None:
        message = self._context.codec.read(frames)
        kind = message.head.msg_type
        try:
            if kind == "registration_request":
                answer = self._register(message)
            elif kind == "unregistration_request":
                self._unregister(message)
                return
            else:
                answer = self._answer(message)
        except (WireError, ValueError) as error:
            self._context.ingress.note("malformed", channel="registration", request=kind, why=str(error))
            answer = Answer("hub_error", error_content(type(error).__name__, str(error)))
        except Exception as error:
            self._context.count_internal_error("registration")
            answer = Answer("hub_error", error_content(type(error).__name__, str(error)))
        if answer.pending_content is not None:
            self._nursery.start_soon(self._reply_later, message, answer.msg_type, answer.pending_content)
        else:
            self._reply(message, answer)

    def _reply(self, message: JupyterMessage, answer: Answer) -> None:
        reply = self._context.codec.message(
            answer.msg_type, answer.content, parent=message.frames[1], buffers=answer.buffers
        )
        self._socket.send([*message.identities, *reply])
        if answer.after_sending is not None:
            answer.after_sending()

    async def _reply_later(
        self, message: JupyterMessage, msg_type: str, content: Callable[[], Awaitable[Json]]
    ) -> None:
        self._reply(message, Answer(msg_type, await content()))
        self._socket.flush()

    def _register(self, message: JupyterMessage) -> Answer:
        content, context = message.content, self._context
        uuid, wanted = content.get("uuid"), content.get("id")
        if not isinstance(uuid, str) or not 0 < len(uuid.encode()) <= _LONGEST_UUID:
            raise ValueError(f"the uuid must be text of 1 to {_LONGEST_UUID} bytes")
        if not (wanted is None or (type(wanted) is int and 0 <= wanted <= _HIGHEST_NUMBER)):
            raise ValueError(f"an id is a whole number from 0 to {_HIGHEST_NUMBER}, not {wanted!r}")
        if uuid in context.registry.engines:
            context.ingress.note("engine_joined_twice", uuid=uuid)
            return Answer("registration_reply", error_content("KeyError", f"uuid {uuid!r} in use"))
        engine = context.registry.begin(uuid, wanted, trio.current_time())
        log.debug("engine registration began", number=engine.number, uuid=uuid)
        connection_info = {"interface": context.config.interface("engine"), **context.ports["engine"]}
        return Answer(
            "registration_reply",
            {
                "status": "ok",
                "id": engine.number,
                "hb_period": context.config.ping_ms,
                "connection_info": connection_info,
            },
        )

    def _unregister(self, message: JupyterMessage) -> None:
        number = message.content.get("id")
        engine = self._context.registry.by_number.get(number) if type(number) is int else None
        if engine is None:
            self._context.ingress.note("unknown_engine_left", channel="registration")
        else:
            self.remove_engine(engine.uuid, "it unregistered")

    # ---- engines ----------------------------------------------------------------------------------------------------

    def complete(self, engine: RegisteredEngine) -> None:
        """Complete the registration of an engine whose first pong arrived: it has joined."""
        events: list[Event] = [EngineJoined(engine.uuid, hwm=self._context.config.hwm, kind=KIND)]
        if self._context.registry.complete(engine):  # the core may still keep the former engine of this uuid
            events.insert(0, EngineLost(engine.uuid, "it registered again", confirmed=True))
        self._context.ingress.inbox.add_notifications(events)
        self._notifier.notify("registration_notification", {"id": engine.number, "uuid": engine.uuid})
        log.info("engine joined", number=engine.number, uuid=engine.uuid)

    def remove_engine(self, uuid: str, reason: str) -> None:
        """Remove an engine that left or died; an unknown uuid is ignored.

        Results of the engine may still arrive, so the core keeps its tasks for a grace period (R20).
        """
        engine = self._context.registry.engines.get(uuid)
        if engine is None:
            return
        self._context.registry.remove(engine)
        log.info("engine left", number=engine.number, uuid=uuid, reason=reason)
        if engine.has_joined:
            self._context.ingress.inbox.add_notifications([EngineLost(uuid, reason)])
            self._notifier.notify("unregistration_notification", {"id": engine.number, "uuid": uuid})
        for call in self._on_removed:
            call(uuid)

    def remove_stalled(self, now: float) -> None:
        """Give up the registrations of engines that sent no pong within the registration timeout."""
        for engine in self._context.registry.stalled(now, self._context.config.effective_registration_timeout_s()):
            self._context.ingress.note("registration_stalled", uuid=engine.uuid)
            self.remove_engine(engine.uuid, "it sent no heartbeat after its registration")
