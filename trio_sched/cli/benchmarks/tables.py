"""Rows of measurements as tables for people, or as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

Row = dict[str, Any]


class Table(NamedTuple):
    """One measurement: its name, what its numbers mean, and its rows, which all have the same keys."""

    name: str
    note: str
    rows: list[Row]


def show(tables: Iterable[Table]) -> None:
    """Print the tables, each with its note below."""
    from rich.box import MARKDOWN
    from rich.table import Table as RichTable

    from trio_sched.cli.console import console

    out = console()
    for table in tables:
        shown = RichTable(box=MARKDOWN)
        for index, name in enumerate(table.rows[0]):
            shown.add_column(name, justify="right" if index else "left", no_wrap=not index)
        for row in table.rows:
            shown.add_row(*(_text(value) for value in row.values()))
        out.print(f"{table.name}: {table.note}", soft_wrap=True)
        out.print(shown)
        out.print()


def as_json(tables: Iterable[Table]) -> str:
    """The same as one JSON object."""
    import json

    return json.dumps({table.name: {"note": table.note, "rows": table.rows} for table in tables}, indent=2)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def quantile(sorted_values: list[float], share: float) -> float:
    """The value below which that share of the sorted values lies."""
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]
