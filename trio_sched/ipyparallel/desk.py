"""What the parts of this front share: settings, codec, sockets with their ports, who is registered, who is told."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from trio_sched.errors import WireError
from trio_sched.ipyparallel.config import IppConfig, Side, address_of, is_wildcard
from trio_sched.ipyparallel.monitor import Monitor
from trio_sched.ipyparallel.patient import PatientRouter
from trio_sched.ipyparallel.roster import Roster
from trio_sched.logs import get_logger
from trio_sched.server.hub import Hub
from trio_sched.transport.curve import KeyPair
from trio_sched.transport.zmq_admission import Admission, same_user
from trio_sched.transport.zmq_bound import Kind, SocketSet
from trio_sched.transport.zmq_socket import ZmqSocket
from trio_sched.wire.jupyter import Codec
from trio_sched.wire.native import Frame

log = get_logger(__name__)
Ports: TypeAlias = dict[str, "int | list[int]"]
RECEIVE_HWM: dict[Side, int] = {"client": 500, "engine": 5000}
"""Unread messages of one peer, beyond which it has to wait. An engine's ROUTER would drop replies instead of waiting,
hence the larger number."""
SUBSCRIPTIONS_HWM = 500
SUBSCRIBED = b"\x01"
"""The first byte of what an XPUB says of a subscription; 0 when it ends."""


def _nothing() -> None:
    """What `pump_subscriptions` calls by default."""


class Desk:
    """Made once by the front; each part takes from it what it needs, and adds what others may ask of it."""

    def __init__(
        self, config: IppConfig, hub: Hub, codec: Codec, monitor: Monitor, former: Mapping[Side, Mapping[str, Any]]
    ) -> None:
        self.config = config
        self.hub = hub
        self.codec = codec
        self.monitor = monitor
        self.roster = Roster()
        self.ports: dict[Side, Ports] = {"client": {}, "engine": {}}
        """As they go into the connection files."""
        self.engine_gone: Callable[[str, str], None] = _nobody
        """(uuid, reason): an engine is known to be gone. Registration puts its own here."""
        self.on_engine_gone: list[Callable[[str], None]] = []
        """Called with the uuid of each engine that was unregistered."""
        self.tasks: list[Callable[[], Awaitable[Any]]] = []
        """What the parts want to be run."""
        keys = KeyPair(config.curve_publickey, config.curve_secretkey) if config.uses_curve else None
        self.admission = Admission(
            lambda reason, **context: self.hub.note(reason, **context),
            None if keys or config.other_users else same_user(),
            proven_addresses_only=config.is_remote and keys is None,
        )
        self.tasks.append(self.admission.run)
        self.sockets = SocketSet(keys, config.max_message_bytes, hub.connections, self.admission)
        self._former = former
        self._pools = {"client": iter(config.client_ports), "engine": iter(config.engine_ports)}
        self._common = iter(config.ports)

    # ---- sockets ----------------------------------------------------------------------------------------------------

    def bind(
        self, kind: Kind, side: Side, channel: str, *, mandatory: bool = False, ports: int | None = None
    ) -> ZmqSocket:
        """A socket of this side, bound and named in its connection file. Errors as `SocketSet.bind`.

        With `ports` it listens at so many of them, and the file has a list.
        """
        interface = self.config.interface(side)
        wanted = (address_of(interface, port) for port in self._wanted(side, channel))
        socket = self.sockets.bind(
            kind,
            next(wanted),
            mandatory=mandatory,
            name=f"{side} {channel}",
            is_open=channel == "registration",
            receive_hwm=SUBSCRIPTIONS_HWM if kind == "xpub" else RECEIVE_HWM[side],
        )
        socket.traced = kind == "xpub" or channel == "registration"
        first = _port_of(socket.address)
        if ports is None:
            self.ports[side][channel] = first
        else:
            others = [_port_of(self.sockets.also(socket, next(wanted))) for _ in range(1, ports)]
            self.ports[side][channel] = [first, *others]
        return socket

    def bind_patient(self, channel: str, ports: int | None = None) -> PatientRouter:
        """A ROUTER for engines, which waits for registered ones that are not connected yet; `ports`: see `bind`."""
        socket = self.bind("router", "engine", channel, mandatory=True, ports=ports)
        engines = self.roster.engines
        router = PatientRouter(socket, lambda uuid: uuid in engines)
        self.on_engine_gone.append(router.forget)
        self.tasks.append(router.run)
        return router

    def bind_both(self, kind: Kind, channel: str) -> ZmqSocket:
        """As `bind`, for both sides at the same port."""
        first: Side = "client" if is_wildcard(self.config.interface("client")) else "engine"
        second: Side = "engine" if first == "client" else "client"
        socket = self.bind(kind, first, channel)
        port = self.ports[first][channel]
        self.ports[second][channel] = port
        interfaces = self.config.interface(first), self.config.interface(second)
        if interfaces[0] != interfaces[1] and not is_wildcard(interfaces[0]) and isinstance(port, int):
            self.sockets.also(socket, address_of(interfaces[1], port))
        return socket

    def _wanted(self, side: Side, channel: str) -> Iterator[int]:
        """The ports to try for, one for each address: those of a former run, then the pools', then any."""
        former = self._former.get(side, {}).get(channel)
        if isinstance(former, list):
            yield from former
        elif former:
            yield former
        if channel == "registration" and self.config.registration_port:
            yield self.config.registration_port
        yield from self._pools[side]
        yield from self._common
        yield from self._any(self.config.interface(side))

    @staticmethod
    def _any(interface: str) -> Iterator[int]:
        if not interface.startswith("ipc://"):
            yield from itertools.repeat(0)
        for number in itertools.count(1):
            if not Path(address_of(interface, number).removeprefix("ipc://")).exists():
                yield number

    # ---- messages ---------------------------------------------------------------------------------------------------

    async def pump(
        self, socket: ZmqSocket, channel: str, take: Callable[[list[Frame]], None], *, proves: bool = False
    ) -> None:
        """Hand each message of a socket to `take`, until cancelled. A WireError of its means that it is dropped and
        counted (R25); with `proves`, none means that the sender has the key."""
        while True:
            for index, frames in enumerate(await socket.receive()):
                try:
                    take(frames)
                    if proves:
                        self.admission.prove(socket, index)
                except WireError as error:
                    self.drop(error, channel)
                    socket.reject(index)
                except Exception:
                    self.broken(channel)
            socket.flush()

    async def pump_subscriptions(self, socket: ZmqSocket, subscribed: Callable[[], None] = _nothing) -> None:
        """Count what peers subscribe to at an XPUB, and call `subscribed` when some did, until cancelled."""
        limit = self.config.max_subscriptions
        while True:
            for index, frames in enumerate(await socket.receive()):
                self.admission.count_subscription(socket, index, limit)
                if bytes(frames[0][:1]) == SUBSCRIBED:
                    subscribed()

    def drop(self, error: WireError, channel: str) -> None:
        """Count a message that cannot be read."""
        self.hub.note(error.kind, channel=channel, why=str(error))

    def broken(self, channel: str) -> None:
        """A message raised what it should not: one peer's oddity must not end everyone's controller."""
        self.hub.note("internal_error", channel=channel)
        log.exception("a message could not be handled", channel=channel)


def _nobody(_uuid: str, _reason: str) -> None:
    """Before registration is there."""


def _port_of(address: str) -> int:
    return int(address.rpartition(":")[2])
