"""Raw engines and clients: registration, heartbeats, and the end of both."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import trio

from tests.ipyparallel.controller_fixture import TIMEOUT_S, RawPeers, running_controller
from tests.zmq_peers import Peers
from trio_sched.cli.admin_client import AdminClient
from trio_sched.core.events import EngineJoined
from trio_sched.wire.jupyter import split


@pytest.fixture
def raw() -> Iterator[RawPeers]:
    with running_controller(ping_ms=60_000) as running, Peers() as peers:
        yield RawPeers(running, peers)


def test_engine_joins_before_the_next_period(raw: RawPeers) -> None:
    """The next period would begin a minute later."""
    started = time.monotonic()
    raw.join()
    assert time.monotonic() - started < TIMEOUT_S / 2
    raw.run_task()


def test_r1_repeated_id_is_accepted_from_its_session_only(raw: RawPeers) -> None:
    raw.join()
    other = raw.connect("dealer", "client", "task")
    header = raw.codec.header("apply_request")
    raw.tasks.send(raw.codec.message("apply_request", {}, header=header))
    request = raw.engine.receive(TIMEOUT_S)
    assert request is not None
    other.send(raw.codec.message("apply_request", {"again": True}, header=header))
    other.send(raw.codec.message("apply_request", {}, header={**header, "session": "another"}))
    refusal = other.receive(TIMEOUT_S)
    assert refusal is not None
    assert split(refusal).content["ename"] == "SubmissionRefused"
    reply = raw.codec.message("apply_reply", {"status": "ok"}, parent=request[3], metadata={"status": "ok"})
    raw.engine.send([request[0], *reply])
    for _ in range(2):  # to the connection that submitted it last
        answer = other.receive(TIMEOUT_S)
        assert answer is not None
        assert split(answer).content == {"status": "ok"}


def test_r20_reply_after_unregistration_is_delivered(raw: RawPeers) -> None:
    """The engine unregisters while it has a task, and replies after that."""
    raw.join()
    raw.tasks.send(raw.codec.message("apply_request", {}))
    request = raw.engine.receive(TIMEOUT_S)
    assert request is not None
    raw.registration.send(raw.codec.message("unregistration_request", {"id": 0}))
    while raw.ask("connection_request", {})["engines"]:
        pass
    reply = raw.codec.message("apply_reply", {"status": "ok"}, parent=request[3], metadata={"status": "ok"})
    raw.engine.send([request[0], *reply])
    answer = raw.tasks.receive(TIMEOUT_S)
    assert answer is not None
    assert split(answer).content == {"status": "ok"}


def test_engine_without_heartbeats_is_removed() -> None:
    with running_controller(ping_ms=50, missed_pings=2) as running, Peers() as peers:
        raw = RawPeers(running, peers)
        notified = raw.connect("sub", "client", "notification")
        raw.join()
        while (notification := notified.receive(TIMEOUT_S)) and notification[0] != b"unregistration_notification":
            pass
        assert notification is not None
        assert split(notification).content == {"id": 0, "uuid": raw.uuid}
        assert raw.ask("connection_request", {})["engines"] == {}


def test_engine_that_answers_pings_stays_registered() -> None:
    with running_controller(ping_ms=50, missed_pings=5) as running, Peers() as peers:
        raw = RawPeers(running, peers)
        raw.join()
        for _ in range(20):
            ping = raw.ping.receive(TIMEOUT_S)
            assert ping is not None
            raw.pong.send([ping[0]])
        raw.run_task()


def test_registration_without_heartbeat_is_given_up() -> None:
    with running_controller(ping_ms=20, registration_timeout_s=0.05) as running, Peers() as peers:
        raw = RawPeers(running, peers)
        assert raw.ask("registration_request", {"uuid": raw.uuid, "id": 5})["id"] == 5
        while not running.call(lambda: running.counters.get("registration_stalled")):
            pass
        assert raw.ask("registration_request", {"uuid": raw.uuid, "id": 5})["id"] == 5
        assert raw.ask("registration_request", {"uuid": "another", "id": 5})["id"] == 6
        assert raw.ask("connection_request", {})["engines"] == {}


def test_idle_client_is_forgotten_and_can_submit_again(raw: RawPeers) -> None:
    raw.join()
    raw.run_task()
    running = raw.running
    queue = running.front.queue
    assert queue is not None
    scheduler = running.running.server.scheduler
    assert len(scheduler.clients) == 1
    running.call(lambda: queue.forget_clients(trio.current_time() + 1))
    while running.call(lambda: len(scheduler.clients)):
        pass
    raw.run_task()
    assert len(scheduler.clients) == 1


def test_r22_delivered_results_are_dropped(raw: RawPeers) -> None:
    raw.join()
    completed = raw.running.running.server.scheduler.completed
    for _ in range(200):
        raw.run_task()
    kept = raw.running.call(lambda: sum(ended.result is not None for _, ended in completed.items()))
    assert kept <= 64 + 1


def test_status_counts_tasks_of_this_front(raw: RawPeers) -> None:
    raw.join()
    for _ in range(2):
        raw.tasks.send(raw.codec.message("apply_request", {}))
    assert raw.engine.receive(TIMEOUT_S) is not None
    status = raw.running.call(raw.running.running.status)
    assert status["tasks"]["assigned"] == 1


def test_engine_whose_task_socket_connects_late_gets_its_task(raw: RawPeers) -> None:
    """Its first heartbeat comes before that."""
    assert raw.ask("registration_request", {"uuid": raw.uuid})["status"] == "ok"
    ping, pong = raw.connect("sub", "engine", "hb_ping"), raw.connect("dealer", "engine", "hb_pong", raw.uuid)
    first_ping = ping.receive(TIMEOUT_S)
    assert first_ping is not None
    pong.send([first_ping[0]])
    while raw.uuid not in raw.ask("connection_request", {})["engines"].values():
        pass
    raw.tasks.send(raw.codec.message("apply_request", {}))
    while raw.running.call(raw.running.running.status)["tasks"]["assigned"] != 1:
        pass
    raw.engine = raw.connect("dealer", "engine", "task", raw.uuid)
    assert raw.engine.receive(TIMEOUT_S) is not None


def test_explain_names_the_missing_kind() -> None:
    """`trio-sched explain` with native engines only."""
    with running_controller(native=True) as running, Peers() as peers:
        raw = RawPeers(running, peers)
        running.call(running.running.server.inbox.add_notifications, [EngineJoined(5)])
        header = raw.codec.header("apply_request")
        raw.tasks.send(raw.codec.message("apply_request", {}, header=header))
        running.wait_until_idle()
        directory = f"{running.config.profile_dir}/run"
        with AdminClient(f"{directory}/default-client.json") as scheduler:
            assert scheduler.query("explain", header["msg_id"]) == "no engine has a kind of 'ipyparallel'"


def test_r17_engine_that_registers_again_has_lost_its_former_tasks(raw: RawPeers) -> None:
    """Its former tasks fail at once, without a grace period."""
    raw.join()
    raw.tasks.send(raw.codec.message("apply_request", {}))
    assert raw.engine.receive(TIMEOUT_S) is not None
    raw.registration.send(raw.codec.message("unregistration_request", {"id": 0}))
    while raw.ask("connection_request", {})["engines"]:
        pass
    for socket in (raw.engine, raw.pong, raw.ping):
        socket.close()
    raw.running.wait_until_disconnected("engine task", "engine hb_pong")
    raw.join()
    lost = raw.tasks.receive(TIMEOUT_S)
    assert lost is not None
    assert split(lost).content["ename"] == "EngineError"
    raw.run_task()
