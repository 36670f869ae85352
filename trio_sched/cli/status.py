"""`trio-sched status`: what a scheduler is doing, as tables, as JSON, or again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trio_sched.cli.options import ONLOOKER, Json, Where
from trio_sched.cli.tables import stdout_console

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

RARE = ("error", "unreachable", "timeout", "lost", "cancelled")


def status(
    connection: Where = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="How often --watch looks.")] = 1.0,
) -> None:
    """Show tasks by state, engines with their load, clients, and what went wrong."""
    from trio_sched.cli.asking import Conversation

    with Conversation(connection) as scheduler:
        if watch:
            _watch(scheduler.query, every, as_json)
        else:
            _show(scheduler.query("status"), as_json)


def _show(view: dict[str, Any], as_json: bool) -> None:
    if as_json:
        import json

        typer.echo(json.dumps(view))
        return
    stdout_console().print(rendered(view))


def _watch(query: Any, every_s: float, as_json: bool) -> None:
    """On a terminal in place; as JSON one line each time."""
    import time

    if as_json:
        while True:
            _show(query("status"), as_json=True)
            time.sleep(every_s)
    from rich.live import Live

    with Live(rendered(query("status")), console=stdout_console(), auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            live.update(rendered(query("status")), refresh=True)


def rendered(view: dict[str, Any]) -> Group:
    """The tables of one look."""
    from rich.console import Group
    from rich.text import Text

    draining = ", draining" if view["draining"] else ""
    about = f"{view['name']}: up {_ago(view['up_s'])}, scheme {view['scheme']}, hwm {view['hwm']}{draining}"
    parts: list[Any] = [Text(about), _tasks(view["tasks"])]
    parts += [_engines(view["engines"])] if view["engines"] else [Text("no engines; to start some: trio-sched engine")]
    clients = [row for row in view["clients"] if row.get("name") != ONLOOKER]
    if clients:
        parts.append(_clients(clients))
    if refusing := view.get("connections", {}).get("refusing"):
        parts.append(Text(f"newcomers are refused: {refusing}"))
    if odd := {reason: count for reason, count in view["counters"].items() if count}:
        parts.append(Text("odd things: " + ", ".join(f"{reason} {count}" for reason, count in odd.items())))
    return Group(*parts)


def _table(*columns: str) -> Table:
    """With `#` behind the names of columns of numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.removesuffix("#"), justify="right" if column.endswith("#") else "left", overflow="fold")
    return table


def _tasks(tasks: dict[str, int]) -> Table:
    """States by name; of the ends only those that occurred, and ok."""
    shown = {name: count for name, count in tasks.items() if count or name not in RARE}
    table = _table("tasks:", *(f"{name}#" for name in shown))
    table.add_row("", *(f"{count:,}" for count in shown.values()))
    return table


def _engines(engines: list[dict[str, Any]]) -> Table:
    table = _table("engine#", "state", "load#", "slots#", "done#", "free", "process", "here#")
    for row in engines:
        state = row["state"] if row.get("connected", True) else f"{row['state']}, away"
        load = f"{row['load']}/{row['hwm'] * row['slots']}" if row["hwm"] else str(row["load"])
        free = " ".join(f"{name} {row['free'].get(name, 0):g}/{amount:g}" for name, amount in row["resources"].items())
        cells = (row["engine"], state, load, row["slots"], f"{row['done']:,}", free, _process(row), _ago(row["here_s"]))
        table.add_row(*map(str, cells))
    return table


def _clients(clients: list[dict[str, Any]]) -> Table:
    table = _table("client#", "state", "submitted#", "ready#", "undelivered#", "weight#", "process")
    for row in clients:
        state = ("here" if row.get("connected") else "away") + (", paused" if row.get("paused") else "")
        counts = (f"{row.get(name, 0):,}" for name in ("submitted", "ready", "undelivered"))
        table.add_row(str(row["client"]), state, *counts, f"{row['weight']:g}", _process(row))
    return table


def _process(row: dict[str, Any]) -> str:
    return f"{row.get('pid', '?')} on {row.get('host', '?')}"


def _ago(seconds: float) -> str:
    """A duration with its two largest units."""
    for name, size, smaller, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size:
            return f"{int(seconds // size)}{name}{int(seconds % size // part)}{smaller}"
    return f"{seconds:.1f}s"
