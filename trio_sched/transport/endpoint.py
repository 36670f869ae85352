"""Creation of ZeroMQ sockets: the accepted addresses and the socket options. Imports no event loop, because the worker
and the blocking client use it too.

An address is "ipc:///path" in a directory that belongs to this user alone, or "tcp://host:port" with CURVE. Any other
address is refused. libzmq removes whatever is at an ipc path before it binds, so `new_router` first tests whether
another process listens there.
"""

from __future__ import annotations

import socket as sockets
from pathlib import Path
from typing import Any

import zmq

from trio_sched.errors import AddressInUseError, ConfigError
from trio_sched.transport import curve
from trio_sched.transport.connection_info import ConnectionInfo
from trio_sched.transport.private_files import require_private_directory

#: How long a socket that closes tries to send its queued messages. The event loop is blocked meanwhile.
LINGER_MS = 100
MAX_PORT = 65535
#: Length of the accept queue: hundreds of engines may connect at the same time.
BACKLOG = 1024
_RECONNECT_MS, _RECONNECT_MAX_MS = 50, 1000
_PROBE_TIMEOUT_S = 1.0


def new_router(
    context: zmq.Context[Any], address: str, keys: curve.ServerKeys | None, max_message_bytes: int
) -> zmq.Socket[bytes]:
    """Create a ROUTER for this address; `bind_socket` binds it.

    :raises AddressInUseError: another process listens at the ipc path.
    :raises ConfigError: the address is not accepted, or is TCP without keys.
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
        curve.set_server_options(socket, keys)
    return socket


def bind_socket(socket: zmq.Socket[bytes], address: str) -> str:
    """Bind the socket, possibly to one more address. Return the address with the real port.

    :raises AddressInUseError: another process listens there.
    :raises ConfigError: libzmq does not accept the address.
    """
    _allow_ipv6(socket, address)
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise AddressInUseError(
                f"{address} is in use by another process; choose another port, or 0 for any"
            ) from None
        raise ConfigError(f"address: cannot bind {address}: {error.strerror}") from None
    return _last_endpoint(socket)


def _last_endpoint(socket: zmq.Socket[bytes]) -> str:
    endpoint = socket.get(zmq.LAST_ENDPOINT)
    return endpoint.rstrip(b"\0").decode() if isinstance(endpoint, bytes) else str(endpoint)


def _check_port(address: str) -> None:
    """Check the port. libzmq would bind 34463 for port 99999."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not host or not port.isdecimal() or int(port) > MAX_PORT:
        raise ConfigError(f"address: {address!r} must be tcp://host:port, with a port up to {MAX_PORT}")


def _check_path(path: Path, address: str) -> None:
    if not path.is_absolute():
        raise ConfigError(f"address: {address!r} must name an absolute path")
    require_private_directory(path.parent)
    if path.is_socket():
        with sockets.socket(sockets.AF_UNIX) as probe:
            probe.settimeout(_PROBE_TIMEOUT_S)
            try:
                probe.connect(str(path))
            except OSError:
                return  # a process that has ended left the socket behind
        raise AddressInUseError(f"{address} is in use by another scheduler; choose another name")
    if path.exists():
        raise ConfigError(f"address: {path} exists and is not a socket; remove it or choose another name")


def connect_dealer(
    context: zmq.Context[Any], connection: ConnectionInfo, max_message_bytes: int = 0
) -> zmq.Socket[bytes]:
    """Create a DEALER that connects to the scheduler, which may start later.

    The DEALER does not set a routing id: a ROUTER ignores a new connection that has the id of a former one.

    :raises ConfigError: the address or the keys are not valid, or the address is TCP without keys.
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
    curve.set_client_options(socket, connection)
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        raise ConfigError(f"address: cannot connect to {address}: {error.strerror}") from None
    return socket


def set_options(socket: zmq.Socket[bytes], address: str, max_message_bytes: int) -> None:
    """Set the options that all sockets share.

    High-water marks are 0, because libzmq drops messages silently at its own marks; the server's outbox limits its
    queues instead. `max_message_bytes` limits each frame: libzmq closes the connection of a peer that sends a larger
    one. 0: no limit.
    """
    socket.sndhwm = 0
    socket.rcvhwm = 0
    socket.linger = LINGER_MS
    socket.maxmsgsize = max_message_bytes or -1
    socket.backlog = BACKLOG
    if address.startswith("tcp://"):  # detects within two minutes that a peer's host is gone
        socket.tcp_keepalive = 1
        socket.tcp_keepalive_idle = 60
        socket.tcp_keepalive_intvl = 15
        socket.tcp_keepalive_cnt = 4
    _allow_ipv6(socket, address)


def _allow_ipv6(socket: zmq.Socket[bytes], address: str) -> None:
    """Allow IPv6 where the address needs it. With the option set, "localhost" would mean ::1 only."""
    if address.startswith(("tcp://[", "tcp://*")):
        socket.ipv6 = True
