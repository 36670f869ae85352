"""How many connections a process admits, and which connection gives way to a newcomer.

Each accepted connection takes a file descriptor. A process that has none left cannot accept, open a file or start a
process, and libzmq aborts it. `connection_bounds` derives a limit from the process's descriptor limit; one
`ConnectionLimits` for each scheduler counts the connections of all its listeners, before any handshake.

A connection is *established* once its peer has proved something: a complete handshake, a message, a token. At a limit
the oldest connection that is not established is closed in favor of the newcomer; if all are established, or came just
now, the newcomer is closed. So silent connections cannot keep honest peers out for long, and nobody who takes part is
cut off for a newcomer.

The limits for each address do not apply to local sockets and loopback: all local peers share those addresses.
"""

from __future__ import annotations

import ipaddress
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from msgspec import Struct

DEFAULT_HANDSHAKE_S = 5.0
MIN_RESERVE = 64
"""Descriptors that are never given to connections, however low the limit is."""
RESERVED_PART = 4
"""One in so many descriptors is kept for files, pipes, and connections that were accepted and not counted yet."""
BURST_RESERVE = 2_048
"""Connections that libzmq may have accepted and that were not counted yet, or not closed yet: kept as well, up to half
of the descriptors."""
UNLIMITED_DESCRIPTORS = 1 << 20
"""What an unlimited descriptor limit, or none, counts as."""
TIME_TO_SPEAK_S = 1.0
"""A connection does not give way before that: many honest peers may come at once."""
REFUSING_S = 10.0
"""How long after a refusal `status` says that newcomers are refused."""
RECOUNT_S = 1.0
"""Shortest time between two searches for connections whose end went unnoticed."""
_IPV6_PREFIX = 64
"""IPv6 addresses are counted by network: a host has the whole of one."""

Note: TypeAlias = Callable[..., None]
"""Count an event of this kind; `why=` says it in words."""


# ---- descriptors ----------------------------------------------------------------------------------------------------


