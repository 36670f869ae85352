"""Records in an SQLite file, for as long as the file lasts: `tasks.db` in the profile directory.

What changes is gathered in memory and written a few hundred records at a time, because a transaction costs far more
than a row; most tasks have ended by then and are written once. The file is in WAL mode and not synced at each commit:
a crash of the process loses nothing that was written, a crash of the machine may lose the last moments.

A query is narrowed down by SQL where that is simple, and decided by `Query.matches`, the same as in memory.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import structlog

from trio_sched.errors import ConfigError
from trio_sched.ipyparallel.records.finding import Query
from trio_sched.ipyparallel.records.record import BUFFERS, DATES, FIELDS, Record

log = structlog.get_logger(__name__)
TABLE = "trio_sched_tasks"
DIRTY_LIMIT = 512
DIRTY_LIMIT_BYTES = 16 << 20
"""So many unwritten records, or bytes of buffers in them, are written at once, whatever the time."""
PAGE = 256
"""Records that are read at a time."""
_TEXT = ("msg_id", *DATES, "client_uuid", "engine_uuid", "resubmitted", "queue", "execute_input", "label")
_PIECES = ("stdout", "stderr")
_COMPARED = {"$eq": "=", "$lt": "<", "$lte": "<=", "$gt": ">", "$gte": ">="}


class SQLiteStore:
    """Records in a table of an SQLite database."""

    keeps = True

    def __init__(self, path: Path, table: str = TABLE) -> None:
        """:raises ConfigError: the file cannot be opened, or is no SQLite database."""
        self._dirty: dict[str, Record] = {}
        self._dirty_bytes = 0
        self._closed = False
        self.lost = 0
        """Records that could not be written (a full disk, say)."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = normal")
            self._table = _quoted(self._own_table(table))
            self._create()
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"records cannot be kept in {path}: {error}") from None
        self._number = int(self._one(f"select coalesce(max(number), 0) from {self._table}"))
        columns = ", ".join(["number", *FIELDS])
        self._select = f"select {columns} from {self._table}"
        places = ", ".join("?" * (len(FIELDS) + 1))
        self._insert = f"insert or replace into {self._table} ({columns}) values ({places})"

    def _own_table(self, table: str) -> str:
        """A table of that name which looks like ours; where there is another kind of that name, one beside it."""
        name, number = table, 0
        while True:
            columns = [row[1] for row in self._db.execute(f"pragma table_info({_quoted(name)})")]
            if not columns or columns == ["number", *FIELDS]:
                return name
            number += 1
            name = f"{table}_{number}"

    def _create(self) -> None:
        columns = ", ".join(f"{name} {'text' if name in _TEXT else 'blob'}" for name in FIELDS)
        self._db.execute(f"create table if not exists {self._table} (number integer primary key, {columns})")
        for name in ("msg_id", "submitted", "completed", "engine_uuid"):
            index = _quoted(f"{self._table[1:-1]}_{name}")
            unique = "unique" if name == "msg_id" else ""
            self._db.execute(f"create {unique} index if not exists {index} on {self._table} ({name})")

    # ---- Store ------------------------------------------------------------------------------------------------------

    def add(self, record: Record) -> bool:
        if self.get(record.msg_id) is not None:
            return False
        self._number += 1
        record.number = self._number
        self.changed(record)
        return True

    def get(self, msg_id: str) -> Record | None:
        record = self._dirty.get(msg_id)
        if record is not None:
            return record
        if self._closed:
            return None
        row = self._db.execute(f"{self._select} where msg_id = ?", (msg_id,)).fetchone()
        return None if row is None else _record(row)

    def changed(self, record: Record) -> None:
        self._dirty[record.msg_id] = record
        self._dirty_bytes += record.measure()
        if len(self._dirty) >= DIRTY_LIMIT or self._dirty_bytes >= DIRTY_LIMIT_BYTES:
            self.flush()

    def drop(self, msg_ids: Iterable[str]) -> int:
        self.flush()
        before = self._db.total_changes
        with _Transaction(self._db):
            self._db.executemany(f"delete from {self._table} where msg_id = ?", [(one,) for one in msg_ids])
        return self._db.total_changes - before

    def find(self, query: Query) -> Iterator[Record]:
        self.flush()
        where, values = _narrowed(query)
        last = 0
        while True:  # page by page, so that a large table is never in memory as a whole
            page = self._db.execute(
                f"{self._select} where number > ? {where} order by number limit {PAGE}", (last, *values)
            ).fetchall()
            yield from filter(query.matches, map(_record, page))
            if len(page) < PAGE:
                return
            last = page[-1][0]

    def history(self) -> list[str]:
        """Ids by the time of submission; records without one are left out."""
        self.flush()
        rows = self._db.execute(
            f"select msg_id from {self._table} where submitted is not null order by submitted, number"
        )
        return [row[0] for row in rows]

    def flush(self) -> None:
        """Write what is not written yet. What cannot be written is lost, and logged: tasks go on without records."""
        if self._closed or not self._dirty:
            return
        rows = [_row(record) for record in self._dirty.values()]
        self._dirty.clear()
        self._dirty_bytes = 0
        try:
            with _Transaction(self._db):
                self._db.executemany(self._insert, rows)
        except sqlite3.Error as error:
            self.lost += len(rows)
            log.error("records could not be written", records=len(rows), reason=str(error))

    def close(self) -> None:
        self.flush()
        self._closed = True
        self._db.close()

    def _one(self, sql: str) -> Any:
        return self._db.execute(sql).fetchone()[0]


class _Transaction:
    """All of it or nothing."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("begin")

    def __exit__(self, kind: object, *_: object) -> None:
        if self._db.in_transaction:  # a full disk rolls back by itself
            self._db.execute("commit" if kind is None else "rollback")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _row(record: Record) -> list[Any]:
    row: list[Any] = [record.number]
    for field in FIELDS:
        value = getattr(record, field)
        if field in BUFFERS:
            value = msgspec.msgpack.encode(value) if value else None
        elif field in _PIECES:
            value = "".join(value).encode("utf-8", "surrogatepass") if value else None
        elif isinstance(value, str) and not value.isascii():
            value = value.encode("utf-8", "replace").decode("utf-8")  # SQLite takes no lone surrogates
        row.append(value)
    return row


_decode_buffers = msgspec.msgpack.Decoder(tuple[bytes, ...]).decode


def _record(row: tuple[Any, ...]) -> Record:
    record = Record(row[1], number=row[0])
    for field, value in zip(FIELDS, row[1:], strict=True):
        if value is None:
            continue
        if field in BUFFERS:
            value = _decode_buffers(value)
        elif field in _PIECES:
            value = [value.decode("utf-8", "surrogatepass")]
        setattr(record, field, value)
    return record


def _narrowed(query: Query) -> tuple[str, list[Any]]:
    """SQL for a part of the conditions, and its values: at least all records that match fulfil it."""
    parts: list[str] = []
    values: list[Any] = []
    for field, operator, wanted in query.conditions:
        if field not in _TEXT:
            continue
        if wanted is None and operator in ("$eq", "$ne"):
            parts.append(f"{field} is {'not ' if operator == '$ne' else ''}null")
        elif operator in _COMPARED and isinstance(wanted, str):
            parts.append(f"{field} {_COMPARED[operator]} ?")
            values.append(wanted)
        elif operator == "$in" and len(wanted) <= PAGE and all(isinstance(one, str) for one in wanted):
            parts.append(f"{field} in ({', '.join('?' * len(wanted))})")
            values += wanted
    return "".join(f" and {part}" for part in parts), values
