"""Each example runs against a real scheduler and finds its own result right."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(*arguments: str, **environment: str) -> str:
    """The standard output of a command that must succeed and say nothing else."""
    done = subprocess.run(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def run_example(name: str, *arguments: str) -> str:
    return run("-m", "trio_sched", "run", "-n", "2", str(EXAMPLES / name), *arguments)


def test_stdlib_words() -> None:
    assert "\nOK: equal to the plain loop\n" in run_example("stdlib_words.py", "--limit", "150")


def test_option_price() -> None:
    assert "\nOK: " in run_example("option_price.py")


def test_async_cancel() -> None:
    assert "\nOK: " in run_example("async_cancel.py")


def test_digits_search() -> None:
    shown = run_example("digits_search.py")
    if importlib.util.find_spec("sklearn") is None:
        assert shown.startswith("SKIPPED: ")
        pytest.skip("scikit-learn is not installed")
    assert "\nOK: " in shown


def node_version() -> int:
    node = shutil.which("node")
    return int(subprocess.check_output([node, "--version"], text=True)[1:].split(".")[0]) if node else 0


@pytest.mark.skipif(node_version() < 20, reason="needs node 20 or newer")
def test_web_client_under_node() -> None:
    """The page's JavaScript over a real WebSocket: results, keywords, a remote exception."""
    shown = run(str(EXAMPLES / "web" / "launch.py"), "--demo", NODE_NO_WARNINGS="1")
    assert "failure ValueError" in shown
    assert shown.endswith("OK\n")
