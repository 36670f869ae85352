"""Who may talk to the front: HMAC and CURVE, with real clients that have the key, and with those that have another."""

from __future__ import annotations

import json
import os
import socket as sockets
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ipyparallel.stand import PATIENCE_S, QUIET_S, Raw, Stand, client, stand
from trio_sched.transport import zmq_admission
from trio_sched.transport.zmq_admission import reset, user_of_tcp
from trio_sched.transport.zmq_peer import Peer, Peers
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


# ---- who may connect ------------------------------------------------------------------------------------------------

ENGINE_CHANNELS = ("task", "mux", "control", "broadcast", "hb_pong")
NOBODY = 65534
AS_NOBODY = f"""
import os, sys, zmq
os.setgroups([]); os.setuid({NOBODY})
socket = zmq.Context().socket(getattr(zmq, sys.argv[2]))
socket.linger = 0
monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
socket.connect(sys.argv[1])
print(int.from_bytes(monitor.recv_multipart()[0][:2], "little"), flush=True)
"""


PEERS = {
    ("client", "iopub"): "SUB",
    ("client", "notification"): "SUB",
    ("engine", "hb_ping"): "SUB",
    ("engine", "iopub"): "PUB",
}
"""What kind of socket connects there, if not a DEALER."""


def break_engine_connections(running: Stand) -> None:
    """As a network may. Returns when engines have come back on every socket."""
    assert running.front.desk is not None
    watched = [one for one in running.front.desk.admission.watched if one.name.startswith("engine ")]
    peers = running.call(lambda: [{accepted.peer for accepted in one.accepted.values()} for one in watched])

    def reset_all() -> None:
        for one in watched:
            for descriptor in list(one.accepted):
                reset(descriptor)

    def are_back() -> bool:
        return all(
            one.is_settled
            and len(one.accepted) == len(former)
            and not any(accepted.peer in former for accepted in one.accepted.values())
            for one, former in zip(watched, peers, strict=True)
        )

    running.call(reset_all)
    running.until(are_back)


@pytest.mark.parametrize(
    "settings",
    [{}, {"client_ip": "*", "engine_ip": "*"}],
    ids=["this machine", "all"],
)
def test_engines_whose_connections_break_are_taken_back(settings: dict[str, Any]) -> None:
    with stand(2, **settings) as running, client(running, 2) as connected:
        balanced, direct = connected.load_balanced_view(), connected[:]
        broadcast = connected.broadcast_view()
        for _ in range(5):
            break_engine_connections(running)
            assert balanced.map_sync(abs, range(-20, 0)) == list(range(20, 0, -1))
            assert direct.apply(abs, -1).get(PATIENCE_S) == [1, 1]
            assert broadcast.apply(abs, -2).get(PATIENCE_S) == [2, 2]
            assert connected.abort([], block=True) is None
        assert not running.counters


def test_an_engine_comes_back_while_its_former_messages_wait() -> None:
    """A ROUTER would ignore it for good while messages of the former are unread, and there is no handover."""
    with stand(ping_ms=60_000) as running, Peers() as peers:
        raw = Raw(running, peers)
        raw.join()
        for _ in range(20):
            for _ in range(50):
                raw.engine.send([b"nobody", b"<IDS|MSG>", b"", b"{}", b"{}", b"{}", b"{}"])
            raw.engine.close()
            running.until_disconnected("engine task")
            raw.engine = raw.connect("dealer", "engine", "task", raw.uuid)
            raw.run_a_task()


def test_a_subscriber_does_not_wait_for_the_former_one_to_be_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published meanwhile would be lost to it: the output of a program's first task, right after another."""
    with stand() as running:
        inside = json.loads(Path(running.client_file).read_text())
        with Peers() as peers:
            peers.connect("sub", f"{inside['interface']}:{inside['iopub']}")
            running.until(lambda: running.is_subscribed("iopub"))
        running.until_disconnected("client iopub")
        monkeypatch.setattr(zmq_admission, "SETTLE_ROUNDS", 1_000_000_000)
        monkeypatch.setattr(zmq_admission, "_LONGEST_SETTLE_ROUNDS", 1_000_000_000)
        with Peers() as peers:
            peers.connect("sub", f"{inside['interface']}:{inside['iopub']}")
            running.until(lambda: running.is_subscribed("iopub"))


