"""The types that users of the package see: mypy --strict checks code as they write it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
HERE = Path(__file__).resolve().parent


def test_the_sample_has_the_asserted_types(tmp_path: Path) -> None:
    """Run mypy in another process: it raises the recursion limit of its process permanently."""
    options = ["--strict", "--no-incremental", "--cache-dir", str(tmp_path)]
    command = [sys.executable, "-m", "mypy", *options, str(HERE / "sample.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_the_package_has_the_marker_of_typed_packages() -> None:
    import trio_sched

    assert Path(trio_sched.__file__).with_name("py.typed").exists()
