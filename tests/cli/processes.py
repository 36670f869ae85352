"""Commands as real processes, and what can be seen of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

COMMAND = (sys.executable, "-m", "trio_sched")
PATIENCE_S = 60


class Foreground:
    """A command that stays in the foreground: `up`, `serve`, `engine`."""

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
        """(exit code, standard error), after it has ended."""
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, errors

    def __enter__(self) -> Foreground:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.wait()


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, **environment},
    )


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on standard error; nothing else may be there."""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("trio-sched: error: ")
    assert done.stdout == ""
    return lines[0].removeprefix("trio-sched: error: ")


def status_of(name: str) -> dict[str, Any]:
    """What `status --json` says."""
    done = command("status", "-C", name, "--json")
    assert done.returncode == 0, done.stderr
    view: dict[str, Any] = json.loads(done.stdout)
    return view


def children_of(pid: int) -> Sequence[Any]:
    """The processes below that one."""
    import psutil

    children: list[Any] = psutil.Process(pid).children(recursive=True)
    return children
