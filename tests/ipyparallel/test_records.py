"""Records: equal in each store, bounded in memory, persistent in SQLite; and the query language."""

from __future__ import annotations

import fnmatch
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.ipyparallel.messages import reply, request
from trio_sched.errors import ConfigError
from trio_sched.ipyparallel.config import IppConfig
from trio_sched.ipyparallel.records.memory import MemoryStore
from trio_sched.ipyparallel.records.query import InvalidQueryError, RecordQuery
from trio_sched.ipyparallel.records.record import FIELDS, Record, as_dict, utc
from trio_sched.ipyparallel.records.recorder import NullRecorder, TaskRecorder, open_recorder
from trio_sched.ipyparallel.records.sqlite import DIRTY_LIMIT, LARGE_BYTES, PAGE, SQLiteStore
from trio_sched.ipyparallel.records.store import NoRecordsError, NoStore, Store


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    store: Store = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "tasks.db")
    yield store
    store.close()


def found(store: Store, query: dict[str, Any]) -> list[str]:
    return [record.msg_id for record in store.find(RecordQuery(query))]


def fill(store: Store, number: int = 8) -> list[str]:
    ids = [f"t{i}" for i in range(number)]
    for i, msg_id in enumerate(ids):
        store.add(Record(msg_id, submitted=f"2026-01-01T00:00:{i:02}.000000Z", label=f"fit/{i % 2}", queue="task"))
    return ids


def whole(store: Store, msg_id: str) -> dict[str, Any]:
    (record,) = store.find(RecordQuery({"msg_id": msg_id}))
    return as_dict(record)


# ---- stores ---------------------------------------------------------------------------------------------------------


def test_record_of_a_task_from_submission_to_result(store: Store) -> None:
    recorder = TaskRecorder(store)
    recorder.submitted(
        "task",
        request("t", metadata={"label": "fit", "retries": 1}, content={"a": 1}, buffers=(b"in", b"more")),
        "alice",
    )
    assert recorder.unassigned() == ["t"]
    before = whole(store, "t")
    assert set(before) == set(FIELDS)
    assert before["completed"] is None
    assert before["result_header"] is None
    assert before["stdout"] == ""
    recorder.assigned("e-uuid", "t")
    assert recorder.engines["e-uuid"].outstanding == {"t": "task"}
    recorder.output(reply("t", msg_type="stream", content={"name": "stdout", "text": "hello "}))
    recorder.output(reply("t", msg_type="stream", content={"name": "stdout", "text": "there"}))
    recorder.output(reply("t", msg_type="stream", content={"name": "stderr", "text": "oh"}))
    recorder.output(reply("t", msg_type="display_data", content={"data": {"text/plain": "1"}}))
    recorder.output(reply("t", msg_type="status", content={"execution_state": "idle"}))
    recorder.finished("task", reply("t", buffers=(b"out",)), "e-uuid")
    record = whole(store, "t")
    expected = {
        "msg_id": "t",
        "queue": "task",
        "client_uuid": "alice",
        "engine_uuid": "e-uuid",
        "submitted": "2026-03-01T12:00:00.000000Z",
        "started": "2026-03-01T12:00:04.000000Z",
        "completed": "2026-03-01T12:00:05.000000Z",
        "resubmitted": None,
        "metadata": {"label": "fit", "retries": 1},
        "content": {"a": 1},
        "result_content": {"status": "ok"},
        "buffers": [b"in", b"more"],
        "result_buffers": [b"out"],
        "stdout": "hello there",
        "stderr": "oh",
        "display_data": {"data": {"text/plain": "1"}},
        "execute_result": None,
        "label": "fit",
    }
    assert {name: record[name] for name in expected} == expected
    assert record["header"]["msg_id"] == "t"
    assert record["result_header"]["msg_id"] == "re-t"
    assert record["received"] > "2026"
    assert not recorder.pending
    assert recorder.engines["e-uuid"].completed_count == 1
    assert list(recorder.engines["e-uuid"].completed) == ["t"]


