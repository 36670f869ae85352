"""A nanny with real workers and a scripted scheduler, each in a thread, so that the tests are plain functions."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from trio_sched.engine.nanny import Nanny, run_nanny
from trio_sched.engine.worker_status import WorkerStatus
from trio_sched.engine.worker_supervisor import WorkerExit, delay_before_restart_s
from trio_sched.errors import NoSchedulerError
from trio_sched.transport.connection_info import write_connection_files
from trio_sched.wire.native import Bye, Closing, WorkerDied

from .scripted_scheduler import WAIT_S, Gate, ScriptedScheduler, address_in, by_value, pass_gate


class NannyThread:
    """`run_nanny` in a thread; `nanny` is set when it has started, `outcome` when it has ended."""

    def __init__(self, scheduler: ScriptedScheduler, **options: Any) -> None:
        self._connection = scheduler.connection
        self._options = options
        self._started = threading.Event()
        self.nanny: Nanny | None = None
        self.outcome: str | BaseException | None = None
        self._thread = threading.Thread(target=trio.run, args=(self._main,), daemon=True)
        self._thread.start()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as self._scope:
            try:
                async with trio.open_nursery() as nursery:
                    self.nanny = await nursery.start(self._nanny)
                    self._started.set()
            except* NoSchedulerError as group:
                self.outcome = group.exceptions[0]

    async def _nanny(self, task_status: trio.TaskStatus[Nanny]) -> None:
        self.outcome = await run_nanny(self._connection, task_status=task_status, **self._options)

    def started(self) -> Nanny:
        assert self._started.wait(WAIT_S)
        assert self.nanny is not None
        return self.nanny

    def ended(self) -> str | BaseException | None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        return self.outcome

    def stop(self, reason: str) -> None:
        trio.from_thread.run_sync(self.started().stop, reason, trio_token=self._token)

    def cancel(self) -> None:
        if self._thread.is_alive():
            trio.from_thread.run_sync(self._scope.cancel, trio_token=self._token)
        self.ended()


@contextmanager
def nanny_at(scheduler: ScriptedScheduler, **options: Any) -> Iterator[NannyThread]:
    thread = NannyThread(scheduler, **options)
    try:
        thread.started()
        yield thread
    finally:
        thread.cancel()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_workers_join_with_the_session_of_their_nanny_and_exit_with_it(scheduler: ScriptedScheduler) -> None:
    with nanny_at(scheduler, workers=2, slots=1, hwm=3, resources={"gpu": 1}, name="here") as thread:
        nanny = thread.started()
        me = scheduler.engine("nanny")
        assert me.session == nanny.session
        engines = [scheduler.engine() for _ in range(2)]
        assert {peer.hello.name for peer in engines} == {"here.0", "here.1"}
        pids = [peer.hello.pid for peer in engines]
        for hello in (peer.hello for peer in engines):
            assert (hello.nanny, hello.slots, hello.hwm, hello.resources) == (nanny.session, 1, 3, {"gpu": 1.0})
            assert hello.token == scheduler.connection.token
            assert hello.python == sys.version.split()[0]
        assert [scheduler.run(peer, os.getpid).value for peer in engines] == pids
        assert sorted(worker.pid for worker in nanny.workers) == sorted(pids)
        assert {worker.engine for worker in nanny.workers} == {peer.session for peer in engines}
    assert all(gone(pid) for pid in pids)
    assert {scheduler.expect_from(Bye)[0].session for _ in range(3)} == {me.session, *(p.session for p in engines)}


@by_value
def by_exit() -> None:
    os._exit(3)


@by_value
def by_segfault() -> None:
    ctypes.string_at(0)


@by_value
def by_kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_r20_a_death_is_reported_with_its_reason_and_the_running_task(scheduler: ScriptedScheduler) -> None:
    scheduler.sends_acks = False
    with nanny_at(scheduler, workers=1) as thread:
        peer = scheduler.engine()
        for number, (action, words) in enumerate(
            [
                (by_exit, "exit code 3, as os._exit(3) does"),
                (by_segfault, "signal SIGSEGV (a segmentation fault"),
                (by_kill, "signal SIGKILL"),
            ]
        ):
            harmless = scheduler.call(int)
            _, running, _ = scheduler.assign(peer, harmless, scheduler.call(action), scheduler.call(int))
            died = scheduler.expect(WorkerDied)
            assert died.engine == peer.session
            assert words in died.reason
            assert died.running == [running]
            if action is by_segfault:
                assert "in string_at (" in died.reason
                assert "< by_segfault (" in died.reason
            following = scheduler.engine()
            assert following.session != peer.session
            assert thread.started().workers[0].deaths == number + 1
            peer = following
        assert scheduler.run(peer, int, "5").value == 5


def test_processes_that_tasks_started_end_with_the_worker(scheduler: ScriptedScheduler, gate: Gate) -> None:
    with nanny_at(scheduler, workers=1):
        peer = scheduler.engine()
        pipe = gate.pipes[0]
        scheduler.run(peer, lambda: subprocess.Popen(f"exec sleep 100 >{pipe}", shell=True).pid)
        with open(pipe) as held_by_child:
            os.kill(peer.hello.pid, signal.SIGKILL)
            assert held_by_child.read() == ""  # at the end of the child


def test_running_tasks_end_within_the_grace_period(scheduler: ScriptedScheduler, gate: Gate) -> None:
    with nanny_at(scheduler, workers=1, grace_s=30.0) as thread:
        peer = scheduler.engine()
        (task,) = scheduler.assign(peer, scheduler.call(pass_gate, *gate.pipes))
        gate.entered()
        thread.stop("enough")
        gate.release("late")
    assert scheduler.answers(peer, task)[0].value == "late"
    assert scheduler.expect(Bye, peer).reason == "it was asked to end (SIGTERM)"


def test_a_task_that_does_not_end_in_the_grace_period_is_killed(scheduler: ScriptedScheduler, gate: Gate) -> None:
    with nanny_at(scheduler, workers=1, grace_s=0.2):
        peer = scheduler.engine()
        (task,) = scheduler.assign(peer, scheduler.call(pass_gate, *gate.pipes))
        gate.entered()
    assert gone(peer.hello.pid)
    died = scheduler.expect(WorkerDied)
    assert (died.engine, died.running) == (peer.session, [task])
    assert died.reason == "it was stopped, and its tasks did not end within 0.2 s"


def test_r29_closing_ends_the_nanny(scheduler: ScriptedScheduler) -> None:
    thread = NannyThread(scheduler, workers=1)
    thread.started()
    me = scheduler.engine("nanny")
    peer = scheduler.engine()
    scheduler.send(me, Closing("enough"))
    assert thread.ended() == "enough"
    assert gone(peer.hello.pid)


def test_a_nanny_without_an_answer_fails_after_its_start_timeout(scheduler: ScriptedScheduler) -> None:
    scheduler.is_silent = True
    thread = NannyThread(scheduler, workers=0, start_timeout_s=0.2)
    error = thread.ended()
    assert isinstance(error, NoSchedulerError)
    assert "did not answer within 0.2 s" in str(error)


class LogRecorder(logging.Handler):
    """Records the log events of a nanny, and lets a test wait for them."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.arrived = threading.Semaphore(0)

    def emit(self, record: logging.LogRecord) -> None:
        self.events.append(record.getMessage())
        self.arrived.release()


