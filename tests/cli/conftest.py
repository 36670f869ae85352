"""Fixtures of the tests of the command line: a running scheduler, and a script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import Foreground


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Run a scheduler with two engines, each with gpu=1; yield its name."""
    with Foreground("up", "-n", "2", "--name", "shared", "--resource", "gpu=1", "--log-level", "warning") as up:
        assert up.first_line.startswith("shared is up at ipc://")
        yield "shared"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Write a script that prints its arguments and the result of a task, and exits with 7."""
    path = tmp_path / "a script.py"
    path.write_text(
        "import os, sys, trio_sched\n"
        "with trio_sched.Client() as client:\n"
        "    print(sys.argv[1:], client.submit(pow, 2, 10).result())\n"
        "sys.exit(7)\n",
        encoding="utf-8",
    )
    return path