def test_aborted_tasks_are_not_completed_but_aborted_direct_calls_are(store: Store) -> None:
    recorder = TaskRecorder(store)
    for queue in ("task", "mux", "broadcast"):
        recorder.submitted(queue, request(queue), "alice", "e-uuid")
        recorder.finished(queue, reply(queue, metadata={"status": "aborted"}), "e-uuid")
    assert list(recorder.engines["e-uuid"].completed) == ["mux"]
    assert not recorder.pending


def test_output_of_executions_is_recorded(store: Store) -> None:
    recorder = TaskRecorder(store)
    recorder.submitted("mux", request("x", msg_type="execute_request"), "alice", "e-uuid")
    recorder.output(reply("x", msg_type="execute_input", content={"code": "1/0", "execution_count": 3}))
    recorder.output(reply("x", msg_type="error", content={"ename": "ZeroDivisionError"}))
    recorder.output(reply("x", msg_type="execute_result", content={"data": {"text/plain": "5"}}))
    record = whole(store, "x")
    assert record["execute_input"] == "1/0"
    assert record["error"] == {"ename": "ZeroDivisionError"}
    assert record["execute_result"] == {"data": {"text/plain": "5"}}


def test_repeated_and_unknown_ids_change_nothing(store: Store) -> None:
    recorder = TaskRecorder(store)
    recorder.submitted("task", request("t", content={"a": 1}), "alice")
    recorder.submitted("task", request("t", content={"a": 2}), "mallory")
    recorder.finished("task", reply("t"), "e-uuid")
    recorder.submitted("task", request("t", content={"a": 2}), "mallory")
    recorder.finished("task", reply("never"), "e-uuid")
    recorder.output(reply("never", msg_type="stream", content={"name": "stdout", "text": "x"}))
    recorder.assigned("e-uuid", "never")
    assert found(store, {}) == ["t"]
    assert whole(store, "t")["content"] == {"a": 1}
    assert not recorder.pending


def test_malformed_fields_are_recorded_as_none(store: Store) -> None:
    recorder = TaskRecorder(store)
    message = request("t", date="yesterday", metadata={"label": 5})
    message.frames[4] = b"\xff{"
    recorder.submitted("task", message, "alice")
    recorder.output(reply("t", msg_type="stream", content={"name": "stdin", "text": "x"}))
    recorder.output(reply("t", msg_type="stream", content={"name": "stdout", "text": 5}))
    recorder.output(reply("t", msg_type="execute_input", content={"code": "\ud800 lone"}))
    answer = reply("t", metadata={"started": 3})
    answer.frames[3] = b"nonsense"
    recorder.finished("task", answer, None)
    record = whole(store, "t")
    assert record["submitted"] is record["content"] is record["label"] is record["started"] is None
    assert record["completed"] == "2026-03-01T12:00:05.000000Z"
    assert found(store, {}) == ["t"]
    assert store.history() == []


def test_removed_engine_fails_its_direct_calls(store: Store) -> None:
    recorder = TaskRecorder(store)
    recorder.submitted("mux", request("direct"), "alice", "e-uuid")
    recorder.submitted("task", request("task"), "alice")
    recorder.assigned("e-uuid", "task")
    recorder.engine_removed("e-uuid")
    record = whole(store, "direct")
    assert record["result_content"]["ename"] == "EngineError"
    assert record["result_header"]["msg_type"] == "apply_reply"
    assert record["completed"] is not None
    assert recorder.pending == {"task": "e-uuid"}
    recorder.assigned("other", "task")
    assert set(recorder.engines) == {"other"}
    recorder.finished("task", reply("task"), "other")
    assert recorder.pending == {}


