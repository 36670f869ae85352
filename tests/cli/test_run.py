"""`trio-sched run`: a scheduler and engines for one script, its signals and its exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.processes import TIMEOUT_S, Foreground, children_of, command, error_line


def test_run_exits_with_the_code_of_the_script_and_leaves_no_files(script: Path, runtime_dir: Path) -> None:
    done = command("run", "-n", "2", str(script), "-n", "--an option", "2")
    assert done.stderr == ""
    assert done.stdout == "['-n', '--an option', '2'] 1024\n"
    assert done.returncode == 7
    assert list(runtime_dir.glob("*.json")) == [], "connection files are left behind"


def test_the_script_finds_a_scheduler_in_another_runtime_directory(script: Path, runtime_dir: Path) -> None:
    done = command("run", "-n", "1", "--runtime-dir", str(runtime_dir / "x"), str(script), TRIO_SCHED_RUNTIME_DIR="")
    assert (done.stderr, done.returncode) == ("", 7)


def test_clients_of_the_script_wait_until_the_engines_have_joined(tmp_path: Path) -> None:
    """Without the wait the first engine would get all tasks. The wait for an engine that does not join is bounded."""
    counting = tmp_path / "counting.py"
    counting.write_text(
        "import trio_sched\n"
        "with trio_sched.Client(connect_timeout=3) as client:\n"
        "    print(client._connection.session.expected_engine_count, len(client.engines()))\n"
    )
    assert command("run", "-n", "2", str(counting)).stdout == "2 2\n"
    done = command("run", "-n", "2", "--max-engines", "1", str(counting))
    assert done.returncode == 0
    assert done.stdout in ("2 1\n", "2 0\n")


@pytest.mark.parametrize("what", ["missing.py", "."])
def test_a_script_that_is_not_a_file_is_an_error(what: str) -> None:
    done = command("run", what)
    assert done.returncode == 1
    assert what in error_line(done)


def test_a_failing_script_shows_only_its_own_traceback(tmp_path: Path) -> None:
    failing = tmp_path / "failing.py"
    failing.write_text("1 / 0\n")
    done = command("run", "-n", "1", str(failing))
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_sigterm_goes_to_the_script_and_no_process_remains(tmp_path: Path) -> None:
    waiting = tmp_path / "waiting.py"
    waiting.write_text(
        "import sys, time, trio_sched\n"
        "client = trio_sched.Client()\n"
        "client.submit(len, 'a').result()\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    with Foreground("run", "-n", "1", str(waiting)) as run:
        assert run.first_line == "ready\n"
        below = children_of(run.process.pid)
        assert len(below) >= 2  # the script and a worker
        os.kill(run.process.pid, signal.SIGTERM)
        code, errors = run.wait()
    assert code == 128 + signal.SIGTERM
    assert errors == ""
    assert [process for process in below if process.is_running()] == []


#: A program that runs a command with a terminal, given as a descriptor, as its controlling terminal.
IN_A_TERMINAL = (
    "import fcntl, os, sys, termios\n"
    "os.setsid()\n"
    "fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0)\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'trio_sched', *sys.argv[2:]])\n"
)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX terminals")
def test_ctrl_c_reaches_the_script_once_when_standard_input_is_not_the_terminal(tmp_path: Path) -> None:
    counting = tmp_path / "counting.py"
    counting.write_text(
        "import signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"
        "print('ready', flush=True)\n"
        "signal.sigwait([signal.SIGINT])\n"
        "print('twice' if signal.sigtimedwait([signal.SIGINT], 1.0) else 'once')\n"
    )
    keyboard, terminal = os.openpty()
    run = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, str(terminal), "run", "-n", "1", str(counting)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[terminal],
    )
    try:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        os.write(keyboard, b"\x03")
        assert run.communicate(timeout=TIMEOUT_S)[0] == "once\n"
    finally:
        run.kill()
        run.wait()
        os.close(keyboard)
        os.close(terminal)
    assert run.returncode == 0
