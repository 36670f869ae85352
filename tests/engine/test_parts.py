"""The engine's parts that need no process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from trio_sched.engine import capture, cause, ends, link, machine, orders, runner
from trio_sched.engine.board import JOINED, LEAVING, STARTING, WorkerStatus
from trio_sched.engine.cause import ExitInfo
from trio_sched.engine.orders import NannyJoined, StartWorker
from trio_sched.errors import ResultError
from trio_sched.transport.connection import Connection
from trio_sched.wire import payload
from trio_sched.wire.native import Call, TaskEnd

# ---- the board ------------------------------------------------------------------------------------------------------


def test_what_one_side_writes_on_the_board_the_other_reads(tmp_path: Path) -> None:
    nanny = WorkerStatus(tmp_path / "board", 2, create=True)
    worker = WorkerStatus(tmp_path / "board", 2)
    assert (nanny.state, nanny.running_tasks(), nanny.session_with("one")) == (STARTING, [], 0)
    worker.mark_joined("one", 7)
    assert not nanny.has_begun_a_task
    worker.begin_task(1, 2**63 + 5)
    assert nanny.has_begun_a_task
    assert (nanny.state, nanny.running_tasks(), nanny.session_with("one")) == (JOINED, [2**63 + 5], 7)
    assert nanny.session_with("another") == 0
    worker.mark_leaving()
    worker.mark_joined("one", 7)
    assert nanny.state == LEAVING
    nanny.reset()
    assert (worker.state, worker.running_tasks(), worker.session_with("")) == (STARTING, [], 0)
    nanny.close()
    worker.close()


# ---- causes of death ------------------------------------------------------------------------------------------------

FAULT = """Fatal Python error: Segmentation fault

Stack (most recent call first):
  File "/home/me/model.py", line 12 in inner
  File "/home/me/model.py", line 20 in fit
  File "{engine}/runner.py", line 90 in run
  File "{engine}/single.py", line 90 in run
