"""Floods of unauthenticated peers and of clients on the WebSocket port, while an honest client is measured."""

from __future__ import annotations

import socket

import pytest

from tests.attack.attackers.websocket import request
from tests.attack.harness import Attacker, HonestClient, Outcome, Server

#: Five is the goal; the rest is for other load on the machine.
SLOWDOWN = 10.0


def attacked(kind: str, count: int, *, with_token: bool) -> Outcome:
    """Attack with `count` connections, and measure an honest client."""
    with Server("-n", "1", "--websocket-port", "0", "--log-level", "error") as server, HonestClient(server) as honest:
        address = server.connection.websocket.removeprefix("ws://").strip("/")
        token = [server.connection.token] if with_token else []
        return honest.during(Attacker("websocket.py", kind, address, count, *token))


@pytest.mark.attack
@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("fragments", 1),
        ("fragments", 20),
        ("pings", 4),
        ("json", 4),
        ("unfinished", 240),
        ("headers", 50),
        ("behind", 2),
        ("connects", 4),
        ("requests", 4),
    ],
)
def test_unauthenticated_peers_slow_no_client_and_leave_no_memory_in_use(kind: str, count: int) -> None:
    attacked(kind, count, with_token=False).check(SLOWDOWN)


@pytest.mark.attack
@pytest.mark.parametrize(("kind", "count"), [("fragments", 4), ("pings", 4), ("json", 1), ("json", 4)])
def test_a_flooding_client_gets_only_its_share(kind: str, count: int) -> None:
    outcome = attacked(kind, count, with_token=True)
    print(outcome)
    assert not outcome.lost
    assert outcome.slowdown < SLOWDOWN, str(outcome)


NEWCOMERS = 20


def newcomer(address: str, token: str) -> bool:
    """Whether the handshake of a new peer succeeds."""
    host, port = address.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(request(token))
            return connection.recv(4096).startswith(b"HTTP/1.1 101")
    except OSError:
        return False


@pytest.mark.attack
@pytest.mark.parametrize("kind", ["connects", "requests", "held"])
def test_new_peers_connect_during_a_flood(kind: str) -> None:
    with Server("-n", "1", "--websocket-port", "0", "--log-level", "error") as server:
        address = server.connection.websocket.removeprefix("ws://").strip("/")
        with HonestClient(server) as honest, Attacker("websocket.py", kind, address, 4):
            honest.round_trips(6.0)  # until the burst of handshakes is used up
            assert not honest.lost
            assert all(newcomer(address, server.connection.token) for _ in range(NEWCOMERS))
            without_token = sum(newcomer(address, "") for _ in range(NEWCOMERS))
            print(f"{kind}: {without_token} of {NEWCOMERS} without a token in their request")
            assert without_token == NEWCOMERS or kind == "held"
