"""Clients of a restarted scheduler, with and without `reconnect="same-name"`, with real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from trio_sched import Client, SchedulerClosed, open_client
from trio_sched.client.settings import ClientSettings
from trio_sched.client.successor import REFUSAL_PAUSE_S, SuccessorFinder
from trio_sched.transport.connection_info import ConnectionInfo, write_connection_files

LIMIT_S = 60.0


class RestartableCluster:
    """A scheduler with one engine that can be ended and started again under its name."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the processes, and wait until the scheduler answers."""
        command = [sys.executable, "-m", "trio_sched", "up", "-n", "1", "--name", "lab", "--lifeline"]
        command += ["--shutdown-grace-s", "0.1", *self._options]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline()

    def end(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(number)
        process.wait(LIMIT_S)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        self._process = None


@pytest.fixture
def lab(request: pytest.FixtureRequest, runtime_dir: Path) -> Iterator[RestartableCluster]:
    """A cluster named "lab"; the parameter has its options. Over TCP each instance has another port."""
    lab = RestartableCluster(*getattr(request, "param", ()))
    lab.start()
    yield lab
    lab.end(signal.SIGKILL)


def by_value(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function to be pickled by value: engines cannot import the tests."""
    function.__module__ = "__main__"
    return function


@by_value
def forever() -> None:
    import time

    time.sleep(3600)


@by_value
def twice(number: int) -> int:
    return 2 * number


def submit_when_connected(client: Client, number: int) -> Any:
    """Submit a task as soon as the next scheduler takes it."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            return client.submit(twice, number)
        except SchedulerClosed:
            assert time.monotonic() < deadline
            threading.Event().wait(0.02)


@pytest.mark.parametrize(
    ("lab", "end"),
    [((), signal.SIGKILL), (("--bind", "tcp://127.0.0.1:0"), signal.SIGTERM)],
    indirect=["lab"],
    ids=["ipc-kill", "tcp-stop"],
)
def test_a_client_connects_to_a_restarted_scheduler(lab: RestartableCluster, end: signal.Signals) -> None:
    with Client("lab", reconnect="same-name", connect_timeout=LIMIT_S) as client:
        before = client.submit(twice, 1)
        assert before.result(LIMIT_S) == 2
        lost = [client.submit(forever) for _ in range(3)]
        assert client.status()["draining"] is False  # the scheduler has the tasks
        lab.end(end)
        for future in lost:
            with pytest.raises(SchedulerClosed, match="the task is lost, and is not submitted again"):
                raise future.exception(LIMIT_S) or AssertionError
        with pytest.raises(SchedulerClosed, match="connects again as soon as a scheduler runs there"):
            client.submit(twice, 2)
        with pytest.raises(SchedulerClosed):
            client.status()
        lab.start()
        after = submit_when_connected(client, 3)
        assert after.result(LIMIT_S) == 6  # the function was sent again
        assert client.submit(twice, before).result(LIMIT_S) == 4  # the value of a task of the former scheduler
        assert client.submit(twice, client.submit(twice, 5)).result(LIMIT_S) == 20
        assert client.status()["tasks"]["ok"] >= 4


def test_a_client_connects_after_each_of_several_restarts(lab: RestartableCluster) -> None:
    with Client("lab", reconnect="same-name", connect_timeout=LIMIT_S) as client:
        for number in range(2):
            assert submit_when_connected(client, number).result(LIMIT_S) == 2 * number
            lost = client.submit(forever)
            lab.end(signal.SIGKILL)
            assert isinstance(lost.exception(LIMIT_S), SchedulerClosed)
            lab.start()


def test_an_unnoticed_restart_is_noticed_by_the_refusal(lab: RestartableCluster) -> None:
    """No task is unfinished, and the new scheduler runs before the client checks the old one."""
    with Client("lab", reconnect="same-name", connect_timeout=LIMIT_S) as client:
        assert client.submit(twice, 1).result(LIMIT_S) == 2
        lab.end(signal.SIGKILL)
        lab.start()
        deadline = time.monotonic() + LIMIT_S
        while True:  # a task submitted to the old scheduler is lost
            future = submit_when_connected(client, 4)
            if future.exception(LIMIT_S) is None:
                break
            assert isinstance(future.exception(), SchedulerClosed)
            assert time.monotonic() < deadline
        assert future.result() == 8


def test_a_client_that_leaves_does_not_wait_for_the_next_scheduler(lab: RestartableCluster) -> None:
    client = Client("lab", reconnect="same-name", connect_timeout=LIMIT_S)
    lost = client.submit(forever)
    lab.end(signal.SIGKILL)
    assert isinstance(lost.exception(LIMIT_S), SchedulerClosed)
    client.shutdown()
    assert not client._connection._thread.is_alive()


def test_without_reconnect_the_client_ends(lab: RestartableCluster) -> None:
    client = Client("lab", connect_timeout=LIMIT_S)
    lost = client.submit(forever)
    lab.end(signal.SIGKILL)
    assert isinstance(lost.exception(LIMIT_S), SchedulerClosed)
    client._connection.join(LIMIT_S)
    lab.start()
    with pytest.raises(SchedulerClosed, match="is gone"):
        client.submit(twice, 1)
    client.shutdown()


def test_the_asynchronous_client_connects_to_a_restarted_scheduler(
    lab: RestartableCluster, run: Callable[[Callable[[], Awaitable[Any]]], Any]
) -> None:
    async def main() -> None:
        async with open_client("lab", reconnect="same-name", connect_timeout=LIMIT_S) as client:
            before = client.submit(twice, 1)
            assert await before == 2
            lost = client.submit(forever)
            await anyio.to_thread.run_sync(lab.end, signal.SIGKILL)
            with pytest.raises(SchedulerClosed, match="the task is lost, and is not submitted again"):
                await lost
            with pytest.raises(SchedulerClosed, match="connects again as soon as a scheduler runs there"):
                client.submit(twice, 2)
            with pytest.raises(SchedulerClosed):
                await client.status()
            await anyio.to_thread.run_sync(lab.start)
            while True:
                try:
                    after = client.submit(twice, 3)
                    break
                except SchedulerClosed:
                    await anyio.sleep(0.02)
            assert await after == 6
            assert await client.submit(twice, before) == 4
            assert (await client.status())["tasks"]["ok"] >= 2

    run(main)


# ---- arguments ------------------------------------------------------------------------------------------------------


def test_the_arguments_of_reconnection_are_checked() -> None:
    with pytest.raises(ValueError, match="reconnect='always': must be 'never' or 'same-name'"):
        Client(reconnect="always")  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(TypeError, match="never restarted"):
        Client(engines=1, reconnect="same-name")
    for wrong in ("60", -1, float("nan"), None, True):
        with pytest.raises(ValueError, match=r"reconnect_s=.*: must be a number of seconds"):
            Client(reconnect_s=wrong)  # type: ignore[arg-type]  # likewise
        with pytest.raises(ValueError, match=r"connect_timeout=.*: must be a number of seconds"):
            Client(connect_timeout=wrong)  # type: ignore[arg-type]  # likewise


def test_a_scheduler_that_refused_is_tried_again_after_a_pause(runtime_dir: Path) -> None:
    """The scheduler may have been full; another instance is tried at once."""
    first = ConnectionInfo("lab", "client", "tcp://127.0.0.1:1", "first", scheduler="1")
    second = replace(first, token="second", scheduler="2")
    write_connection_files(first, replace(first, role="engine"))
    successor = SuccessorFinder("lab")
    assert successor.find(0.0) == first
    successor.note_refusal(first, 0.0)
    assert successor.find(REFUSAL_PAUSE_S - 1) is None
    assert successor.find(REFUSAL_PAUSE_S) == first
    successor.note_refusal(first, 10.0)
    assert not successor.has_replaced(first)
    write_connection_files(second, replace(second, role="engine"))
    assert successor.find(10.0) == second
    assert successor.has_replaced(first)


def test_the_successor_is_looked_up_where_the_first_scheduler_was_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connection = ConnectionInfo("lab", "client", "", "")

    def where(given: Any) -> Any:
        successor = SuccessorFinder.from_settings(ClientSettings(given, reconnect="same-name"), connection)
        assert successor is not None
        return successor._where

    monkeypatch.chdir(tmp_path)
    assert where(None) == where(connection) == where("lab") == "lab"
    assert where("x.json") == tmp_path / "x.json"  # an absolute path: the working directory may change
    monkeypatch.setenv("TRIO_SCHED_CONNECTION", "/y.json")
    assert where(None) == Path("/y.json")


def test_leaving_raises_one_error_for_all_tasks_that_were_lost_with_a_scheduler(lab: RestartableCluster) -> None:
    async def main() -> None:
        async with open_client("lab", reconnect="same-name", connect_timeout=LIMIT_S) as client:
            for _ in range(3):
                client.options(resources={"unobtainium": 1}).submit(abs, 1)
            await client.status()  # the scheduler has the tasks
            lab.end(signal.SIGKILL)

    with pytest.raises(SchedulerClosed, match="the task is lost"):
        anyio.run(main)
