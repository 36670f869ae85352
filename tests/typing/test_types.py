"""The types that users of the package see: mypy --strict over what they would write."""

from __future__ import annotations

from pathlib import Path

import pytest

api = pytest.importorskip("mypy.api")
HERE = Path(__file__).resolve().parent


def test_the_sample_has_the_types_that_it_says(tmp_path: Path) -> None:
    out, error, code = api.run(["--strict", "--no-incremental", "--cache-dir", str(tmp_path), str(HERE / "sample.py")])
    assert (code, error) == (0, ""), out


def test_the_package_says_that_it_is_typed() -> None:
    import trio_sched

    assert Path(trio_sched.__file__).with_name("py.typed").exists()
