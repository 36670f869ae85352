"""The throughput of the scheduler and of process pools, compared on the same no-op tasks.

    python -m tests.benchmarks.pools --versus processpool,loky

All contestants alternate in each round: their ratios count, not the absolute figures.
"""

from __future__ import annotations

from concurrent.futures import Executor, wait
from functools import partial
from typing import Annotated, Any

import typer

from trio_sched.cli.bench import parse_numbers
from trio_sched.cli.benchmarks.calls import noop
from trio_sched.cli.benchmarks.measurements import burst, measure_fresh, quantile, round_trips_ms, throughput_table
from trio_sched.cli.tables import Row, as_json, print_tables

POOLS = ("processpool", "loky")


def open_pool(name: str, workers: int) -> Executor:
    """Start a pool by name: one of `POOLS`. "loky" needs the package of that name."""
    if name == "processpool":
        from concurrent.futures import ProcessPoolExecutor

        return ProcessPoolExecutor(workers)
    import loky

    pool: Executor = loky.ProcessPoolExecutor(workers)
    return pool


def measure_pool(name: str, workers: int, tasks: int, round_trips: int) -> Row:
    """Measure throughput and idle round trip of one pool."""
    with open_pool(name, workers) as pool:
        wait([pool.submit(noop) for _ in range(20 * workers)])
        rate = burst(pool.submit, tasks)
        trips = round_trips_ms(pool.submit, round_trips)
    return {"with": name, "tasks/s": rate, "p50 ms": quantile(trips, 0.5), "p99 ms": quantile(trips, 0.99)}


def parse_pools(text: str) -> list[str]:
    """Parse `--versus`.

    :raises BadParameter: a name is not one of `POOLS`.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in POOLS:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(POOLS)}")
    return names


def main(
    versus: Annotated[Any, typer.Option(parser=parse_pools, metavar="NAME,...", help="Pools.")] = "processpool,loky",
    engines: Annotated[int, typer.Option("-n", "--engines", min=1, help="Engines, and workers of a pool.")] = 2,
    hwm: Annotated[Any, typer.Option(parser=parse_numbers, metavar="N,...", help="High-water marks.")] = "10,100",
    tasks: Annotated[int, typer.Option(min=100, help="Tasks in one burst.")] = 20_000,
    round_trips: Annotated[int, typer.Option(min=10, help="Idle round trips.")] = 500,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions; the best one counts.")] = 3,
    json: Annotated[bool, typer.Option(help="Machine-readable output.")] = False,
) -> None:
    """Measure the throughput of fresh schedulers and of process pools."""
    contestants = [partial(measure_fresh, mark, engines, [], tasks, round_trips) for mark in hwm]
    pools = [partial(measure_pool, name, engines, tasks, round_trips) for name in versus]
    tables = [throughput_table([*contestants, *pools], rounds, tasks, engines)]
    typer.echo(as_json(tables)) if json else print_tables(tables)


if __name__ == "__main__":
    typer.run(main)
