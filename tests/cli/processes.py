"""Commands as processes, their output, and their status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

COMMAND = (sys.executable, "-m", "trio_sched")
TIMEOUT_S = 60


class Foreground:
    """A command that runs in the foreground, such as `up`, `serve` and `engine`."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()

    def wait(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and the standard error."""
        _, errors = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, errors

    def __enter__(self) -> Foreground:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.wait()


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, **environment},
    )


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the error message of a command that printed one line on standard error and nothing else."""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("trio-sched: error: ")
    assert done.stdout == ""
    return lines[0].removeprefix("trio-sched: error: ")


def status_of(name: str) -> dict[str, Any]:
    """Return the output of `status --json`."""
    done = command("status", "-C", name, "--json")
    assert done.returncode == 0, done.stderr
    status: dict[str, Any] = json.loads(done.stdout)
    return status


def children_of(pid: int) -> Sequence[Any]:
    """Return the descendants of a process."""
    import psutil

    children: list[Any] = psutil.Process(pid).children(recursive=True)
    return children
