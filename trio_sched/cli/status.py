"""`trio-sched status`: the state of a scheduler as tables or JSON, once or repeatedly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trio_sched.cli.options import ADMIN_NAME, Json, Where
from trio_sched.cli.tables import stdout_console

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

#: States that are shown only if a task is in them.
RARE_STATES = ("error", "unreachable", "timeout", "lost", "cancelled")


def status(
    connection: Where = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Repeat until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Interval of --watch.")] = 1.0,
) -> None:
    """Show tasks by state, engines, clients and problems."""
    from trio_sched.cli.admin_client import AdminClient

    with AdminClient(connection) as scheduler:
        if watch:
            _watch(scheduler.query, every, as_json)
        else:
            _show(scheduler.query("status"), as_json)


def _show(status: dict[str, Any], as_json: bool) -> None:
    if as_json:
        import json

        typer.echo(json.dumps(status))
        return
    stdout_console().print(render(status))


def _watch(query: Any, every_s: float, as_json: bool) -> None:
    """Update the tables in place, or print a line of JSON each time."""
    import time

    if as_json:
        while True:
            _show(query("status"), as_json=True)
            time.sleep(every_s)
    from rich.live import Live

    with Live(render(query("status")), console=stdout_console(), auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            live.update(render(query("status")), refresh=True)


def render(status: dict[str, Any]) -> Group:
    """Return the tables for the scheduler's answer to the query "status"."""
    from rich.console import Group
    from rich.text import Text

    draining = ", draining" if status["draining"] else ""
    up = _duration(status["up_s"])
    summary = f"{status['name']}: up {up}, scheme {status['scheme']}, hwm {status['hwm']}{draining}"
    parts: list[Any] = [Text(summary), _tasks(status["tasks"])]
    parts += [_engines(status["engines"])] if status["engines"] else [Text("no engines; start some: trio-sched engine")]
    clients = [row for row in status["clients"] if row.get("name") != ADMIN_NAME]
    if clients:
        parts.append(_clients(clients))
    if reason := status.get("connections", {}).get("refusing"):
        parts.append(Text(f"new connections are refused: {reason}"))
    if problems := {kind: count for kind, count in status["counters"].items() if count}:
        parts.append(Text("problems: " + ", ".join(f"{kind} {count}" for kind, count in problems.items())))
    return Group(*parts)


def _table(*columns: str) -> Table:
    """Return an empty table. A column whose name ends in `#` is right-aligned, for numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.removesuffix("#"), justify="right" if column.endswith("#") else "left", overflow="fold")
    return table


def _tasks(tasks: dict[str, int]) -> Table:
    """Return the table of tasks by state."""
    shown = {name: count for name, count in tasks.items() if count or name not in RARE_STATES}
    table = _table("tasks:", *(f"{name}#" for name in shown))
    table.add_row("", *(f"{count:,}" for count in shown.values()))
    return table


def _engines(engines: list[dict[str, Any]]) -> Table:
    table = _table("engine#", "state", "load#", "slots#", "done#", "free", "process", "up#")
    for row in engines:
        state = row["state"] if row.get("connected", True) else f"{row['state']}, disconnected"
        load = f"{row['load']}/{row['hwm'] * row['slots']}" if row["hwm"] else str(row["load"])
        free = " ".join(f"{name} {row['free'].get(name, 0):g}/{amount:g}" for name, amount in row["resources"].items())
        done, up = f"{row['done']:,}", _duration(row["here_s"])
        cells = (row["engine"], state, load, row["slots"], done, free, _process(row), up)
        table.add_row(*map(str, cells))
    return table


def _clients(clients: list[dict[str, Any]]) -> Table:
    table = _table("client#", "state", "submitted#", "ready#", "undelivered#", "weight#", "process")
    for row in clients:
        state = ("connected" if row.get("connected") else "disconnected") + (", paused" if row.get("paused") else "")
        counts = (f"{row.get(name, 0):,}" for name in ("submitted", "ready", "undelivered"))
        table.add_row(str(row["client"]), state, *counts, f"{row['weight']:g}", _process(row))
    return table


def _process(row: dict[str, Any]) -> str:
    return f"{row.get('pid', '?')} on {row.get('host', '?')}"


def _duration(seconds: float) -> str:
    """Format a duration with its two largest units."""
    for name, size, smaller, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size:
            return f"{int(seconds // size)}{name}{int(seconds % size // part)}{smaller}"
    return f"{seconds:.1f}s"
