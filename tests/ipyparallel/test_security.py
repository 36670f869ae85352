"""Authentication and limits: HMAC, CURVE, other users, other machines, and connections that send too much."""

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

from tests.ipyparallel.controller_fixture import (
    QUIET_S,
    TIMEOUT_S,
    RawPeers,
    RunningController,
    client,
    running_controller,
)
from tests.zmq_peers import Peer, Peers
from trio_sched.transport import zmq_admission
from trio_sched.transport.zmq_admission import reset_connection, tcp_user_id
from trio_sched.wire.jupyter import Codec

ipp = pytest.importorskip("ipyparallel")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def altered(running: RunningController, **changes: Any) -> str:
    """Write a connection file for clients with some entries changed. Returns its path."""
    inside = {**json.loads(Path(running.client_file).read_text()), **changes}
    path = Path(running.config.profile_dir, "altered-client.json")
    path.write_text(json.dumps(inside))
    return str(path)


def test_connection_files_are_private_and_removed() -> None:
    with running_controller(cluster_id="lab") as running:
        for path in (running.client_file, running.engine_file):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            assert os.path.basename(path).startswith("ipcontroller-lab-")
    assert not os.path.exists(running.client_file)


def test_reused_connection_file_stays_valid(tmp_path: Path) -> None:
    profile = str(tmp_path)
    from trio_sched.ipyparallel.config import IppConfig

    contents = []
    for _ in range(2):
        running = RunningController(IppConfig(profile_dir=profile, reuse=True))
        contents.append(json.loads(Path(running.client_file).read_text()))
        running.close()
    assert contents[0] == contents[1]


@pytest.mark.parametrize("settings", [{"key": ""}, {"curve": True}, {"client_transport": "ipc"}], ids=str)
def test_unsigned_curve_and_ipc_connections_work(settings: dict[str, Any], tmp_path: Path) -> None:
    if "client_transport" in settings:
        settings = {**settings, "engine_transport": "ipc", "client_ip": f"{tmp_path}/c", "engine_ip": f"{tmp_path}/e"}
    with running_controller(1, **settings) as running, client(running, 1) as connected:
        assert connected.load_balanced_view().apply(lambda: 42).get(TIMEOUT_S) == 42
        assert connected[:].apply(lambda: 43).get(TIMEOUT_S) == [43]
        assert not running.counters


def test_r25_client_with_a_wrong_key_gets_no_answer() -> None:
    with running_controller() as running:
        with (
            pytest.raises(Exception, match=r"(?i)(hub|time|connect|sign)"),
            client(altered(running, key="0" * 64), timeout=2),
        ):
            pass
        assert running.counters["wrongly_signed"] > 0
        with client(running) as connected:
            assert connected.ids == []


def test_r25_client_with_a_wrong_curve_key_cannot_connect() -> None:
    import zmq

    with running_controller(curve=True) as running:
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
    with running_controller() as running, Peers() as peers:
        inside = json.loads(Path(running.client_file).read_text())
        codec = Codec(inside["key"].encode())
        peer = peers.connect("dealer", f"{inside['interface']}:{inside[channel]}")
        kind = {"task": "apply_request", "registration": "connection_request"}[channel]
        message = codec.message(kind, {}, metadata={"after": ["nothing"]})
        peer.send(message)
        assert peer.receive(TIMEOUT_S) is not None
        peer.send(message)
        peer.send(codec.message(kind, {}, metadata={"after": ["nothing"]}))
        assert peer.receive(TIMEOUT_S) is not None
        assert running.counters["replayed"] == 1


# ---- who may connect ------------------------------------------------------------------------------------------------

ENGINE_CHANNELS = ("task", "mux", "control", "broadcast", "hb_pong")
NOBODY_ID = 65534
AS_NOBODY_ID = f"""
import os, sys, zmq
os.setgroups([]); os.setuid({NOBODY_ID})
socket = zmq.Context().socket(getattr(zmq, sys.argv[2]))
socket.linger = 0
monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
socket.connect(sys.argv[1])
print(int.from_bytes(monitor.recv_multipart()[0][:2], "little"), flush=True)
"""


#: The kind of socket that connects to a channel, if it is not a DEALER.
PEERS = {
    ("client", "iopub"): "SUB",
    ("client", "notification"): "SUB",
    ("engine", "hb_ping"): "SUB",
    ("engine", "iopub"): "PUB",
}


def break_engine_connections(running: RunningController) -> None:
    """Reset the connections of engines. Returns when the engines have connected to every socket again."""
    assert running.front.context is not None
    watched = [one for one in running.front.context.admission.watched if one.name.startswith("engine ")]
    peers = running.call(lambda: [{accepted.peer for accepted in one.accepted.values()} for one in watched])

    def reset_all() -> None:
        for one in watched:
            for descriptor in list(one.accepted):
                reset_connection(descriptor)

    def are_back() -> bool:
        return all(
            one.is_settled
            and len(one.accepted) == len(former)
            and not any(accepted.peer in former for accepted in one.accepted.values())
            for one, former in zip(watched, peers, strict=True)
        )

    running.call(reset_all)
    running.wait_until(are_back)


