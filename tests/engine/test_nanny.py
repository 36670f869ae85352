"""A nanny with real workers, at a scripted scheduler; each in a thread of its own, so that the tests are straight."""

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

from trio_sched.engine import nanny as nanny_module
from trio_sched.engine import ward
from trio_sched.engine.board import Board
from trio_sched.engine.nanny import Nanny, run_nanny
from trio_sched.errors import NoSchedulerError
from trio_sched.transport.connection import write_connection_files
from trio_sched.wire.native import Bye, Closing, Died

from .scripted import WAIT_S, Gate, Scripted, address_in, pass_gate, whole


class NannyThread:
    """run_nanny in a thread; `nanny` once it has started, `outcome` when it has ended."""

    def __init__(self, scheduler: Scripted, **options: Any) -> None:
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
def nanny_at(scheduler: Scripted, **options: Any) -> Iterator[NannyThread]:
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


def test_workers_join_under_their_nanny_and_leave_with_it(scheduler: Scripted) -> None:
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


@whole
def by_exit() -> None:
    os._exit(3)


@whole
def by_segfault() -> None:
    ctypes.string_at(0)


@whole
def by_kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_r20_a_death_is_reported_with_its_cause_and_the_task_that_ran(scheduler: Scripted) -> None:
    scheduler.acking = False
    with nanny_at(scheduler, workers=1) as thread:
        peer = scheduler.engine()
        for number, (deed, words) in enumerate(
            [
                (by_exit, "exit code 3, as os._exit(3) does"),
                (by_segfault, "signal SIGSEGV (a segmentation fault"),
                (by_kill, "signal SIGKILL"),
            ]
        ):
            harmless = scheduler.call(int)
            _, running, _ = scheduler.assign(peer, harmless, scheduler.call(deed), scheduler.call(int))
            died = scheduler.expect(Died)
            assert died.engine == peer.session
            assert words in died.reason
            assert died.running == [running]
            if deed is by_segfault:
                assert "in string_at (" in died.reason
                assert "< by_segfault (" in died.reason
            following = scheduler.engine()
            assert following.session != peer.session
            assert thread.started().workers[0].deaths == number + 1
            peer = following
        assert scheduler.run(peer, int, "5").value == 5


def test_no_process_is_left_of_what_tasks_started(scheduler: Scripted, gate: Gate) -> None:
    with nanny_at(scheduler, workers=1):
        peer = scheduler.engine()
        pipe = gate.pipes[0]
        scheduler.run(peer, lambda: subprocess.Popen(f"exec sleep 100 >{pipe}", shell=True).pid)
        with open(pipe) as held_by_child:
            os.kill(peer.hello.pid, signal.SIGKILL)
            assert held_by_child.read() == ""  # not before the child has ended


def test_running_tasks_may_end_within_the_grace_period(scheduler: Scripted, gate: Gate) -> None:
    with nanny_at(scheduler, workers=1, grace_s=30.0) as thread:
        peer = scheduler.engine()
        (task,) = scheduler.assign(peer, scheduler.call(pass_gate, *gate.pipes))
        gate.entered()
        thread.stop("enough")
        gate.release("late")
    assert scheduler.answers(peer, task)[0].value == "late"
    assert scheduler.expect(Bye, peer).reason == "it was asked to end (SIGTERM)"


def test_a_task_that_does_not_end_in_the_grace_period_is_killed(scheduler: Scripted, gate: Gate) -> None:
    with nanny_at(scheduler, workers=1, grace_s=0.2):
        peer = scheduler.engine()
        (task,) = scheduler.assign(peer, scheduler.call(pass_gate, *gate.pipes))
        gate.entered()
    assert gone(peer.hello.pid)
    died = scheduler.expect(Died)
    assert (died.engine, died.running) == (peer.session, [task])
    assert died.reason == "it was stopped, and its tasks did not end within 0.2 s"


def test_r29_closing_ends_it(scheduler: Scripted) -> None:
    thread = NannyThread(scheduler, workers=1)
    thread.started()
    me = scheduler.engine("nanny")
    peer = scheduler.engine()
    scheduler.send(me, Closing("enough"))
    assert thread.ended() == "enough"
    assert gone(peer.hello.pid)


def test_a_nanny_that_nobody_answers_says_so(scheduler: Scripted) -> None:
    scheduler.deaf = True
    thread = NannyThread(scheduler, workers=0, start_timeout_s=0.2)
    error = thread.ended()
    assert isinstance(error, NoSchedulerError)
    assert "did not answer within 0.2 s" in str(error)


