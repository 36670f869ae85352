"""The same no-op tasks with the pools of the field, in the same run: the ratio counts, not the number of the day."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, wait
from typing import Any

from trio_sched.cli.benchmarks.calls import noop
from trio_sched.cli.benchmarks.tables import Row, quantile
from trio_sched.errors import ConfigError

POOLS = ("processpool", "loky")


def open_pool(name: str, workers: int) -> Executor:
    """A pool by name.

    :raises ConfigError: it is not known, or not installed.
    """
    if name == "processpool":
        from concurrent.futures import ProcessPoolExecutor

        return ProcessPoolExecutor(workers)
    if name == "loky":
        try:
            import loky
        except ImportError:
            raise ConfigError("versus: loky is not installed; pip install loky") from None
        pool: Executor = loky.ProcessPoolExecutor(workers)
        return pool
    raise ConfigError(f"versus: {name!r} is not a pool that bench knows; one or more of {', '.join(POOLS)}")


def measure_pool(name: str, workers: int, tasks: int, round_trips: int) -> Row:
    """Throughput and idle round trip of one pool."""
    with open_pool(name, workers) as pool:
        wait([pool.submit(noop) for _ in range(20 * workers)])
        rate = burst(pool.submit, tasks)
        trips = round_trips_ms(pool.submit, round_trips)
    return {"with": name, "tasks/s": rate, "p50 ms": quantile(trips, 0.5), "p99 ms": quantile(trips, 0.99)}


def burst(submit: Callable[..., Any], tasks: int) -> float:
    """Submit that many no-ops at once and wait for all: tasks a second."""
    started = time.perf_counter()
    futures = [submit(noop) for _ in range(tasks)]
    for future in futures:
        future.result()
    return tasks / (time.perf_counter() - started)


def round_trips_ms(submit: Callable[..., Any], count: int) -> list[float]:
    """One no-op after the other, each waited for: sorted milliseconds."""
    trips = []
    for _ in range(count):
        started = time.perf_counter()
        submit(noop).result()
        trips.append(1e3 * (time.perf_counter() - started))
    return sorted(trips)
