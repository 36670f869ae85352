"""Engines with the real scheduler and the real client."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from trio_sched.client.blocking import Client
from trio_sched.engine.nanny import Nanny, run_nanny
from trio_sched.errors import EngineError, UnmetDependency
from trio_sched.server.config import Config
from trio_sched.server.serve import Running, serve

from .scripted_scheduler import WAIT_S, Gate, by_value, pass_gate


class Cluster:
    """A scheduler and a nanny with workers, which run in one Trio program in a thread."""

    def __init__(self, name: str, workers: int = 2, slots: int = 1) -> None:
        self._name = name
        self._workers = workers
        self._slots = slots
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,), daemon=True)
        self._thread.start()
        assert self._ready.wait(WAIT_S)
        self.connection = self.running.connection

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self.running: Running = await nursery.start(serve, Config(name=self._name))
            self.nanny: Nanny = await nursery.start(self._nanny)
            self._ready.set()

    async def _nanny(self, task_status: trio.TaskStatus[Nanny]) -> None:
        await run_nanny(
            self.running.engine_connection,
            workers=self._workers,
            slots=self._slots,
            resources={"gpu": 1},
            task_status=task_status,
        )

    def close(self) -> None:
        trio.from_thread.run_sync(self.running.stop, "done", trio_token=self._token)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster("engines-cluster")
    yield cluster
    cluster.close()


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.connection) as client:
        yield client


def test_calls_return_their_results(client: Client, cluster: Cluster) -> None:
    assert list(client.map(abs, range(-500, 0), timeout=WAIT_S)) == list(range(500, 0, -1))
    assert client.submit(os.getcwd).result(WAIT_S) == os.getcwd()


def test_r9_an_array_is_passed_from_task_to_task(client: Client) -> None:
    array = client.submit(np.arange, 500_000.0)
    total = client.submit(np.sum, client.submit(np.negative, array))
    assert total.result(WAIT_S) == -np.arange(500_000.0).sum()


def test_r19_a_declined_task_runs_on_another_engine(client: Client, tmp_path: Path) -> None:
    @by_value
    def decline_once(path: str) -> int:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return os.getpid()
        raise UnmetDependency("the first engine declines")

    pid = client.submit(decline_once, str(tmp_path / "first")).result(WAIT_S)
    assert pid > 0


def test_r20_a_task_that_kills_its_engines_fails_with_the_reason_and_no_other_task_fails(client: Client) -> None:
    @by_value
    def die() -> None:
        os._exit(3)

    others = [client.submit(abs, -n) for n in range(20)]
    deadly = client.submit(die)
    others += [client.submit(abs, -n) for n in range(20, 40)]
    with pytest.raises(EngineError, match=r"exit code 3, as os\._exit\(3\) does"):
        deadly.result(WAIT_S)
    assert [future.result(WAIT_S) for future in others] == list(range(40))


def test_r20_a_task_that_closes_the_descriptors_of_the_worker_is_blamed_for_its_death(client: Client) -> None:
    @by_value
    def close_all() -> None:
        os.closerange(3, 256)

    with pytest.raises(EngineError, match="SIGABRT"):
        client.submit(close_all).result(WAIT_S)
    assert client.submit(abs, -1).result(WAIT_S) == 1


def test_r23_a_task_queued_behind_a_long_one_can_be_cancelled(client: Client, gate: Gate) -> None:
    somewhere = client.submit(abs, -1)
    somewhere.result(WAIT_S)
    here = client.options(targets=[somewhere.engine])
    long = here.submit(pass_gate, *gate.pipes)
    gate.entered()
    queued = here.submit(abs, -1)
    assert queued.cancel()
    until = time.monotonic() + WAIT_S
    while "ended as cancelled" not in client.explain(queued):  # while the long task still runs
        assert time.monotonic() < until
    gate.release("done")
    assert long.result(WAIT_S) == "done"


@pytest.mark.parametrize("slots", [1, 2])
def test_r29_an_engine_that_is_told_to_end_is_draining_and_gives_its_queue_back(short_dir: Path, slots: int) -> None:
    cluster = Cluster("draining-cluster", workers=1, slots=slots)
    gates = [Gate(short_dir) for _ in range(slots)]
    try:
        with Client(cluster.connection) as client:
            running = [client.submit(pass_gate, *gate.pipes) for gate in gates]
            for gate in gates:
                gate.entered()
            queued = [client.submit(os.getpid) for _ in range(5)]
            [engine] = until(client, lambda engines: engines[0]["load"] == slots + 5)
            assert engine["state"] == "open"
            os.kill(engine["pid"], signal.SIGTERM)
            [engine] = until(client, lambda engines: engines[0]["load"] == slots)
            assert engine["state"] == "draining"
            assert client.status()["tasks"]["ready"] == 5
            for gate in gates:
                gate.release("done")
            assert [future.result(WAIT_S) for future in running] == ["done"] * slots
            assert engine["pid"] not in {future.result(WAIT_S) for future in queued}  # the next worker has another pid
    finally:
        cluster.close()


def until(client: Client, holds: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """Wait until the condition holds for the list of engines; returns the list."""
    deadline = time.monotonic() + WAIT_S
    while not holds(engines := client.engines()):
        assert time.monotonic() < deadline, engines
    return engines
