"""Connection limits: their derivation, and the connection that is closed at a limit."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from trio_sched.transport import connection_limits
from trio_sched.transport.connection_limits import (
    MIN_EVICTION_AGE_S,
    RECOUNT_S,
    REFUSING_S,
    ConnectionBounds,
    ConnectionLimits,
    TrackedConnection,
    address_group,
    connection_bounds,
)


class FakeConnection(TrackedConnection):
    """A connection that records that it was closed."""

    def __init__(self, address: str = "", *, timed: bool = False) -> None:
        super().__init__(address)
        self.closed = self.end_was_missed = False
        self.handshake_is_timed = timed

    def close(self) -> None:
        self.closed = True

    def is_open(self) -> bool:
        return not self.end_was_missed


class Listener:
    """A listener with its own clock."""

    def __init__(self, max_connections: int, per_address: int | None = None) -> None:
        self.now = 100.0
        self.notes: Counter[str] = Counter()
        bounds = ConnectionBounds(max_connections, per_address or max_connections, descriptors=1024, handshake_s=5.0)
        self.limits = ConnectionLimits(bounds, self.note, lambda: self.now)

    def note(self, kind: str, why: str) -> None:
        assert "at most" in why
        self.notes[kind] += 1

    def accept(self, *addresses: str, timed: bool = False) -> list[FakeConnection]:
        accepted = [FakeConnection(address, timed=timed) for address in addresses]
        for connection in accepted:
            assert self.limits.add(connection) is not connection.closed
        return accepted


# ---- derivation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("descriptors", "configured", "max_connections", "max_per_address"),
    [
        (1024, (0, 0), 512, 256),
        (20_000, (0, 0), 15_000, 7_500),
        (1 << 20, (0, 0), 786_432, 393_216),
        (1024, (100, 0), 100, 50),
        (1024, (100, 10), 100, 10),
        (1024, (100, 1000), 100, 100),
        (1024, (5000, 0), 512, 256),
        (10, (0, 0), 1, 1),
    ],
)
def test_bounds_are_derived_from_the_descriptor_limit(
    descriptors: int, configured: tuple[int, int], max_connections: int, max_per_address: int
) -> None:
    bounds = connection_bounds(descriptors, *configured)
    assert (bounds.max_connections, bounds.max_per_address) == (max_connections, max_per_address)
    assert not bounds.is_short(max_connections) or descriptors < 64
    assert bounds.is_short(descriptors)
    assert max_connections + bounds.burst <= descriptors or descriptors < 64


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("127.0.0.1", ""),
        ("127.8.8.8", ""),
        ("::1", ""),
        ("2001:db8::5", "2001:db8::/64"),
        ("2001:db8::6:5", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::ffff:127.0.0.1", ""),
        ("", ""),
    ],
)
def test_addresses_are_grouped_by_host_and_loopback_is_exempt(host: str, group: str) -> None:
    assert address_group(host) == group


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")
def test_the_soft_descriptor_limit_is_raised_to_the_hard_one() -> None:
    script = """
import resource
from trio_sched.transport.connection_limits import descriptor_limit, raise_descriptor_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))
assert descriptor_limit() == 200
assert raise_descriptor_limit() == 300
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, 300)
assert raise_descriptor_limit() == 300
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# ---- decisions ------------------------------------------------------------------------------------------------------


def test_the_oldest_connection_that_is_not_established_is_closed() -> None:
    listener = Listener(3)
    first, second, third = listener.accept("", "", "")
    listener.limits.establish(first)
    listener.now += MIN_EVICTION_AGE_S
    (newcomer,) = listener.accept("")
    assert [c.closed for c in (first, second, third, newcomer)] == [False, True, False, False]
    assert listener.notes == {"silent_connection_closed": 1}
    assert listener.limits.open_count == 3


def test_new_connections_are_refused_when_all_are_established() -> None:
    listener = Listener(2)
    established = listener.accept("", "")
    for connection in established:
        listener.limits.establish(connection)
    listener.now += 3600
    (newcomer,) = listener.accept("")
    assert newcomer.closed
    assert not any(c.closed for c in established)
    assert listener.notes == {"connection_refused": 1}
    assert "2 connections of at most 2" in listener.limits.status()["refusing"]
    assert not listener.limits.admits_new_connections
    listener.now += REFUSING_S
    assert not listener.limits.status()["refusing"]
    listener.limits.remove(established[0])
    assert listener.limits.admits_new_connections
    assert not listener.accept("")[0].closed


def test_young_connections_are_not_closed_for_each_other() -> None:
    listener = Listener(2)
    first, second = listener.accept("", "")
    (newcomer,) = listener.accept("")
    assert newcomer.closed
    assert not first.closed
    assert not second.closed
    assert not listener.limits.admits_new_connections


def test_a_connection_that_outlasts_a_timed_handshake_is_established() -> None:
    listener = Listener(1)
    (old,) = listener.accept("", timed=True)
    listener.now += 6.1
    assert listener.accept("")[0].closed
    assert not old.closed


def test_each_address_has_its_own_limit() -> None:
    listener = Listener(10, per_address=2)
    a, b = listener.accept("192.0.2.1", "192.0.2.1")
    listener.limits.establish(b)
    listener.now += MIN_EVICTION_AGE_S
    (c,) = listener.accept("192.0.2.1")
    assert (a.closed, b.closed, c.closed) == (True, False, False)
    listener.limits.establish(c)
    (d,) = listener.accept("192.0.2.1")
    assert d.closed
    assert listener.notes["connection_refused_address"] == 1
    assert "from 192.0.2.1" in listener.limits.status()["refusing"]
    assert not any(other.closed for other in listener.accept("192.0.2.2", "", "", ""))
    listener.limits.remove(b)
    assert not listener.accept("192.0.2.1")[0].closed


def test_connections_whose_end_was_missed_are_forgotten_before_a_refusal() -> None:
    listener = Listener(2)
    ended, open_one = listener.accept("192.0.2.1", "")
    for connection in (ended, open_one):
        listener.limits.establish(connection)
    ended.end_was_missed = True
    listener.now += RECOUNT_S
    assert not listener.accept("")[0].closed
    assert not listener.notes


def test_a_second_remove_has_no_effect_and_no_record_remains() -> None:
    listener = Listener(5)
    for connection in listener.accept("192.0.2.1", "192.0.2.1", "") * 2:
        listener.limits.remove(connection)
        listener.limits.establish(connection)
    assert listener.limits.open_count == 0
    assert not listener.limits._by_address
    assert not listener.limits._all.pending


def test_an_unlimited_process_has_a_finite_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert connection_limits._finite(-1) == connection_limits.UNLIMITED_DESCRIPTORS