@pytest.fixture
def nanny_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[LogRecorder]:
    """The log events of nannies, whose first heartbeats are short."""
    monkeypatch.setattr("trio_sched.engine.nanny.FIRST_PERIOD_S", 0.02)
    handler = LogRecorder()
    logger = logging.getLogger("trio_sched.engine")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_the_nanny_waits_for_a_suspended_scheduler(
    scheduler: ScriptedScheduler, runtime_dir: Path, nanny_log: LogRecorder
) -> None:
    write_connection_files(msgspec.structs.replace(scheduler.connection, role="client"), scheduler.connection)
    scheduler.is_silent = True
    thread = NannyThread(scheduler, workers=1, start_timeout_s=None)
    for _ in range(3):  # at growing intervals
        assert nanny_log.arrived.acquire(timeout=WAIT_S)
    assert set(nanny_log.events) == {
        f"the scheduler does not answer; the nanny keeps trying address={scheduler.connection.address!r}"
    }
    scheduler.is_silent = False
    thread.started()
    peer = scheduler.engine()
    assert scheduler.run(peer, int, "5").value == 5
    thread.cancel()


def test_the_nanny_does_not_wait_for_a_scheduler_without_an_answer_and_without_a_file(
    scheduler: ScriptedScheduler, runtime_dir: Path, nanny_log: LogRecorder
) -> None:
    files = write_connection_files(msgspec.structs.replace(scheduler.connection, role="client"), scheduler.connection)
    scheduler.is_silent = True
    thread = NannyThread(scheduler, workers=0, start_timeout_s=None)
    assert nanny_log.arrived.acquire(timeout=WAIT_S)
    for file in files:
        file.unlink()
    error = thread.ended()
    assert isinstance(error, NoSchedulerError)
    assert "no scheduler named 'scripted'" in str(error)


def test_files_of_a_killed_nanny_are_removed_by_the_next_one(
    scheduler: ScriptedScheduler, runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = msgspec.structs.replace(scheduler.connection, role="client")
    _, path = write_connection_files(client, scheduler.connection)
    code = (
        "import sys, trio; from trio_sched.engine.nanny import run_nanny; "
        "from trio_sched.transport.connection_info import read_connection_file; "
        "trio.run(lambda: run_nanny(read_connection_file(sys.argv[1]), workers=1))"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code, str(path)], env=environment) as process:
        peer = scheduler.engine()
        process.kill()
    scheduler.expect(Bye, peer)
    (leftover,) = tmp_path.iterdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with nanny_at(scheduler, workers=0):
        (mine,) = tmp_path.iterdir()
        assert mine != leftover
    assert not list(tmp_path.iterdir())


