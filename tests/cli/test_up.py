"""`up`, `serve`, `engine`, and the commands that query and control a scheduler: each as a process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import trio_sched
from tests.cli.processes import COMMAND, TIMEOUT_S, Foreground, children_of, command, error_line, status_of


@pytest.fixture(scope="module")
def client(scheduler: str) -> Iterator[trio_sched.Client]:
    with trio_sched.Client(scheduler) as client:
        yield client


# ---- query and control ----------------------------------------------------------------------------------------------


def test_status_shows_tables(client: trio_sched.Client) -> None:
    client.submit(len, "a").result()
    done = command("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("shared: up ")
    assert done.stdout.count("gpu 1/1") == 2
    assert "tasks:" in done.stdout


def test_status_prints_json(scheduler: str, client: trio_sched.Client) -> None:
    view = status_of(scheduler)
    assert view["scheme"] == "leastload"
    assert [engine["resources"] for engine in view["engines"]] == [{"gpu": 1.0}] * 2
    assert client.session in [row["client"] for row in view["clients"]]


def test_status_repeats_until_ctrl_c(client: trio_sched.Client) -> None:
    with Foreground("status", "--watch", "--json", "--every", "0.1") as watch:
        assert json.loads(watch.first_line)["name"] == "shared"
        assert watch.process.stdout is not None
        assert json.loads(watch.process.stdout.readline())["name"] == "shared"
        watch.process.send_signal(signal.SIGINT)
        code, errors = watch.wait()
    assert (code, errors) == (130, "")


def test_explain_shows_the_reason_and_the_story_and_cancel_ends_the_task(client: trio_sched.Client) -> None:
    stuck = client.options(resources={"gpu": 4}).submit(len, "a")
    behind = client.options(after=[stuck]).submit(len, "b")
    client.status()  # the answer follows the submissions

    why = command("explain", stuck.task_id)
    assert why.stdout == f"{stuck.task_id}: no engine has gpu=4 (the most that one offers: gpu=1)\n"
    story = command("explain", behind.task_id, "--story").stdout
    assert f"1 of 1 dependencies (after): {stuck.task_id}" in story
    assert "s ago  accepted" in story
    assert json.loads(command("explain", behind.task_id, "--json").stdout)["task"] == behind.task_id

    cancelled = command("cancel", stuck.task_id)
    assert cancelled.returncode == 0
    assert cancelled.stdout.startswith(f"{stuck.task_id}: it ended as cancelled")
    with pytest.raises(trio_sched.TaskCancelled):
        stuck.result(30)
    with pytest.raises(trio_sched.ImpossibleDependency):
        behind.result(30)


def test_an_unknown_task_is_an_error(client: trio_sched.Client) -> None:
    for verb in ("explain", "cancel"):
        done = command(verb, "999-1")
        assert done.returncode == 1
        assert "999-1" in error_line(done)


def test_a_malformed_task_id_is_an_error(scheduler: str) -> None:
    done = command("cancel", "nonsense")
    assert done.returncode == 2
    assert "'nonsense' is not a task id" in error_line(done)


# ---- bad input ------------------------------------------------------------------------------------------------------


def test_a_name_in_use_is_an_error_and_its_owner_continues(scheduler: str) -> None:
    done = command("serve", "--name", scheduler)
    assert done.returncode == 1
    assert "in use" in error_line(done)
    assert status_of(scheduler)["name"] == scheduler


def test_a_port_in_use_is_an_error() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        done = command("serve", "--name", "port", "--bind", address)
    assert done.returncode == 1
    assert address in error_line(done)


def test_commands_without_a_scheduler_name_the_runtime_directory(runtime_dir: Path) -> None:
    for verb in (["status"], ["engine", "-n", "1"], ["stop"]):
        done = command(*verb)
        assert done.returncode == 1
        assert str(runtime_dir) in error_line(done)


def connection_file(directory: Path, mode: int, **changed: object) -> Path:
    """Write the connection file of a scheduler that has exited."""
    path = directory / "gone-client.json"
    host = os.uname().nodename
    content = {"name": "gone", "role": "client", "address": f"ipc://{directory}/gone.sock", "token": "x", "pid": 1}
    path.write_text(json.dumps({**content, "host": host, **changed}))
    path.chmod(mode)
    return path


def test_each_unusable_connection_file_is_explained(runtime_dir: Path) -> None:
    missing = command("status", "-C", str(runtime_dir / "no.json"))
    assert "there is no connection file" in error_line(missing)
    stale = command("status", "-C", str(connection_file(runtime_dir, 0o600)))
    assert "stale" in error_line(stale)
    malformed = command("status", "-C", str(connection_file(runtime_dir, 0o600, token=3)))
    assert "not a connection file" in error_line(malformed)
    open_to_others = command("status", "-C", str(connection_file(runtime_dir, 0o644)))
    assert "chmod 600" in error_line(open_to_others)
    assert {done.returncode for done in (missing, stale, malformed, open_to_others)} == {1}


# ---- start and stop -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGHUP", "lifeline", "stop"])
def test_a_shutdown_leaves_no_process_and_no_file(how: str, runtime_dir: Path) -> None:
    with Foreground("up", "-n", "1", "--lifeline") as up:
        below = children_of(up.process.pid)
        if how == "lifeline":
            assert up.process.stdin is not None
            up.process.stdin.close()
            up.process.stdin = None
        elif how == "stop":
            assert command("stop").stdout == "default shuts down\n"
        else:
            up.process.send_signal(signal.Signals[how])
        code, errors = up.wait()
    assert code == 0, errors
    assert "Traceback" not in errors
    assert "shutting down" in errors
    assert [process for process in below if process.is_running()] == []
    assert list(runtime_dir.glob("*.json")) == []


def has_worker(pid: int) -> bool:
    """Whether a child of the process is a worker; some imports start other processes briefly."""
    commands = []
    for child in children_of(pid):
        with contextlib.suppress(psutil.Error):
            commands += child.cmdline()
    return "trio_sched.engine.worker" in commands


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGSTOP")
def test_engines_that_wait_for_a_suspended_scheduler_can_be_stopped() -> None:
    with Foreground("serve", "--name", "suspended") as serve:
        os.kill(serve.process.pid, signal.SIGSTOP)
        try:
            engine = subprocess.Popen(
                [*COMMAND, "engine", "-n", "1", "-C", "suspended"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            with engine:
                while not has_worker(engine.pid):  # no other sign of the wait appears within 10 s
                    assert engine.poll() is None
                engine.terminate()
                output, _ = engine.communicate(timeout=TIMEOUT_S)
        finally:
            os.kill(serve.process.pid, signal.SIGCONT)
    assert (engine.returncode, output) == (0, b"ended: SIGTERM\n")


def test_serve_and_engine_connect_over_tcp_with_curve(runtime_dir: Path) -> None:
    """The logs are JSON, and the engines exit with the scheduler."""
    with Foreground("serve", "--name", "apart", "--bind", "tcp://127.0.0.1:0", "--log-format", "json") as serve:
        assert serve.first_line.startswith("apart is up at tcp://127.0.0.1:")
        assert (runtime_dir / "apart-client.json").stat().st_mode & 0o777 == 0o600
        with Foreground("engine", "-n", "1", "-C", str(runtime_dir / "apart-engine.json"), "--slots", "2") as engine:
            assert engine.first_line.startswith("1 engines for apart at tcp://")
            with trio_sched.Client("apart") as client:
                assert client.submit(pow, 2, 5).result(30) == 32
            assert [row["slots"] for row in status_of("apart")["engines"]] == [2]
            serve.process.terminate()
            code, errors = serve.wait()
            engine_code, _ = engine.wait()
    assert (code, engine_code) == (0, 0)
    assert all(json.loads(line)["event"] for line in errors.splitlines())
