"""Making ZeroMQ sockets: which addresses are taken, with which options. Shared by both faces, so it imports no event
loop.

An address is "ipc:///path" in a directory that is ours alone, or "tcp://host:port" with CURVE; anything else is
refused. libzmq would remove whatever is at an ipc path before it binds, so we look first whether somebody listens
there.
"""

from __future__ import annotations

import socket as sockets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from trio_sched.errors import AddressInUseError, ConfigError
from trio_sched.transport import curve
from trio_sched.transport.connection import Connection
from trio_sched.transport.private import require_private

LINGER_MS = 100
"""How long a closing socket tries to get rid of what it still holds; the event loop stands still meanwhile."""
MAX_PORT = 65535
BACKLOG = 1024
"""Connections that may wait to be accepted: hundreds of engines come at once."""
_RECONNECT_MS, _RECONNECT_MAX_MS = 50, 1000


def bind_router(
    context: zmq.Context[Any],
    address: str,
    keys: curve.ServerKeys | None,
    max_message_bytes: int,
    before_bind: Callable[[zmq.Socket[bytes]], None] = lambda _socket: None,
) -> zmq.Socket[bytes]:
    """A bound ROUTER; `before_bind` is called with it when nobody can connect yet.

    :raises AddressInUseError: somebody else listens there.
    :raises ConfigError: the address is refused, or TCP has no keys.
    """
    if address.startswith("ipc://"):
        _check_path(Path(address.removeprefix("ipc://")), address)
    elif not address.startswith("tcp://"):
        raise ConfigError(f"address: {address!r} must begin with ipc:// or tcp://")
    elif keys is None:
        raise ConfigError(f"address: {address} has no keys; TCP without CURVE is refused")
    else:
        _check_port(address)
    socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    set_options(socket, address, max_message_bytes)
    socket.router_mandatory = True
    if keys:
        curve.be_server(socket, keys)
    before_bind(socket)
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise AddressInUseError(
                f"{address} is in use by another process; choose another port, or 0 for any"
            ) from None
        raise ConfigError(f"address: cannot bind {address}: {error.strerror}") from None
    return socket


def _check_port(address: str) -> None:
    """libzmq would take 99999 for 34463."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not host or not port.isdecimal() or int(port) > MAX_PORT:
        raise ConfigError(f"address: {address!r} must be tcp://host:port, with a port up to {MAX_PORT}")


def _check_path(path: Path, address: str) -> None:
    if not path.is_absolute():
        raise ConfigError(f"address: {address!r} must name an absolute path")
    require_private(path.parent)
    if path.is_socket():
        with sockets.socket(sockets.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(path))
            except OSError:
                return  # left behind by a process that is gone
        raise AddressInUseError(f"{address} is in use by another scheduler; choose another name")
    if path.exists():
        raise ConfigError(f"address: {path} is there and is not a socket; remove it or choose another name")


def connect_dealer(context: zmq.Context[Any], connection: Connection, max_message_bytes: int = 0) -> zmq.Socket[bytes]:
    """A DEALER connected to the scheduler, which need not be there yet. It sets no routing id: a peer that comes back
    with the id of its former self is not heard.

    :raises ConfigError: the address or the keys are wrong, or TCP has no keys.
    """
    address = connection.address
    if address.startswith("tcp://"):
        _check_port(address)
    elif not address.startswith("ipc:///"):
        raise ConfigError(f"address: {address!r} of the connection must begin with ipc:/// or tcp://")
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    set_options(socket, address, max_message_bytes)
    socket.reconnect_ivl = _RECONNECT_MS
    socket.reconnect_ivl_max = _RECONNECT_MAX_MS
    curve.be_client(socket, connection)
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        raise ConfigError(f"address: cannot connect to {address}: {error.strerror}") from None
    return socket


def set_options(socket: zmq.Socket[bytes], address: str, max_message_bytes: int) -> None:
    """What every socket gets. No high-water marks: libzmq drops silently at its own, so the windows are ours, in the
    outbox.

    `max_message_bytes` bounds each frame (libzmq closes the connection of a peer that sends a larger one); 0: no bound.
    """
    socket.sndhwm = 0
    socket.rcvhwm = 0
    socket.linger = LINGER_MS
    socket.maxmsgsize = max_message_bytes or -1
    socket.backlog = BACKLOG
    if address.startswith("tcp://"):  # finds out, in minutes, that a peer vanished without a word
        socket.tcp_keepalive = 1
        socket.tcp_keepalive_idle = 60
        socket.tcp_keepalive_intvl = 15
        socket.tcp_keepalive_cnt = 4
    if address.startswith(("tcp://[", "tcp://*")):
        socket.ipv6 = True  # not always: "localhost" would then mean ::1 alone


def real_address(socket: zmq.Socket[bytes]) -> str:
    """What the socket is bound to, with the real port."""
    endpoint = socket.get(zmq.LAST_ENDPOINT)
    return endpoint.rstrip(b"\0").decode() if isinstance(endpoint, bytes) else str(endpoint)
