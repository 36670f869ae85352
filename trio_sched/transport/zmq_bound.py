"""Bound sockets of any kind on one context, for a front that speaks a protocol with many of them.

What `ZmqSocket.router` refuses is allowed here, because the protocol brings its own authentication (signed messages):
TCP without CURVE. With CURVE there is no ZAP: whoever knows the server's key may connect. No high-water marks: at the
default one libzmq drops without a word.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

import zmq

from trio_sched.errors import AddressInUseError, ConfigError
from trio_sched.transport.connection_limits import ConnectionLimits
from trio_sched.transport.curve import KeyPair
from trio_sched.transport.endpoint import real_address, set_options
from trio_sched.transport.zmq_monitor import ConnectionMonitor
from trio_sched.transport.zmq_socket import ZmqSocket

Kind: TypeAlias = Literal["router", "pub", "sub", "xpub", "xsub"]
_KINDS: dict[Kind, int] = {"router": zmq.ROUTER, "pub": zmq.PUB, "sub": zmq.SUB, "xpub": zmq.XPUB, "xsub": zmq.XSUB}


class SocketSet:
    """Makes bound sockets and closes them all. One I/O thread serves them. `limits` bounds their connections."""

    def __init__(
        self, keys: KeyPair | None = None, max_message_bytes: int = 0, limits: ConnectionLimits | None = None
    ) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._keys = keys
        self._max_message_bytes = max_message_bytes
        self._limits = limits
        self._sockets: list[ZmqSocket] = []

    def bind(self, kind: Kind, address: str, *, mandatory: bool = False) -> ZmqSocket:
        """A socket bound to the address ("tcp://host:0": any port); see `also`.

        A SUB hears everything. An XPUB tells of each subscription, repeated ones too. With `mandatory`, a ROUTER's
        `send` says whether the peer is connected; without, what cannot be delivered vanishes.

        :raises AddressInUseError: somebody else listens there.
        :raises ConfigError: libzmq does not take the address.
        """
        socket: zmq.Socket[bytes] = self._context.socket(_KINDS[kind])
        monitor: ConnectionMonitor | None = None
        try:
            set_options(socket, address, self._max_message_bytes)
            self._set_kind(socket, kind, mandatory)
            if self._keys:
                socket.curve_server = True
                socket.curve_publickey = self._keys.public.encode("ascii")
                socket.curve_secretkey = self._keys.secret.encode("ascii")
            if self._limits is not None:
                monitor = ConnectionMonitor(self._context, socket, self._limits)
            _bind(socket, address)
        except BaseException:
            socket.close(linger=0)
            if monitor is not None:
                monitor.discard()
            raise
        bound = ZmqSocket(self._context, socket, address=real_address(socket), routed=kind == "router")
        self._sockets.append(bound)
        bound.share(self._sockets)
        if monitor is not None:
            bound.watch_connections(monitor)
        return bound

    def also(self, bound: ZmqSocket, address: str) -> str:
        """Let one of them listen at one more address. Returns that with the real port. Errors as for `bind`."""
        return bound.with_socket(lambda socket: _bind(socket, address))

    @staticmethod
    def _set_kind(socket: zmq.Socket[bytes], kind: Kind, mandatory: bool) -> None:
        if kind == "router":
            socket.router_mandatory = mandatory
            socket.router_handover = True
        elif kind == "sub":
            socket.subscribe(b"")
        elif kind == "xpub":
            socket.setsockopt(zmq.XPUB_VERBOSE, 1)

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
