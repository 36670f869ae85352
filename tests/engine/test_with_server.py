"""Engines at the real scheduler, asked by the real client."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trio

from trio_sched.client.blocking import Client
from trio_sched.engine.nanny import Nanny, run_nanny
from trio_sched.errors import EngineError, UnmetDependency
from trio_sched.server.config import Config
from trio_sched.server.serve import Running, serve

from .scripted import WAIT_S, Gate, pass_gate, whole


class World:
    """A scheduler and a nanny with two workers, in one Trio program in a thread."""

    def __init__(self, name: str) -> None:
        self._name = name
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
        await run_nanny(self.running.engine_connection, workers=2, resources={"gpu": 1}, task_status=task_status)

    def close(self) -> None:
        trio.from_thread.run_sync(self.running.stop, "done", trio_token=self._token)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World("engines-world")
    yield world
    world.close()


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    with Client(world.connection) as client:
        yield client


def test_calls_come_back(client: Client, world: World) -> None:
    assert list(client.map(abs, range(-500, 0), timeout=WAIT_S)) == list(range(500, 0, -1))
    assert client.submit(os.getcwd).result(WAIT_S) == os.getcwd()


def test_r9_an_array_goes_from_task_to_task(client: Client) -> None:
    array = client.submit(np.arange, 500_000.0)
    total = client.submit(np.sum, client.submit(np.negative, array))
    assert total.result(WAIT_S) == -np.arange(500_000.0).sum()


def test_r19_an_engine_that_declines_is_passed_over(client: Client, tmp_path: Path) -> None:
    @whole
    def only_where_nobody_was(path: str) -> int:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return os.getpid()
        raise UnmetDependency("somebody has to be the first to decline")

    pid = client.submit(only_where_nobody_was, str(tmp_path / "first")).result(WAIT_S)
    assert pid > 0


def test_r20_a_task_that_kills_its_engines_fails_with_the_cause_and_harms_no_other(client: Client) -> None:
    @whole
    def die() -> None:
        os._exit(3)

    others = [client.submit(abs, -n) for n in range(20)]
    deadly = client.submit(die)
    others += [client.submit(abs, -n) for n in range(20, 40)]
    with pytest.raises(EngineError, match=r"exit code 3, as os\._exit\(3\) does"):
        deadly.result(WAIT_S)
    assert [future.result(WAIT_S) for future in others] == list(range(40))


def test_r23_a_task_queued_behind_a_long_one_can_be_cancelled(client: Client, gate: Gate) -> None:
    somewhere = client.submit(abs, -1)
    somewhere.result(WAIT_S)
    here = client.options(targets=[somewhere.engine])
    long = here.submit(pass_gate, *gate.pipes)
    gate.entered()
    queued = here.submit(abs, -1)
    assert queued.cancel()
    until = time.monotonic() + WAIT_S
    while "ended as cancelled" not in client.explain(queued):  # although the long one still runs
        assert time.monotonic() < until
    gate.release("done")
    assert long.result(WAIT_S) == "done"