def test_a_refused_nanny_fails_with_the_reason(short_dir: Path) -> None:
    scheduler = ScriptedScheduler(address_in(short_dir), refusing=True)
    error = NannyThread(scheduler, workers=0).ended()
    scheduler.close()
    assert isinstance(error, NoSchedulerError)
    assert "refuses the nanny: the token is wrong" in str(error)


def test_a_restarted_scheduler_with_a_new_token_is_found_by_its_file(short_dir: Path, runtime_dir: Path) -> None:
    address = address_in(short_dir)
    first = ScriptedScheduler(address)
    thread = NannyThread(first, workers=1)
    thread.started()
    pid = first.engine().hello.pid
    first.close()
    second = ScriptedScheduler(address, instance="two", first_session=50, token="another")
    write_connection_files(msgspec.structs.replace(second.connection, role="client"), second.connection)
    try:
        me, engine = second.engine("nanny"), second.engine()
        assert me.hello.token == engine.hello.token == "another"
        assert engine.hello.pid == pid
        while engine.hello.nanny != me.session:
            engine = second.engine()
        os.kill(pid, signal.SIGKILL)
        assert second.engine().hello.token == "another"
    finally:
        thread.cancel()
        second.close()


def test_nanny_and_workers_reconnect_to_another_scheduler(short_dir: Path, gate: Gate) -> None:
    address = f"ipc://{short_dir}/nanny.sock"
    first = ScriptedScheduler(address)
    thread = NannyThread(first, workers=1)
    nanny = thread.started()
    peer = first.engine()
    first.assign(peer, first.call(pass_gate, *gate.pipes))
    gate.entered()
    first.close()
    second = ScriptedScheduler(address, instance="two", first_session=50)
    try:
        me = second.engine("nanny")
        again = second.engine()
        while again.hello.nanny != me.session:  # the worker joined before its nanny, and sends another hello
            again = second.engine()
        gate.release()
        answer = second.run(again, os.getpid)
        assert answer.value == peer.hello.pid
        assert nanny.workers[0].engine == again.session
        os.kill(peer.hello.pid, signal.SIGKILL)
        died = second.expect(WorkerDied)
        assert (died.engine, died.pid) == (again.session, peer.hello.pid)
        assert died.running in ([], [answer.result.id])  # whose result was just sent
    finally:
        thread.cancel()
        second.close()


def test_a_death_while_the_connection_is_broken_is_reported_after_the_reconnection(
    scheduler: ScriptedScheduler,
) -> None:
    with nanny_at(scheduler, workers=1):
        me = scheduler.engine("nanny")
        peer = scheduler.engine()
        scheduler.ignored_addresses.add(me.address)
        os.kill(peer.hello.pid, signal.SIGKILL)
        assert scheduler.expect(WorkerDied).pid == peer.hello.pid
        assert scheduler.engine("nanny").session == me.session


def test_workers_exit_when_their_nanny_is_killed(scheduler: ScriptedScheduler, runtime_dir: Path) -> None:
    client = msgspec.structs.replace(scheduler.connection, role="client")
    _, path = write_connection_files(client, scheduler.connection)
    code = (
        "import sys, trio; from trio_sched.engine.nanny import run_nanny; "
        "from trio_sched.transport.connection_info import read_connection_file; "
        "trio.run(lambda: run_nanny(read_connection_file(sys.argv[1]), workers=2))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as process:
        engines = [scheduler.engine() for _ in range(2)]
        process.kill()
    for peer in engines:
        assert scheduler.expect(Bye, peer).reason == "its nanny has exited"


def test_a_worker_that_cannot_start_is_restarted_with_growing_delays(
    scheduler: ScriptedScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_sched.engine.worker_supervisor._COMMAND", (sys.executable, "-c", "raise SystemExit(7)"))
    monkeypatch.setattr("trio_sched.engine.worker_supervisor._FIRST_DELAY_S", 0.001)
    with nanny_at(scheduler, workers=1):
        deaths = [scheduler.expect(WorkerDied) for _ in range(3)]
    assert {(died.engine, died.reason) for died in deaths} == {
        (0, "the process ended with exit code 7, as os._exit(7) does")
    }
    assert len({died.pid for died in deaths}) == 3


def test_the_delay_before_a_restart_depends_on_the_last_exit() -> None:
    def exit_of(*, had_worked: bool = False, requested: bool = False) -> WorkerExit:
        return WorkerExit(1, "", WorkerStatus(None, 1), had_worked, requested)

    assert delay_before_restart_s(exit_of(had_worked=True), 0) == 0.0
    assert delay_before_restart_s(exit_of(requested=True), 1) == 1.0
    assert [delay_before_restart_s(exit_of(), n) for n in (1, 2, 3, 50)] == [0.25, 0.5, 1.0, 30.0]
