"""Peers without the key at the ports of `trio-sched ipcontroller`, while ipyparallel's own client is measured."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

pytest.importorskip("ipyparallel")

from tests.attack.harness import Attacker
from tests.attack.ipyparallel_harness import IppHonestClient, IppServer

pytestmark = [pytest.mark.attack, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")]
NOBODY = 65534
#: The server, its engines, its client, the attacker and other programs share one machine.
SLOWDOWN = 10.0


def attack(server: IppServer, honest: IppHonestClient, mode: str, *arguments: object) -> dict[str, Any]:
    """Run an attack. Return the messages that the attacker got."""
    attacker = Attacker("ipyparallel_peer.py", mode, server.ports, *arguments)
    honest.during(attacker).check(SLOWDOWN)
    direct = honest.real[:]
    direct.block = True
    assert direct.apply(os.getpid) != []
    got: dict[str, Any] = json.loads(attacker.output.strip().splitlines()[-1])
    print(got)
    return got


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start an attacker that is another user")
def test_another_user_of_the_machine_receives_no_message() -> None:
    with IppServer() as server, IppHonestClient(server) as honest:
        uuids = [uuid for uuid in honest.real._engines.values() if isinstance(uuid, str)]
        got = attack(server, honest, "impersonate", "--as-user", NOBODY, *(f"--uuid={uuid}" for uuid in uuids))
        assert got["published"] == got["messages"] == 0
        assert "other_user" in server.log


def test_a_process_that_knows_the_uuids_cannot_impersonate_engines() -> None:
    with IppServer() as server, IppHonestClient(server) as honest:
        uuids = [uuid for uuid in honest.real._engines.values() if isinstance(uuid, str)]
        got = attack(server, honest, "impersonate", *(f"--uuid={uuid}" for uuid in uuids))
        assert got["messages"] == 0


@pytest.mark.parametrize("options", [(), ("--no-secure",)], ids=["signed", "unsigned"])
@pytest.mark.parametrize("mode", ["subscribe", "flood", "publish"])
def test_one_peer_does_not_slow_the_others_down(mode: str, options: tuple[str, ...]) -> None:
    if mode == "flood" and options:
        pytest.skip("without a key these are valid requests")
    with IppServer(*options) as server, IppHonestClient(server) as honest:
        attack(server, honest, mode)
        honest.real.spin() if hasattr(honest.real, "spin") else None
        assert honest.real._io_thread.is_alive()
