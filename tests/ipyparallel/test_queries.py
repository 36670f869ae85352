"""Answers to the requests of clients, without sockets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ipyparallel.messages import CODEC, reply, request
from trio_sched.ipyparallel.dask import DaskScheduler
from trio_sched.ipyparallel.queries import Answer, RecordQueries
from trio_sched.ipyparallel.records.memory import MemoryStore
from trio_sched.ipyparallel.records.recorder import NullRecorder, TaskRecorder
from trio_sched.ipyparallel.records.sqlite import SQLiteStore
from trio_sched.wire.jupyter import JupyterMessage

ENGINES = {0: "e0", 3: "e3"}


class QueryHarness:
    """Sends requests to `RecordQueries`, and keeps their effects."""

    def __init__(self, recorder: TaskRecorder) -> None:
        self.recorder = recorder
        self.submitted: list[JupyterMessage] = []
        self.stopped = 0
        self.tasks: dict[str, str | None] = {}
        self.dask = DaskScheduler("127.0.0.1")
        self.queries = RecordQueries(
            CODEC, recorder, lambda: ENGINES, self._submit, self._stop, self.dask, lambda: self.tasks
        )

    def _submit(self, message: JupyterMessage) -> None:
        CODEC.verify(message)
        self.submitted.append(message)
        self.recorder.submitted("task", message, message.head.session)

    def _stop(self) -> None:
        self.stopped += 1

    def ask(self, msg_type: str, **content: Any) -> Answer:
        return self.queries.answer(request("q", msg_type=f"{msg_type}_request", content=content))

    def fails(self, msg_type: str, **content: Any) -> tuple[str, str]:
        answer = self.ask(msg_type, **content)
        assert answer.content["status"] == "error"
        assert isinstance(answer.content["traceback"], list)
        return answer.msg_type, answer.content["ename"]

    def run(self, msg_id: str, engine: str = "e0", **kwargs: Any) -> None:
        """Record a task from submission to result."""
        self.recorder.submitted("task", request(msg_id, **kwargs), "alice")
        self.recorder.assigned(engine, msg_id)
        self.recorder.finished("task", reply(msg_id, buffers=(f"result of {msg_id}".encode(),)), engine)


@pytest.fixture(params=["memory", "sqlite"])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QueryHarness]:
    store = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "tasks.db")
    yield QueryHarness(TaskRecorder(store))
    store.close()


@pytest.fixture
def harness_without_records() -> QueryHarness:
    return QueryHarness(NullRecorder())


def test_connection_request_lists_engines(harness: QueryHarness) -> None:
    assert harness.ask("connection").content == {"status": "ok", "engines": {"0": "e0", "3": "e3"}}


def test_queue_request_counts_and_names_tasks(harness: QueryHarness) -> None:
    harness.run("t1")
    harness.run("t2", "e3")
    harness.recorder.submitted("task", request("t3"), "alice")
    harness.recorder.submitted("task", request("t4"), "alice")
    harness.recorder.assigned("e3", "t4")
    harness.recorder.submitted("mux", request("d1"), "alice", "e0")
    assert harness.ask("queue", targets=None).content == {
        "status": "ok",
        "0": {"queue": 1, "completed": 1, "tasks": 0},
        "3": {"queue": 0, "completed": 1, "tasks": 1},
        "unassigned": 1,
    }
    assert harness.ask("queue", targets=[0, "e3"], verbose=True).content == {
        "status": "ok",
        "0": {"queue": ["d1"], "completed": ["t1"], "tasks": []},
        "3": {"queue": [], "completed": ["t2"], "tasks": ["t4"]},
        "unassigned": ["t3"],
    }
    assert harness.ask("load", targets=3).content == {"status": "ok", "3": 1}


@pytest.mark.parametrize("targets", [[7], [0, "nobody"], "nobody", [], [None], [0.5]])
def test_unknown_engines_are_an_error(harness: QueryHarness, targets: Any) -> None:
    assert harness.fails("queue", targets=targets) == ("hub_error", "IndexError")
    assert harness.fails("load", targets=targets) == ("hub_error", "IndexError")


def test_results_have_buffers_in_the_order_of_ids(harness: QueryHarness) -> None:
    for msg_id in ("b", "a", "c"):
        harness.run(msg_id)
    harness.recorder.output(reply("a", msg_type="stream", content={"name": "stdout", "text": "said"}))
    harness.recorder.submitted("task", request("p"), "alice")
    answer = harness.ask("result", msg_ids=["c", "a", "p", "a"])
    assert answer.msg_type == "result_reply"
    assert answer.content["pending"] == ["p"]
    assert answer.content["completed"] == ["a", "c"]
    assert list(map(bytes, answer.buffers)) == [b"result of a", b"result of c"]
    record = answer.content["a"]
    assert record["header"]["msg_id"] == "a"
    assert record["result_header"]["msg_type"] == "apply_reply"
    assert record["result_content"] == {"status": "ok"}
    assert record["io"] == {
        "execute_input": None,
        "execute_result": None,
        "error": None,
        "stdout": "said",
        "stderr": "",
    }


def test_status_only_omits_results(harness: QueryHarness) -> None:
    harness.run("a")
    answer = harness.ask("result", msg_ids=["a"], status_only=True)
    assert answer.content == {"status": "ok", "pending": [], "completed": ["a"]}
    assert not answer.buffers


def test_unknown_results_are_an_error(harness: QueryHarness) -> None:
    harness.run("a")
    assert harness.fails("result", msg_ids=["a", "b"]) == ("result_reply", "KeyError")
    assert harness.fails("result", msg_ids="a") == ("result_reply", "TypeError")
    assert harness.fails("result") == ("result_reply", "TypeError")


def test_history_is_in_the_order_of_submission(harness: QueryHarness) -> None:
    harness.run("a", date="2026-03-02T12:00:00Z")
    harness.run("b", date="2026-03-01T12:00:00Z")
    assert harness.ask("history").content == {"status": "ok", "history": ["b", "a"]}


def test_db_query_returns_fields_and_buffers(harness: QueryHarness) -> None:
    harness.run("a", buffers=(b"1", b"2"))
    harness.run("b", buffers=(b"3",))
    harness.recorder.submitted("task", request("c"), "alice")
    answer = harness.ask("db", query={"completed": {"$ne": None}}, keys=["buffers", "completed", "result_buffers"])
    assert answer.msg_type == "db_reply"
    assert answer.content["records"] == [
        {"msg_id": "a", "completed": "2026-03-01T12:00:05.000000Z"},
        {"msg_id": "b", "completed": "2026-03-01T12:00:05.000000Z"},
    ]
    assert answer.content["buffer_lens"] == [2, 1]
    assert answer.content["result_buffer_lens"] == [1, 1]
    # clients expect all buffers of a record before those of the next
    assert list(map(bytes, answer.buffers)) == [b"1", b"2", b"result of a", b"3", b"result of b"]


def test_db_query_of_all_fields_omits_buffers(harness: QueryHarness) -> None:
    harness.run("a", buffers=(b"1",))
    answer = harness.ask("db", query={"msg_id": "a"}, keys=None)
    (record,) = answer.content["records"]
    assert not {"buffers", "result_buffers"} & set(record)
    assert {"header", "metadata", "content", "submitted", "stdout", "label", "queue"} < set(record)
    assert answer.content["buffer_lens"] is answer.content["result_buffer_lens"] is None
    assert not answer.buffers
    assert set(harness.ask("db", query={"msg_id": "a"}, keys="label").content["records"][0]) == {"msg_id", "label"}


@pytest.mark.parametrize(
    ("content", "ename"),
    [
        ({"query": {"label": {"$like": 5}}}, "ValueError"),
        ({"query": ["label"]}, "ValueError"),
        ({"query": {}, "keys": ["color"]}, "KeyError"),
        ({"query": {}, "keys": 5}, "TypeError"),
    ],
)
def test_malformed_db_query_is_an_error(harness: QueryHarness, content: dict[str, Any], ename: str) -> None:
    harness.run("a")
    assert harness.fails("db", **content) == ("db_reply", ename)


def test_purge_forgets_ended_tasks_only(harness: QueryHarness) -> None:
    harness.run("a")
    harness.run("b", "e3")
    harness.run("c", "e3")
    harness.recorder.submitted("task", request("p"), "alice")
    assert harness.fails("purge", msg_ids=["a", "p"]) == ("purge_reply", "IndexError")
    assert harness.fails("purge", engine_ids=[3, 9]) == ("purge_reply", "IndexError")
    assert harness.ask("history").content["history"] == ["a", "b", "c", "p"]
    assert harness.ask("purge", msg_ids=["a", "unknown"], engine_ids=[3]).content == {"status": "ok"}
    assert harness.ask("history").content["history"] == ["p"]
    harness.run("d")
    harness.ask("purge", msg_ids="all")
    assert harness.ask("history").content["history"] == ["p"]


def test_resubmission_is_a_new_task_of_the_same_content(harness: QueryHarness) -> None:
    harness.run("a", content={"x": 1}, buffers=(b"call",), metadata={"label": "fit", "after": ["gone"], "retries": 2})
    answer = harness.ask("resubmit", msg_ids=["a"])
    new = answer.content["resubmitted"]["a"]
    assert new != "a"
    (message,) = harness.submitted
    assert message.head.msg_id == new
    assert message.head.session == "alice"
    assert message.metadata == {"label": "fit", "retries": 2}
    assert message.content == {"x": 1}
    assert list(map(bytes, message.buffers)) == [b"call"]
    assert message.identities == []
    (old,) = harness.ask("db", query={"msg_id": "a"}).content["records"]
    assert old["resubmitted"] == new
    assert harness.ask("result", msg_ids=[new]).content["pending"] == [new]
    harness.recorder.finished("task", reply(new, buffers=(b"again",)), "e0")
    again = harness.ask("result", msg_ids=[new])
    assert again.content["completed"] == [new]
    assert list(map(bytes, again.buffers)) == [b"again"]
    (record,) = harness.ask("db", query={"msg_id": new}).content["records"]
    assert {**record["header"], "msg_id": "", "date": ""} == {**old["header"], "msg_id": "", "date": ""}


def test_resubmission_of_an_unknown_task_is_an_error(harness: QueryHarness) -> None:
    harness.run("a")
    assert harness.fails("resubmit", msg_ids=["a", "b"]) == ("resubmit_reply", "KeyError")
    assert not harness.submitted


def test_shutdown_follows_its_reply(harness: QueryHarness) -> None:
    answer = harness.ask("shutdown")
    assert (answer.msg_type, answer.content) == ("shutdown_reply", {"status": "ok"})
    assert not harness.stopped
    assert answer.after_sending is not None
    answer.after_sending()
    assert harness.stopped == 1


def test_dask_requests_are_answered_later(harness: QueryHarness) -> None:
    assert harness.fails("become_dask", scheduler_args=[1]) == ("become_dask_reply", "TypeError")
    for question in ("become_dask", "stop_distributed"):
        answer = harness.ask(question)
        assert answer.msg_type == f"{question}_reply"
        assert answer.pending_content is not None


def test_unknown_and_malformed_requests_are_errors(harness: QueryHarness) -> None:
    assert harness.fails("tea") == ("hub_error", "KeyError")
    message = request("q", msg_type="db_request")
    message.frames[4] = b"not json"
    assert harness.queries.answer(message).content["ename"] == "WireError"


def test_without_records_unfinished_tasks_are_known(harness_without_records: QueryHarness) -> None:
    harness_without_records.tasks = {"t1": None, "t2": "e3", "t3": "gone"}
    assert harness_without_records.ask("queue", targets=None, verbose=True).content == {
        "status": "ok",
        "0": {"queue": [], "completed": [], "tasks": []},
        "3": {"queue": [], "completed": [], "tasks": ["t2"]},
        "unassigned": ["t1", "t3"],
    }
    assert harness_without_records.ask("load", targets=None).content == {"status": "ok", "0": 0, "3": 1}
    for question in ("history", "db"):
        assert harness_without_records.fails(question) == (f"{question}_reply", "NoData")
    for question in ("result", "resubmit"):
        assert harness_without_records.fails(question, msg_ids=["a"]) == (f"{question}_reply", "NoData")
    assert harness_without_records.ask("purge", msg_ids="all").content == {"status": "ok"}