@pytest.mark.parametrize("channel", ENGINE_CHANNELS)
def test_nobody_takes_the_place_of_a_connected_engine(channel: str) -> None:
    with stand(ping_ms=60_000) as running, Peers() as peers:
        raw = Raw(running, peers)
        raw.join()
        raw.run_a_task()
        impostors = [raw.connect("dealer", "engine", channel, raw.uuid) for _ in range(3)]
        for _ in range(10):
            raw.run_a_task()
        assert [impostor.receive(QUIET_S) for impostor in impostors] == [None] * 3


def test_only_registered_engines_receive() -> None:
    with stand(ping_ms=60_000) as running, Peers() as peers:
        raw = Raw(running, peers)
        raw.join()
        stranger = raw.connect("dealer", "engine", "mux", "stranger")
        mux = raw.connect("dealer", "client", "mux")
        engine = raw.connect("dealer", "engine", "mux", raw.uuid)
        stranger.send([b"x"])
        running.until(lambda: running.counters.get("malformed"))
        mux.send([b"stranger", *raw.codec.message("apply_request", {})])
        mux.send([raw.uuid.encode(), *raw.codec.message("apply_request", {})])
        assert engine.receive(PATIENCE_S) is not None
        assert stranger.receive(QUIET_S) is None


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux whose a connection is")
def test_the_kernel_says_whose_a_connection_is() -> None:
    for host in ("127.0.0.1", "::1"):
        family = sockets.AF_INET6 if ":" in host else sockets.AF_INET
        with (
            sockets.create_server((host, 0), family=family) as server,
            sockets.create_connection(server.getsockname()[:2]) as peer,
            server.accept()[0] as accepted,
        ):
            here, there = accepted.getpeername(), accepted.getsockname()
            assert user_of_tcp(here, there) == os.geteuid()
            peer.close()
            assert user_of_tcp(here, there) is None


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="root can be another user, on Linux")
@pytest.mark.parametrize("other_users", [False, True])
def test_other_users_of_this_machine_are_refused(other_users: bool) -> None:
    import zmq

    with stand(ping_ms=60_000, other_users=other_users) as running, Peers() as peers:
        raw = Raw(running, peers)
        raw.join()
        for side, inside in (("client", raw.client_file), ("engine", raw.engine_file)):
            for channel, port in inside.items():
                if channel != "registration" and not isinstance(port, (int, list)):
                    continue
                address = f"tcp://127.0.0.1:{port[0] if isinstance(port, list) else port}"
                command = [sys.executable, "-c", AS_NOBODY, address, PEERS.get((side, channel), "DEALER")]
                said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S).stdout
                wanted = zmq.EVENT_HANDSHAKE_SUCCEEDED if other_users else zmq.EVENT_DISCONNECTED
                assert int(said) == wanted, (side, channel)
        assert bool(running.counters.get("other_user")) is not other_users
        raw.run_a_task()


