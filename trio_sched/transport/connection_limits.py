"""Limits on the number of connections, and the choice of the connection that is closed at a limit.

Each accepted connection takes a file descriptor. A process without a free descriptor cannot accept a connection, open a
file or start a process, and libzmq aborts it. `connection_bounds` derives the limits from the descriptor limit of the
process. One `ConnectionLimits` for each scheduler counts the connections of all its listeners, before any handshake.

A connection is *established* after a complete handshake, a message or a valid token. At a limit, the oldest connection
that is not established is closed in favor of the new one. If all are established, or were accepted just now, the new
connection is closed. So silent connections cannot keep honest peers out for long, and an established connection is
never closed in favor of a new one.

The limit for each address does not apply to local sockets and loopback, because all local peers share those addresses.
"""

from __future__ import annotations

import ipaddress
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from msgspec import Struct

DEFAULT_HANDSHAKE_S = 5.0
#: Descriptors that are never used for connections, however low the limit is.
MIN_RESERVE = 64
#: One in `RESERVED_PART` descriptors is kept for files, pipes, and accepted connections that are not counted yet.
RESERVED_PART = 4
#: Connections that libzmq may have accepted and that are not counted yet, or not closed yet. Reserved as well, up to
#: half of the descriptors.
BURST_RESERVE = 2_048
#: Stands for an unlimited descriptor limit, and for systems without one.
UNLIMITED_DESCRIPTORS = 1 << 20
#: A younger connection is not closed in favor of a new one: many honest peers may connect at the same time.
MIN_EVICTION_AGE_S = 1.0
#: For this time after a refusal, `status` reports that connections are refused.
REFUSING_S = 10.0
#: Shortest time between two searches for connections whose end was missed.
RECOUNT_S = 1.0
#: IPv6 addresses are counted by network, because a host has a whole one.
_IPV6_PREFIX = 64

#: `note(kind, **context)` counts and logs an event; `why=` describes it.
Note: TypeAlias = Callable[..., None]


# ---- descriptors ----------------------------------------------------------------------------------------------------


