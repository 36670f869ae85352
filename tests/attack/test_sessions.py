"""Sessions of clients that have disconnected without a Bye do not count against the limit of clients."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.attack.harness import Attacker, HonestClient, Server

CLIENTS = 1000


@pytest.mark.attack
def test_a_thousand_abandoned_sessions_do_not_block_new_clients() -> None:
    with Server("-n", "1", "--max-clients", str(CLIENTS)) as server, HonestClient(server) as honest:
        attacker = Attacker("vanishing_clients.py", server.client_file, CLIENTS)
        newcomers = []
        with attacker:
            assert attacker.first_line == f"welcomed {CLIENTS}"
            for _ in range(3):
                with server.client() as client:
                    newcomers.append(client.submit(abs, -3).result(60))
            for command in ("status", "status", "explain 1-1"):
                line = [sys.executable, "-m", "trio_sched", *command.split(), "-C", str(server.client_file)]
                done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
                assert "max_" not in done.stderr, done.stderr
        assert newcomers == [3, 3, 3]
        outcome = honest.during(Attacker("vanishing_clients.py", server.client_file, 100))
    outcome.check(slowdown=10)
