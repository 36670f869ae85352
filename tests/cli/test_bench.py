"""`trio-sched bench` prints its measurements as tables and as JSON."""

from __future__ import annotations

import json

import pytest

from tests.cli.processes import command
from trio_sched.cli.app import run_command_line
from trio_sched.cli.benchmarks.measurements import quantile
from trio_sched.cli.tables import Table, print_tables

FEW = ("--tasks", "400", "--rounds", "1", "--round-trips", "20", "-n", "1")


def test_bench_measures_a_fresh_scheduler_for_each_high_water_mark() -> None:
    done = command("bench", *FEW, "--hwm", "10,100", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    first, second = found["throughput and idle round trip"]["rows"]
    assert [first["with"], second["with"]] == ["trio_sched hwm=10", "trio_sched hwm=100"]
    assert first["tasks/s"] > 0
    assert min(first["scheduler us"], first["engines us"], first["client us"]) >= 0  # the system counts in 10 ms
    assert 0 < first["p50 ms"] <= first["p99 ms"]
    assert second["first to this"] == pytest.approx(first["tasks/s"] / second["tasks/s"])
    assert [row["bytes"] for row in found["payload"]["rows"]] == [1_000, 100_000, 1_000_000, 10_000_000]


def test_bench_measures_queue_depth() -> None:
    done = command("bench", *FEW, "--only", "depth", "--waiting", "10,500", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)["depth"]["rows"]
    assert [row["waiting"] for row in rows] == [10, 500]
    assert all(row["tasks/s"] > 0 for row in rows)


def test_bench_measures_a_running_scheduler(scheduler: str) -> None:
    done = command("bench", *FEW, "-C", scheduler, "--only", "throughput")
    assert (done.returncode, done.stderr) == (0, "")
    assert "trio_sched shared" in done.stdout


@pytest.mark.parametrize("arguments", [["--waiting", "many"], ["--hwm", "x"], ["--only", "speed"]])
def test_a_wrong_argument_is_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert repr(arguments[1]) in error
    assert arguments[0] in error


def test_tables_show_numbers_with_suitable_digits(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"with": "a", "tasks/s": 12345.6, "p50 ms": 0.456, "none": None}]
    print_tables([Table("speed", "higher is better", rows)])
    shown = capsys.readouterr().out
    assert "speed: higher is better" in shown
    (row,) = [line for line in shown.splitlines() if line.startswith("| a")]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["a", "12,346", "0.46", "-"]


def test_quantiles() -> None:
    values = [float(value) for value in range(100)]
    assert [quantile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [0.0, 50.0, 99.0, 99.0]
