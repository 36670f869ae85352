"""Bare engines and clients against the front: who comes and who goes, and when."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import trio

from tests.ipyparallel.stand import PATIENCE_S, Raw, stand
from trio_sched.cli.asking import Conversation
from trio_sched.core.events import EngineJoined
from trio_sched.transport.zmq_peer import Peers
from trio_sched.wire.jupyter import split


@pytest.fixture
def raw() -> Iterator[Raw]:
    with stand(ping_ms=60_000) as running, Peers() as peers:
        yield Raw(running, peers)


def test_an_engine_joins_at_once(raw: Raw) -> None:
    """It need not wait for the next beat, which here would be a minute away."""
    started = time.monotonic()
    raw.join()
    assert time.monotonic() - started < PATIENCE_S / 2
    raw.run_a_task()


def test_one_session_sends_an_id_again_and_another_may_not(raw: Raw) -> None:
    raw.join()
    other = raw.connect("dealer", "client", "task")
    header = raw.codec.header("apply_request")
    raw.tasks.send(raw.codec.message("apply_request", {}, header=header))
    request = raw.engine.receive(PATIENCE_S)
    assert request is not None
    other.send(raw.codec.message("apply_request", {"again": True}, header=header))
    other.send(raw.codec.message("apply_request", {}, header={**header, "session": "another"}))
    refusal = other.receive(PATIENCE_S)
    assert refusal is not None
    assert split(refusal).content["ename"] == "SubmissionRefused"
    said = raw.codec.message("apply_reply", {"status": "ok"}, parent=request[3], metadata={"status": "ok"})
    raw.engine.send([request[0], *said])
    for _ in range(2):  # to where it was sent last
        answer = other.receive(PATIENCE_S)
        assert answer is not None
        assert split(answer).content == {"status": "ok"}


def test_a_reply_that_comes_late_is_not_lost_with_an_engine(raw: Raw) -> None:
    """R20: it unregisters with a task, and the result comes after that."""
    raw.join()
    raw.tasks.send(raw.codec.message("apply_request", {}))
    request = raw.engine.receive(PATIENCE_S)
    assert request is not None
    raw.registration.send(raw.codec.message("unregistration_request", {"id": 0}))
    while raw.ask("connection_request", {})["engines"]:
        pass
    said = raw.codec.message("apply_reply", {"status": "ok"}, parent=request[3], metadata={"status": "ok"})
    raw.engine.send([request[0], *said])
    answer = raw.tasks.receive(PATIENCE_S)
    assert answer is not None
    assert split(answer).content == {"status": "ok"}


def test_an_engine_whose_heart_stops_is_gone() -> None:
    with stand(ping_ms=50, missed_pings=2) as running, Peers() as peers:
        raw = Raw(running, peers)
        notified = raw.connect("sub", "client", "notification")
        raw.join()
        while (news := notified.receive(PATIENCE_S)) and news[0] != b"unregistration_notification":
            pass
        assert news is not None
        assert split(news).content == {"id": 0, "uuid": raw.uuid}
        assert raw.ask("connection_request", {})["engines"] == {}


def test_an_engine_that_answers_pings_stays() -> None:
    with stand(ping_ms=50, missed_pings=5) as running, Peers() as peers:
        raw = Raw(running, peers)
        raw.join()
        for _ in range(20):
            ping = raw.ping.receive(PATIENCE_S)
            assert ping is not None
            raw.pong.send([ping[0]])
        raw.run_a_task()


def test_a_registration_without_a_heart_is_forgotten() -> None:
    with stand(ping_ms=20, registration_timeout_s=0.05) as running, Peers() as peers:
        raw = Raw(running, peers)
        assert raw.ask("registration_request", {"uuid": raw.uuid, "id": 5})["id"] == 5
        while not running.call(lambda: running.counters.get("registration_stalled")):
            pass
        assert raw.ask("registration_request", {"uuid": raw.uuid, "id": 5})["id"] == 5
        assert raw.ask("registration_request", {"uuid": "another", "id": 5})["id"] == 6
        assert raw.ask("connection_request", {})["engines"] == {}


def test_an_idle_client_is_forgotten_and_may_come_back(raw: Raw) -> None:
    raw.join()
    raw.run_a_task()
    running = raw.running
    queue = running.running.server.hub.effect_handler
    scheduler = running.running.server.scheduler
    assert len(scheduler.clients) == 1
    running.call(lambda: queue.forget_clients(trio.current_time() + 1))  # type: ignore[attr-defined]
    while running.call(lambda: len(scheduler.clients)):
        pass
    raw.run_a_task()
    assert len(scheduler.clients) == 1


def test_results_are_let_go_of(raw: Raw) -> None:
    raw.join()
    archive = raw.running.running.server.scheduler.archive
    for _ in range(200):
        raw.run_a_task()
    kept = raw.running.call(lambda: sum(ended.result is not None for _, ended in archive.items()))
    assert kept <= 64 + 1


def test_the_server_can_tell_of_foreign_tasks(raw: Raw) -> None:
    raw.join()
    for _ in range(2):
        raw.tasks.send(raw.codec.message("apply_request", {}))
    assert raw.engine.receive(PATIENCE_S) is not None
    status = raw.running.call(raw.running.running.status)
    assert status["tasks"]["assigned"] == 1


def test_an_engine_whose_task_socket_connects_late_misses_nothing(raw: Raw) -> None:
    """Its heart beats before."""
    assert raw.ask("registration_request", {"uuid": raw.uuid})["status"] == "ok"
    ping, pong = raw.connect("sub", "engine", "hb_ping"), raw.connect("dealer", "engine", "hb_pong", raw.uuid)
    beat = ping.receive(PATIENCE_S)
    assert beat is not None
    pong.send([beat[0]])
    while raw.uuid not in raw.ask("connection_request", {})["engines"].values():
        pass
    raw.tasks.send(raw.codec.message("apply_request", {}))
    while raw.running.call(raw.running.running.status)["tasks"]["assigned"] != 1:
        pass
    raw.engine = raw.connect("dealer", "engine", "task", raw.uuid)
    assert raw.engine.receive(PATIENCE_S) is not None


def test_an_operator_may_ask_why_a_task_waits() -> None:
    """`trio-sched explain` on a scheduler that has native engines only."""
    with stand(native=True) as running, Peers() as peers:
        raw = Raw(running, peers)
        running.call(running.running.server.inbox.add_notifications, [EngineJoined(5)])
        header = raw.codec.header("apply_request")
        raw.tasks.send(raw.codec.message("apply_request", {}, header=header))
        running.settle()
        directory = f"{running.config.profile_dir}/run"
        with Conversation(f"{directory}/default-client.json") as scheduler:
            assert scheduler.query("explain", header["msg_id"]) == "no engine has a kind of 'ipyparallel'"


def test_r17_an_engine_that_registers_anew_under_its_old_name(raw: Raw) -> None:
    """What it had is lost with its former self, at once."""
    raw.join()
    raw.tasks.send(raw.codec.message("apply_request", {}))
    assert raw.engine.receive(PATIENCE_S) is not None
    raw.registration.send(raw.codec.message("unregistration_request", {"id": 0}))
    while raw.ask("connection_request", {})["engines"]:
        pass
    for socket in (raw.engine, raw.pong, raw.ping):
        socket.close()
    raw.running.until_disconnected("engine task", "engine hb_pong")
    raw.join()
    lost = raw.tasks.receive(PATIENCE_S)
    assert lost is not None
    assert split(lost).content["ename"] == "EngineError"
    raw.run_a_task()
