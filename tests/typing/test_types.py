"""The types that users of the package see: mypy --strict over what they would write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
HERE = Path(__file__).resolve().parent


def test_the_sample_has_the_types_that_it_says(tmp_path: Path) -> None:
    """In a process of its own: mypy raises the recursion limit of the one it runs in, for good."""
    options = ["--strict", "--no-incremental", "--cache-dir", str(tmp_path)]
    command = [sys.executable, "-m", "mypy", *options, str(HERE / "sample.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_the_package_says_that_it_is_typed() -> None:
    import trio_sched

    assert Path(trio_sched.__file__).with_name("py.typed").exists()