class Heard(logging.Handler):
    """Counts what the nanny logs, and lets a test wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.came = threading.Semaphore(0)

    def emit(self, record: logging.LogRecord) -> None:
        self.events.append(record.getMessage())
        self.came.release()


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    """What nannies log; they lose patience quickly."""
    monkeypatch.setattr(nanny_module, "FIRST_PERIOD_S", 0.02)
    handler = Heard()
    logger = logging.getLogger("trio_sched.engine")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_a_scheduler_that_is_suspended_is_waited_for(scheduler: Scripted, runtime_dir: Path, heard: Heard) -> None:
    write_connection_files(msgspec.structs.replace(scheduler.connection, role="client"), scheduler.connection)
    scheduler.deaf = True
    thread = NannyThread(scheduler, workers=1, start_timeout_s=None)
    for _ in range(3):  # which are ever further apart
        assert heard.came.acquire(timeout=WAIT_S)
    assert set(heard.events) == {
        f"the scheduler does not answer; we keep trying address={scheduler.connection.address!r}"
    }
    scheduler.deaf = False
    thread.started()
    peer = scheduler.engine()
    assert scheduler.run(peer, int, "5").value == 5
    thread.cancel()


def test_a_scheduler_that_never_answered_and_whose_file_is_gone_is_not_waited_for(
    scheduler: Scripted, runtime_dir: Path, heard: Heard
) -> None:
    files = write_connection_files(msgspec.structs.replace(scheduler.connection, role="client"), scheduler.connection)
    scheduler.deaf = True
    thread = NannyThread(scheduler, workers=0, start_timeout_s=None)
    assert heard.came.acquire(timeout=WAIT_S)
    for file in files:
        file.unlink()
    error = thread.ended()
    assert isinstance(error, NoSchedulerError)
    assert "no scheduler named 'scripted'" in str(error)


def test_what_a_killed_nanny_left_is_removed_by_the_next(
    scheduler: Scripted, runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = msgspec.structs.replace(scheduler.connection, role="client")
    _, path = write_connection_files(client, scheduler.connection)
    code = (
        "import sys, trio; from trio_sched.engine.nanny import run_nanny; "
        "from trio_sched.transport.connection import read_connection_file; "
        "trio.run(lambda: run_nanny(read_connection_file(sys.argv[1]), workers=1))"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code, str(path)], env=environment) as process:
        peer = scheduler.engine()
        process.kill()
    scheduler.expect(Bye, peer)
    (left,) = tmp_path.iterdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with nanny_at(scheduler, workers=0):
        (mine,) = tmp_path.iterdir()
        assert mine != left
    assert not list(tmp_path.iterdir())


def test_a_nanny_that_is_refused_says_so(short_dir: Path) -> None:
    scheduler = Scripted(address_in(short_dir), refusing=True)
    error = NannyThread(scheduler, workers=0).ended()
    scheduler.close()
    assert isinstance(error, NoSchedulerError)
    assert "refuses us: the token is wrong" in str(error)


def test_a_restarted_scheduler_with_new_secrets_is_found_by_its_file(short_dir: Path, runtime_dir: Path) -> None:
    address = address_in(short_dir)
    first = Scripted(address)
    thread = NannyThread(first, workers=1)
    thread.started()
    pid = first.engine().hello.pid
    first.close()
    second = Scripted(address, instance="two", first_session=50, token="another")
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


def test_nanny_and_workers_come_back_to_another_scheduler(short_dir: Path, gate: Gate) -> None:
    address = f"ipc://{short_dir}/nanny.sock"
    first = Scripted(address)
    thread = NannyThread(first, workers=1)
    nanny = thread.started()
    peer = first.engine()
    first.assign(peer, first.call(pass_gate, *gate.pipes))
    gate.entered()
    first.close()
    second = Scripted(address, instance="two", first_session=50)
    try:
        me = second.engine("nanny")
        again = second.engine()
        while again.hello.nanny != me.session:  # it was back before its nanny: it says hello once more
            again = second.engine()
        gate.release()
        got = second.run(again, os.getpid)
        assert got.value == peer.hello.pid
        assert nanny.workers[0].engine == again.session
        os.kill(peer.hello.pid, signal.SIGKILL)
        died = second.expect(Died)
        assert (died.engine, died.pid) == (again.session, peer.hello.pid)
        assert died.running in ([], [got.end.id])  # whose answer was sent just now
    finally:
        thread.cancel()
        second.close()


def test_a_death_in_the_scheduler_s_absence_is_reported_when_it_is_back(scheduler: Scripted) -> None:
    with nanny_at(scheduler, workers=1):
        me = scheduler.engine("nanny")
        peer = scheduler.engine()
        scheduler.deaf_to.add(me.address)
        os.kill(peer.hello.pid, signal.SIGKILL)
        assert scheduler.expect(Died).pid == peer.hello.pid
        assert scheduler.engine("nanny").session == me.session


def test_workers_end_when_their_nanny_is_killed(scheduler: Scripted, runtime_dir: Path) -> None:
    client = msgspec.structs.replace(scheduler.connection, role="client")
    _, path = write_connection_files(client, scheduler.connection)
    code = (
        "import sys, trio; from trio_sched.engine.nanny import run_nanny; "
        "from trio_sched.transport.connection import read_connection_file; "
        "trio.run(lambda: run_nanny(read_connection_file(sys.argv[1]), workers=2))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as process:
        engines = [scheduler.engine() for _ in range(2)]
        process.kill()
    for peer in engines:
        assert scheduler.expect(Bye, peer).reason == "its nanny is gone"


def test_a_worker_that_cannot_start_is_tried_again_ever_more_slowly(
    scheduler: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ward, "_COMMAND", (sys.executable, "-c", "raise SystemExit(7)"))
    monkeypatch.setattr(ward, "_FIRST_DELAY_S", 0.001)
    with nanny_at(scheduler, workers=1):
        deaths = [scheduler.expect(Died) for _ in range(3)]
    assert {(died.engine, died.reason) for died in deaths} == {
        (0, "the process ended with exit code 7, as os._exit(7) does")
    }
    assert len({died.pid for died in deaths}) == 3


def test_delays_before_the_next_worker() -> None:
    def death(*, at_work: bool = False, orderly: bool = False) -> ward.Death:
        return ward.Death(1, "", Board(None, 1), at_work, orderly)

    assert ward.delay_before_next_s(death(at_work=True), 0) == 0.0
    assert ward.delay_before_next_s(death(orderly=True), 1) == 1.0
    assert [ward.delay_before_next_s(death(), n) for n in (1, 2, 3, 50)] == [0.25, 0.5, 1.0, 30.0]
