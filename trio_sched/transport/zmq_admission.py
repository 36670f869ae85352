"""Who may connect to the sockets of a front, decided for each connection before a message of it is read.

    libzmq accepts --monitor: ACCEPTED fd--> which user is at the other end, from which address? --refused--> reset
    libzmq asks    --ZAP------------------> answered once the connections accepted so far have been judged

With the NULL mechanism ZAP names the peer's IP address only, and the routing id of a peer is known when it sends a
message. Hence the connection itself is looked at: its descriptor comes with the monitor's event, which libzmq writes
before the ZAP request of that connection. A refused connection is shut down, libzmq then closes it.

A connection from this machine belongs to a user, and the kernel knows which one: SO_PEERCRED for a local socket, the
owner of the other end for TCP (Linux only: sock_diag). A connection from elsewhere may come from an address from which
a signed message came before. With CURVE both questions are idle: the handshake proves the server's key.

A connection that keeps sending what is rejected is reset, which drops what the kernel still holds of it; libzmq's own
queue is bounded by its receive high-water mark.

`router_handover` is off for local addresses: nobody takes the routing id of a connected peer, not even a connection
that is refused in the middle of its handshake. When a connection has ended, newcomers are admitted only once libzmq has
let go of it and its last messages are read. Otherwise a ROUTER would ignore a peer that comes back, for good, and the
descriptor of a message (SRCFD) could be that of the next connection. Subscribers do not wait.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket as sockets
import struct
import sys
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import anyio
import trio
import zmq

from trio_sched.transport.curve import ZAP_ADDRESS, ZAP_OK
from trio_sched.transport.zmq_monitor import ConnectionMonitor
from trio_sched.transport.zmq_socket import ZmqSocket

Note: TypeAlias = Callable[..., None]
"""`note(reason, **context)`: count and log an event, as `Hub.note`."""
REJECTED_LIMIT = 100
"""Rejected messages of one connection; with one more it is reset."""
SETTLE_S = 0.002
SETTLE_ROUNDS = 10
"""A newcomer waits until the socket was idle this many times in a row, when a connection has just ended. One that is
admitted too early is ignored for good, and libzmq's thread may have to wait for a processor."""
_LONGEST_SETTLE_ROUNDS = 250
TAKE_S = 1.0
_ROOT = 0
_NOBODY = -1
"""The other end must be on this machine, and is not there any more."""


class Accepted:
    """One accepted connection."""

    __slots__ = ("address", "is_ambiguous", "peer", "refused", "rejected", "subscriptions")

    def __init__(self, peer: str, address: str) -> None:
        self.peer = peer
        """For logs: address and port, or the user's id."""
        self.address = address
        """The IP address; empty for a local socket."""
        self.refused = False
        self.is_ambiguous = False
        """Messages with its descriptor may be of an earlier connection."""
        self.rejected = 0
        """Messages."""
        self.subscriptions = 0


class Watched:
    """One bound socket with its monitor."""

    def __init__(
        self, name: str, socket: ZmqSocket, monitor: ConnectionMonitor, is_open: bool, must_settle: bool
    ) -> None:
        self.name = name
        self.socket = socket
        self.monitor = monitor
        self.is_open = is_open
        """Anyone may connect from elsewhere, because a first proof comes here."""
        self.accepted: dict[int, Accepted] = {}
        """By descriptor."""
        self.must_settle = must_settle
        """Newcomers wait when a connection has ended. Not to an XPUB: they would miss what it publishes meanwhile, and
        it has neither routing ids nor messages to reject."""
        self.is_settled = True
        """No connection has ended since the socket was idle."""


