"""`trio-sched bench`: measure the cost of tasks on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trio_sched.cli.options import Json, Where

if TYPE_CHECKING:
    from trio_sched.cli.tables import Table

MEASUREMENTS = ("throughput", "depth", "payload")


def _measurements(text: str) -> list[str]:
    """Parse `--only`."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in MEASUREMENTS:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(MEASUREMENTS)}")
    return names


def parse_numbers(text: str) -> list[int]:
    """Parse the value of an option that takes whole numbers separated by commas.

    :raises BadParameter: a part of `text` is not a whole number.
    """
    try:
        return [int(number.replace("_", "")) for number in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers separated by commas") from None


# The types of options with a parser are its results' types: list[str], list[int].
Only = Annotated[
    Any, typer.Option(parser=_measurements, metavar="NAME,...", help=f"Measurements: {', '.join(MEASUREMENTS)}.")
]
Hwm = Annotated[Any, typer.Option(parser=parse_numbers, metavar="N,...", help="High-water marks of fresh schedulers.")]
Waiting = Annotated[
    Any, typer.Option(parser=parse_numbers, metavar="N,...", help="Numbers of waiting tasks, for depth.")
]


def bench(
    connection: Where = None,
    engines: Annotated[int, typer.Option("-n", "--engines", min=1, help="Engines of a fresh scheduler.")] = 2,
    only: Only = "throughput,payload",
    tasks: Annotated[int, typer.Option(min=100, help="Tasks in one burst.")] = 20_000,
    round_trips: Annotated[int, typer.Option(min=10, help="Idle round trips.")] = 500,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions; the best one counts.")] = 3,
    hwm: Hwm = "10",
    scheme: Annotated[str | None, typer.Option(help="Scheme of the fresh scheduler.", show_default=False)] = None,
    bind: Annotated[str | None, typer.Option(help="Address of the fresh scheduler.", show_default=False)] = None,
    waiting: Waiting = "100,100000",
    as_json: Json = False,
) -> None:
    """Measure throughput, round trips, payloads and depth.

    The measurements run on a fresh scheduler, or with --connection on a running one (not depth, which needs its own).
    """
    from functools import partial

    from trio_sched.cli.benchmarks import measurements
    from trio_sched.cli.benchmarks.processes import fresh_scheduler
    from trio_sched.cli.tables import Table, print_tables
    from trio_sched.cli.tables import as_json as tables_as_json

    named = {"--scheme": scheme, "--bind": bind}
    options = [word for name, value in named.items() if value is not None for word in (name, value)]
    running = measurements.connection_file(connection) if connection is not None else None
    found: list[Table] = []
    if "throughput" in only:
        contestants = (
            [partial(measurements.measure_running, running, tasks, round_trips)]
            if running is not None
            else [partial(measurements.measure_fresh, mark, engines, options, tasks, round_trips) for mark in hwm]
        )
        found.append(measurements.throughput_table(contestants, rounds, tasks, engines))
    if "payload" in only:
        if running is not None:
            rows = measurements.measure_payloads(running)
        else:
            with fresh_scheduler(engines, *options) as path:
                rows = measurements.measure_payloads(path)
        found.append(Table("payload", "a bytearray as the argument and as the result", rows))
    if "depth" in only:
        rows = [measurements.measure_depth(depth, engines, tasks, options) for depth in waiting]
        found.append(Table("depth", "no-op tasks while others of lower priority wait in the same queue", rows))
    typer.echo(tables_as_json(found)) if as_json else print_tables(found)
