"""Bound sockets of any kind on one context, for a front that speaks a protocol with many of them.

What `ZmqSocket.router` refuses is allowed here, because the protocol brings its own authentication (signed messages):
TCP without CURVE. With CURVE whoever knows the server's key may connect; who else may is decided in zmq_admission.py.
No high-water marks for sending: at the default one libzmq drops without a word.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

import zmq

from trio_sched.errors import AddressInUseError, ConfigError
from trio_sched.transport.connection_limits import ConnectionLimits
from trio_sched.transport.curve import KeyPair
from trio_sched.transport.endpoint import real_address, set_options
from trio_sched.transport.zmq_admission import Admission, is_local
from trio_sched.transport.zmq_monitor import ConnectionMonitor
from trio_sched.transport.zmq_socket import ZmqSocket

Kind: TypeAlias = Literal["router", "pub", "sub", "xpub", "xsub"]
LONGEST_TOPIC = 1024
_KINDS: dict[Kind, int] = {"router": zmq.ROUTER, "pub": zmq.PUB, "sub": zmq.SUB, "xpub": zmq.XPUB, "xsub": zmq.XSUB}


class SocketSet:
    """Makes bound sockets and closes them all. One I/O thread serves them. `limits` bounds their connections."""

    def __init__(
        self,
        keys: KeyPair | None = None,
        max_message_bytes: int = 0,
        limits: ConnectionLimits | None = None,
        admission: Admission | None = None,
    ) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._keys = keys
        self._max_message_bytes = max_message_bytes
        self._limits = limits
        self._admission = admission if limits is not None else None
        self._sockets: list[ZmqSocket] = []

    def bind(
        self,
        kind: Kind,
        address: str,
        *,
        mandatory: bool = False,
        name: str = "",
        is_open: bool = False,
        receive_hwm: int = 0,
    ) -> ZmqSocket:
        """A socket bound to the address ("tcp://host:0": any port); see `also`.

        A SUB hears everything. An XPUB tells of each subscription and of its end, repeated ones too, and refuses topics
        of more than `LONGEST_TOPIC` bytes. With `mandatory`, a ROUTER's `send` says whether the peer is connected;
        without, what cannot be delivered vanishes. `name` and `is_open` are for `Admission`. A peer has to wait while
        more than `receive_hwm` of its messages are unread (0: never).

        :raises AddressInUseError: somebody else listens there.
        :raises ConfigError: libzmq does not take the address.
        """
        socket: zmq.Socket[bytes] = self._context.socket(_KINDS[kind])
        monitor: ConnectionMonitor | None = None
        watch: Callable[[ZmqSocket], None] | None = None
        try:
            set_options(socket, address, self._max_message_bytes)
            socket.rcvhwm = receive_hwm
            self._set_kind(socket, kind, mandatory, handover=self._keys is not None or not is_local(address))
            if self._keys:
                socket.curve_server = True
                socket.curve_publickey = self._keys.public.encode("ascii")
                socket.curve_secretkey = self._keys.secret.encode("ascii")
            if self._limits is not None:
                monitor = ConnectionMonitor(self._context, socket, self._limits)
            if self._admission is not None and monitor is not None:
                watch = self._admission.watch(self._context, socket, monitor, name, is_open=is_open, keep=self._keep)
            _bind(socket, address)
        except BaseException:
            socket.close(linger=0)
            if monitor is not None:
                monitor.discard()
            raise
        bound = ZmqSocket(self._context, socket, address=real_address(socket), routed=kind == "router")
        self._keep(bound)
        if watch is not None:
            watch(bound)
        if monitor is not None:
            bound.watch_connections(monitor)
        return bound

    def _keep(self, made: ZmqSocket) -> None:
        self._sockets.append(made)
        made.share(self._sockets)

    def also(self, bound: ZmqSocket, address: str) -> str:
        """Let one of them listen at one more address. Returns that with the real port. Errors as for `bind`."""
        return bound.with_socket(lambda socket: _bind(socket, address))

    @staticmethod
    def _set_kind(socket: zmq.Socket[bytes], kind: Kind, mandatory: bool, handover: bool) -> None:
        if kind == "router":
            socket.router_mandatory = mandatory
            socket.router_handover = handover
        elif kind == "sub":
            socket.subscribe(b"")
        elif kind == "xpub":
            socket.setsockopt(zmq.XPUB_VERBOSER, 1)
            socket.maxmsgsize = LONGEST_TOPIC

    def close(self) -> None:
        """Close all of them. Twice does no harm."""
        for socket in self._sockets:
            _remove_file(socket.address)
            socket.close()
        if not self._sockets:
            self._context.term()

    def __enter__(self) -> SocketSet:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _bind(socket: zmq.Socket[bytes], address: str) -> str:
    """Returns the address with the real port."""
    if address.startswith(("tcp://[", "tcp://*")):
        socket.ipv6 = True
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise AddressInUseError(f"{address} is in use by another process; choose another port") from None
        raise ConfigError(f"address: cannot bind {address}: {error.strerror}") from None
    return real_address(socket)


def _remove_file(address: str) -> None:
    """libzmq leaves the file of a local socket behind."""
    if address.startswith("ipc://"):
        with contextlib.suppress(OSError):
            Path(address.removeprefix("ipc://")).unlink()
