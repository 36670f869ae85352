"""Each example runs with a scheduler and confirms its own result."""

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
    """Return the standard output of a command that must succeed and print no errors."""
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


def test_stdlib_words_equals_the_plain_loop() -> None:
    assert "\nOK: equal to the plain loop\n" in run_example("stdlib_words.py", "--limit", "150")


def test_option_price_equals_the_formula() -> None:
    assert "\nOK: " in run_example("option_price.py")


def test_async_cancel_runs_only_a_part_of_its_tasks() -> None:
    assert "\nOK: " in run_example("async_cancel.py")


def test_digits_search_equals_a_trial_without_engines() -> None:
    shown = run_example("digits_search.py")
    if importlib.util.find_spec("sklearn") is None:
        assert shown.startswith("SKIPPED: ")
        pytest.skip("scikit-learn is not installed")
    assert "\nOK: " in shown


def node_version() -> int:
    node = shutil.which("node")
    return int(subprocess.check_output([node, "--version"], text=True)[1:].split(".")[0]) if node else 0


@pytest.mark.skipif(node_version() < 20, reason="needs node 20 or newer")
def test_the_web_client_runs_under_node() -> None:
    """The page's JavaScript gets results, passes keywords and receives an exception, over a WebSocket."""
    shown = run(str(EXAMPLES / "web" / "launch.py"), "--demo", NODE_NO_WARNINGS="1")
    assert "failure ValueError" in shown
    assert shown.endswith("OK\n")
