"""Tables on standard output, and measurements as tables or JSON.

A table is as wide as the terminal. Without a terminal (and without $COLUMNS) it is wide enough for every column.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]
WIDE_COLUMNS = 200


class Table(NamedTuple):
    """One measurement: its name, the meaning of its numbers, and its rows, which all have the same keys."""

    name: str
    note: str
    rows: list[Row]


def stdout_console() -> Console:
    """Return a rich console for tables on standard output."""
    from rich.console import Console

    fixed = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if fixed else WIDE_COLUMNS)


def print_tables(tables: Iterable[Table]) -> None:
    """Print each table below its name and note."""
    from rich.box import MARKDOWN
    from rich.table import Table as RichTable

    console = stdout_console()
    for table in tables:
        rich_table = RichTable(box=MARKDOWN)
        for index, name in enumerate(table.rows[0]):
            rich_table.add_column(name, justify="right" if index else "left", no_wrap=not index)
        for row in table.rows:
            rich_table.add_row(*(_cell(value) for value in row.values()))
        console.print(f"{table.name}: {table.note}", soft_wrap=True)
        console.print(rich_table)
        console.print()


def as_json(tables: Iterable[Table]) -> str:
    """Return the tables as one JSON object: name -> note and rows."""
    import json

    return json.dumps({table.name: {"note": table.note, "rows": table.rows} for table in tables}, indent=2)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