"""


@pytest.mark.parametrize(
    ("evidence", "words"),
    [
        (ExitInfo(0), "the process ended with exit code 0, as os._exit(0) does"),
        (ExitInfo(3), "the process ended with exit code 3, as os._exit(3) does"),
        (ExitInfo(-15), "killed by signal SIGTERM (another process asked it to end)"),
        (ExitInfo(-10), "killed by signal SIGUSR1"),
        (ExitInfo(-63), "killed by signal 63"),
        (ExitInfo(-9), "killed by signal SIGKILL (by another process, or out of memory without a trace)"),
        (
            ExitInfo(-9, oom_kills=(1, 1), rss_bytes=3 << 30),
            "out of memory: killed by the kernel, which counted 1 such kill(s) in this container; "
            "it used 3,072 MiB when last measured",
        ),
        (
            ExitInfo(-9, oom_kills=(0, 2)),
            "probably out of memory: killed when the kernel counted 2 out-of-memory kill(s)",
        ),
        (ExitInfo(-9, memory_used=0.97), "probably out of memory: killed with 97% of the memory in use"),
        (
            ExitInfo(-6, fault=FAULT.format(engine=Path(cause.__file__).parent)),
            "killed by signal SIGABRT (abort: compiled code found an error that it could not handle); "
            "it was in inner (/home/me/model.py:12) < fit (/home/me/model.py:20)",
        ),
    ],
)
def test_causes_of_death_in_words(evidence: ExitInfo, words: str) -> None:
    assert cause.exit_reason(evidence) == words


def test_evidence_can_be_gathered() -> None:
    in_cgroup, in_all = machine.oom_kills()
    assert in_cgroup >= 0 <= in_all
    assert 0.0 < machine.memory_used() < 1.5
    assert machine.rss_bytes(os.getpid()) > 1 << 20
    assert machine.rss_bytes(1 << 30) == 0
    assert machine.cores() >= 1


def test_a_cgroup_with_less_time_than_processors_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(machine, "_cgroup_file", lambda v2, v1: tmp_path / v2)
    assert machine.cores() == 8
    for text, expected in [("max 100000", 8), ("150000 100000", 2), ("10000 100000", 1), ("9900000 100000", 8)]:
        (tmp_path / "cpu.max").write_text(text + "\n")
        assert machine.cores() == expected
    (tmp_path / "memory.events").write_text("oom 3\noom_kill 2\n")
    assert machine.oom_kills()[0] == 2
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("990\n")
    assert machine.memory_used() == 0.99


# ---- output ---------------------------------------------------------------------------------------------------------


def test_the_middle_of_long_output_is_cut_once_and_counted() -> None:
    text = capture._BoundedText()
    text.add("a" * capture.LIMIT)
    assert text.take() == "a" * capture.LIMIT
    for letter in "abcdefg":
        text.add(letter * (capture.LIMIT // 2))
    half = capture.LIMIT // 2
    assert text.take() == "a" * half + f"\n[... {5 * half} characters cut ...]\n" + "g" * half
    assert text.take() == ""


def test_what_nobody_s_task_prints_goes_to_the_real_stream(capsys: pytest.CaptureFixture[str]) -> None:
    output = capture.CapturedOutput()
    stream = capture.TaskStream(sys.stdout, 0, lambda: output)
    print("before", file=stream)
    output.begin()
    print("during", file=stream)
    assert stream.buffer.write(b"\xff") == 1
    result = TaskEnd(1)
    output.end(result)
    print("after", file=stream)
    with pytest.raises(TypeError, match="must be str, not bytes"):
        stream.write(b"x")  # type: ignore[arg-type]
    stream.close()
    assert (stream.writable(), stream.isatty(), stream.encoding) == (True, False, "utf-8")
    assert capsys.readouterr().out == "before\nafter\n"
    assert (result.stdout, result.stderr) == ("during\n\N{REPLACEMENT CHARACTER}", "")


# ---- values ---------------------------------------------------------------------------------------------------------


def frames_of(value: object) -> list[memoryview]:
    return [frame for frame in payload.dumps(value)[1] if isinstance(frame, memoryview)]


def test_a_buffer_that_nobody_else_knows_is_alone() -> None:
    kept = np.zeros(10)
    holder = {"in": kept}
    for fresh in (
        lambda: np.zeros(10),
        lambda: np.zeros(20)[5:15],
        lambda: np.zeros((5, 4)).T,
        lambda: {"a": [np.zeros(3)]},
        lambda: bytearray(5) and np.frombuffer(bytearray(5), dtype="u1"),
    ):
        (frame,) = frames_of(fresh())
        assert ends.is_unshared(frame)
    for shared in (lambda: kept, lambda: kept[2:4], lambda: kept.reshape(2, 5).T, lambda: holder, lambda: [kept[1:]]):
        (frame,) = frames_of(shared())
        assert not ends.is_unshared(frame)


def test_a_result_of_its_own_travels_as_it_lies_and_a_shared_one_as_a_copy() -> None:
    kept = np.zeros(10)
    call = Call(1)
    assert isinstance(ends.result_of_value(call, np.zeros(10), 0.1, 0)[1][0], memoryview)
    assert isinstance(ends.result_of_value(call, kept, 0.1, 0)[1][0], bytes)


def test_a_result_above_the_scheduler_s_limit_is_an_error() -> None:
    end, frames = ends.result_of_value(Call(1, attempt=2), np.zeros(1000), 0.1, 5000)
    assert frames == ()
    assert (end.outcome, end.attempt, end.frames) == ("error", 2, 0)
    error = payload.loads(end.body)
    assert isinstance(error, ResultError)
    assert "of type ndarray, takes 81" in str(error)
    assert "at most 5000" in str(error)


def test_long_messages_are_cut() -> None:
    end, _ = ends.result_of_error(Call(1), ValueError("x" * 3_000_000), 0.0, 100_000)
    assert end.body == b""  # too large for the scheduler
    assert end.error is not None
    assert len(end.error.message) < ends.TEXT_LIMIT + 100
    assert "2000000 characters cut" in end.error.message


def test_answers_are_split_into_messages_of_a_bounded_size() -> None:
    def ended(size: int) -> ends.FramedResult:
        return TaskEnd(1, body=b"x" * size), ()

    def sizes(batch: list[ends.FramedResult]) -> list[int]:
        return [len(part) for part in link.split_results(batch)]

    assert sizes([ended(1)] * 3) == [3]
    assert sizes([ended(1)] * 600) == [256, 256, 88]
    assert sizes([ended(600_000)] * 3) == [1, 1, 1]
    assert sizes([ended(3_000_000), ended(1), ended(1)]) == [1, 2]


# ---- places ---------------------------------------------------------------------------------------------------------


def test_sys_path_is_extended_in_the_client_s_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script, late = tmp_path / "script", tmp_path / "late"
    script.mkdir()
    late.mkdir()
    monkeypatch.setattr(sys, "path", ["/lib", "/site"])
    entries = [str(script), "/lib", "/site", str(late), "/no/such", ""]
    assert runner.extend_sys_path(entries)
    assert sys.path == [str(script), "/lib", "/site", str(late)]
    assert not runner.extend_sys_path(entries)
    assert sys.path == [str(script), "/lib", "/site", str(late)]


# ---- orders ---------------------------------------------------------------------------------------------------------


def test_orders_are_lines() -> None:
    start = StartWorker(Connection("n", "engine", "ipc:///x", "secret\n"), name="a\nb", resources={"gpu": 1.0})
    for order in (start, NannyJoined(3, "one")):
        data = orders.encode(order)
        assert data.count(b"\n") == 1
        assert orders.decode(data) == order