@pytest.mark.parametrize(
    "settings",
    [{}, {"client_ip": "*", "engine_ip": "*"}],
    ids=["this machine", "all"],
)
def test_engines_reconnect_after_their_connections_break(settings: dict[str, Any]) -> None:
    with running_controller(2, **settings) as running, client(running, 2) as connected:
        balanced, direct = connected.load_balanced_view(), connected[:]
        broadcast = connected.broadcast_view()
        for _ in range(5):
            break_engine_connections(running)
            assert balanced.map_sync(abs, range(-20, 0)) == list(range(20, 0, -1))
            assert direct.apply(abs, -1).get(TIMEOUT_S) == [1, 1]
            assert broadcast.apply(abs, -2).get(TIMEOUT_S) == [2, 2]
            assert connected.abort([], block=True) is None
        assert not running.counters


def test_engine_reconnects_while_its_former_messages_are_unread() -> None:
    """Without handover, a ROUTER ignores a new peer for ever if messages of the former one are unread."""
    with running_controller(ping_ms=60_000) as running, Peers() as peers:
        raw = RawPeers(running, peers)
        raw.join()
        for _ in range(20):
            for _ in range(50):
                raw.engine.send([b"nobody", b"<IDS|MSG>", b"", b"{}", b"{}", b"{}", b"{}"])
            raw.engine.close()
            running.wait_until_disconnected("engine task")
            raw.engine = raw.connect("dealer", "engine", "task", raw.uuid)
            raw.run_task()


def test_subscriber_does_not_wait_until_a_former_one_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output that is published while it waits is lost: that of the first task of a program that follows another one."""
    with running_controller() as running:
        inside = json.loads(Path(running.client_file).read_text())
        with Peers() as peers:
            peers.connect("sub", f"{inside['interface']}:{inside['iopub']}")
            running.wait_until(lambda: running.subscribers("iopub"))
        running.wait_until_disconnected("client iopub")
        monkeypatch.setattr(zmq_admission, "SETTLE_ROUNDS", 1_000_000_000)
        monkeypatch.setattr(zmq_admission, "_MAX_SETTLE_ROUNDS", 1_000_000_000)
        with Peers() as peers:
            peers.connect("sub", f"{inside['interface']}:{inside['iopub']}")
            running.wait_until(lambda: running.subscribers("iopub"))


@pytest.mark.parametrize("channel", ENGINE_CHANNELS)
def test_connected_engine_cannot_be_impersonated(channel: str) -> None:
    with running_controller(ping_ms=60_000) as running, Peers() as peers:
        raw = RawPeers(running, peers)
        raw.join()
        raw.run_task()
        impostors = [raw.connect("dealer", "engine", channel, raw.uuid) for _ in range(3)]
        for _ in range(10):
            raw.run_task()
        assert [impostor.receive(QUIET_S) for impostor in impostors] == [None] * 3


def test_only_registered_engines_receive_messages() -> None:
    with running_controller(ping_ms=60_000) as running, Peers() as peers:
        raw = RawPeers(running, peers)
        raw.join()
        unregistered = raw.connect("dealer", "engine", "mux", "unregistered")
        mux = raw.connect("dealer", "client", "mux")
        engine = raw.connect("dealer", "engine", "mux", raw.uuid)
        unregistered.send([b"x"])
        running.wait_until(lambda: running.counters.get("malformed"))
        mux.send([b"unregistered", *raw.codec.message("apply_request", {})])
        mux.send([raw.uuid.encode(), *raw.codec.message("apply_request", {})])
        assert engine.receive(TIMEOUT_S) is not None
        assert unregistered.receive(QUIET_S) is None


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the user of a connection")
def test_kernel_tells_the_user_of_a_connection() -> None:
    for host in ("127.0.0.1", "::1"):
        family = sockets.AF_INET6 if ":" in host else sockets.AF_INET
        with (
            sockets.create_server((host, 0), family=family) as server,
            sockets.create_connection(server.getsockname()[:2]) as peer,
            server.accept()[0] as accepted,
        ):
            here, there = accepted.getpeername(), accepted.getsockname()
            assert tcp_user_id(here, there) == os.geteuid()
            peer.close()
            assert tcp_user_id(here, there) is None


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="root can be another user, on Linux")
@pytest.mark.parametrize("other_users", [False, True])
def test_other_users_of_this_machine_are_refused(other_users: bool) -> None:
    import zmq

    with running_controller(ping_ms=60_000, other_users=other_users) as running, Peers() as peers:
        raw = RawPeers(running, peers)
        raw.join()
        for side, inside in (("client", raw.client_file), ("engine", raw.engine_file)):
            for channel, port in inside.items():
                if channel != "registration" and not isinstance(port, (int, list)):
                    continue
                address = f"tcp://127.0.0.1:{port[0] if isinstance(port, list) else port}"
                command = [sys.executable, "-c", AS_NOBODY_ID, address, PEERS.get((side, channel), "DEALER")]
                printed = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S).stdout
                wanted = zmq.EVENT_HANDSHAKE_SUCCEEDED if other_users else zmq.EVENT_DISCONNECTED
                assert int(printed) == wanted, (side, channel)
        assert bool(running.counters.get("other_user")) is not other_users
        raw.run_task()


def test_other_machines_prove_the_key_before_they_connect_to_other_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CURVE; addresses of this machine count as those of another one in this test."""
    from trio_sched.transport import zmq_admission

    monkeypatch.setattr(zmq_admission, "_is_loopback", lambda host: False)
    settings: dict[str, Any] = {"curve": False, "client_ip": "*", "engine_ip": "*", "other_users": True}
    with running_controller(ping_ms=60_000, **settings) as running, Peers() as peers:
        inside = json.loads(Path(running.client_file).read_text())

        def connect(kind: Any, channel: str) -> Peer:
            return peers.connect(kind, f"tcp://127.0.0.1:{inside[channel]}")

        listener = connect("sub", "notification")
        registration = connect("dealer", "registration")
        registration.send(Codec(b"another key").message("connection_request", {}))
        running.wait_until(lambda: running.counters.get("unproven_address") and running.counters.get("wrongly_signed"))
        assert not running.subscribers("notification")
        registration.send(Codec(inside["key"].encode()).message("connection_request", {}))
        assert registration.receive(TIMEOUT_S) is not None
        while not running.call(running.subscribers, "notification"):
            assert listener.receive(QUIET_S) is None  # libzmq sends the subscription again when the socket is used


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
def test_curve_is_the_default_where_other_machines_can_connect(settings: dict[str, Any], is_encrypted: bool) -> None:
    with running_controller(**settings) as running:
        inside = json.loads(Path(running.client_file).read_text())
        assert bool(inside["curve_serverkey"]) is is_encrypted
        assert bool(inside["key"]) is (settings.get("curve") is not True)