class Admission:
    """The connections of a `SocketSet`. `run` must run as long as the sockets are used, or nobody gets in.

    `user_ids`: users of this machine who may connect; None: not asked, as with CURVE or on other systems than Linux.
    `proven_addresses_only`: connections from elsewhere are refused unless `prove` was called for their address.
    """

    def __init__(self, note: Note, user_ids: Collection[int] | None, *, proven_addresses_only: bool = False) -> None:
        self._note = note
        self._user_ids = user_ids if sys.platform == "linux" else None
        self._proven_addresses_only = proven_addresses_only
        self._proven: set[str] = set()
        self._watched: dict[bytes, Watched] = {}
        """By ZAP domain."""
        self._of_socket: dict[ZmqSocket, Watched] = {}
        self._zap: ZmqSocket | None = None

    # ---- for SocketSet ----------------------------------------------------------------------------------------------

    def watch(
        self,
        context: zmq.Context[Any],
        socket: zmq.Socket[bytes],
        monitor: ConnectionMonitor,
        name: str,
        *,
        is_open: bool,
        keep: Callable[[ZmqSocket], None],
    ) -> Callable[[ZmqSocket], None]:
        """Prepare a socket that is not bound yet, with its monitor. Call the result with its `ZmqSocket`. `keep` is
        called with sockets to be closed with the rest."""
        if self._zap is None:
            zap: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
            zap.rcvhwm = zap.sndhwm = 0
            zap.bind(ZAP_ADDRESS)
            self._zap = ZmqSocket(context, zap, address=ZAP_ADDRESS, routed=True)
            keep(self._zap)
        domain = f"{name}-{len(self._watched)}".encode()
        socket.zap_domain = domain
        monitor.seen = deque()

        def bound(made: ZmqSocket) -> None:
            watched = Watched(name, made, monitor, is_open, must_settle=socket.type != zmq.XPUB)
            self._watched[domain] = self._of_socket[made] = watched
            made.on_reject = lambda descriptor: self._reject(watched, descriptor)

        return bound

    @property
    def watched(self) -> list[Watched]:
        """The sockets."""
        return list(self._watched.values())

    async def run(self) -> None:
        """Judge connections until the sockets are closed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_now_and_then)
            if self._zap is not None:
                await self._answer(self._zap, nursery)

    # ---- connections ------------------------------------------------------------------------------------------------

    async def _take_now_and_then(self) -> None:
        """Connections that never ask for admission are events, too."""
        while True:
            await trio.sleep(TAKE_S)
            for watched in self._watched.values():
                self._take_events(watched)

    def _take_events(self, watched: Watched) -> None:
        """All that the monitor has seen, in their order."""
        seen = watched.monitor.seen
        while seen:
            accepted, descriptor = seen.popleft()
            if accepted:
                self._judge(watched, descriptor)
            else:
                watched.accepted.pop(descriptor, None)
                watched.is_settled = not watched.must_settle

    def _judge(self, watched: Watched, descriptor: int) -> None:
        """A connection was accepted: who is it?"""
        watched.accepted.pop(descriptor, None)
        if watched.is_settled:  # what was sent by an earlier connection with this descriptor is read
            watched.socket.refused.discard(descriptor)
        try:
            with sockets.socket(fileno=os.dup(descriptor)) as connection:
                if connection.family == sockets.AF_UNIX:
                    accepted = Accepted("local socket", "")
                    user = _user_of_local(connection) if self._user_ids is not None else None
                else:
                    host, port = connection.getpeername()[:2]
                    accepted = Accepted(f"{host}:{port}", _plain(host))
                    user = self._user_of_tcp(connection, host)
        except OSError:
            return  # it has ended already
        accepted.is_ambiguous = not watched.is_settled
        watched.accepted[descriptor] = accepted
        if user == _NOBODY:
            self._refuse(watched, descriptor, "unknown_user")
        elif user is not None and self._user_ids is not None and user not in self._user_ids:
            self._refuse(watched, descriptor, "other_user", user=user)
        elif user is None and not self._is_proven(watched, accepted.address):
            self._refuse(watched, descriptor, "unproven_address")

    def _user_of_tcp(self, connection: sockets.socket, host: str) -> int | None:
        """The user at the other end; None: it is not on this machine, or users are not asked for."""
        if self._user_ids is None:
            return None
        user = user_of_tcp(connection.getpeername(), connection.getsockname())
        return _NOBODY if user is None and _is_loopback(host) else user

    def _is_proven(self, watched: Watched, address: str) -> bool:
        return (
            watched.is_open
            or not self._proven_addresses_only
            or not address
            or _is_loopback(address)
            or address in self._proven
        )

    def prove(self, socket: ZmqSocket, index: int) -> None:
        """Message `index` of the socket's last batch proved the key: its address is a key holder's. Needs a traced
        socket."""
        if self._proven_addresses_only and index < len(socket.sources):
            accepted = self._of_socket[socket].accepted.get(socket.sources[index])
            if accepted is not None:
                self._proven.add(accepted.address)

    def count_subscription(self, socket: ZmqSocket, index: int, limit: int) -> None:
        """Message `index` of a traced XPUB's last batch is a subscription, or the end of one. A connection that sends
        more than `limit` of these is reset, and libzmq forgets what it had subscribed to."""
        watched = self._of_socket[socket]
        accepted = watched.accepted.get(socket.sources[index])
        if accepted is not None:
            accepted.subscriptions += 1
            if accepted.subscriptions > limit and not accepted.refused:
                self._refuse(watched, socket.sources[index], "too_many_subscriptions", limit=limit)

    def _reject(self, watched: Watched, descriptor: int) -> None:
        accepted = watched.accepted.get(descriptor)
        if accepted is not None and not accepted.refused and not accepted.is_ambiguous:
            accepted.rejected += 1
            if accepted.rejected > REJECTED_LIMIT:
                self._refuse(watched, descriptor, "too_many_rejected", limit=REJECTED_LIMIT)

    def _refuse(self, watched: Watched, descriptor: int, reason: str, **context: object) -> None:
        accepted = watched.accepted[descriptor]
        accepted.refused = True
        watched.socket.refused.add(descriptor)
        self._note(reason, channel=watched.name, peer=accepted.peer, **context)
        reset(descriptor)

    # ---- ZAP --------------------------------------------------------------------------------------------------------

    async def _answer(self, zap: ZmqSocket, nursery: trio.Nursery) -> None:
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

    async def _admit_later(self, zap: ZmqSocket, watched: Watched, reply: list[Any]) -> None:
        """The monitor has not told of the newcomer yet, or a connection has just ended: it may be the newcomer's former
        one, with messages that are not read yet."""
        idle_rounds = 0
        for _ in range(_LONGEST_SETTLE_ROUNDS):
            if watched.monitor.is_caught_up():
                self._take_events(watched)
                idle_rounds = idle_rounds + 1 if watched.socket.is_idle() else 0
                if watched.is_settled or idle_rounds == SETTLE_ROUNDS:
                    watched.is_settled = True
                    for accepted in watched.accepted.values():
                        accepted.is_ambiguous = False
                    break
            await trio.sleep(SETTLE_S)
        if watched.monitor.is_caught_up():
            self._take_events(watched)
            watched.socket.refused.difference_update(
                descriptor for descriptor, accepted in watched.accepted.items() if not accepted.refused
            )
            zap.send(reply)
            zap.flush()
        # else nobody knows who it is: libzmq ends the connection when the time for the handshake is over


def same_user() -> frozenset[int] | None:
    """The users who may connect on this machine: the one that runs this process, and root. None: not on this system."""
    return frozenset((os.geteuid(), _ROOT)) if sys.platform == "linux" else None


def is_local(address: str) -> bool:
    """Whether only processes of this machine can connect to an address that is bound."""
    if address.startswith("tcp://"):
        return _is_loopback(address.removeprefix("tcp://").rpartition(":")[0].strip("[]"))
    return True


def _plain(host: str) -> str:
    """IPv4 addresses as such, also where they are written as IPv6."""
    return host.removeprefix("::ffff:").partition("%")[0]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(_plain(host)).is_loopback
    except ValueError:
        return False


# ---- the kernel -----------------------------------------------------------------------------------------------------

_SOCK_DIAG = 4
_DIAG_BY_FAMILY = 20
_REQUEST = 1
_ESTABLISHED = 1
_NO_COOKIE = 0xFFFFFFFF
_REPLY_STATE_AT = 16 + 1
_REPLY_USER_AT = 16 + 4 + 48 + 12
_REPLY_BYTES = _REPLY_USER_AT + 4


def user_of_tcp(here: tuple[Any, ...], there: tuple[Any, ...]) -> int | None:
    """The user who owns the TCP socket on this machine that is bound to `here` and connected to `there` (addresses as
    of `getsockname`). None: there is no such socket, or its connection is ending."""
    family = sockets.AF_INET6 if ":" in here[0] else sockets.AF_INET
    user = _diagnose(family, here, there)
    if user is None and family == sockets.AF_INET6 and _plain(here[0]) != here[0]:  # an IPv4 socket at the other end
        user = _diagnose(sockets.AF_INET, (_plain(here[0]), here[1]), (_plain(there[0]), there[1]))
    return user


def _diagnose(family: int, here: tuple[Any, ...], there: tuple[Any, ...]) -> int | None:
    packed = [sockets.inet_pton(family, str(end[0]).partition("%")[0]).ljust(16, b"\0") for end in (here, there)]
    question = struct.pack("=BBBBI", family, sockets.IPPROTO_TCP, 0, 0, _NO_COOKIE)
    question += struct.pack("!HH", here[1], there[1]) + b"".join(packed)
    question += struct.pack("=III", 0, _NO_COOKIE, _NO_COOKIE)
    header = struct.pack("=IHHII", 16 + len(question), _DIAG_BY_FAMILY, _REQUEST, 1, 0)
    with sockets.socket(sockets.AF_NETLINK, sockets.SOCK_RAW, _SOCK_DIAG) as kernel:
        kernel.settimeout(1.0)
        kernel.send(header + question)
        reply = kernel.recv(4096)
    if len(reply) < _REPLY_BYTES or struct.unpack_from("=H", reply, 4)[0] != _DIAG_BY_FAMILY:
        return None
    if reply[_REPLY_STATE_AT] != _ESTABLISHED:
        return None
    return int(struct.unpack_from("=I", reply, _REPLY_USER_AT)[0])


def _user_of_local(connection: sockets.socket) -> int:
    credentials = connection.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, 12)
    return int(struct.unpack("=iII", credentials)[1])


def reset(descriptor: int) -> None:
    """End a connection that libzmq owns: what the peer has sent and nobody has read yet is dropped."""
    try:
        with sockets.socket(fileno=os.dup(descriptor)) as connection:
            if connection.family != sockets.AF_UNIX:
                _dissolve(connection.fileno())
            connection.shutdown(sockets.SHUT_RDWR)
    except OSError:
        return  # it has ended already


def _dissolve(descriptor: int) -> None:
    """connect() to no family: the kernel resets the connection and drops what lies in its buffers."""
    nowhere = ctypes.create_string_buffer(16)  # a sockaddr of family AF_UNSPEC, which is 0
    ctypes.CDLL(None).connect(descriptor, nowhere, 16)