def test_history_is_by_submission_and_drop_removes(store: Store) -> None:
    ids = fill(store)
    store.add(Record("early", submitted="2025-01-01T00:00:00.000000Z"))
    store.add(Record("undated"))
    assert store.history() == ["early", *ids]
    assert store.drop(["early", "nobody", ids[0]]) == 2
    assert store.history() == ids[1:]
    assert store.get("early") is None


def test_query_returns_copies(store: Store) -> None:
    recorder = TaskRecorder(store)
    recorder.submitted("task", request("t", content={"a": 1}, buffers=(b"x",)), "alice")
    record = whole(store, "t")
    record["content"]["a"] = 2
    record["buffers"].clear()
    assert whole(store, "t")["content"] == {"a": 1}
    assert whole(store, "t")["buffers"] == [b"x"]


# ---- the query language ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ({}, "01234567"),
        ({"msg_id": "t3"}, "3"),
        ({"msg_id": None}, ""),
        ({"msg_id": {"$ne": None}}, "01234567"),
        ({"msg_id": {"$ne": "t3"}}, "0124567"),
        ({"msg_id": {"$in": ["t5", "t1", "no"]}}, "15"),
        ({"msg_id": {"$nin": ["t5", "t1"]}}, "023467"),
        ({"msg_id": {"$in": "t5, t1 and no"}}, "15"),
        ({"msg_id": {"$nin": "t5, t1 and no"}}, "023467"),
        ({"msg_id": {"$in": {"t5": 0}}}, "5"),
        ({"label": {"$in": "fit/0 of fit"}}, "0246"),
        ({"label": {"$nin": ""}}, "01234567"),
        ({"label": {"$in": ["fit/0", None]}}, "0246"),
        ({"resubmitted": {"$nin": ""}}, ""),
        ({"resubmitted": {"$in": "anything"}}, ""),
        ({"resubmitted": {"$nin": ["t1"]}}, "01234567"),
        ({"resubmitted": {"$in": [None]}}, "01234567"),
        ({"msg_id": {"$eq": "t2"}}, "2"),
        ({"submitted": {"$lt": "2026-01-01T00:00:03Z"}}, "012"),
        ({"submitted": {"$lte": "2026-01-01T00:00:03Z"}}, "0123"),
        ({"submitted": {"$gt": "2026-01-01T00:00:03Z"}}, "4567"),
        ({"submitted": {"$gte": "2026-01-01T01:00:03+01:00"}}, "34567"),
        ({"submitted": {"$gt": "2026-01-01T00:00:03Z", "$lt": "2026-01-01T00:00:05Z"}}, "4"),
        ({"submitted": "2026-01-01T00:00:03.000Z"}, "3"),
        ({"submitted": {"$in": ["2026-01-01T00:00:03.000+00:00"]}}, "3"),
        ({"completed": {"$lt": "2027-01-01T00:00:00Z"}}, ""),
        ({"completed": None, "label": "fit/1"}, "1357"),
        ({"completed": {"$exists": False}}, "01234567"),
        ({"submitted": {"$exists": True}}, "01234567"),
        ({"submitted": {"$exists": False}}, ""),
        ({"label": {"$glob": "fit/[1-9]"}}, "1357"),
        ({"label": {"$all": ["fit/0"]}}, "0246"),
        ({"label": {"$all": ["fit/0", "fit/1"]}}, ""),
        ({"label": {"$mod": [2, 0]}}, ""),
        ({"label": {"$gt": 5}}, ""),
        ({"nothing": None}, "01234567"),
        ({"nothing": "x"}, ""),
    ],
)
def test_operator_selects_records(store: Store, query: dict[str, Any], wanted: str) -> None:
    fill(store)
    assert found(store, query) == [f"t{i}" for i in wanted]


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"label": {"$like": "x"}}, r"\$like"),
        ({"label": {"$in": 5}}, r"\$in"),
        ({"label": {"$nin": 5}}, r"\$nin"),
        ({"label": {"$all": None}}, r"\$all"),
        ({"label": {"$mod": [0, 0]}}, r"\$mod"),
        ({"label": {"$mod": 2}}, r"\$mod"),
        ({"label": {"$glob": 5}}, r"\$glob"),
        (["label"], "dict"),
    ],
)
def test_malformed_query_is_named_in_the_error(query: Any, named: str) -> None:
    with pytest.raises(InvalidQueryError, match=named):
        RecordQuery(query)


