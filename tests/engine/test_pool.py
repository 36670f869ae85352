"""A real worker process with several slots."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trio_sched.engine.control_messages import NannyJoined, StartWorker
from trio_sched.engine.pool import fits
from trio_sched.wire.native import Bye, Closing, Hello, Recall, Recalled

from .conftest import ConnectedWorker
from .scripted_scheduler import Gate, ScriptedScheduler, Worker, pass_gate


@pytest.fixture(scope="module")
def pool(short_dir: Path) -> Iterator[ConnectedWorker]:
    scheduler = ScriptedScheduler(f"ipc://{short_dir}/pool.sock")
    worker = Worker(StartWorker(scheduler.connection, name="pool", slots=2, hwm=4, resources={"gpu": 1.0, "mem": 0.3}))
    yield ConnectedWorker(scheduler, worker, scheduler.engine())
    stderr = worker.stop()
    scheduler.close()
    assert stderr == ""


@pytest.fixture
def gates(short_dir: Path) -> list[Gate]:
    return [Gate(short_dir) for _ in range(3)]


def gated(scheduler: ScriptedScheduler, gate: Gate, **resources: float) -> Any:
    call, functions, frames = scheduler.call(pass_gate, *gate.pipes)
    call.resources = resources or None
    return call, functions, frames


def test_the_hello_names_slots_hwm_and_resources(pool: ConnectedWorker) -> None:
    hello = pool.peer.hello
    assert (hello.slots, hello.hwm, hello.resources) == (2, 4, {"gpu": 1.0, "mem": 0.3})


def test_as_many_tasks_run_at_once_as_there_are_slots(pool: ConnectedWorker, gates: list[Gate]) -> None:
    scheduler = pool.scheduler
    one, two, three = scheduler.assign(pool.peer, *(gated(scheduler, gate) for gate in gates))
    gates[0].entered()
    gates[1].entered()
    scheduler.send(pool.peer, Recall([one, two]))
    assert scheduler.expect(Recalled).kept == [one, two]
    gates[1].release()
    gates[2].entered()
    gates[0].release()
    gates[2].release()
    assert scheduler.answers(pool.peer, one, two, three)[0].result.id == two
    assert scheduler.has_no_messages()


def test_r16_a_task_starts_only_when_its_resources_fit(pool: ConnectedWorker, gates: list[Gate]) -> None:
    scheduler = pool.scheduler
    holder, waiting, passing = gates
    first, second, third = scheduler.assign(
        pool.peer,
        gated(scheduler, holder, gpu=1.0, mem=0.1),
        gated(scheduler, waiting, gpu=0.5),
        gated(scheduler, passing, mem=0.2),
    )
    holder.entered()
    passing.entered()  # before the earlier one that does not fit
    passing.release()
    assert scheduler.answers(pool.peer, third)[0].result.outcome == "ok"
    scheduler.send(pool.peer, Recall([second]))
    assert scheduler.expect(Recalled).given == [second]  # it has not begun
    (second,) = scheduler.assign(pool.peer, gated(scheduler, waiting, gpu=0.5))
    holder.release()
    waiting.entered()
    waiting.release()
    scheduler.answers(pool.peer, first, second)


def test_output_belongs_to_the_task_of_its_thread(pool: ConnectedWorker, gates: list[Gate]) -> None:
    def talk(name: str, entered: str, released: str) -> None:
        print("begin", name)
        with open(entered, "w"):
            pass
        with open(released) as pipe:
            pipe.read()
        print("end", name, file=sys.stderr)

    scheduler = pool.scheduler
    calls = [scheduler.call(talk, name, *gate.pipes) for name, gate in zip("ab", gates, strict=False)]
    a, b = scheduler.assign(pool.peer, *calls)
    gates[0].entered()
    gates[1].entered()
    gates[1].release()
    gates[0].release()
    results = {answer.result.id: answer.result for answer in scheduler.answers(pool.peer, a, b)}
    assert (results[a].stdout, results[a].stderr) == ("begin a\n", "end a\n")
    assert (results[b].stdout, results[b].stderr) == ("begin b\n", "end b\n")


def test_many_short_tasks_all_have_results(pool: ConnectedWorker) -> None:
    scheduler = pool.scheduler
    tasks = [t for _ in range(50) for t in scheduler.assign(pool.peer, *(scheduler.call(int, "7") for _ in range(10)))]
    answers = scheduler.answers(pool.peer, *tasks)
    assert {answer.value for answer in answers} == {7}
    assert sorted(answer.result.id for answer in answers) == tasks


def test_the_hello_after_a_reconnection_lists_the_running_tasks(pool: ConnectedWorker, gates: list[Gate]) -> None:
    scheduler = pool.scheduler
    one, two = scheduler.assign(pool.peer, *(gated(scheduler, gate) for gate in gates[:2]))
    gates[0].entered()
    gates[1].entered()
    scheduler.forget_address(pool.peer)
    assert sorted(scheduler.expect(Hello).holding) == [one, two]
    gates[0].release()
    gates[1].release()
    scheduler.answers(pool.peer, one, two)


def test_running_tasks_end_after_closing(scheduler: ScriptedScheduler, gates: list[Gate]) -> None:
    worker = Worker(StartWorker(scheduler.connection, slots=2))
    peer = scheduler.engine()
    one, two, _ = scheduler.assign(peer, *(gated(scheduler, gate) for gate in gates))
    gates[0].entered()
    gates[1].entered()
    scheduler.send(peer, Closing("enough"))
    scheduler.send(peer, Recall([]))
    scheduler.expect(Recalled)  # therefore the worker has read the closing
    os.kill(worker.process.pid, signal.SIGTERM)  # a second request changes nothing
    gates[0].release()
    gates[1].release()
    scheduler.answers(peer, one, two)
    scheduler.expect(Bye)
    assert worker.wait() == 0
    assert worker.stop() == ""


def test_a_busy_pool_exits_with_its_nanny(scheduler: ScriptedScheduler, gate: Gate) -> None:
    worker = Worker(StartWorker(scheduler.connection, slots=2, nanny=True))
    worker.send(NannyJoined(99, "one"))
    peer = scheduler.engine()
    scheduler.assign(peer, gated(scheduler, gate))
    gate.entered()
    assert worker.process.stdin
    worker.process.stdin.close()
    assert scheduler.expect(Bye, peer).reason == "its nanny has exited"
    worker.wait()
    worker.stop()


@pytest.mark.parametrize(
    ("asked", "free", "verdict"),
    [
        (None, {}, True),
        ({}, {}, True),
        ({"gpu": 1}, {}, False),
        ({"gpu": 1}, {"gpu": 1}, True),
        ({"gpu": 1, "mem": 2}, {"gpu": 1, "mem": 1}, False),
        ({"x": 0.3}, {"x": 0.1 + 0.2 - 1e-12}, True),
    ],
)
def test_r16_resources_fit_if_every_amount_is_free(
    asked: dict[str, float] | None, free: dict[str, float], verdict: bool
) -> None:
    assert fits(asked, free) is verdict
