"""The role of a peer is the role that its key proves, also after many attempts."""

from __future__ import annotations

import re

import pytest

from tests.attack.harness import Attacker, HonestClient, Server


@pytest.mark.attack
def test_the_key_of_an_engine_is_not_accepted_for_a_client() -> None:
    with Server("-n", "1", "--bind", "tcp://127.0.0.1:0") as server, HonestClient(server) as honest:
        attacker = Attacker("wrong_role.py", server.engine_file, server.client_file)
        outcome = honest.during(attacker)
        view = honest.client.status()
    match = re.fullmatch(r"refused (\d+) welcomed (\d+) answered (\d+)", attacker.output.strip())
    assert match is not None, attacker.output
    refused, welcomed, answered = map(int, match.groups())
    print(attacker.output)
    assert refused > 5
    assert (welcomed, answered) == (0, 0)
    assert view["counters"]["unauthenticated"] >= refused
    assert len(view["clients"]) == 1
    outcome.check()
