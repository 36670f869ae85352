"""The harness itself, with an attacker that has no effect."""

from __future__ import annotations

import pytest

from tests.attack.harness import Attacker, HonestClient, Server


@pytest.mark.attack
def test_a_few_silent_connections_change_nothing() -> None:
    with Server("-n", "1", "--websocket-port", "0") as server, HonestClient(server) as honest:
        host = server.connection.websocket.removeprefix("ws://").split("/")[0]
        outcome = honest.during(Attacker("silent_connections.py", host, 20), seconds=1.0)
    outcome.check()