def test_glob_is_fnmatch(store: Store) -> None:
    labels = ["group_a", "group_a/sub_a", "group_a/sub_b", "label*task", "label?task", "Group_a"]
    for label in labels:
        store.add(Record(label, label=label))
    for pattern in ["group_a*", "group_a/sub_?", "*/sub_[ab]", "*[*]*", "*[?]*"]:
        assert found(store, {"label": {"$glob": pattern}}) == [
            one for one in labels if fnmatch.fnmatchcase(one, pattern)
        ]


def test_dates_are_normalized() -> None:
    assert utc("2026-01-01T00:00:00.5+02:00") == "2025-12-31T22:00:00.500000Z"
    assert utc("2026-01-01T00:00:00.123456Z") == "2026-01-01T00:00:00.123456Z"
    for no_date in ["", "yesterday", None, 5, "0001-01-01T00:00:00+05:00"]:
        assert utc(no_date) is None


# ---- bounds ---------------------------------------------------------------------------------------------------------


def test_memory_drops_the_oldest_beyond_the_record_limit() -> None:
    store = MemoryStore(record_limit=20, cull_fraction=0.2)
    ids = fill(store, 20)
    assert store.history() == ids
    store.add(Record("one", submitted="2027-01-01T00:00:00.000000Z"))
    assert store.history() == [*ids[4:], "one"]
    assert store.culled_count == 4


def test_memory_drops_the_oldest_beyond_the_size_limit() -> None:
    store = MemoryStore(size_limit_bytes=1000, cull_fraction=0.2)
    for i in range(100):
        store.add(Record(f"t{i}", buffers=(b"0123456789",)))
    assert len(found(store, {})) == 100
    record = store.get("t99")
    assert record is not None
    record.stdout.append("!")
    store.changed(record)
    assert len(found(store, {})) == 79
    assert found(store, {})[0] == "t21"


def test_memory_subtracts_dropped_records() -> None:
    store = MemoryStore(size_limit_bytes=100)
    for i in range(10_000):
        store.add(Record(f"t{i}", buffers=(b"0123456789",)))
        store.drop([f"t{i}"])
    store.add(Record("last", buffers=(b"x" * 100,)))
    assert found(store, {}) == ["last"]


# ---- SQLite ---------------------------------------------------------------------------------------------------------


