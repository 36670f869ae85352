"""Measurements of the machine, and the limits of its control group."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trio_sched.engine.host import cores, memory_used, oom_kills, rss_bytes


def test_the_machine_can_be_measured() -> None:
    in_cgroup, in_all = oom_kills()
    assert in_cgroup >= 0 <= in_all
    assert 0.0 < memory_used() < 1.5
    assert rss_bytes(os.getpid()) > 1 << 20
    assert rss_bytes(1 << 30) == 0
    assert cores() >= 1


def test_the_limits_of_a_cgroup_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr("trio_sched.engine.host._cgroup_file", lambda v2, v1: tmp_path / v2)
    assert cores() == 8
    for text, expected in [("max 100000", 8), ("150000 100000", 2), ("10000 100000", 1), ("9900000 100000", 8)]:
        (tmp_path / "cpu.max").write_text(text + "\n")
        assert cores() == expected
    (tmp_path / "memory.events").write_text("oom 3\noom_kill 2\n")
    assert oom_kills()[0] == 2
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("990\n")
    assert memory_used() == 0.99
