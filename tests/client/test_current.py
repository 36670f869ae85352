"""Clients in tasks: they belong to the scheduler that runs the task, whichever other schedulers run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trio_sched import Client, NoSchedulerError, current_client
from trio_sched.client import blocking
from trio_sched.client.local_cluster import LocalCluster
from trio_sched.transport.connection_info import ENV_CONNECTION, ENV_ENGINE_OF, ConnectionInfo, to_json

LIMIT_S = 60.0


def by_value(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function to be pickled by value: engines cannot import the tests."""
    function.__module__ = "__main__"
    return function


@pytest.fixture
def other() -> Iterator[LocalCluster]:
    """A second scheduler."""
    cluster = LocalCluster(1)
    yield cluster
    cluster.close()


@pytest.fixture
def in_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[ConnectionInfo], None]]:
    """Set the environment of a worker: `in_task(connection)` writes the client file of its scheduler."""
    path = tmp_path / "there-client.json"
    monkeypatch.setenv(ENV_CONNECTION, str(path))
    monkeypatch.setenv(ENV_ENGINE_OF, "there on another")

    def write(connection: ConnectionInfo) -> None:
        path.write_text(to_json(connection))
        path.chmod(0o600)

    yield write
    if blocking._current_client is not None:
        blocking._current_client.shutdown()
        blocking._current_client = None


def test_a_task_finds_the_scheduler_that_runs_it(client: Client, other: LocalCluster) -> None:
    @by_value
    def find_it(number: int) -> tuple[str, int, bool]:
        import trio_sched

        with trio_sched.Client() as mine:
            address = mine._connection.info.address
        mine = trio_sched.current_client()
        return address, mine.submit(abs, -number).result(60), mine is trio_sched.current_client()

    @by_value
    def look() -> str:
        import trio_sched

        with trio_sched.Client() as mine:
            return mine._connection.info.address

    until = time.monotonic() + LIMIT_S
    while len(client.engines()) < 2:  # one for each of the two tasks
        assert time.monotonic() < until
    assert client.submit(find_it, 1).result(LIMIT_S) == (client._connection.info.address, 1, True)
    with Client(other.connection(LIMIT_S)) as elsewhere:
        assert elsewhere.submit(look).result(LIMIT_S) == elsewhere._connection.info.address


def test_a_process_started_by_a_task_finds_the_same_scheduler(client: Client) -> None:
    @by_value
    def ask() -> str:
        import subprocess
        import sys

        code = "import trio_sched; print(trio_sched.Client()._connection.info.address)"
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()

    assert client.submit(ask).result(LIMIT_S) == client._connection.info.address


def test_a_process_forked_by_a_task_gets_another_client(client: Client) -> None:
    @by_value
    def fork() -> tuple[int, int]:
        import os

        import trio_sched

        mine = trio_sched.current_client().session
        came, go = os.pipe()
        if (pid := os.fork()) == 0:
            os.write(go, str(trio_sched.current_client().session).encode())
            os._exit(0)
        os.close(go)
        os.waitpid(pid, 0)
        theirs = int(os.read(came, 100))
        os.close(came)
        trio_sched.current_client().status()
        return mine, theirs

    mine, theirs = client.submit(fork).result(LIMIT_S)
    assert mine != theirs


def test_outside_of_a_task_current_client_is_an_error() -> None:
    with pytest.raises(NoSchedulerError, match=r"in a task; elsewhere use Client\(\)"):
        current_client()


def test_current_client_is_kept_until_it_is_shut_down_or_the_scheduler_changes(
    scheduler: ConnectionInfo, other: LocalCluster, in_task: Callable[[ConnectionInfo], None]
) -> None:
    in_task(scheduler)
    first = current_client()
    assert current_client() is first
    first.shutdown()
    second = current_client()
    assert second is not first
    assert second.status()
    in_task(other.connection(LIMIT_S))
    third = current_client()
    assert third.submit(os.getpid).result(LIMIT_S) > 0
    assert third._connection.info.address != second._connection.info.address
    with pytest.raises(RuntimeError, match="shutdown"):
        second.submit(abs, -1)


def test_the_error_on_a_host_without_a_client_file_names_the_file_to_copy(
    in_task: Callable[[ConnectionInfo], None], tmp_path: Path
) -> None:
    for make in (current_client, Client):
        with pytest.raises(NoSchedulerError) as caught:
            make()
        text = str(caught.value)
        assert "an engine of the scheduler there on another" in text
        assert f"{tmp_path}/there-client.json, is not on this machine" in text
        assert "copy there-client.json from the scheduler's machine to there, with mode 0600" in text