def test_other_machines_prove_the_key_before_they_connect_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CURVE; the machine's own addresses stand for another machine's."""
    from trio_sched.transport import zmq_admission

    monkeypatch.setattr(zmq_admission, "_is_loopback", lambda host: False)
    settings: dict[str, Any] = {"curve": False, "client_ip": "*", "engine_ip": "*", "other_users": True}
    with stand(ping_ms=60_000, **settings) as running, Peers() as peers:
        inside = json.loads(Path(running.client_file).read_text())

        def connect(kind: Any, channel: str) -> Peer:
            return peers.connect(kind, f"tcp://127.0.0.1:{inside[channel]}")

        listener = connect("sub", "notification")
        registration = connect("dealer", "registration")
        registration.send(Codec(b"another key").message("connection_request", {}))
        running.until(lambda: running.counters.get("unproven_address") and running.counters.get("wrongly_signed"))
        assert not running.is_subscribed("notification")
        registration.send(Codec(inside["key"].encode()).message("connection_request", {}))
        assert registration.receive(PATIENCE_S) is not None
        while not running.call(running.is_subscribed, "notification"):
            assert listener.receive(QUIET_S) is None  # libzmq subscribes again when the socket is used


@pytest.mark.parametrize(
    ("settings", "is_encrypted"),
    [
        ({}, False),
        ({"client_ip": "localhost", "engine_ip": "127.0.0.2"}, False),
        ({"engine_ip": "*"}, True),
        ({"client_ip": "0.0.0.0"}, True),
        ({"engine_ip": "*", "curve": False}, False),
        ({"engine_ip": "*", "ssh_server": "login"}, False),
        ({"curve": True}, True),
    ],
    ids=str,
)
def test_curve_by_default_where_other_machines_can_connect(settings: dict[str, Any], is_encrypted: bool) -> None:
    with stand(**settings) as running:
        inside = json.loads(Path(running.client_file).read_text())
        assert bool(inside["curve_serverkey"]) is is_encrypted
        assert bool(inside["key"]) is (settings.get("curve") is not True)


# ---- what one connection may cost -----------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["iopub", "notification"])
def test_a_connection_with_too_many_subscriptions_is_reset(channel: str) -> None:
    with stand(ping_ms=60_000, max_subscriptions=50) as running, Peers() as peers:
        raw = Raw(running, peers)
        greedy = raw.connect("xsub", "client", channel)
        for number in range(51):
            greedy.send([b"\x01%d" % number])
        running.until(lambda: running.counters.get("too_many_subscriptions"))
        modest = raw.connect("sub", "client", "notification")
        running.until(lambda: running.is_subscribed("notification"))
        raw.join()
        assert modest.receive(PATIENCE_S) is not None


@pytest.mark.parametrize("channel", ["task", "registration", "mux", "broadcast", "control"])
def test_a_connection_that_sends_rubbish_is_reset(channel: str) -> None:
    with stand(ping_ms=60_000) as running, Peers() as peers:
        raw = Raw(running, peers)
        raw.join()
        flooder = raw.connect("dealer", "client", channel)
        for _ in range(1000):
            flooder.send([b"rubbish"])
        running.until(lambda: running.counters.get("too_many_rejected"))
        raw.run_a_task()
        assert raw.uuid in raw.ask("connection_request", {})["engines"].values()


def test_output_that_nobody_signed_is_not_relayed() -> None:
    with stand(ping_ms=60_000) as running, Peers() as peers:
        raw = Raw(running, peers)
        listener, liar = raw.connect("sub", "client", "iopub"), raw.connect("pub", "engine", "iopub")
        engine = raw.connect("pub", "engine", "iopub")
        while listener.receive(QUIET_S) is None:
            engine.send([b"topic", *raw.codec.message("stream", {"name": "stdout", "text": "x"})])
        while not (running.settle().get("unsigned") and running.counters.get("malformed")):
            liar.send([b"topic", *Codec(b"").message("stream", {"name": "stdout", "text": "false"})])
            liar.send([b"garbage"])
        while (message := listener.receive(QUIET_S)) is not None:
            assert b"false" not in b"".join(message)


def test_output_without_a_key_is_at_least_what_clients_can_read() -> None:
    with stand(1, key="") as running, Peers() as peers, client(running, 1) as connected:
        raw = Raw(running, peers)
        liar = raw.connect("pub", "engine", "iopub")
        codec = Codec(b"")
        while running.settle().get("malformed", 0) < 3:
            liar.send([b"garbage"])
            liar.send([b"topic", *codec.message("stream", {"name": "stdout"})])
            liar.send([b"topic", *codec.message("stream", {}, header={"msg_id": "1", "msg_type": "x", "session": "s"})])
        result = connected[0].apply_async(print, "still here")
        result.get(PATIENCE_S)
        assert result.wait_for_output(PATIENCE_S)
        assert result.stdout == "still here\n"