# ---- limits of one connection ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["iopub", "notification"])
def test_connection_with_too_many_subscriptions_is_reset(channel: str) -> None:
    with running_controller(ping_ms=60_000, max_subscriptions=50) as running, Peers() as peers:
        raw = RawPeers(running, peers)
        subscriber = raw.connect("xsub", "client", channel)
        for number in range(51):
            subscriber.send([b"\x01%d" % number])
        running.wait_until(lambda: running.counters.get("too_many_subscriptions"))
        other_subscriber = raw.connect("sub", "client", "notification")
        running.wait_until(lambda: running.subscribers("notification"))
        raw.join()
        assert other_subscriber.receive(TIMEOUT_S) is not None


@pytest.mark.parametrize("channel", ["task", "registration", "mux", "broadcast", "control"])
def test_r25_connection_that_sends_malformed_messages_is_reset(channel: str) -> None:
    with running_controller(ping_ms=60_000) as running, Peers() as peers:
        raw = RawPeers(running, peers)
        raw.join()
        sender = raw.connect("dealer", "client", channel)
        for _ in range(1000):
            sender.send([b"malformed"])
        running.wait_until(lambda: running.counters.get("too_many_rejected"))
        raw.run_task()
        assert raw.uuid in raw.ask("connection_request", {})["engines"].values()


def test_r25_unsigned_output_is_not_relayed() -> None:
    with running_controller(ping_ms=60_000) as running, Peers() as peers:
        raw = RawPeers(running, peers)
        listener, wrong_key_peer = raw.connect("sub", "client", "iopub"), raw.connect("pub", "engine", "iopub")
        engine = raw.connect("pub", "engine", "iopub")
        while listener.receive(QUIET_S) is None:
            engine.send([b"topic", *raw.codec.message("stream", {"name": "stdout", "text": "x"})])
        while not (running.wait_until_idle().get("unsigned") and running.counters.get("malformed")):
            wrong_key_peer.send([b"topic", *Codec(b"").message("stream", {"name": "stdout", "text": "false"})])
            wrong_key_peer.send([b"garbage"])
        while (message := listener.receive(QUIET_S)) is not None:
            assert b"false" not in b"".join(message)


def test_output_without_a_key_is_readable_for_clients() -> None:
    with running_controller(1, key="") as running, Peers() as peers, client(running, 1) as connected:
        raw = RawPeers(running, peers)
        wrong_key_peer = raw.connect("pub", "engine", "iopub")
        codec = Codec(b"")
        while running.wait_until_idle().get("malformed", 0) < 3:
            wrong_key_peer.send([b"garbage"])
            wrong_key_peer.send([b"topic", *codec.message("stream", {"name": "stdout"})])
            wrong_key_peer.send(
                [b"topic", *codec.message("stream", {}, header={"msg_id": "1", "msg_type": "x", "session": "s"})]
            )
        result = connected[0].apply_async(print, "readable")
        result.get(TIMEOUT_S)
        assert result.wait_for_output(TIMEOUT_S)
        assert result.stdout == "readable\n"
