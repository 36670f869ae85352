"""Where tables go: as wide as the terminal, and wide enough for every column where there is none."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDE_COLUMNS = 200


def console() -> Console:
    """For tables on standard output."""
    from rich.console import Console

    fixed = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if fixed else WIDE_COLUMNS)