def test_sqlite_keeps_records_after_close(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tasks.db"
    store = SQLiteStore(path)
    ids = fill(store, DIRTY_LIMIT + 50)
    store.close()
    store = SQLiteStore(path)
    assert found(store, {}) == ids
    store.add(Record("new"))
    assert found(store, {})[-1] == "new"
    store.close()


def read(path: Path, columns: str, where: str = "1") -> list[Any]:
    """Read the file as another process does."""
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute(f"select {columns} from trio_sched_tasks where {where} order by number").fetchall()
    return [row[0] if len(row) == 1 else row for row in rows]


def test_sqlite_commits_requests_in_commit(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    store = SQLiteStore(path)
    recorder = TaskRecorder(store)
    for msg_id in "abc":
        recorder.submitted("task", request(msg_id, buffers=(b"call",)), "alice")
    assert read(path, "msg_id") == []
    recorder.commit()
    assert read(path, "msg_id, client_uuid") == [("a", "alice"), ("b", "alice"), ("c", "alice")]
    recorder.submitted("task", request("b", content={"another": 1}), "alice")
    recorder.submitted("task", request("d"), "alice")
    recorder.commit()
    assert read(path, "msg_id") == ["a", "b", "c", "d"]
    recorder.assigned("e-uuid", "a")
    recorder.finished("task", reply("a", buffers=(b"result",)), "e-uuid")
    assert whole(store, "a")["buffers"] == [b"call"]
    assert whole(store, "a")["result_buffers"] == [b"result"]
    store.close()


def test_sqlite_writes_ended_and_postponed_records(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    store = SQLiteStore(path)
    recorder = TaskRecorder(store)
    for msg_id in "abc":
        recorder.submitted("task", request(msg_id), "alice")
    recorder.commit()
    for msg_id in "ab":
        recorder.assigned("e-uuid", msg_id)
    recorder.finished("task", reply("b"), "e-uuid")
    store.write_due()
    assert read(path, "msg_id", "engine_uuid is not null") == ["b"]
    recorder.submitted("task", request("d"), "alice")
    store.write_due()
    assert read(path, "msg_id", "engine_uuid is not null") == ["a", "b"]
    assert read(path, "msg_id") == ["a", "b", "c", "d"]
    recorder.finished("task", reply("a"), "e-uuid")
    assert found(store, {"completed": None}) == ["c", "d"]
    for i in range(DIRTY_LIMIT):
        recorder.submitted("task", request(f"t{i}"), "alice")
        if i % 2:
            recorder.commit()
            recorder.finished("task", reply(f"t{i}"), None)
    assert len(read(path, "msg_id")) == DIRTY_LIMIT + 4
    store.compact()
    store.close()


def test_sqlite_writes_large_requests_once(tmp_path: Path) -> None:
    path, call = tmp_path / "tasks.db", b"x" * (4 * LARGE_BYTES)
    store = SQLiteStore(path)
    recorder = TaskRecorder(store)
    recorder.submitted("task", request("large", buffers=(call, b"more")), "alice")
    recorder.submitted("task", request("small", buffers=(b"call",)), "alice")
    recorder.commit()
    written = Path(f"{path}-wal").stat().st_size
    for msg_id in ("large", "small"):
        recorder.assigned("e-uuid", msg_id)
        store.flush()
        recorder.finished("task", reply(msg_id), "e-uuid")
        store.flush()
    assert Path(f"{path}-wal").stat().st_size - written < len(call)
    store.close()
    store = SQLiteStore(path)
    assert whole(store, "large")["buffers"] == [call, b"more"]
    assert whole(store, "small")["buffers"] == [b"call"]
    assert store.drop(["large", "small"]) == 2
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("select count(*) from trio_sched_tasks_buffers").fetchone() == (0,)
    store.close()


def test_sqlite_marks_unfinished_tasks_of_a_former_controller_as_lost(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    store = SQLiteStore(path)
    recorder = TaskRecorder(store)
    ids = [f"t{i}" for i in range(PAGE + 10)]
    for msg_id in ids:
        recorder.submitted("task", request(msg_id, buffers=(b"call",), content={"a": 1}), "alice")
    recorder.commit()
    recorder.assigned("e-uuid", ids[1])
    recorder.finished("task", reply(ids[0]), "e-uuid")
    store.close()
    store = SQLiteStore(path)
    assert found(store, {"completed": None}) == []
    assert whole(store, ids[0])["result_content"] == {"status": "ok"}
    lost = whole(store, ids[1])
    assert lost["result_content"]["ename"] == "EngineError"
    assert "ended before" in lost["result_content"]["evalue"]
    assert lost["result_header"]["msg_type"] == "apply_reply"
    assert lost["result_metadata"] == {"status": "error", "engine": "e-uuid"}
    assert (lost["content"], lost["buffers"]) == ({"a": 1}, [b"call"])
    assert found(store, {"completed": {"$ne": None}}) == ids
    store.close()


def test_sqlite_serves_two_controllers_at_once(tmp_path: Path) -> None:
    """Two clusters of one profile: changes of one are neither lost nor overwritten by the other."""
    path = tmp_path / "tasks.db"
    first = SQLiteStore(path)
    recorder = TaskRecorder(first)
    recorder.submitted("task", request("a"), "alice")
    recorder.commit()
    second = SQLiteStore(path)
    other = TaskRecorder(second)
    assert whole(second, "a")["completed"] is None
    other.submitted("task", request("b"), "bob")
    other.commit()
    recorder.submitted("task", request("c"), "alice")
    recorder.commit()
    assert found(first, {}) == found(second, {}) == ["a", "b", "c"]
    first.close()
    third = SQLiteStore(path)
    assert found(third, {"completed": None}) == ["a", "b", "c"]
    third.close()
    second.close()
    alone = SQLiteStore(path)
    assert found(alone, {"completed": None}) == []
    alone.close()


def test_sqlite_finds_page_by_page(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "tasks.db")
    ids = fill(store, 700)
    assert found(store, {"queue": "task"}) == ids
    assert found(store, {"msg_id": {"$in": ids[::-1]}}) == ids
    store.close()


def test_sqlite_does_not_change_a_table_with_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    with sqlite3.connect(path) as db:
        db.execute('create table "ipython-tasks" (msg_id text, buffers bufs blob)')
    db.close()
    for _ in range(2):
        store = SQLiteStore(path, "ipython-tasks")
        store.add(Record("t"))
        assert found(store, {}) == ["t"]
        store.close()


def test_sqlite_file_that_is_not_a_database_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(ConfigError, match=r"tasks\.db"):
        SQLiteStore(path)


def test_sqlite_that_cannot_write_loses_records_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tasks.db"
    store = SQLiteStore(path)
    recorder = TaskRecorder(store)
    with sqlite3.connect(path) as db:
        db.execute("alter table trio_sched_tasks rename to elsewhere")
    for msg_id in "tuv":
        recorder.submitted("task", request(msg_id), "alice")
        recorder.commit()
        recorder.finished("task", reply(msg_id), "e-uuid")
        store.flush()
    assert store.lost_count == 3
    assert caplog.text.count("cannot be written") == 1
    with sqlite3.connect(path) as db:
        db.execute("alter table elsewhere rename to trio_sched_tasks")
    db.close()
    recorder.submitted("task", request("w"), "alice")
    recorder.commit()
    assert found(store, {}) == ["w"]
    store.close()


# ---- none -----------------------------------------------------------------------------------------------------------


def test_sqlite_does_not_create_a_removed_file_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The profile directory may be removed while the controller runs."""
    path = tmp_path / "tasks.db"
    store = SQLiteStore(path)
    fill(store)
    store.flush()
    path.unlink()
    store.compact()
    assert not path.exists()
    assert caplog.text == ""
    store.close()


def test_sqlite_that_cannot_be_compacted_logs_it_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tasks.db"
    store = SQLiteStore(path)
    fill(store)
    store.flush()
    path.unlink()
    path.mkdir()
    for _ in range(3):
        store.compact()
    assert caplog.text.count("cannot be checkpointed") == 1
    store.close()


def test_store_without_records_raises() -> None:
    recorder = NullRecorder()
    recorder.submitted("task", request("t"), "alice")
    recorder.finished("task", reply("t"), "e")
    assert not recorder.on
    assert not recorder.pending
    store = NoStore()
    with pytest.raises(NoRecordsError, match="--nodb"):
        store.history()
    with pytest.raises(KeyError):
        store.find(RecordQuery({}))


def test_settings_choose_the_store(tmp_path: Path) -> None:
    def opened(database: Any, **options: Any) -> TaskRecorder:
        return open_recorder(IppConfig(profile_dir=str(tmp_path), database=database, database_options=options))

    assert not opened("nodb").on
    assert isinstance(opened("dictdb", record_limit=5).store, MemoryStore)
    sqlite = opened("sqlitedb", filename="other.db", table="mine").store
    assert isinstance(sqlite, SQLiteStore)
    assert (tmp_path / "other.db").exists()
    sqlite.close()
