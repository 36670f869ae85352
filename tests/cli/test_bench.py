"""`trio-sched bench` measures, and prints what it measured, as tables and as JSON."""

from __future__ import annotations

import json

import pytest

from tests.cli.processes import command, error_line
from trio_sched.cli.app import run_command_line
from trio_sched.cli.benchmarks.core import Driver, measure_core
from trio_sched.cli.benchmarks.tables import Table, quantile, show
from trio_sched.core import invariants

FEW = ("--tasks", "400", "--rounds", "1", "--round-trips", "20", "-n", "1")


def test_a_fresh_scheduler_side_by_side_with_a_pool() -> None:
    done = command("bench", *FEW, "--versus", "processpool", "--only", "throughput,payload,start", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    ours, pool = found["throughput and idle round trip"]["rows"]
    assert ours["with"] == "trio_sched hwm=10"
    assert ours["tasks/s"] > 0
    assert min(ours["scheduler us"], ours["engines us"], ours["client us"]) >= 0  # the system counts in 10 ms
    assert 0 < ours["p50 ms"] <= ours["p99 ms"]
    assert pool["with"] == "processpool"
    assert pool["first to this"] == pytest.approx(ours["tasks/s"] / pool["tasks/s"])
    assert [row["bytes"] for row in found["payload"]["rows"]] == [1_000, 100_000, 1_000_000, 10_000_000]
    assert all(0 < row["first result s"] < row["whole run s"] for row in found["start"]["rows"])


def test_depth() -> None:
    done = command("bench", *FEW, "--only", "depth", "--waiting", "10,500", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)["depth"]["rows"]
    assert [row["waiting"] for row in rows] == [10, 500]
    assert all(row["tasks/s"] > 0 for row in rows)


def test_a_running_scheduler(scheduler: str) -> None:
    done = command("bench", *FEW, "-C", scheduler, "--only", "throughput")
    assert (done.returncode, done.stderr) == (0, "")
    assert "trio_sched shared" in done.stdout


def test_a_pool_that_is_not_known() -> None:
    done = command("bench", *FEW, "--versus", "threads", "--only", "throughput")
    assert done.returncode == 2
    assert "'threads' is not a pool that bench knows" in error_line(done)


@pytest.mark.parametrize("arguments", [["--waiting", "many"], ["--hwm", "x"], ["--only", "speed"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["bench", *arguments]) == 2
    assert arguments[1] in capsys.readouterr().err


def test_the_core_alone() -> None:
    by_waiting, by_engines, graphs = measure_core([10, 1000], [1, 3], cycles=50, graph=100)
    assert [row["waiting"] for row in by_waiting.rows] == [10, 1000]
    assert [row["engines"] for row in by_engines.rows] == [1, 3]
    assert [row["graph"] for row in graphs.rows] == ["independent", "chain", "fan", "tree", "failing chain"]


def test_the_driver_leaves_the_core_in_order() -> None:
    """What is measured is the core as it is used: every task ends, and nothing is left."""
    driver = Driver(engines=3)
    for _ in range(200):
        driver.submit()
    driver.finish_all()
    invariants.check(driver.scheduler)
    assert not driver.scheduler.tasks


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    show([Table("speed", "higher is better", [{"with": "a", "tasks/s": 12345.6, "p50 ms": 0.456, "none": None}])])
    shown = capsys.readouterr().out
    assert "speed: higher is better" in shown
    (row,) = [line for line in shown.splitlines() if line.startswith("| a")]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["a", "12,346", "0.46", "-"]


def test_quantiles() -> None:
    values = [float(value) for value in range(100)]
    assert [quantile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [0.0, 50.0, 99.0, 99.0]
