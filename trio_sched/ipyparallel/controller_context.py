"""The context that the parts of this front share: settings, codec, sockets and their ports, engines, recorder.

The context does not refer to the parts: front.py makes them, and passes each part the others that it calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from trio_sched.errors import WireError
from trio_sched.ipyparallel.config import IppConfig, Side, address_of, is_wildcard
from trio_sched.ipyparallel.engine_registry import EngineRegistry
from trio_sched.ipyparallel.records.recorder import TaskRecorder
from trio_sched.ipyparallel.retrying_router import RetryingRouter
from trio_sched.logs import get_logger
from trio_sched.server.ingress import Ingress
from trio_sched.transport.curve import KeyPair
from trio_sched.transport.zmq_admission import AdmissionControl, allowed_user_ids
from trio_sched.transport.zmq_socket import ZmqSocket
from trio_sched.transport.zmq_socket_set import SocketKind, SocketSet
from trio_sched.wire.jupyter import Codec
from trio_sched.wire.native import Frame

log = get_logger(__name__)
Ports: TypeAlias = dict[str, "int | list[int]"]
#: Unread messages of one peer, beyond which the peer waits. An engine's ROUTER would drop replies instead of waiting,
#: hence the larger number.
RECEIVE_HWM: dict[Side, int] = {"client": 500, "engine": 5000}
SUBSCRIPTIONS_HWM = 500
#: The first byte of an XPUB's message about a subscription that begins; it is 0 for one that ends.
SUBSCRIBED = b"\x01"


def _ignore() -> None:
    """Do nothing: the default of `pump_subscriptions`."""


class ControllerContext:
    """What the parts share. Made once by the front, and not changed after that except for ports and engines."""

    def __init__(
        self,
        config: IppConfig,
        ingress: Ingress,
        codec: Codec,
        recorder: TaskRecorder,
        former: Mapping[Side, Mapping[str, Any]],
    ) -> None:
        """`former`: the contents of the connection files whose ports are used again, by side."""
        self.config = config
        self.ingress = ingress
        self.codec = codec
        self.recorder = recorder
        self.registry = EngineRegistry()
        #: Ports by side and channel, as the connection files list them.
        self.ports: dict[Side, Ports] = {"client": {}, "engine": {}}
        keys = KeyPair(config.curve_publickey, config.curve_secretkey) if config.uses_curve else None
        self.admission = AdmissionControl(
            lambda reason, **context: self.ingress.note(reason, **context),
            None if keys or config.other_users else allowed_user_ids(),
            proven_addresses_only=config.is_remote and keys is None,
        )
        self.sockets = SocketSet(keys, config.max_message_bytes, ingress.connections, self.admission)
        self._former_files = former
        self._side_pools = {"client": iter(config.client_ports), "engine": iter(config.engine_ports)}
        self._common_pool = iter(config.ports)

    # ---- sockets ----------------------------------------------------------------------------------------------------

    def bind(
        self, kind: SocketKind, side: Side, channel: str, *, mandatory: bool = False, ports: int | None = None
    ) -> ZmqSocket:
        """Bind a socket for peers of one side, and note its port for the connection file of that side.

        :param mandatory: see `SocketSet.bind`.
        :param ports: the number of ports to listen at, which the file has as a list; None: one port, as a number.
        :raises AddressInUseError: see `SocketSet.bind`.
        :raises ConfigError: see `SocketSet.bind`.
        """
        interface = self.config.interface(side)
        addresses = (address_of(interface, port) for port in self._candidate_ports(side, channel))
        socket = self.sockets.bind(
            kind,
            next(addresses),
            mandatory=mandatory,
            name=f"{side} {channel}",
            admits_any_address=channel == "registration",
            receive_hwm=SUBSCRIPTIONS_HWM if kind == "xpub" else RECEIVE_HWM[side],
        )
        first = _port_of(socket.address)
        if ports is None:
            self.ports[side][channel] = first
        else:
            others = [_port_of(self.sockets.bind_also(socket, next(addresses))) for _ in range(1, ports)]
            self.ports[side][channel] = [first, *others]
        return socket

    def bind_retrying(self, channel: str, ports: int | None = None) -> RetryingRouter:
        """Bind a ROUTER for engines that retries what it cannot deliver to a registered engine; `ports`: see `bind`."""
        socket = self.bind("router", "engine", channel, mandatory=True, ports=ports)
        engines = self.registry.engines
        return RetryingRouter(socket, lambda uuid: uuid in engines)

    def bind_both(self, kind: SocketKind, channel: str) -> ZmqSocket:
        """Bind a socket for the peers of both sides, at the same port."""
        first: Side = "client" if is_wildcard(self.config.interface("client")) else "engine"
        second: Side = "engine" if first == "client" else "client"
        socket = self.bind(kind, first, channel)
        port = self.ports[first][channel]
        self.ports[second][channel] = port
        interfaces = self.config.interface(first), self.config.interface(second)
        if interfaces[0] != interfaces[1] and not is_wildcard(interfaces[0]) and isinstance(port, int):
            self.sockets.bind_also(socket, address_of(interfaces[1], port))
        return socket

    def _candidate_ports(self, side: Side, channel: str) -> Iterator[int]:
        """Yield one port for each address to bind: those of a former run, then those of the pools, then any."""
        former = self._former_files.get(side, {}).get(channel)
        if isinstance(former, list):
            yield from former
        elif former:
            yield former
        if channel == "registration" and self.config.registration_port:
            yield self.config.registration_port
        yield from self._side_pools[side]
        yield from self._common_pool
        yield from self._any_port(self.config.interface(side))

    @staticmethod
    def _any_port(interface: str) -> Iterator[int]:
        """Yield 0 (any free port) for TCP, and unused numbers of files for ipc."""
        if not interface.startswith("ipc://"):
            yield from itertools.repeat(0)
        for number in itertools.count(1):
            if not Path(address_of(interface, number).removeprefix("ipc://")).exists():
                yield number

    # ---- messages ---------------------------------------------------------------------------------------------------

    async def pump(
        self, socket: ZmqSocket, channel: str, take: Callable[[list[Frame]], None], *, proves: bool = False
    ) -> None:
        """Pass each message of a socket to `take`, until cancelled.

        A message for which `take` raises WireError is dropped and counted (R25). With `proves`, one for which it does
        not proves that the sender has the key.
        """
        while True:
            for index, frames in enumerate(await socket.receive()):
                try:
                    take(frames)
                    if proves:
                        self.admission.prove_address(socket, index)
                except WireError as error:
                    self.count_malformed(error, channel)
                    socket.reject(index)
                except Exception:
                    self.count_internal_error(channel)
            socket.flush()

    async def pump_subscriptions(self, socket: ZmqSocket, subscribed: Callable[[], None] = _ignore) -> None:
        """Count the subscriptions of each connection to an XPUB, and call `subscribed` for each, until cancelled."""
        limit = self.config.max_subscriptions
        while True:
            for index, frames in enumerate(await socket.receive()):
                self.admission.count_subscription(socket, index, limit)
                if bytes(frames[0][:1]) == SUBSCRIBED:
                    subscribed()

    def count_malformed(self, error: WireError, channel: str) -> None:
        """Count a message that cannot be read (R25)."""
        self.ingress.note(error.kind, channel=channel, why=str(error))

    def count_internal_error(self, channel: str) -> None:
        """Count and log the exception being handled: one message must not end the controller (R33)."""
        self.ingress.note("internal_error", channel=channel)
        log.exception("a message could not be handled", channel=channel)


def _port_of(address: str) -> int:
    return int(address.rpartition(":")[2])
