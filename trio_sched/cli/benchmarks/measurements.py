"""Measurements of a scheduler, taken by a client: throughput, idle round trip, queue depth and payloads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trio_sched.cli.benchmarks.calls import echo, noop
from trio_sched.cli.benchmarks.processes import cpu_times, fresh_engines, fresh_scheduler, memory_use
from trio_sched.cli.tables import Row, Table
from trio_sched.client.blocking import Client
from trio_sched.transport.connection_info import connection_path, find_connection, read_connection_file

PAYLOAD_BYTES = (1_000, 100_000, 1_000_000, 10_000_000)
PAYLOAD_TOTAL_BYTES = 100_000_000
LAST_PRIORITY = -1
POLL_S = 0.05
#: Fewer tasks do not change the resident memory of a process measurably.
ENOUGH_FOR_MEMORY = 20_000


def connection_file(where: str) -> Path:
    """Return the connection file that `where` names: a scheduler's name or a path.

    :raises NoSchedulerError: no running scheduler has that name.
    """
    connection = find_connection(where, "client")
    return Path(where) if "/" in where or where.endswith(".json") else connection_path(connection.name, "client")


def throughput_table(contestants: Sequence[Callable[[], Row]], rounds: int, tasks: int, engines: int) -> Table:
    """Measure all contestants in each round, and keep the best round of each.

    The contestants alternate, so that a load on the machine affects all of them alike.
    """
    measured = [[measure() for measure in contestants] for _ in range(rounds)]
    best = [max(rows, key=lambda row: float(row["tasks/s"])) for rows in zip(*measured, strict=True)]
    rows = [{key: row.get(key) for key in best[0]} for row in best]
    for row in rows:
        row["first to this"] = rows[0]["tasks/s"] / row["tasks/s"]
    note = f"{tasks:,} no-op tasks at once, {engines} engines; us: CPU time a task, by process"
    return Table("throughput and idle round trip", note, rows)


def measure_running(connection: Path, tasks: int, round_trips: int) -> Row:
    """Measure the throughput of the running scheduler of this connection file."""
    label = f"trio_sched {connection.stem.removesuffix('-client')}"
    return measure_throughput(connection, label, tasks, round_trips)


def measure_fresh(hwm: int, engines: int, options: Sequence[str], tasks: int, round_trips: int) -> Row:
    """Measure the throughput of a fresh scheduler with this high-water mark."""
    with fresh_scheduler(engines, "--hwm", str(hwm), *options) as connection:
        return measure_throughput(connection, f"trio_sched hwm={hwm}", tasks, round_trips)


def measure_throughput(connection: Path, label: str, tasks: int, round_trips: int) -> Row:
    """Submit no-op tasks at once and wait for all of them; then run `round_trips` tasks one at a time."""
    pid = read_connection_file(connection).pid
    with Client(connection) as client:
        burst(client.submit, tasks // 10)
        before = cpu_times(pid)
        started = time.perf_counter()
        futures = [client.submit(noop) for _ in range(tasks)]
        submitted_s = time.perf_counter() - started
        for future in futures:
            future.result()
        took_s = time.perf_counter() - started
        costs = cpu_times(pid).since(before, tasks)
        trips = round_trips_ms(client.submit, round_trips)
    rates = {"tasks/s": tasks / took_s, "submits/s": tasks / submitted_s}
    return {"with": label, **rates, **costs, "p50 ms": quantile(trips, 0.5), "p99 ms": quantile(trips, 0.99)}


def burst(submit: Callable[..., Any], tasks: int) -> float:
    """Submit no-op tasks at once, wait for all of them, and return the tasks a second."""
    started = time.perf_counter()
    futures = [submit(noop) for _ in range(tasks)]
    for future in futures:
        future.result()
    return tasks / (time.perf_counter() - started)


def round_trips_ms(submit: Callable[..., Any], count: int) -> list[float]:
    """Run no-op tasks one after the other; return their sorted durations in milliseconds."""
    trips = []
    for _ in range(count):
        started = time.perf_counter()
        submit(noop).result()
        trips.append(1e3 * (time.perf_counter() - started))
    return sorted(trips)


def quantile(sorted_values: Sequence[float], share: float) -> float:
    """Return the value below which this share of the sorted values lies."""
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


def measure_depth(waiting: int, engines: int, tasks: int, options: Sequence[str] = ()) -> Row:
    """Measure no-op tasks while `waiting` tasks of lower priority wait behind them in the same queue.

    The engines start after all submissions, so that the number of waiting tasks stays the same during the measurement.
    """
    with fresh_scheduler(0, *options) as connection, Client(connection) as client:
        pid = read_connection_file(connection).pid
        client.submit(noop).cancel()
        memory_before, started = memory_use(pid), time.perf_counter()
        low_priority = client.options(priority=LAST_PRIORITY)
        waiters = [low_priority.submit(noop) for _ in range(waiting)]
        futures = [client.submit(noop) for _ in range(tasks)]
        submit_us = 1e6 * (time.perf_counter() - started) / (waiting + tasks)
        while client.status()["tasks"]["ready"] < waiting + tasks:
            time.sleep(POLL_S)
        memory = memory_use(pid).since(memory_before, waiting + tasks)
        with fresh_engines(connection, engines):
            futures[tasks // 10].result()
            cpu_before, started = cpu_times(pid), time.perf_counter()
            futures[-1].result()
            took_s = time.perf_counter() - started
            measured = tasks - tasks // 10
            scheduler_us = cpu_times(pid).since(cpu_before, measured)["scheduler us"]
            client.shutdown(wait=False, cancel_futures=True)
        del waiters
    speed = {"tasks/s": measured / took_s, "scheduler us": scheduler_us, "submits/s": 1e6 / submit_us}
    return {"waiting": waiting, **speed, **(memory if waiting >= ENOUGH_FOR_MEMORY else dict.fromkeys(memory))}


def measure_payloads(connection: Path) -> list[Row]:
    """Send payloads of several sizes to the engines and back, several at a time."""
    rows = []
    with Client(connection) as client:
        for size in PAYLOAD_BYTES:
            count = max(8, min(2_000, PAYLOAD_TOTAL_BYTES // size // 2))
            value = bytearray(size)
            started = time.perf_counter()
            for future in [client.submit(echo, value) for _ in range(count)]:
                future.result()
            took_s = time.perf_counter() - started
            rates = {"tasks/s": count / took_s, "MB/s both ways": 2e-6 * size * count / took_s}
            rows.append({"bytes": size, "tasks": count, **rates})
    return rows
