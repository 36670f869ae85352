"""Records read by real clients: results of other clients, queries, output, resubmission, purging."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.ipyparallel.controller_fixture import TIMEOUT_S, RunningController, client, running_controller

ipp = pytest.importorskip("ipyparallel")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module", params=["dictdb", "sqlitedb"])
def controller(request: pytest.FixtureRequest) -> Iterator[RunningController]:
    with running_controller(1, ping_ms=500, database=request.param) as running:
        yield running


@pytest.fixture
def rc(controller: RunningController) -> Iterator[Any]:
    with client(controller, 1) as connected:
        yield connected


def wait_until(condition: Callable[[], Any]) -> Any:
    """Wait until the condition returns a true value. Returns that value."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (value := condition()):
        assert time.monotonic() < deadline
    return value


def print_to_both() -> int:
    import sys

    print("out and")
    print("oh", file=sys.stderr)
    return os.getpid()


def test_record_of_a_task_is_complete(rc: Any) -> None:
    view = rc.load_balanced_view()
    with view.temp_flags(label="talker"):
        result = view.apply(print_to_both)
    pid = result.get(TIMEOUT_S)
    (msg_id,) = result.msg_ids
    record = wait_until(lambda: rc.db_query({"msg_id": msg_id, "stdout": {"$ne": ""}, "stderr": {"$ne": ""}}))[0]
    assert (record["stdout"], record["stderr"]) == ("out and\n", "oh\n")
    assert record["queue"] == "task"
    assert record["label"] == "talker"
    assert record["client_uuid"] == rc.session.session
    assert record["engine_uuid"] in rc._engines.values()
    assert record["result_content"]["status"] == "ok"
    assert record["submitted"] <= record["started"] <= record["completed"] <= record["received"]
    now = datetime.now(UTC)
    assert now - record["submitted"] < timedelta(seconds=TIMEOUT_S)
    assert rc.db_query({"label": {"$glob": "talk*"}, "completed": {"$gt": now - timedelta(hours=1)}}, "label")
    assert not rc.db_query({"label": {"$glob": "talk*"}, "completed": {"$gt": now + timedelta(hours=1)}})
    (buffers,) = rc.db_query({"msg_id": msg_id}, keys=["buffers", "result_buffers"])
    assert buffers["buffers"]
    assert ipp.serialize.deserialize_object(buffers["result_buffers"])[0] == pid


def test_another_client_gets_result_and_output(controller: RunningController, rc: Any) -> None:
    result = rc[0].apply_async(print_to_both)
    pid = result.get(TIMEOUT_S)
    wait_until(lambda: rc.db_query({"msg_id": result.msg_ids[0], "stdout": {"$ne": ""}}, "stdout"))
    with client(controller, 1) as other:
        again = other.get_result(result.msg_ids[0])
        assert again.get(TIMEOUT_S) == pid
        assert again.stdout == "out and\n"


def test_output_of_execute_is_recorded(rc: Any) -> None:
    result = rc[0].execute("print('hi'); 6*7", silent=False)
    result.get(TIMEOUT_S)
    (msg_id,) = result.msg_ids
    record = wait_until(lambda: rc.db_query({"msg_id": msg_id, "execute_result": {"$exists": True}}))[0]
    assert record["execute_input"] == "print('hi'); 6*7"
    assert record["execute_result"]["data"]["text/plain"] == "42"
    assert wait_until(lambda: rc.db_query({"msg_id": msg_id, "stdout": "hi\n"}))
    assert record["queue"] == "mux"


def test_errors_and_pending_tasks_are_recorded(rc: Any) -> None:
    view = rc.load_balanced_view()
    failed = view.apply(lambda: 1 / 0)
    with pytest.raises(ipp.RemoteError):
        failed.get(TIMEOUT_S)
    (record,) = rc.db_query({"msg_id": failed.msg_ids[0]})
    assert record["result_content"]["ename"] == "ZeroDivisionError"
    sleeper = view.apply(time.sleep, 0.5)
    (record,) = wait_until(lambda: rc.db_query({"completed": None, "queue": "task"}))
    assert record["msg_id"] == sleeper.msg_ids[0]
    status = rc.queue_status(verbose=True)
    assert status[0]["tasks"] + status["unassigned"] == sleeper.msg_ids
    with pytest.raises(ipp.RemoteError, match="pending"):
        rc.purge_hub_results(sleeper.msg_ids)
    sleeper.get(TIMEOUT_S)


def test_control_messages_have_no_record(rc: Any) -> None:
    before = rc.hub_history(), rc.queue_status()
    rc.abort(["nothing"], block=True)
    rc.clear(block=True)
    assert (rc.hub_history(), rc.queue_status()) == before


def test_resubmitted_task_runs_again(rc: Any) -> None:
    view = rc.load_balanced_view()
    result = view.apply(os.urandom, 8)
    first = result.get(TIMEOUT_S)
    again = rc.resubmit(result.msg_ids)
    (second,) = again.get(TIMEOUT_S)
    assert len(second) == 8
    assert second != first
    (old,) = rc.db_query({"msg_id": result.msg_ids[0]}, "resubmitted")
    assert old["resubmitted"] == again.msg_ids[0]


def test_purged_tasks_leave_the_history(rc: Any) -> None:
    results = [rc[0].apply_async(int) for _ in range(3)]
    for result in results:
        result.get(TIMEOUT_S)
    ids = [result.msg_ids[0] for result in results]
    assert rc.hub_history()[-3:] == ids
    rc.purge_hub_results(ids[0])
    assert rc.hub_history()[-2:] == ids[1:]
    rc.purge_hub_results("all")
    assert rc.hub_history() == []
    with pytest.raises(ipp.RemoteError) as caught:
        rc.resubmit(ids)
    assert caught.value.ename == "KeyError"
    with pytest.raises(ipp.RemoteError, match="there is no operator"):
        rc.db_query({"label": {"$like": "x"}})


def test_sqlite_keeps_records_of_the_last_run() -> None:
    with running_controller(1, ping_ms=500, database="sqlitedb") as running:
        profile = running.config.profile_dir
        with client(running, 1) as rc:
            result = rc.load_balanced_view().apply(pow, 2, 10)
            assert result.get(TIMEOUT_S) == 1024
        running.close()
        again = RunningController(running.config)
        try:
            assert again.config.profile_dir == profile
            with client(again) as rc:
                assert rc.hub_history() == result.msg_ids
                assert rc.get_result(result.msg_ids).get(TIMEOUT_S) == [1024]
        finally:
            again.close()
