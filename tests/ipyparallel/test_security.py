"""Who may talk to the front: HMAC and CURVE, with real clients that have the key, and with those that have another."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.ipyparallel.stand import PATIENCE_S, Stand, client, stand
from trio_sched.transport.zmq_peer import Peers
from trio_sched.wire.jupyter import Codec

ipp = pytest.importorskip("ipyparallel")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def altered(running: Stand, **changes: Any) -> str:
    """A client's connection file that says something else."""
    inside = {**json.loads(Path(running.client_file).read_text()), **changes}
    path = Path(running.config.profile_dir, "altered-client.json")
    path.write_text(json.dumps(inside))
    return str(path)


def test_connection_files_are_private_and_go_away() -> None:
    with stand(cluster_id="lab") as running:
        for path in (running.client_file, running.engine_file):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            assert os.path.basename(path).startswith("ipcontroller-lab-")
    assert not os.path.exists(running.client_file)


def test_a_reused_connection_file_stays_valid(tmp_path: Path) -> None:
    profile = str(tmp_path)
    from trio_sched.ipyparallel.config import IppConfig

    said = []
    for _ in range(2):
        running = Stand(IppConfig(profile_dir=profile, reuse=True))
        said.append(json.loads(Path(running.client_file).read_text()))
        running.close()
    assert said[0] == said[1]


@pytest.mark.parametrize("settings", [{"key": ""}, {"curve": True}, {"client_transport": "ipc"}], ids=str)
def test_other_ways_to_connect(settings: dict[str, Any], tmp_path: Path) -> None:
    if "client_transport" in settings:
        settings = {**settings, "engine_transport": "ipc", "client_ip": f"{tmp_path}/c", "engine_ip": f"{tmp_path}/e"}
    with stand(1, **settings) as running, client(running, 1) as connected:
        assert connected.load_balanced_view().apply(lambda: 42).get(PATIENCE_S) == 42
        assert connected[:].apply(lambda: 43).get(PATIENCE_S) == [43]
        assert not running.counters


def test_r25_a_client_with_a_wrong_key_gets_nothing() -> None:
    with stand() as running:
        with (
            pytest.raises(Exception, match=r"(?i)(hub|time|connect|sign)"),
            client(altered(running, key="0" * 64), timeout=2),
        ):
            pass
        assert running.counters["wrongly_signed"] > 0
        with client(running) as connected:
            assert connected.ids == []


def test_r25_a_client_with_a_wrong_curve_key_gets_nothing() -> None:
    import zmq

    with stand(curve=True) as running:
        wrong = zmq.curve_keypair()[0].decode()
        with (
            pytest.raises(Exception, match=r"(?i)(hub|time|connect)"),
            client(altered(running, curve_serverkey=wrong), timeout=2),
        ):
            pass
        with client(running) as connected:
            assert connected.ids == []
        assert not running.counters


@pytest.mark.parametrize("channel", ["task", "registration"])
def test_r25_replays_are_refused(channel: str) -> None:
    with stand() as running, Peers() as peers:
        inside = json.loads(Path(running.client_file).read_text())
        codec = Codec(inside["key"].encode())
        peer = peers.connect("dealer", f"{inside['interface']}:{inside[channel]}")
        kind = {"task": "apply_request", "registration": "connection_request"}[channel]
        message = codec.message(kind, {}, metadata={"after": ["nothing"]})
        peer.send(message)
        assert peer.receive(PATIENCE_S) is not None
        peer.send(message)
        peer.send(codec.message(kind, {}, metadata={"after": ["nothing"]}))
        assert peer.receive(PATIENCE_S) is not None
        assert running.counters["replayed"] == 1
