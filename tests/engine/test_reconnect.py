"""A worker and its line: nothing gets lost when it breaks, and the worker ends when it should."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec
import numpy as np

from trio_sched.engine.orders import NannyJoined, StartWorker
from trio_sched.transport.connection import write_connection_files
from trio_sched.wire.native import Acked, Bye, Closing, Error, Finished, Hello, Recall, Recalled

from .conftest import Line
from .scripted import WAIT_S, Gate, Scripted, Worker, pass_gate


def test_recalled_tasks_are_given_back_unless_begun(own: Line, gate: Gate) -> None:
    scheduler, peer = own.scheduler, own.peer
    running, first, second, third = scheduler.assign(
        peer, scheduler.call(pass_gate, *gate.pipes), *[scheduler.call(int) for _ in range(3)]
    )
    gate.entered()
    scheduler.send(peer, Recall([first, running, third, 99]))
    answer = scheduler.expect(Recalled, peer)
    assert answer.given == [first, third]
    assert answer.kept == sorted([99, running])
    gate.release()
    assert [got.end.id for got in scheduler.answers(peer, running, second)] == [running, second]
    scheduler.send(peer, Recall([second]))
    assert scheduler.expect(Recalled, peer) == Recalled([], [second])


def test_unacknowledged_results_are_sent_again_after_a_reconnection(own: Line) -> None:
    scheduler, peer = own.scheduler, own.peer
    scheduler.acking = False
    calls = [scheduler.call(int, text) for text in "123"]
    tasks = scheduler.assign(peer, *calls)
    scheduler.answers(peer, *tasks)
    scheduler.send(peer, Acked(1))
    peer.taken = 1  # as if the others had been lost on the way
    scheduler.forget(peer)
    hello = scheduler.expect(Hello)
    assert (hello.session, hello.secret, hello.scheduler) == (peer.session, "s", "one")
    assert hello.holding == tasks[1:]
    assert [got.value for got in scheduler.answers(peer, *tasks[1:])] == [2, 3]
    scheduler.send(peer, Acked(3))
    scheduler.acking = True
    scheduler.forget(peer)
    assert scheduler.expect(Hello).holding == []
    assert scheduler.run(peer, int, "4").value == 4
    assert scheduler.nothing_came()


def test_what_was_counted_is_not_sent_again(own: Line) -> None:
    scheduler, peer = own.scheduler, own.peer
    scheduler.acking = False  # the scheduler has the result, only its acknowledgement is lost
    (task,) = scheduler.assign(peer, scheduler.call(int))
    scheduler.answers(peer, task)
    scheduler.forget(peer)
    assert scheduler.expect(Hello).holding == [task]
    scheduler.run(peer, int)
    assert scheduler.nothing_came()


def test_a_result_is_sent_again_as_it_was_although_the_array_has_changed(own: Line) -> None:
    scheduler, peer = own.scheduler, own.peer
    scheduler.acking = False
    state = np.zeros(100_000)

    def step() -> np.ndarray:
        import builtins

        kept = builtins.__dict__.setdefault("kept", state)
        kept += 1
        return kept[10:]

    first, second = scheduler.assign(peer, scheduler.call(step), scheduler.call(step))
    scheduler.answers(peer, first, second)
    peer.taken = 0
    scheduler.forget(peer)
    values = [got.value for got in scheduler.answers(peer, first, second)]
    assert [set(value) for value in values] == [{1.0}, {2.0}]


def test_a_silent_scheduler_gets_a_new_socket(own: Line) -> None:
    scheduler, peer = own.scheduler, own.peer
    before = peer.address
    scheduler.deaf_to.add(before)
    (task,) = scheduler.assign(peer, scheduler.call(int))
    assert scheduler.expect(Hello).holding == [task]
    assert peer.address != before
    assert scheduler.answers(peer, task)[0].value == 0


def test_another_scheduler_gets_a_fresh_engine(short_dir: Path, gate: Gate) -> None:
    first = Scripted(f"ipc://{short_dir}/again.sock")
    worker = Worker(StartWorker(first.connection))
    try:
        peer = first.engine()
        first.assign(peer, first.call(pass_gate, *gate.pipes), first.call(int))
        gate.entered()
        first.close()
        second = Scripted(f"ipc://{short_dir}/again.sock", instance="two", first_session=50)
        try:
            again = second.engine()
            assert (again.hello.session, again.hello.scheduler) == (peer.session, "one")
            assert len(again.hello.holding) == 2
            (task,) = second.assign(again, second.call(int, "5"))
            gate.release()
            assert second.answers(again, task)[0].value == 5
            assert second.nothing_came()  # neither what ran nor what waited is this scheduler's business
        finally:
            second.close()
    finally:
        worker.stop()


# ---- the end --------------------------------------------------------------------------------------------------------


def test_closing_lets_the_running_task_end(own: Line, gate: Gate) -> None:
    scheduler, peer = own.scheduler, own.peer
    running, _ = scheduler.assign(peer, scheduler.call(pass_gate, *gate.pipes), scheduler.call(int))
    gate.entered()
    scheduler.send(peer, Closing("enough"))
    scheduler.send(peer, Recall([]))
    scheduler.expect(Recalled)  # so the closing has been read
    gate.release("done")
    finished = scheduler.expect(Finished)
    assert [end.id for end in finished.results] == [running]
    assert scheduler.expect(Bye).reason == "enough"
    assert own.worker.wait() == 0


def test_sigterm_ends_an_idle_worker(own: Line) -> None:
    own.worker.process.send_signal(signal.SIGTERM)
    assert own.scheduler.expect(Bye).reason == "it was asked to end (SIGTERM)"
    assert own.worker.wait() == 0


def test_threads_that_a_task_left_behind_do_not_keep_the_worker(own: Line, tmp_path: Path) -> None:
    def leave_a_thread(path: str) -> None:
        import atexit
        import threading

        atexit.register(Path(path).write_text, "exited")
        threading.Thread(target=threading.Event().wait).start()

    own.scheduler.run(own.peer, leave_a_thread, str(tmp_path / "file"))
    own.worker.process.send_signal(signal.SIGTERM)
    assert own.worker.wait() == 0
    assert (tmp_path / "file").read_text() == "exited"


def test_a_refused_worker_says_so_and_ends(own: Line) -> None:
    own.scheduler.send(own.peer, Error("unauthenticated", "wrong token"))
    own.worker.wait()
    assert "the scheduler refuses this engine: wrong token" in own.worker.stop()


def test_the_lifeline(scheduler: Scripted, gate: Gate) -> None:
    for busy in (False, True):
        worker = Worker(StartWorker(scheduler.connection, nanny=True))
        worker.tell(NannyJoined(99, "one"))
        peer = scheduler.engine()
        assert peer.hello.nanny == 99
        if busy:
            scheduler.assign(peer, scheduler.call(pass_gate, *gate.pipes))
            gate.entered()
        assert worker.process.stdin
        worker.process.stdin.close()
        assert scheduler.expect(Bye, peer).reason == "its nanny has exited"
        worker.wait()
        worker.stop()


def test_a_worker_without_a_nanny_reads_the_connection_file_and_beats(scheduler: Scripted, runtime_dir: Path) -> None:
    client = msgspec.structs.replace(scheduler.connection, role="client")
    _, path = write_connection_files(client, scheduler.connection)
    worker = Worker(StartWorker(scheduler.connection), argv=[str(path)])
    peer = scheduler.engine()
    assert peer.hello.nanny == 0
    assert scheduler.run(peer, os.getpid).value == worker.process.pid
    assert all(scheduler.beats.acquire(timeout=WAIT_S) for _ in range(3))
    worker.stop()
