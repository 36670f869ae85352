"""Admission of connections to the sockets of a front, decided before a message of the connection is read.

    libzmq accepts --monitor: ACCEPTED fd--> user and address of the peer? --refused--> reset
    libzmq asks    --ZAP------------------> answered once the connections accepted so far have been checked

With the NULL mechanism, a ZAP request contains only the peer's IP address, and the routing id of a peer is known only
when it sends a message. Hence the connection itself is examined. Its descriptor is part of the monitor's event, which
libzmq emits before the ZAP request of that connection. A refused connection is shut down; libzmq then closes it.

A connection from this machine belongs to a user, which the kernel reports: SO_PEERCRED for a local socket, the owner of
the other end for TCP (sock_diag, Linux only). A connection from another machine is admitted if a signed message has
arrived from its address before. With CURVE both checks are off, because the handshake proves the server's key.

A connection that keeps sending messages that are rejected is reset. The reset drops what the kernel still holds of it;
libzmq's own queue is limited by its receive high-water mark.

`router_handover` is off for local addresses, so that no peer takes over the routing id of a connected peer, not even a
connection that is refused during its handshake. When a connection has ended, new connections are admitted only after
libzmq has released it and its last messages were read. Otherwise a ROUTER would ignore a peer that connects again, for
good, and the descriptor of a message (SRCFD) could be that of the next connection. Subscribers do not wait.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket as sockets
import struct
import sys
from collections.abc import Collection
from typing import Any

import anyio
import trio

from trio_sched.transport.connection_limits import Note
from trio_sched.transport.curve import ZAP_OK
from trio_sched.transport.zmq_monitor import ConnectionMonitor
from trio_sched.transport.zmq_socket import SharedContext, ZmqSocket, bind_zap_socket

#: Rejected messages of one connection; one more resets it.
REJECTED_LIMIT = 100
SETTLE_S = 0.002
#: After the end of a connection, a new one waits until the socket was idle this many times in a row. libzmq ignores a
#: peer that is admitted too early, for good, and its thread may have to wait for a processor.
SETTLE_ROUNDS = 10
_MAX_SETTLE_ROUNDS = 250
#: How long a new connection waits for the monitor after that: hundreds of connections at once keep its thread busy.
_MAX_MONITOR_DELAY_S = 10.0
_TAKE_PERIOD_S = 1.0
_ROOT = 0
#: The other end should be on this machine, and no longer exists.
_UNKNOWN_USER = -1


class AcceptedConnection:
    """One accepted connection."""

    __slots__ = ("address", "is_ambiguous", "peer", "refused", "rejected", "subscriptions")

    def __init__(self, peer: str, address: str) -> None:
        #: For log events: address and port, or "local socket".
        self.peer = peer
        #: The IP address; empty for a local socket.
        self.address = address
        self.refused = False
        #: Messages with its descriptor may belong to a former connection.
        self.is_ambiguous = False
        #: Number of rejected messages.
        self.rejected = 0
        #: Number of subscriptions, including ended ones.
        self.subscriptions = 0


class WatchedSocket:
    """One bound socket with its monitor and connections."""

    def __init__(
        self, name: str, socket: ZmqSocket, monitor: ConnectionMonitor, *, admits_any_address: bool, must_settle: bool
    ) -> None:
        self.name = name
        self.socket = socket
        self.monitor = monitor
        #: Connections from any address are admitted, because peers prove the key here.
        self.admits_any_address = admits_any_address
        #: By descriptor.
        self.accepted: dict[int, AcceptedConnection] = {}
        #: New connections wait when a connection has ended. False for an XPUB: its peers would miss what is published
        #: meanwhile, and it has neither routing ids nor messages to reject.
        self.must_settle = must_settle
        #: No connection has ended since the socket was idle.
        self.is_settled = True


class AdmissionControl:
    """The admission of connections to the sockets of one `SocketSet`. Without `run`, no connection is admitted.

    `note` counts and logs refusals. `user_ids`: users of this machine that may connect; None: not checked, as with
    CURVE or on systems other than Linux. `proven_addresses_only`: refuse a connection from another machine unless
    `prove_address` was called for its address.
    """

    def __init__(self, note: Note, user_ids: Collection[int] | None, *, proven_addresses_only: bool = False) -> None:
        self._note = note
        self._user_ids = user_ids if sys.platform == "linux" else None
        self._proven_addresses_only = proven_addresses_only
        self._proven: set[str] = set()
        #: By ZAP domain.
        self._watched: dict[bytes, WatchedSocket] = {}
        self._of_socket: dict[ZmqSocket, WatchedSocket] = {}
        self._zap: ZmqSocket | None = None

    # ---- for SocketSet ----------------------------------------------------------------------------------------------

    def open(self, context: SharedContext) -> ZmqSocket:
        """Create the socket of the ZAP handler before other sockets of the context are bound. The caller closes it."""
        self._zap = bind_zap_socket(context)
        return self._zap

    def add(
        self,
        domain: bytes,
        socket: ZmqSocket,
        monitor: ConnectionMonitor,
        name: str,
        *,
        admits_any_address: bool,
        must_settle: bool,
    ) -> None:
        """Decide about the connections of a bound socket, which has the ZAP domain `domain`.

        `monitor` must record its events. `name` is for log events.
        `admits_any_address`: admit connections from any address.
        `must_settle`: new connections wait when a connection has ended.
        """
        watched = WatchedSocket(name, socket, monitor, admits_any_address=admits_any_address, must_settle=must_settle)
        self._watched[domain] = self._of_socket[socket] = watched

    def count_rejected(self, socket: ZmqSocket, descriptor: int) -> None:
        """Count a rejected message of a connection, and reset the connection after `REJECTED_LIMIT` of them."""
        watched = self._of_socket[socket]
        accepted = watched.accepted.get(descriptor)
        if accepted is not None and not accepted.refused and not accepted.is_ambiguous:
            accepted.rejected += 1
            if accepted.rejected > REJECTED_LIMIT:
                self._refuse(watched, descriptor, "too_many_rejected", limit=REJECTED_LIMIT)

    @property
    def watched(self) -> list[WatchedSocket]:
        """The sockets."""
        return list(self._watched.values())

    # ---- for the front ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Check connections and answer ZAP requests until the sockets are closed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_events_periodically)
            if self._zap is not None:
                await self._answer_requests(self._zap, nursery)

    def prove_address(self, socket: ZmqSocket, index: int) -> None:
        """Admit connections from the address that message `index` of the last batch came from, because the message
        proved the key. The socket must record sources.
        """
        if self._proven_addresses_only and index < len(socket.sources):
            accepted = self._of_socket[socket].accepted.get(socket.sources[index])
            if accepted is not None:
                self._proven.add(accepted.address)

    def count_subscription(self, socket: ZmqSocket, index: int, limit: int) -> None:
        """Count message `index` of the last batch of an XPUB, a subscription or the end of one.

        A connection that sends more than `limit` of these is reset, and libzmq drops its subscriptions. The socket must
        record sources.
        """
        watched = self._of_socket[socket]
        accepted = watched.accepted.get(socket.sources[index])
        if accepted is not None:
            accepted.subscriptions += 1
            if accepted.subscriptions > limit and not accepted.refused:
                self._refuse(watched, socket.sources[index], "too_many_subscriptions", limit=limit)

    # ---- connections ------------------------------------------------------------------------------------------------

    async def _take_events_periodically(self) -> None:
        """Handle the events of connections that send no ZAP request, too."""
        while True:
            await trio.sleep(_TAKE_PERIOD_S)
            for watched in self._watched.values():
                self._take_events(watched)

    def _take_events(self, watched: WatchedSocket) -> None:
        """Handle the events that the monitor has recorded, in order."""
        for was_accepted, descriptor in watched.monitor.take_events():
            if was_accepted:
                self._check(watched, descriptor)
            else:
                watched.accepted.pop(descriptor, None)
                watched.is_settled = not watched.must_settle

    def _check(self, watched: WatchedSocket, descriptor: int) -> None:
        """Determine the user and the address of an accepted connection, and refuse it if they are not allowed."""
        watched.accepted.pop(descriptor, None)
        if watched.is_settled:  # all messages of a former connection with this descriptor were read
            watched.socket.unblock((descriptor,))
        try:
            with sockets.socket(fileno=os.dup(descriptor)) as connection:
                if connection.family == sockets.AF_UNIX:
                    accepted = AcceptedConnection("local socket", "")
                    user = _user_of_local(connection) if self._user_ids is not None else None
                else:
                    host, port = connection.getpeername()[:2]
                    accepted = AcceptedConnection(f"{host}:{port}", _plain(host))
                    user = self._user_of_tcp(connection, host)
        except OSError:
            return  # the connection has ended already
        accepted.is_ambiguous = not watched.is_settled
        watched.accepted[descriptor] = accepted
        if user == _UNKNOWN_USER:
            self._refuse(watched, descriptor, "unknown_user")
        elif user is not None and self._user_ids is not None and user not in self._user_ids:
            self._refuse(watched, descriptor, "other_user", user=user)
        elif user is None and not self._is_proven(watched, accepted.address):
            self._refuse(watched, descriptor, "unproven_address")

    def _user_of_tcp(self, connection: sockets.socket, host: str) -> int | None:
        """Return the user at the other end; None: it is on another machine, or users are not checked."""
        if self._user_ids is None:
            return None
        user = tcp_user_id(connection.getpeername(), connection.getsockname())
        return _UNKNOWN_USER if user is None and _is_loopback(host) else user

    def _is_proven(self, watched: WatchedSocket, address: str) -> bool:
        return (
            watched.admits_any_address
            or not self._proven_addresses_only
            or not address
            or _is_loopback(address)
            or address in self._proven
        )

    def _refuse(self, watched: WatchedSocket, descriptor: int, reason: str, **context: object) -> None:
        accepted = watched.accepted[descriptor]
        accepted.refused = True
        watched.socket.block(descriptor)
        self._note(reason, channel=watched.name, peer=accepted.peer, **context)
        reset_connection(descriptor)

    # ---- ZAP --------------------------------------------------------------------------------------------------------

    async def _answer_requests(self, zap: ZmqSocket, nursery: trio.Nursery) -> None:
        while True:
            try:
                requests = await zap.receive()
            except anyio.ClosedResourceError:
                return
            for peer, delimiter, version, request, domain, *_ in requests:
                watched = self._watched.get(bytes(domain))
                reply = [peer, delimiter, version, request, ZAP_OK, b"OK", b"", b""]
                if watched is None:
                    continue
                if watched.monitor.is_caught_up():
                    self._take_events(watched)
                    if watched.is_settled:
                        zap.send(reply)
                        continue
                nursery.start_soon(self._admit_later, zap, watched, reply)
            zap.flush()

    async def _admit_later(self, zap: ZmqSocket, watched: WatchedSocket, reply: list[Any]) -> None:
        """Admit a new connection whose event was not read yet, or that follows the end of another connection.

        The ended one may be the former connection of the same peer, with messages that were not read yet.
        """
        idle_rounds = 0
        for _ in range(_MAX_SETTLE_ROUNDS):
            if watched.monitor.is_caught_up():
                self._take_events(watched)
                idle_rounds = idle_rounds + 1 if watched.socket.is_idle() else 0
                if watched.is_settled or idle_rounds == SETTLE_ROUNDS:
                    watched.is_settled = True
                    for accepted in watched.accepted.values():
                        accepted.is_ambiguous = False
                    break
            await trio.sleep(SETTLE_S)
        with trio.move_on_after(_MAX_MONITOR_DELAY_S):  # then the peer is unknown, and its handshake times out
            while not watched.monitor.is_caught_up():  # noqa: ASYNC110  # its thread sets no event: that costs a wake-up
                await trio.sleep(SETTLE_S)
            self._take_events(watched)
            watched.socket.unblock(
                descriptor for descriptor, accepted in watched.accepted.items() if not accepted.refused
            )
            zap.send(reply)
            zap.flush()


def allowed_user_ids() -> frozenset[int] | None:
    """Return the users that may connect on this machine: the user of this process, and root. None: not Linux."""
    return frozenset((os.geteuid(), _ROOT)) if sys.platform == "linux" else None


def is_local_address(address: str) -> bool:
    """Whether only processes of this machine can connect to a bound address."""
    if address.startswith("tcp://"):
        return _is_loopback(address.removeprefix("tcp://").rpartition(":")[0].strip("[]"))
    return True


def _plain(host: str) -> str:
    """Return the address without a zone, and as IPv4 if it is an IPv4-mapped IPv6 address."""
    return host.removeprefix("::ffff:").partition("%")[0]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(_plain(host)).is_loopback
    except ValueError:
        return False


# ---- queries to the kernel ------------------------------------------------------------------------------------------

_SOCK_DIAG = 4
_DIAG_BY_FAMILY = 20
_NLM_REQUEST = 1
_ESTABLISHED = 1
_NO_COOKIE = 0xFFFFFFFF
_REPLY_STATE_AT = 16 + 1
_REPLY_USER_AT = 16 + 4 + 48 + 12
_REPLY_BYTES = _REPLY_USER_AT + 4


def tcp_user_id(here: tuple[Any, ...], there: tuple[Any, ...]) -> int | None:
    """Return the user that owns the TCP socket on this machine that is bound to `here` and connected to `there`.

    Both are addresses as from `getsockname`. None: the socket does not exist, or its connection is being closed.
    """
    family = sockets.AF_INET6 if ":" in here[0] else sockets.AF_INET
    user = _query_owner(family, here, there)
    if user is None and family == sockets.AF_INET6 and _plain(here[0]) != here[0]:  # the other end is an IPv4 socket
        user = _query_owner(sockets.AF_INET, (_plain(here[0]), here[1]), (_plain(there[0]), there[1]))
    return user


def _query_owner(family: int, here: tuple[Any, ...], there: tuple[Any, ...]) -> int | None:
    packed = [sockets.inet_pton(family, str(end[0]).partition("%")[0]).ljust(16, b"\0") for end in (here, there)]
    request = struct.pack("=BBBBI", family, sockets.IPPROTO_TCP, 0, 0, _NO_COOKIE)
    request += struct.pack("!HH", here[1], there[1]) + b"".join(packed)
    request += struct.pack("=III", 0, _NO_COOKIE, _NO_COOKIE)
    header = struct.pack("=IHHII", 16 + len(request), _DIAG_BY_FAMILY, _NLM_REQUEST, 1, 0)
    with sockets.socket(sockets.AF_NETLINK, sockets.SOCK_RAW, _SOCK_DIAG) as kernel:
        kernel.settimeout(1.0)
        kernel.send(header + request)
        reply = kernel.recv(4096)
    if len(reply) < _REPLY_BYTES or struct.unpack_from("=H", reply, 4)[0] != _DIAG_BY_FAMILY:
        return None
    if reply[_REPLY_STATE_AT] != _ESTABLISHED:
        return None
    return int(struct.unpack_from("=I", reply, _REPLY_USER_AT)[0])


def _user_of_local(connection: sockets.socket) -> int:
    credentials = connection.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, 12)
    return int(struct.unpack("=iII", credentials)[1])


def reset_connection(descriptor: int) -> None:
    """Reset a connection that libzmq owns. What the peer has sent and libzmq has not read is dropped."""
    try:
        with sockets.socket(fileno=os.dup(descriptor)) as connection:
            if connection.family != sockets.AF_UNIX:
                _disconnect(connection.fileno())
            connection.shutdown(sockets.SHUT_RDWR)
    except OSError:
        return  # the connection has ended already


def _disconnect(descriptor: int) -> None:
    """Connect to AF_UNSPEC: the kernel resets the connection and drops what is in its buffers."""
    unspecified = ctypes.create_string_buffer(16)  # a sockaddr of family AF_UNSPEC, which is 0
    ctypes.CDLL(None).connect(descriptor, unspecified, 16)
