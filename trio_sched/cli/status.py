"""`trio-sched status`: what a scheduler is doing, as tables, as JSON, or again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trio_sched.cli.options import Json, Where

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

OUTCOMES = ("ok", "error", "unreachable", "timeout", "lost", "cancelled")


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
    from rich.console import Console

    Console(highlight=False).print(rendered(view))


def _watch(query: Any, every_s: float, as_json: bool) -> None:
    """On a terminal in place; as JSON one line each time."""
    import time

    if as_json:
        while True:
            _show(query("status"), as_json=True)
            time.sleep(every_s)
    from rich.console import Console
    from rich.live import Live

    with Live(rendered(query("status")), console=Console(highlight=False), auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            live.update(rendered(query("status")), refresh=True)


def rendered(view: dict[str, Any]) -> Group:
    """The tables of one look."""
    from rich.console import Group
    from rich.text import Text

    draining = ", draining" if view["draining"] else ""
    about = f"{view.get('name', '?')}: up {_ago(view['up_s'])}, scheme {view['scheme']}, hwm {view['hwm']}{draining}"
    parts: list[Any] = [Text(about), _tasks(view["tasks"])]
    parts += [_engines(view["engines"])] if view["engines"] else [Text("no engines: start some with trio-sched engine")]
    if view["clients"]:
        parts.append(_clients(view["clients"]))
    if dropped := {reason: count for reason, count in view["counters"].items() if count}:
        parts.append(Text("odd things: " + ", ".join(f"{reason} {count}" for reason, count in dropped.items())))
    return Group(*parts)


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.removesuffix("#"), justify="right" if column.endswith("#") else "left")
    return table


def _tasks(tasks: dict[str, int]) -> Table:
    names = [name for name in tasks if name not in OUTCOMES] + [name for name in OUTCOMES if name in tasks]
    table = _table("tasks", *(f"{name}#" for name in names))
    table.add_row("", *(f"{tasks[name]:,}" for name in names))
    return table


def _engines(engines: list[dict[str, Any]]) -> Table:
    table = _table("engine#", "name", "host", "pid#", "state", "load#", "hwm#", "slots#", "done#", "free of", "here#")
    for row in engines:
        state = row["state"] if row.get("connected", True) else f"{row['state']}, away"
        free = ", ".join(f"{name} {row['free'].get(name, 0):g}/{amount:g}" for name, amount in row["resources"].items())
        cells = (row["engine"], row.get("name", ""), row.get("host", ""), row.get("pid", ""), state, row["load"])
        more = (
            row["hwm"] if row["hwm"] is not None else "",
            row["slots"],
            f"{row['done']:,}",
            free,
            _ago(row["here_s"]),
        )
        table.add_row(*map(str, (*cells, *more)))
    return table


def _clients(clients: list[dict[str, Any]]) -> Table:
    table = _table("client#", "name", "host", "pid#", "submitted#", "ready#", "undelivered#", "weight#", "")
    for row in clients:
        cells = (row["client"], row.get("name", ""), row.get("host", ""), row.get("pid", ""), row.get("submitted", ""))
        more = (row["ready"], row.get("undelivered", ""), f"{row['weight']:g}", "" if row.get("connected") else "away")
        table.add_row(*map(str, (*cells, *more)))
    return table


def _ago(seconds: float) -> str:
    """A duration with its two largest units."""
    for name, size, smaller, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size:
            return f"{int(seconds // size)}{name}{int(seconds % size // part)}{smaller}"
    return f"{seconds:.1f}s"