def descriptor_limit() -> int:
    """Return how many file descriptors this process may have open (the soft RLIMIT_NOFILE)."""
    if sys.platform == "win32":
        return UNLIMITED_DESCRIPTORS
    import resource

    return _finite(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def raise_descriptor_limit() -> int:
    """Raise the soft RLIMIT_NOFILE of this process to the hard one, as far as the system allows, and return it.

    Child processes inherit the limit.
    """
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
    """The limits on the connections of one scheduler."""

    max_connections: int
    max_per_address: int
    #: The descriptor limit, which bounds `max_connections`.
    descriptors: int
    #: The time limit of a ZeroMQ handshake, after which libzmq closes the connection.
    handshake_s: float = DEFAULT_HANDSHAKE_S

    @property
    def burst(self) -> int:
        """The length of an accept queue that fits into the reserve."""
        return max(_reserve(self.descriptors) // 4, 1)

    def is_short(self, open_descriptors: int) -> bool:
        """Whether less than half of the reserve is free."""
        return self.descriptors - open_descriptors < _reserve(self.descriptors) // 2


def _reserve(descriptors: int) -> int:
    """Return how many descriptors are not used for connections."""
    return max(descriptors // RESERVED_PART, min(descriptors // 2, BURST_RESERVE), MIN_RESERVE)


def connection_bounds(
    descriptors: int, max_connections: int = 0, max_per_address: int = 0, handshake_s: float = DEFAULT_HANDSHAKE_S
) -> ConnectionBounds:
    """Derive the limits of a process that may have `descriptors` open.

    `max_connections`: 0 is three quarters of the descriptors, or half of them where that leaves fewer than 2,048; a
    larger value is reduced to that. `max_per_address`: 0 is half of the connections.
    """
    derived = max(descriptors - _reserve(descriptors), 1)
    most = min(max_connections or derived, derived)
    return ConnectionBounds(most, min(max_per_address or max(most // 2, 1), most), descriptors, handshake_s)


def address_group(host: str) -> str:
    """Return the address that the limit for each address counts: an IPv4 address, or an IPv6 network.

    "" for loopback and local sockets, to which that limit does not apply.
    """
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


class TrackedConnection(ABC):
    """One accepted connection. A listener overrides `close`, and `is_open` if it may miss the end of a connection."""

    __slots__ = ("address",)

    #: Whether the listener closes a connection whose handshake times out. One that is open later is established.
    handshake_is_timed = False

    def __init__(self, address: str = "") -> None:
        #: The `address_group` of the peer.
        self.address = address

    @abstractmethod
    def close(self) -> None:
        """Close the connection at once."""

    def is_open(self) -> bool:
        """Whether the connection still exists."""
        return True


class _Group:
    """The connections that share a limit: all connections, or those of one address."""

    __slots__ = ("count", "pending")

    def __init__(self) -> None:
        self.count = 0
        #: The connections that are not established, oldest first.
        self.pending: OrderedDict[TrackedConnection, None] = OrderedDict()


_EMPTY_GROUP = _Group()


class ConnectionLimits:
    """Counts the connections of all listeners of one scheduler, and closes some at the limits. Thread-safe."""

    def __init__(self, bounds: ConnectionBounds, note: Note, clock: Callable[[], float] = time.monotonic) -> None:
        self.bounds = bounds
        #: New connections that were closed, because a limit was reached and no other connection could be closed.
        self.refused_count = 0
        #: Connections that were closed in favor of new ones.
        self.evicted_count = 0
        self._note = note
        self._clock = clock
        self._lock = threading.Lock()
        #: When each open connection was accepted.
        self._accepted_at: dict[TrackedConnection, float] = {}
        self._all = _Group()
        self._by_address: dict[str, _Group] = {}
        self._recounted_at = -RECOUNT_S
        self._refused_at: float | None = None
        self._reached_limit = ""

    @property
    def open_count(self) -> int:
        """Number of open connections."""
        return self._all.count

    def add(self, connection: TrackedConnection) -> bool:
        """Count an accepted connection. False: it was refused and closed. May close another connection in its favor."""
        with self._lock:
            reason, victim = self._choose_victim(connection)
        if reason:
            self._note(reason, why=self._reached_limit)
        if victim is not None:
            victim.close()
        return victim is not connection

    def _choose_victim(self, connection: TrackedConnection) -> tuple[str, TrackedConnection | None]:
        """Return the kind of event to count, and the connection to close: possibly the new one."""
        now = self._clock()
        for group, limit, kind, name in self._limits_of(connection):
            if group.count < limit or self._recount(group, limit):
                continue
            self._reached_limit = f"{group.count} connections{name} of at most {limit}"
            victim = self._oldest_pending(group)
            if victim is None:
                self.refused_count += 1
                self._refused_at = now
                return kind, connection
            self._forget(victim)
            self.evicted_count += 1
            self._count(connection, now)
            return "silent_connection_closed", victim
        self._count(connection, now)
        return "", None

    def establish(self, connection: TrackedConnection) -> None:
        """Mark a connection as established."""
        with self._lock:
            self._mark_established(connection)

    def remove(self, connection: TrackedConnection) -> None:
        """Stop counting a closed connection. A second call has no effect."""
        with self._lock:
            self._forget(connection)

    @property
    def admits_new_connections(self) -> bool:
        """Whether a new connection would be admitted, possibly in place of one that is not established."""
        with self._lock:
            return self._all.count < self.bounds.max_connections or self._oldest_pending(self._all) is not None

    def status(self) -> dict[str, Any]:
        """Return plain data for `status`. "refusing": the limit at which connections are refused now, or empty."""
        recently = self._refused_at is not None and self._clock() - self._refused_at < REFUSING_S
        return {
            "open": self._all.count,
            "max": self.bounds.max_connections,
            "max_per_address": self.bounds.max_per_address,
            "descriptors": self.bounds.descriptors,
            "refused": self.refused_count,
            "evicted": self.evicted_count,
            "refusing": self._reached_limit if recently else "",
        }

    # ---- decisions --------------------------------------------------------------------------------------------------

    def _limits_of(self, connection: TrackedConnection) -> Iterator[tuple[_Group, int, str, str]]:
        """Yield each limit: the connections that share it, its value, the kind of a refusal, and a description."""
        if connection.address:
            group = self._by_address.get(connection.address, _EMPTY_GROUP)
            yield group, self.bounds.max_per_address, "connection_refused_address", f" from {connection.address}"
        yield self._all, self.bounds.max_connections, "connection_refused", ""

    def _groups_of(self, connection: TrackedConnection) -> tuple[_Group, ...]:
        if not connection.address:
            return (self._all,)
        return (self._all, self._by_address.setdefault(connection.address, _Group()))

    def _count(self, connection: TrackedConnection, now: float) -> None:
        self._accepted_at[connection] = now
        for group in self._groups_of(connection):
            group.count += 1
            group.pending[connection] = None

    def _forget(self, connection: TrackedConnection) -> None:
        if self._accepted_at.pop(connection, None) is None:
            return
        for group in self._groups_of(connection):
            group.count -= 1
            group.pending.pop(connection, None)
        if connection.address and not self._by_address[connection.address].count:
            del self._by_address[connection.address]

    def _mark_established(self, connection: TrackedConnection) -> None:
        if connection in self._all.pending:
            for group in self._groups_of(connection):
                group.pending.pop(connection, None)

    def _oldest_pending(self, group: _Group) -> TrackedConnection | None:
        """Return the connection to close in favor of a new one; None: no connection can be closed."""
        while group.pending:
            oldest = next(iter(group.pending))
            age_s = self._clock() - self._accepted_at[oldest]
            if oldest.handshake_is_timed and age_s > self.bounds.handshake_s + 1.0:
                self._mark_established(oldest)
                continue
            return oldest if age_s >= MIN_EVICTION_AGE_S else None
        return None

    def _recount(self, group: _Group, limit: int) -> bool:
        """Forget connections whose end was missed, at most every `RECOUNT_S`.

        Return whether the group is below the limit then.
        """
        now = self._clock()
        if now - self._recounted_at >= RECOUNT_S:
            self._recounted_at = now
            for connection in [connection for connection in self._accepted_at if not connection.is_open()]:
                self._forget(connection)
        return group.count < limit
