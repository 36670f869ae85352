"""Each benchmark runs with few tasks and fills its tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.controllers import DROP_IN, measure_joining, measure_tasks
from tests.benchmarks.core import Driver
from trio_sched.core import invariants

ROOT = Path(__file__).resolve().parents[2]


def tables_of(module: str, *arguments: str) -> dict[str, Any]:
    """Run one benchmark as a command and return its tables: name -> rows."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    return {name: table["rows"] for name, table in json.loads(done.stdout).items()}


def test_core_measures_cycles_and_graphs() -> None:
    few = ("--waiting", "10,1000", "--engines", "1,3", "--cycles", "50", "--graph", "100")
    by_waiting, by_engines, graphs = tables_of("core", *few).values()
    assert [row["waiting"] for row in by_waiting] == [10, 1000]
    assert [row["engines"] for row in by_engines] == [1, 3]
    assert [row["graph"] for row in graphs] == ["independent", "chain", "fan", "tree", "failing chain"]


def test_the_driver_of_the_core_ends_every_task() -> None:
    driver = Driver(engines=3)
    for _ in range(200):
        driver.submit()
    driver.finish_all()
    invariants.check(driver.scheduler)
    assert not driver.scheduler.tasks


def test_pools_are_compared_with_the_scheduler() -> None:
    few = ("--tasks", "400", "--rounds", "1", "--round-trips", "20", "-n", "1", "--hwm", "10")
    ((scheduler, pool),) = tables_of("pools", *few, "--versus", "processpool").values()
    assert [scheduler["with"], pool["with"]] == ["trio_sched hwm=10", "processpool"]
    assert pool["first to this"] == pytest.approx(scheduler["tasks/s"] / pool["tasks/s"])


def test_an_unknown_pool_is_an_error() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.pools", "--versus", "threads"]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2
    assert "'threads' is not one of processpool, loky" in done.stderr


def test_start_measures_the_first_result_and_the_whole_run() -> None:
    (rows,) = tables_of("start", "-n", "1", "--rounds", "1").values()
    assert [row["trio-sched run"] for row in rows] == ["best", "worst"]
    assert all(0 < row["first result s"] < row["whole run s"] for row in rows)


@pytest.mark.slow
def test_controllers_are_measured_with_raw_peers() -> None:
    row = measure_tasks(DROP_IN, hwm=10, tasks=200)
    assert min(row["tasks/s"], row["8,000 queued tasks/s"], row["chain tasks/s"]) > 0
    joined = measure_joining(DROP_IN, count=4)
    assert joined["engines"] == 4
