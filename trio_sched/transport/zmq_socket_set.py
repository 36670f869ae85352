"""Bound sockets of any kind on one context, for a front whose protocol needs several of them.

`ZmqSocket.router` refuses TCP without CURVE. A `SocketSet` allows it, because the protocol has its own authentication
(signed messages). With CURVE, a peer that knows the server's key may connect; zmq_admission.py decides about all other
conditions. Sockets have no high-water mark for sending, because libzmq drops messages silently at its default mark.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

import zmq

from trio_sched.transport.connection_limits import ConnectionLimits
from trio_sched.transport.curve import KeyPair
from trio_sched.transport.endpoint import bind_socket, set_options
from trio_sched.transport.zmq_admission import AdmissionControl, is_local_address
from trio_sched.transport.zmq_monitor import ConnectionMonitor
from trio_sched.transport.zmq_socket import SharedContext, ZmqSocket

SocketKind: TypeAlias = Literal["router", "pub", "sub", "xpub", "xsub"]
MAX_TOPIC_BYTES = 1024
_KINDS: dict[SocketKind, int] = {
    "router": zmq.ROUTER,
    "pub": zmq.PUB,
    "sub": zmq.SUB,
    "xpub": zmq.XPUB,
    "xsub": zmq.XSUB,
}


class SocketSet:
    """Creates bound sockets on one context with one I/O thread, and closes all of them.

    `keys` is the server's CURVE key pair. `limits` limits the connections of all sockets. `admission` decides about
    each connection; it is used only with `limits`.
    """

    def __init__(
        self,
        keys: KeyPair | None = None,
        max_message_bytes: int = 0,
        limits: ConnectionLimits | None = None,
        admission: AdmissionControl | None = None,
    ) -> None:
        self._context = SharedContext()
        self._keys = keys
        self._max_message_bytes = max_message_bytes
        self._limits = limits
        self._admission = admission if limits is not None else None
        self._sockets: list[ZmqSocket] = []
        if self._admission is not None:
            self._sockets.append(self._admission.open(self._context))

    def bind(
        self,
        kind: SocketKind,
        address: str,
        *,
        mandatory: bool = False,
        name: str = "",
        admits_any_address: bool = False,
        receive_hwm: int = 0,
    ) -> ZmqSocket:
        """Create a socket bound to the address ("tcp://host:0": any port). `also` adds further addresses.

        A SUB receives all topics. An XPUB reports each subscription and the end of each one, including repeated ones,
        and refuses topics of more than `MAX_TOPIC_BYTES`. With `mandatory`, `send` of a ROUTER returns False when the
        peer is not connected; without, libzmq drops the message. A peer has to
        wait while more than `receive_hwm` of its messages are unread (0: no limit).
        `AdmissionControl.add` explains `name` and `admits_any_address`.

        :raises AddressInUseError: another process listens there.
        :raises ConfigError: libzmq does not accept the address.
        """
        socket: zmq.Socket[bytes] = self._context.context.socket(_KINDS[kind])
        domain = f"{name}-{len(self._sockets)}".encode()
        monitor: ConnectionMonitor | None = None
        try:
            self._set_options(socket, kind, address, mandatory, receive_hwm)
            if self._limits is not None:
                monitor = ConnectionMonitor(
                    self._context.context, socket, self._limits, records_events=self._admission is not None
                )
            if self._admission is not None:
                socket.zap_domain = domain
            address = bind_socket(socket, address)
        except BaseException:
            socket.close(linger=0)
            if monitor is not None:
                monitor.discard()
            raise
        bound = ZmqSocket(
            self._context,
            socket,
            address=address,
            routed=kind == "router",
            monitor=monitor,
            records_sources=kind == "xpub" or admits_any_address,
            on_reject=self._admission.count_rejected if self._admission is not None else None,
        )
        self._sockets.append(bound)
        if self._admission is not None and monitor is not None:
            self._admission.add(
                domain, bound, monitor, name, admits_any_address=admits_any_address, must_settle=kind != "xpub"
            )
        return bound

    def bind_also(self, bound: ZmqSocket, address: str) -> str:
        """Bind one of the sockets to one more address. Return it with the real port. Raises as `bind`."""
        return bound.bind_also(address)

    def _set_options(
        self, socket: zmq.Socket[bytes], kind: SocketKind, address: str, mandatory: bool, receive_hwm: int
    ) -> None:
        set_options(socket, address, self._max_message_bytes)
        socket.rcvhwm = receive_hwm
        if kind == "router":
            socket.router_mandatory = mandatory
            socket.router_handover = self._keys is not None or not is_local_address(address)
        elif kind == "sub":
            socket.subscribe(b"")
        elif kind == "xpub":
            socket.setsockopt(zmq.XPUB_VERBOSER, 1)
            socket.maxmsgsize = MAX_TOPIC_BYTES
        if self._keys:
            socket.curve_server = True
            socket.curve_publickey = self._keys.public.encode("ascii")
            socket.curve_secretkey = self._keys.secret.encode("ascii")

    def close(self) -> None:
        """Close all sockets. A second call has no effect."""
        for socket in self._sockets:
            _remove_file(socket.address)
            socket.close()
        if not self._sockets:
            self._context.destroy()

    def __enter__(self) -> SocketSet:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _remove_file(address: str) -> None:
    """Remove the file of a local socket, which libzmq leaves behind."""
    if address.startswith("ipc://"):
        with contextlib.suppress(OSError):
            Path(address.removeprefix("ipc://")).unlink()
