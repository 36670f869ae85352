"""The sys.path of a call; test_worker.py tests whole calls."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trio_sched.engine.runner import extend_sys_path


def test_sys_path_is_extended_in_the_order_of_the_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script, late = tmp_path / "script", tmp_path / "late"
    script.mkdir()
    late.mkdir()
    monkeypatch.setattr(sys, "path", ["/lib", "/site"])
    entries = [str(script), "/lib", "/site", str(late), "/no/such", ""]
    assert extend_sys_path(entries)
    assert sys.path == [str(script), "/lib", "/site", str(late)]
    assert not extend_sys_path(entries)
    assert sys.path == [str(script), "/lib", "/site", str(late)]