def descriptor_limit() -> int:
    """How many file descriptors this process may have open (the soft RLIMIT_NOFILE)."""
    if sys.platform == "win32":
        return UNLIMITED_DESCRIPTORS
    import resource

    return _finite(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def raise_descriptor_limit() -> int:
    """Raise the soft RLIMIT_NOFILE of this process to the hard one, as far as the system allows it. Returns the soft
    limit. Child processes inherit it."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for wanted in (hard, min(_finite(hard), UNLIMITED_DESCRIPTORS), min(_finite(hard), 10_240)):  # macOS: OPEN_MAX
            if soft == hard or _finite(wanted) <= _finite(soft):
                break
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                break
            except (ValueError, OSError):
                continue
    return descriptor_limit()


def _finite(limit: int) -> int:
    return UNLIMITED_DESCRIPTORS if limit < 0 else limit


class ConnectionBounds(Struct, frozen=True):
    """The limits of one scheduler's connections."""

    max_connections: int
    max_per_address: int
    descriptors: int
    """The descriptor limit from which `max_connections` was derived, or by which it was bounded."""
    handshake_s: float = DEFAULT_HANDSHAKE_S
    """How long a ZeroMQ handshake may take; libzmq closes a connection that is not through by then."""

    @property
    def burst(self) -> int:
        """Connections that may be waiting to be accepted: those fit into the reserve."""
        return max(_reserve(self.descriptors) // 4, 1)

    def is_short(self, open_descriptors: int) -> bool:
        """Whether half of the reserve is used up."""
        return self.descriptors - open_descriptors < _reserve(self.descriptors) // 2


def _reserve(descriptors: int) -> int:
    """Descriptors that are not given to connections."""
    return max(descriptors // RESERVED_PART, min(descriptors // 2, BURST_RESERVE), MIN_RESERVE)


def connection_bounds(
    descriptors: int, max_connections: int = 0, max_per_address: int = 0, handshake_s: float = DEFAULT_HANDSHAKE_S
) -> ConnectionBounds:
    """The limits for a process that may have `descriptors` open.

    `max_connections`: 0 is three quarters of the descriptors, or half of them where that leaves fewer than 2,048; never
    more than that. `max_per_address`: 0 is half of the connections.
    """
    derived = max(descriptors - _reserve(descriptors), 1)
    most = min(max_connections or derived, derived)
    return ConnectionBounds(most, min(max_per_address or max(most // 2, 1), most), descriptors, handshake_s)


def address_group(host: str) -> str:
    """The address as the limit for each address counts it: an IPv4 address, an IPv6 network; "" where that limit does
    not apply (loopback, local sockets)."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return "" if address.is_loopback else str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
        address = address.ipv4_mapped
    return "" if address.is_loopback else str(address)


# ---- connections ----------------------------------------------------------------------------------------------------


class TrackedConnection:
    """One accepted connection; listeners override `close`, and `is_open` where they may miss its end."""

    __slots__ = ("address", "established", "opened_at")

    handshake_is_timed = False
    """Whether the listener closes it by itself when its handshake does not end in time: being open later proves it."""

    def __init__(self, address: str = "") -> None:
        self.address = address
        """Its `address_group`."""
        self.established = False
        self.opened_at = 0.0

    def close(self) -> None:
        """Close the connection at once."""
        raise TypeError("a listener's connection must override close")

    def is_open(self) -> bool:
        """Whether the connection still exists."""
        return True


class _Group:
    """The connections that share a limit: all of them, or those of one address."""

    __slots__ = ("count", "pending")

    def __init__(self) -> None:
        self.count = 0
        self.pending: OrderedDict[TrackedConnection, None] = OrderedDict()
        """Those not established, oldest first."""


_NOBODY = _Group()


class ConnectionLimits:
    """Counts the connections of all listeners of one scheduler and decides who gives way. Any thread may use it."""

    def __init__(self, bounds: ConnectionBounds, note: Note, clock: Callable[[], float] = time.monotonic) -> None:
        self.bounds = bounds
        self.refused_count = 0
        """Newcomers closed because a limit was reached and all connections were established."""
        self.evicted_count = 0
        """Connections closed in favor of newcomers."""
        self._note = note
        self._clock = clock
        self._lock = threading.Lock()
        self._tracked: set[TrackedConnection] = set()
        self._all = _Group()
        self._by_address: dict[str, _Group] = {}
        self._recounted_at = -RECOUNT_S
        self._refused_at: float | None = None
        self._limit_reached = ""

    @property
    def open_count(self) -> int:
        """Connections that are open."""
        return self._all.count

    def add(self, connection: TrackedConnection) -> bool:
        """Count a connection that was accepted. False: it was refused, and closed.

        May close another connection in its place.
        """
        with self._lock:
            reason, victim = self._admit(connection)
        if reason:
            self._note(reason, why=self._limit_reached)
        if victim is not None:
            victim.close()
        return victim is not connection

    def _admit(self, connection: TrackedConnection) -> tuple[str, TrackedConnection | None]:
        """(what to count, whom to close); the connection itself when it is refused."""
        connection.opened_at = self._clock()
        for group, limit, kind, name in self._limits_of(connection):
            if group.count < limit or self._recount(group, limit):
                continue
            self._limit_reached = f"{group.count} connections{name} of at most {limit}"
            victim = self._oldest_pending(group)
            if victim is None:
                self.refused_count += 1
                self._refused_at = connection.opened_at
                return kind, connection
            self._forget(victim)
            self.evicted_count += 1
            self._count(connection)
            return "silent_connection_closed", victim
        self._count(connection)
        return "", None

    def establish(self, connection: TrackedConnection) -> None:
        """Its peer has proved that it takes part."""
        with self._lock:
            self._mark_established(connection)

    def remove(self, connection: TrackedConnection) -> None:
        """The connection is closed. Twice does no harm."""
        with self._lock:
            self._forget(connection)

    @property
    def admits_newcomers(self) -> bool:
        """Whether a newcomer would be let in, if need be in the place of a connection that is not established."""
        with self._lock:
            return self._all.count < self.bounds.max_connections or self._oldest_pending(self._all) is not None

    def status(self) -> dict[str, Any]:
        """Plain data for `status`; "refusing" says why newcomers are refused now, or is empty."""
        recently = self._refused_at is not None and self._clock() - self._refused_at < REFUSING_S
        return {
            "open": self._all.count,
            "max": self.bounds.max_connections,
            "max_per_address": self.bounds.max_per_address,
            "descriptors": self.bounds.descriptors,
            "refused": self.refused_count,
            "evicted": self.evicted_count,
            "refusing": self._limit_reached if recently else "",
        }

    # ---- deciding ---------------------------------------------------------------------------------------------------

    def _limits_of(self, connection: TrackedConnection) -> Iterator[tuple[_Group, int, str, str]]:
        """(those that share a limit, the limit, what a refusal is counted as, in words)."""
        if connection.address:
            group = self._by_address.get(connection.address, _NOBODY)
            yield group, self.bounds.max_per_address, "connection_refused_address", f" from {connection.address}"
        yield self._all, self.bounds.max_connections, "connection_refused", ""

    def _groups_of(self, connection: TrackedConnection) -> tuple[_Group, ...]:
        if not connection.address:
            return (self._all,)
        return (self._all, self._by_address.setdefault(connection.address, _Group()))

    def _count(self, connection: TrackedConnection) -> None:
        self._tracked.add(connection)
        for group in self._groups_of(connection):
            group.count += 1
            group.pending[connection] = None

    def _forget(self, connection: TrackedConnection) -> None:
        if connection not in self._tracked:
            return
        self._tracked.remove(connection)
        for group in self._groups_of(connection):
            group.count -= 1
            group.pending.pop(connection, None)
        if connection.address and not self._by_address[connection.address].count:
            del self._by_address[connection.address]

    def _mark_established(self, connection: TrackedConnection) -> None:
        if not connection.established and connection in self._tracked:
            connection.established = True
            for group in self._groups_of(connection):
                group.pending.pop(connection, None)

    def _oldest_pending(self, group: _Group) -> TrackedConnection | None:
        """The one that has to give way, if any."""
        while group.pending:
            oldest = next(iter(group.pending))
            if oldest.handshake_is_timed and self._clock() - oldest.opened_at > self.bounds.handshake_s + 1.0:
                self._mark_established(oldest)
                continue
            return oldest if self._clock() - oldest.opened_at >= TIME_TO_SPEAK_S else None
        return None

    def _recount(self, group: _Group, limit: int) -> bool:
        """Forget the connections whose end went unnoticed, once in a while; whether that makes room."""
        now = self._clock()
        if now - self._recounted_at >= RECOUNT_S:
            self._recounted_at = now
            for connection in [connection for connection in self._tracked if not connection.is_open()]:
                self._forget(connection)
        return group.count < limit
