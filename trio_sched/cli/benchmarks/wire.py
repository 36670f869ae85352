"""A scheduler measured from a client: throughput, round trip, many tasks waiting, payloads, the time to come up."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trio_sched.cli.benchmarks.calls import echo, noop
from trio_sched.cli.benchmarks.hosts import Engines, Fresh, cost_of, memory_of
from trio_sched.cli.benchmarks.pools import burst, round_trips_ms
from trio_sched.cli.benchmarks.tables import Row, quantile
from trio_sched.client.blocking import Client
from trio_sched.transport.connection import read_connection_file

PAYLOAD_BYTES = (1_000, 100_000, 1_000_000, 10_000_000)
PAYLOAD_TOTAL_BYTES = 100_000_000
LAST_PRIORITY = -1
LOOK_S = 0.05
ENOUGH_FOR_MEMORY = 20_000
"""Fewer tasks do not show in the memory of a process."""


def measure_throughput(connection: Path, label: str, tasks: int, round_trips: int) -> Row:
    """No-op tasks submitted at once and waited for; then one at a time."""
    pid = read_connection_file(connection).pid
    with Client(connection) as client:
        burst(client.submit, tasks // 10)
        before = cost_of(pid)
        started = time.perf_counter()
        futures = [client.submit(noop) for _ in range(tasks)]
        submitted_s = time.perf_counter() - started
        for future in futures:
            future.result()
        took_s = time.perf_counter() - started
        costs = cost_of(pid).since(before, tasks)
        trips = round_trips_ms(client.submit, round_trips)
    rates = {"tasks/s": tasks / took_s, "submits/s": tasks / submitted_s}
    return {"with": label, **rates, **costs, "p50 ms": quantile(trips, 0.5), "p99 ms": quantile(trips, 0.99)}


def measure_depth(waiting: int, engines: int, tasks: int, arguments: tuple[str, ...] = ()) -> Row:
    """No-op tasks while others, of lower priority, wait behind them in the same queue.

    The engines come when all are submitted, so that what is measured begins and ends with the same number waiting.
    """
    with Fresh(0, *arguments) as connection, Client(connection) as client:
        pid = read_connection_file(connection).pid
        client.submit(noop).cancel()
        before, started = memory_of(pid), time.perf_counter()
        behind = client.options(priority=LAST_PRIORITY)
        waiters = [behind.submit(noop) for _ in range(waiting)]
        futures = [client.submit(noop) for _ in range(tasks)]
        submit_us = 1e6 * (time.perf_counter() - started) / (waiting + tasks)
        while client.status()["tasks"]["ready"] < waiting + tasks:
            time.sleep(LOOK_S)
        memory = memory_of(pid).since(before, waiting + tasks)
        with Engines(connection, engines):
            futures[tasks // 10].result()
            cost, started = cost_of(pid), time.perf_counter()
            futures[-1].result()
            took_s = time.perf_counter() - started
            measured = tasks - tasks // 10
            scheduler_us = cost_of(pid).since(cost, measured)["scheduler us"]
            client.shutdown(wait=False, cancel_futures=True)
        del waiters
    speed = {"tasks/s": measured / took_s, "scheduler us": scheduler_us, "submits/s": 1e6 / submit_us}
    return {"waiting": waiting, **speed, **(memory if waiting >= ENOUGH_FOR_MEMORY else dict.fromkeys(memory))}


def measure_payload(connection: Path) -> list[Row]:
    """Bytes to an engine and back, several under way at once."""
    rows = []
    with Client(connection) as client:
        for size in PAYLOAD_BYTES:
            count = max(8, min(2_000, PAYLOAD_TOTAL_BYTES // size // 2))
            value = bytearray(size)
            started = time.perf_counter()
            for future in [client.submit(echo, value) for _ in range(count)]:
                future.result()
            took_s = time.perf_counter() - started
            rows.append(
                {
                    "bytes": size,
                    "tasks": count,
                    "tasks/s": count / took_s,
                    "MB/s both ways": 2e-6 * size * count / took_s,
                }
            )
    return rows


_FIRST_RESULT = """
import sys, time
from trio_sched import Client
with Client() as client:
    client.submit(len, "a").result()
    print(time.time(), file=open(sys.argv[1], "w"))
"""


def measure_start(engines: int, rounds: int) -> list[Row]:
    """From the start of `trio-sched run` to the script's first result, and to the end of everything."""
    first, whole = [], []
    with tempfile.TemporaryDirectory() as directory:
        script, told = Path(directory, "first.py"), Path(directory, "told")
        script.write_text(_FIRST_RESULT, encoding="utf-8")
        command = [sys.executable, "-m", "trio_sched", "run", "-n", str(engines), str(script), str(told)]
        for _ in range(rounds):
            started = time.time()
            subprocess.run(command, check=True)
            whole.append(time.time() - started)
            first.append(float(told.read_text()) - started)
    named: list[tuple[str, Callable[[list[float]], float]]] = [("best", min), ("worst", max)]
    return [{"trio-sched run": name, "first result s": pick(first), "whole run s": pick(whole)} for name, pick in named]


def scheduler_arguments(**given: Any) -> tuple[str, ...]:
    """Options for the scheduler to measure, from what `bench` was given."""
    return tuple(word for name, value in given.items() if value is not None for word in (f"--{name}", str(value)))
