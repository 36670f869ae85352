"""The connection of a real worker process: nothing is lost when it breaks; and when the worker exits."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec
import numpy as np

from trio_sched.engine.control_messages import NannyJoined, StartWorker
from trio_sched.transport.connection_info import write_connection_files
from trio_sched.wire.native import Acked, Bye, Closing, Error, Finished, Hello, Recall, Recalled

from .conftest import ConnectedWorker
from .scripted_scheduler import WAIT_S, Gate, ScriptedScheduler, Worker, pass_gate


def test_recalled_tasks_are_given_back_unless_they_have_begun(own: ConnectedWorker, gate: Gate) -> None:
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
    assert [answer.result.id for answer in scheduler.answers(peer, running, second)] == [running, second]
    scheduler.send(peer, Recall([second]))
    assert scheduler.expect(Recalled, peer) == Recalled([], [second])


def test_unacknowledged_results_are_sent_again_after_a_reconnection(own: ConnectedWorker) -> None:
    scheduler, peer = own.scheduler, own.peer
    scheduler.sends_acks = False
    calls = [scheduler.call(int, text) for text in "123"]
    tasks = scheduler.assign(peer, *calls)
    scheduler.answers(peer, *tasks)
    scheduler.send(peer, Acked(1))
    peer.acked = 1  # as if the other results had been lost
    scheduler.forget_address(peer)
    hello = scheduler.expect(Hello)
    assert (hello.session, hello.secret, hello.scheduler) == (peer.session, "s", "one")
    assert hello.holding == tasks[1:]
    assert [answer.value for answer in scheduler.answers(peer, *tasks[1:])] == [2, 3]
    scheduler.send(peer, Acked(3))
    scheduler.sends_acks = True
    scheduler.forget_address(peer)
    assert scheduler.expect(Hello).holding == []
    assert scheduler.run(peer, int, "4").value == 4
    assert scheduler.has_no_messages()


def test_results_that_the_scheduler_counted_are_not_sent_again(own: ConnectedWorker) -> None:
    scheduler, peer = own.scheduler, own.peer
    scheduler.sends_acks = False  # the result arrives, and only its acknowledgement is lost
    (task,) = scheduler.assign(peer, scheduler.call(int))
    scheduler.answers(peer, task)
    scheduler.forget_address(peer)
    assert scheduler.expect(Hello).holding == [task]
    scheduler.run(peer, int)
    assert scheduler.has_no_messages()


def test_a_result_that_is_sent_again_is_unchanged_although_the_array_has_changed(own: ConnectedWorker) -> None:
    scheduler, peer = own.scheduler, own.peer
    scheduler.sends_acks = False
    state = np.zeros(100_000)

    def step() -> np.ndarray:
        import builtins

        kept = builtins.__dict__.setdefault("kept", state)
        kept += 1
        return kept[10:]

    first, second = scheduler.assign(peer, scheduler.call(step), scheduler.call(step))
    scheduler.answers(peer, first, second)
    peer.acked = 0
    scheduler.forget_address(peer)
    values = [answer.value for answer in scheduler.answers(peer, first, second)]
    assert [set(value) for value in values] == [{1.0}, {2.0}]


def test_the_engine_opens_a_new_socket_to_a_silent_scheduler(own: ConnectedWorker) -> None:
    scheduler, peer = own.scheduler, own.peer
    before = peer.address
    scheduler.ignored_addresses.add(before)
    (task,) = scheduler.assign(peer, scheduler.call(int))
    assert scheduler.expect(Hello).holding == [task]
    assert peer.address != before
    assert scheduler.answers(peer, task)[0].value == 0


def test_calls_and_results_of_a_former_scheduler_are_dropped(short_dir: Path, gate: Gate) -> None:
    first = ScriptedScheduler(f"ipc://{short_dir}/again.sock")
    worker = Worker(StartWorker(first.connection))
    try:
        peer = first.engine()
        first.assign(peer, first.call(pass_gate, *gate.pipes), first.call(int))
        gate.entered()
        first.close()
        second = ScriptedScheduler(f"ipc://{short_dir}/again.sock", instance="two", first_session=50)
        try:
            again = second.engine()
            assert (again.hello.session, again.hello.scheduler) == (peer.session, "one")
            assert len(again.hello.holding) == 2
            (task,) = second.assign(again, second.call(int, "5"))
            gate.release()
            assert second.answers(again, task)[0].value == 5
            assert second.has_no_messages()  # neither of the running nor of the queued task
        finally:
            second.close()
    finally:
        worker.stop()


# ---- the end --------------------------------------------------------------------------------------------------------


def test_the_running_task_ends_after_closing(own: ConnectedWorker, gate: Gate) -> None:
    scheduler, peer = own.scheduler, own.peer
    running, _ = scheduler.assign(peer, scheduler.call(pass_gate, *gate.pipes), scheduler.call(int))
    gate.entered()
    scheduler.send(peer, Closing("enough"))
    scheduler.send(peer, Recall([]))
    scheduler.expect(Recalled)  # therefore the worker has read the closing
    gate.release("done")
    finished = scheduler.expect(Finished)
    assert [end.id for end in finished.results] == [running]
    assert scheduler.expect(Bye).reason == "enough"
    assert own.worker.wait() == 0


def test_sigterm_ends_an_idle_worker(own: ConnectedWorker) -> None:
    own.worker.process.send_signal(signal.SIGTERM)
    assert own.scheduler.expect(Bye).reason == "it was asked to end (SIGTERM)"
    assert own.worker.wait() == 0


def test_threads_of_former_tasks_do_not_delay_the_exit(own: ConnectedWorker, tmp_path: Path) -> None:
    def leave_a_thread(path: str) -> None:
        import atexit
        import threading

        atexit.register(Path(path).write_text, "exited")
        threading.Thread(target=threading.Event().wait).start()

    own.scheduler.run(own.peer, leave_a_thread, str(tmp_path / "file"))
    own.worker.process.send_signal(signal.SIGTERM)
    assert own.worker.wait() == 0
    assert (tmp_path / "file").read_text() == "exited"


def test_a_refused_worker_prints_the_reason_and_exits(own: ConnectedWorker) -> None:
    own.scheduler.send(own.peer, Error("unauthenticated", "wrong token"))
    own.worker.wait()
    assert "the scheduler refuses this engine: wrong token" in own.worker.stop()


def test_a_worker_exits_with_its_nanny(scheduler: ScriptedScheduler, gate: Gate) -> None:
    for busy in (False, True):
        worker = Worker(StartWorker(scheduler.connection, nanny=True))
        worker.send(NannyJoined(99, "one"))
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


def test_a_worker_without_a_nanny_reads_the_connection_file_and_sends_heartbeats(
    scheduler: ScriptedScheduler, runtime_dir: Path
) -> None:
    client = msgspec.structs.replace(scheduler.connection, role="client")
    _, path = write_connection_files(client, scheduler.connection)
    worker = Worker(StartWorker(scheduler.connection), argv=[str(path)])
    peer = scheduler.engine()
    assert peer.hello.nanny == 0
    assert scheduler.run(peer, os.getpid).value == worker.process.pid
    assert all(scheduler.heartbeats.acquire(timeout=WAIT_S) for _ in range(3))
    worker.stop()
