"""The local cluster of a client: it starts with the client, and ends when the client exits for any reason."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

import trio_sched
from trio_sched import Client
from trio_sched.client.local_cluster import PREFIX, LocalCluster
from trio_sched.transport.scratch import remove_abandoned

LIMIT_S = 60.0


def have_ended(pids: list[int]) -> bool:
    """Wait until these processes have ended; return whether they did in time."""
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(processes, timeout=LIMIT_S)
    return not alive


def process_tree(pid: int) -> list[int]:
    """Return a process and all of its descendants."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def test_a_local_cluster_starts_and_ends_with_its_client() -> None:
    with Client(engines=1, hwm=3, scheme="lru") as client:
        assert client.submit(abs, -1).result(LIMIT_S) == 1
        pids = process_tree(client._connection.info.pid)
        status = client.status()
        assert (status["hwm"], status["scheme"], len(status["engines"])) == (3, "lru", 1)
    assert len(pids) >= 2
    assert have_ended(pids)


def test_the_engines_of_a_local_cluster_have_joined_before_the_first_submission() -> None:
    """Otherwise the first engine to join would get every task."""
    with Client(engines=2, connect_timeout=LIMIT_S) as client:
        assert client._connection.session.engine_count == 2
        assert len(client.engines()) == 2


def test_the_engines_of_an_asynchronous_client_have_joined(run: Any) -> None:
    async def main() -> None:
        async with trio_sched.open_client(engines=2, connect_timeout=LIMIT_S) as client:
            assert len(await client.engines()) == 2

    run(main)


MISSING = r"(?s)[01] of the 2 engines .* joined within connect_timeout=3 s; the client is closed\. Their output:\n."


def test_engines_that_do_not_join_are_an_error_and_no_process_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIO_SCHED_MAX_ENGINES", "1")
    before = psutil.Process().children(recursive=True)
    with pytest.raises(trio_sched.NoSchedulerError, match=MISSING):
        Client(engines=2, connect_timeout=3)
    assert have_ended([child.pid for child in psutil.Process().children(recursive=True) if child not in before])


def test_engines_of_an_asynchronous_client_that_do_not_join_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIO_SCHED_MAX_ENGINES", "1")

    async def main() -> None:
        async with trio_sched.open_client(engines=2, connect_timeout=3):
            pass

    with pytest.raises(trio_sched.NoSchedulerError, match=MISSING):
        anyio.run(main)


_SCRIPT = """
import sys, time, trio_sched
client = trio_sched.Client(engines=1)
future = client.submit(time.sleep, 600)
print(client._connection.info.pid, flush=True)
{end}
"""


@pytest.mark.parametrize(("end", "code"), [("sys.stdin.read()", -signal.SIGKILL), ("1 / 0", 1), ("sys.exit(3)", 3)])
def test_a_local_cluster_ends_when_its_client_exits_for_any_reason(end: str, code: int) -> None:
    command = [sys.executable, "-c", _SCRIPT.format(end=end)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as script:
        assert script.stdout is not None
        pids = process_tree(int(script.stdout.readline()))
        if code == -signal.SIGKILL:
            script.kill()
        assert script.wait(LIMIT_S) == code
        assert have_ended(pids)


def test_a_killed_scheduler_ends_every_future() -> None:
    with Client(engines=1) as client:
        running = client.submit(time.sleep, 600)
        waiting = [client.options(resources={"none": 1}).submit(abs, 1) for _ in range(3)]
        client.status()
        pids = process_tree(client._connection.info.pid)
        os.kill(pids[0], signal.SIGKILL)
        for future in (running, *waiting):
            with pytest.raises(trio_sched.SchedulerClosed, match="the scheduler 'own' is gone: process"):
                future.result(LIMIT_S)
        with pytest.raises(trio_sched.SchedulerClosed):
            client.submit(abs, 1)
        with pytest.raises(trio_sched.SchedulerClosed):
            client.status()


def test_the_shutdown_of_a_scheduler_ends_its_client() -> None:
    other = LocalCluster(1)
    try:
        client = Client(other.connection())
        waiting = client.options(resources={"none": 1}).submit(abs, 1)
        assert client.submit(abs, -1).result(LIMIT_S) == 1
    finally:
        other.close()
    with pytest.raises(trio_sched.SchedulerClosed):
        waiting.result(LIMIT_S)
    with pytest.raises(trio_sched.SchedulerClosed):
        client.submit(abs, 1)
    client.shutdown()


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory for temporary files, whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="o-") as directory:
        yield Path(directory)


def test_directories_of_killed_clients_are_removed_when_their_scheduler_has_ended(
    monkeypatch: pytest.MonkeyPatch, short_dir: Path
) -> None:
    script = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT.format(end="sys.stdin.read()")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(short_dir)},
        text=True,
    )
    with script:
        assert script.stdout is not None
        pids = process_tree(int(script.stdout.readline()))
        os.kill(pids[0], signal.SIGSTOP)  # so that the scheduler outlives its client
        script.kill()
        script.wait(LIMIT_S)
    monkeypatch.setattr("tempfile.tempdir", str(short_dir))
    (left,) = short_dir.glob(f"{PREFIX}*")
    remove_abandoned(PREFIX)
    assert left.exists()
    os.kill(pids[0], signal.SIGKILL)
    os.kill(pids[0], signal.SIGCONT)
    assert have_ended(pids)
    remove_abandoned(PREFIX)
    assert not left.exists()


def test_a_local_cluster_that_cannot_start_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(trio_sched.NoSchedulerError, match=r"(?s)ended with code \d+:.*scheme"):
        Client(engines=1, scheme="nonsense")
    with pytest.raises(ValueError, match="engines=0"):
        Client(engines=0)
    with pytest.raises(TypeError, match="either a running scheduler, or a local cluster"):
        Client("name", engines=1)
    with pytest.raises(TypeError, match="hwm and scheme are settings of a local cluster"):
        Client(hwm=3)
