"""`trio-sched bench`: what a task costs here, on this machine, now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from trio_sched.cli.options import Json, Where

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trio_sched.cli.benchmarks.tables import Row, Table

MEASUREMENTS = ("throughput", "depth", "payload", "start", "core", "ipyparallel")
DEFAULT = "throughput,payload,start"


def bench(
    connection: Where = None,
    engines: Annotated[
        int, typer.Option("-n", "--engines", min=1, help="Engines of a fresh scheduler, workers of pools.")
    ] = 2,
    only: Annotated[str, typer.Option(help=f"Which measurements, with commas: {', '.join(MEASUREMENTS)}.")] = DEFAULT,
    versus: Annotated[str, typer.Option(help="Pools to measure side by side, with commas: processpool, loky.")] = "",
    tasks: Annotated[int, typer.Option(min=100, help="Tasks in one burst.")] = 20_000,
    round_trips: Annotated[int, typer.Option(min=10, help="Idle round trips.")] = 500,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions; the best counts.")] = 3,
    hwm: Annotated[str, typer.Option(help="High-water marks of the fresh scheduler, with commas.")] = "10",
    scheme: Annotated[str | None, typer.Option(help="Scheme of the fresh scheduler.", show_default=False)] = None,
    bind: Annotated[str | None, typer.Option(help="Address of the fresh scheduler.", show_default=False)] = None,
    waiting: Annotated[str, typer.Option(help="For depth and core: how many tasks wait, with commas.")] = "100,100000",
    as_json: Json = False,
) -> None:
    """Measure throughput, idle round trip, payloads, depth and start-up; the drop-in controller beside ipyparallel's.

    Against a fresh scheduler, or with --connection against a running one (throughput and payload only).
    """
    from trio_sched.cli.benchmarks import tables
    from trio_sched.cli.benchmarks.wire import scheduler_arguments

    chosen = _names(only, MEASUREMENTS, "only")
    depths = _numbers(waiting, "waiting")
    marks = _numbers(hwm, "hwm")
    run = Run(engines, tasks, round_trips, rounds, scheduler_arguments(scheme=scheme, bind=bind))
    found: list[Table] = []
    if "throughput" in chosen:
        found.append(run.throughput(connection, marks, [name.strip() for name in versus.split(",") if name.strip()]))
    if "payload" in chosen:
        found.append(run.payload(connection))
    if "start" in chosen and connection is None:
        found.append(run.start())
    if "depth" in chosen:
        found.append(run.depth(depths))
    if "core" in chosen:
        from trio_sched.cli.benchmarks.core import measure_core

        found.extend(measure_core(depths, [2, 100, 10_000], tasks, graph=100_000))
    if "ipyparallel" in chosen:
        from trio_sched.cli.benchmarks import ipyparallel

        found.extend(ipyparallel.measure(tasks, marks, joining=500, versus=ipyparallel.controllers()))
    typer.echo(tables.as_json(found)) if as_json else tables.show(found)


class Run:
    """What all measurements of one run have in common."""

    def __init__(self, engines: int, tasks: int, round_trips: int, rounds: int, arguments: tuple[str, ...]) -> None:
        self.engines, self.tasks, self.round_trips, self.rounds = engines, tasks, round_trips, rounds
        self.arguments = arguments

    def throughput(self, connection: str | None, marks: list[int], pools: list[str]) -> Table:
        """One row for each high-water mark, or for the running scheduler; and one for each pool.

        All take turns, so that what else the machine does in a round meets all of them; the best round of each counts.
        """
        from functools import partial

        from trio_sched.cli.benchmarks.pools import measure_pool
        from trio_sched.cli.benchmarks.tables import Table

        contestants: list[Callable[[], Row]] = []
        if connection is not None:
            contestants.append(partial(self._running, connection))
        else:
            contestants += [partial(self._fresh, mark) for mark in marks]
        contestants += [partial(measure_pool, name, self.engines, self.tasks, self.round_trips) for name in pools]
        rounds = [[measure() for measure in contestants] for _ in range(self.rounds)]
        best = [max(found, key=lambda row: float(row["tasks/s"])) for found in zip(*rounds, strict=True)]
        rows = [{key: row.get(key) for key in best[0]} for row in best]
        for row in rows:
            row["first to this"] = rows[0]["tasks/s"] / row["tasks/s"]
        note = f"{self.tasks:,} no-op tasks at once, {self.engines} engines; us: CPU time a task, by process"
        return Table("throughput and idle round trip", note, rows)

    def _running(self, where: str) -> Row:
        from trio_sched.cli.benchmarks.wire import measure_throughput

        path = _path(where)
        return measure_throughput(path, f"trio_sched {path.stem.removesuffix('-client')}", self.tasks, self.round_trips)

    def _fresh(self, hwm: int) -> Row:
        from trio_sched.cli.benchmarks.hosts import Fresh
        from trio_sched.cli.benchmarks.wire import measure_throughput

        with Fresh(self.engines, "--hwm", str(hwm), *self.arguments) as path:
            return measure_throughput(path, f"trio_sched hwm={hwm}", self.tasks, self.round_trips)

    def payload(self, connection: str | None) -> Table:
        """Payloads of several sizes, there and back."""
        from trio_sched.cli.benchmarks.hosts import Fresh
        from trio_sched.cli.benchmarks.tables import Table
        from trio_sched.cli.benchmarks.wire import measure_payload

        if connection is not None:
            rows = measure_payload(_path(connection))
        else:
            with Fresh(self.engines, *self.arguments) as path:
                rows = measure_payload(path)
        return Table("payload", "a bytearray as the argument and as the result", rows)

    def start(self) -> Table:
        """`trio-sched run` from nothing."""
        from trio_sched.cli.benchmarks.tables import Table
        from trio_sched.cli.benchmarks.wire import measure_start

        return Table("start", f"{self.engines} engines", measure_start(self.engines, self.rounds))

    def depth(self, depths: list[int]) -> Table:
        """The same work with few and with many waiting."""
        from trio_sched.cli.benchmarks.tables import Table
        from trio_sched.cli.benchmarks.wire import measure_depth

        rows = [measure_depth(depth, self.engines, self.tasks, self.arguments) for depth in depths]
        return Table("depth", "no-op tasks while others of lower priority wait in the same queue", rows)


def _path(where: str) -> Path:
    from pathlib import Path

    from trio_sched.transport.connection import connection_path, find

    connection = find(where, "client")
    return Path(where) if "/" in where or where.endswith(".json") else connection_path(connection.name, "client")


def _names(text: str, known: tuple[str, ...], option: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint=f"--{option}")
    return names


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(number.replace("_", "")) for number in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of numbers with commas", param_hint=f"--{option}") from None
