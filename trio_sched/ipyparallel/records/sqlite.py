"""Records in an SQLite file, for as long as the file lasts: `tasks.db` in the profile directory.

A request is inserted and committed before it is passed on (`commit`), one transaction for all that came in together:
a controller that is killed loses none that it had taken. What changes later is gathered and written a few hundred
records at a time, because a transaction costs far more than a row; what has not ended waits a moment longer, so that
most tasks are updated once. The file is in WAL mode and not synced at each commit: a crash of the process loses nothing
that was written, a crash of the machine may lose the last moments. The log is carried over into the file, which may
wait for the disk, in a thread (`tidy`).

SQLite writes the whole row at each update. So the buffers of large requests are rows of a table of their own, which
are written once.

Several controllers may use one file at the same time. The first one marks what its predecessors left unfinished as
lost; whether there is another one is known from a lock that each holds for as long as it lives (`tasks.db-lock`).

A query is narrowed down by SQL where that is simple, and decided by `Query.matches`, the same as in memory.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from trio_sched.errors import ConfigError
from trio_sched.ipyparallel.records.finding import Query
from trio_sched.ipyparallel.records.record import BUFFERS, DATES, Record, fail
from trio_sched.logs import get_logger

log = get_logger(__name__)
TABLE = "trio_sched_tasks"
DIRTY_LIMIT = 512
DIRTY_LIMIT_BYTES = 16 << 20
"""With so many unwritten changes, those of what ended are written at once; with so many bytes of buffers, all."""
LARGE_BYTES = 1 << 16
"""Buffers of requests from this size on are kept apart from the record."""
PAGE = 256
"""Records that are read at a time."""
START_TIMEOUT_S = 60.0
"""How long to wait for another controller that is opening the same file."""
LOST = "The controller that had this task ended before the task did"
_TEXT = ("msg_id", *DATES, "client_uuid", "engine_uuid", "resubmitted", "queue", "execute_input", "label")
_PIECES = ("stdout", "stderr")
COLUMNS = Record.__struct_fields__[:-1]
"""All but `size`; `number`, the last of them, is the key, which SQLite assigns."""
_INSERTED = COLUMNS[:-1]
_UPDATED = (
    "engine_uuid", "started", "completed", "resubmitted", "received", "result_header", "result_metadata",
    "result_content", "result_buffers", "execute_input", "execute_result", "display_data", "error", "stdout", "stderr",
    "msg_id",
)  # fmt: skip
"""What may change after the request; by `msg_id`, the last of them, the record is found."""
_BUFFERS_AT, _PIECES_AT, _TEXT_AT = (
    tuple(COLUMNS.index(name) for name in names) for names in (BUFFERS, _PIECES, ("execute_input", "label"))
)
_REQUEST_AT = COLUMNS.index("buffers")
_APART = 0
"""Stands in the column of buffers that are kept apart."""
_updated = itemgetter(*map(COLUMNS.index, _UPDATED))
_COMPARED = {"$eq": "=", "$lt": "<", "$lte": "<=", "$gt": ">", "$gte": ">="}


class SQLiteStore:
    """Records in a table of an SQLite database."""

    keeps = True

    def __init__(self, path: Path, table: str = TABLE) -> None:
        """:raises ConfigError: the file cannot be opened, or is not an SQLite database."""
        self._path = path
        self._new: dict[str, Record] = {}
        """Added since the last commit."""
        self._unfinished: dict[str, Record] = {}
        """Inserted, and not ended yet: the next thing to be said about each need not read it. Without the buffers of
        the request, which are in the database."""
        self._dirty: dict[str, Record] = {}
        """With unwritten changes, in the order of these."""
        self._waiting: set[str] = set()
        """Those that were left unwritten at the last regular time, because they had not ended."""
        self._dirty_bytes = 0
        self._look_at = DIRTY_LIMIT
        self._closed = False
        self._tidied_changes = -1
        """How many changes there had been when the log was last carried over."""
        self._untidy = False
        """It could not be."""
        self._failing = False
        """The last transaction failed."""
        self.lost = 0
        """Records that could not be written (a full disk, say)."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            for pragma in ("journal_mode = wal", "synchronous = normal", "wal_autocheckpoint = 0"):
                self._db.execute(f"pragma {pragma}")
            self._table = _quoted(self._own_table(table))
            self._create()
            columns = ", ".join(COLUMNS)
            places = ", ".join("?" * len(_INSERTED))
            changes = ", ".join(f"{name} = ?" for name in _UPDATED[:-1])
            self._select = f"select {columns} from {self._table}"
            self._insert = f"insert or ignore into {self._table} ({', '.join(_INSERTED)}) values ({places})"
            self._update = f"update {self._table} set {changes} where msg_id = ?"
            self._insert_buffers = f"insert or ignore into {self._buffers} (msg_id, buffers) values (?, ?)"
            self._lock = self._take_over()
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"records cannot be kept in {path}: {error}") from None

    def _take_over(self) -> sqlite3.Connection:
        """Mark what former controllers left unfinished as lost, unless another one is running.

        Returns the connection whose read transaction says until the end of this process that this one is running. The
        write transaction before it excludes others for as long as the marking takes.
        """
        lock = sqlite3.connect(f"{self._path}-lock", isolation_level=None, timeout=0.0, check_same_thread=False)
        try:
            lock.execute("begin exclusive")
        except sqlite3.OperationalError:
            log.info("another controller uses these records; none are marked as lost", path=str(self._path))
        else:
            self._mark_lost()
            lock.execute("commit")
        lock.execute(f"pragma busy_timeout = {START_TIMEOUT_S * 1000:.0f}")
        lock.execute("begin")
        lock.execute("select count(*) from sqlite_master").fetchone()
        return lock

    def _mark_lost(self) -> None:
        marked = 0
        while page := self._db.execute(f"{self._select} where completed is null limit {PAGE}").fetchall():
            records = [_record(row) for row in page]
            for record in records:
                fail(record, LOST)
            with _Transaction(self._db):
                self._db.executemany(self._update, [_updated(_row(record)) for record in records])
            marked += len(records)
        if marked:
            log.warning("tasks of a former controller are lost; they can be resubmitted", tasks=marked)

    def _own_table(self, table: str) -> str:
        """A table of that name which looks like ours; where there is another kind of that name, one beside it."""
        name, number = table, 0
        while True:
            columns = [row[1] for row in self._db.execute(f"pragma table_info({_quoted(name)})")]
            if not columns or columns == list(COLUMNS):
                return name
            number += 1
            name = f"{table}_{number}"

    def _create(self) -> None:
        columns = ", ".join(f"{name} {'text' if name in _TEXT else 'blob'}" for name in COLUMNS[:-1])
        self._db.execute(f"create table if not exists {self._table} ({columns}, number integer primary key)")
        name = self._table[1:-1]
        unique, unfinished, self._buffers = (_quoted(f"{name}_{what}") for what in ("msg_id", "unfinished", "buffers"))
        self._db.execute(f"create unique index if not exists {unique} on {self._table} (msg_id)")
        self._db.execute(f"create index if not exists {unfinished} on {self._table} (number) where completed is null")
        self._db.execute(f"create table if not exists {self._buffers} (msg_id text primary key, buffers blob)")

    # ---- Store ------------------------------------------------------------------------------------------------------

    def add(self, record: Record) -> bool:
        msg_id = record.msg_id
        if msg_id in self._new or msg_id in self._unfinished or msg_id in self._dirty or self._is_in_table(msg_id):
            return False
        self._new[msg_id] = record
        return True

    def _is_in_table(self, msg_id: str) -> bool:
        return self._fetch(f"select 1 from {self._table} where msg_id = ?", msg_id) is not None

    def commit(self) -> None:
        """Insert what was added, in one transaction."""
        if not self._new:
            return
        new, self._new = self._new, {}
        rows = [_row(record)[:-1] for record in new.values()]
        apart: list[tuple[str, bytes]] = []
        for row in rows:
            if row[_REQUEST_AT] is not None and len(row[_REQUEST_AT]) >= LARGE_BYTES:
                apart.append((row[0], row[_REQUEST_AT]))
                row[_REQUEST_AT] = _APART
        if not self._execute((self._insert, rows), (self._insert_buffers, apart)):
            return
        for msg_id, record in new.items():
            if record.completed is None:
                record.buffers = ()
                self._unfinished[msg_id] = record

    def get(self, msg_id: str) -> Record | None:
        record = self._unfinished.get(msg_id) or self._dirty.get(msg_id) or self._new.get(msg_id)
        if record is not None:
            return record
        row = self._fetch(f"{self._select} where msg_id = ?", msg_id)
        return None if row is None else _record(row)

    def _fetch(self, sql: str, msg_id: str) -> Any:
        if self._closed:
            return None
        try:
            return self._db.execute(sql, (msg_id,)).fetchone()
        except sqlite3.Error as error:  # whoever asks has a task to pass on
            log.error("a record could not be read", reason=str(error))
            return None

    def changed(self, record: Record) -> None:
        """Note that a record is to be written again."""
        msg_id = record.msg_id
        if msg_id in self._new:
            return
        if record.completed is not None:
            self._unfinished.pop(msg_id, None)
        if msg_id not in self._dirty or record.completed is not None:
            self._dirty[msg_id] = record
            self._dirty_bytes += record.measure()
        if self._dirty_bytes >= DIRTY_LIMIT_BYTES:
            self._write(list(self._dirty.values()))
        elif len(self._dirty) >= self._look_at:
            self._write([one for one in self._dirty.values() if one.completed is not None])
            self._look_at = len(self._dirty) + DIRTY_LIMIT

    def rest(self) -> None:
        """Write what has ended, or has waited since the last time."""
        self.commit()
        due = [one for one in self._dirty.values() if one.completed is not None or one.msg_id in self._waiting]
        self._write(due)
        self._waiting = set(self._dirty)

    def drop(self, msg_ids: Iterable[str]) -> int:
        self.flush()
        before = self._db.total_changes
        msg_ids = list(msg_ids)
        with _Transaction(self._db):
            self._db.executemany(f"delete from {self._table} where msg_id = ?", [(one,) for one in msg_ids])
            dropped = self._db.total_changes - before
            self._db.executemany(f"delete from {self._buffers} where msg_id = ?", [(one,) for one in msg_ids])
        for msg_id in msg_ids:
            self._unfinished.pop(msg_id, None)
        return dropped

    def find(self, query: Query) -> Iterator[Record]:
        """Those that match, oldest first, with all buffers."""
        self.flush()
        where, values = _narrowed(query)
        last = 0
        while True:  # page by page, so that a large table is never in memory as a whole
            page = self._db.execute(
                f"{self._select} where number > ? {where} order by number limit {PAGE}", (last, *values)
            ).fetchall()
            for row in page:
                record = _record(row)
                if query.matches(record):
                    if row[_REQUEST_AT] == _APART:
                        record.buffers = self._buffers_of(record.msg_id)
                    yield record
            if len(page) < PAGE:
                return
            last = page[-1][-1]

    def _buffers_of(self, msg_id: str) -> tuple[bytes, ...]:
        row = self._fetch(f"select buffers from {self._buffers} where msg_id = ?", msg_id)
        return () if row is None else _decode_buffers(row[0])

    def history(self) -> list[str]:
        """Ids by the time of submission; records without one are left out."""
        self.flush()
        rows = self._db.execute(
            f"select msg_id from {self._table} where submitted is not null order by submitted, number"
        )
        return [row[0] for row in rows]

    def flush(self) -> None:
        """Write all that is not written yet."""
        self.commit()
        self._write(list(self._dirty.values()))

    def _write(self, records: list[Record]) -> None:
        """Update these of the changed records."""
        if not records:
            return
        if len(records) == len(self._dirty):
            self._dirty.clear()
        else:
            for record in records:
                del self._dirty[record.msg_id]
        self._dirty_bytes = 0
        self._look_at = len(self._dirty) + DIRTY_LIMIT
        self._execute((self._update, [_updated(_row(record)) for record in records]))

    def _execute(self, *work: tuple[str, list[Any]]) -> bool:
        """Statements with their rows, in one transaction; the rows of the first are records. Failing, it says so once,
        and counts what is lost: tasks go on without records.
        """
        if self._closed:
            return False
        try:
            with _Transaction(self._db):
                for statement, rows in work:
                    if rows:
                        self._db.executemany(statement, rows)
        except sqlite3.Error as error:
            self.lost += len(work[0][1])
            if not self._failing:
                log.error("records cannot be written", path=str(self._path), reason=str(error))
            self._failing = True
            return False
        self._failing = False
        return True

    def tidy(self) -> None:
        """Carry what is in the log over into the file. May take its time; may be called in another thread. Failing, it
        says so once, and not each time that it tries. A file that was removed is not made anew.
        """
        changes = self._db.total_changes
        if changes == self._tidied_changes or not self._path.exists():
            return
        try:
            with closing(sqlite3.connect(self._path)) as db:
                db.execute("pragma wal_checkpoint(passive)")
        except sqlite3.Error as error:
            if not self._untidy:
                log.warning("the log of the records' database cannot be carried over", reason=str(error))
            self._untidy = True
        else:
            self._tidied_changes, self._untidy = changes, False

    def close(self) -> None:
        self.flush()
        self._closed = True
        self._db.close()
        self._lock.close()


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
    row = list(msgspec.structs.astuple(record))
    del row[-1]
    for at in _BUFFERS_AT:
        row[at] = msgspec.msgpack.encode(row[at]) if row[at] else None
    for at in _PIECES_AT:
        row[at] = "".join(row[at]).encode("utf-8", "surrogatepass") if row[at] else None
    for at in _TEXT_AT:  # SQLite takes no lone surrogates
        if row[at] is not None and not row[at].isascii():
            row[at] = row[at].encode("utf-8", "replace").decode("utf-8")
    return row


_decode_buffers = msgspec.msgpack.Decoder(tuple[bytes, ...]).decode


def _record(row: Sequence[Any]) -> Record:
    row = list(row)
    for at in _BUFFERS_AT:
        row[at] = _decode_buffers(row[at]) if row[at] else ()
    for at in _PIECES_AT:
        row[at] = [row[at].decode("utf-8", "surrogatepass")] if row[at] is not None else []
    return Record(*row)


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
        elif (
            operator == "$in"
            and not isinstance(wanted, str)
            and len(wanted) <= PAGE
            and all(isinstance(one, str) for one in wanted)
        ):
            parts.append(f"{field} in ({', '.join('?' * len(wanted))})")
            values += wanted
    return "".join(f" and {part}" for part in parts), values
