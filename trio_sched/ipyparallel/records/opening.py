"""The monitor that the settings ask for: records in memory, in SQLite, or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trio_sched.ipyparallel.config import IppConfig
from trio_sched.ipyparallel.records.base import Monitor, NullMonitor
from trio_sched.ipyparallel.records.memory import MemoryStore
from trio_sched.ipyparallel.records.sqlite import TABLE, SQLiteStore

FILE = "tasks.db"


def open_monitor(config: IppConfig) -> Monitor:
    """The monitor for these settings.

    :raises ConfigError: the database cannot be opened.
    """
    options: Mapping[str, Any] = config.database_options
    if config.database == "dictdb":
        return Monitor(MemoryStore(**options))
    if config.database == "sqlitedb":
        directory = Path(options.get("location") or config.profile_dir)
        return Monitor(SQLiteStore(directory / options.get("filename", FILE), options.get("table") or TABLE))
    return NullMonitor()
