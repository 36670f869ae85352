"""Records in an SQLite file: `tasks.db` in the profile directory.

A request is inserted and committed before it is relayed (`commit`), in one transaction for a batch: a controller that
is killed loses no accepted request. Later changes are collected and written some hundred records at a time, because a
transaction costs far more than a row. Changes of unfinished tasks are written one interval later, so that most tasks
are updated once. The file is in WAL mode and not synced at each commit: a crash of the process loses nothing that was
written, a crash of the machine may lose the last moments. The write-ahead log is transferred to the file in a thread
(`compact`), because that may wait for the disk.

SQLite writes the whole row at each update. So the buffers of large requests are rows of a table of their own, which
are written once.

Several controllers may use one file at the same time. Each holds a shared lock until it ends (`tasks.db-lock`); a
controller that finds no other one marks the unfinished tasks of former controllers as lost.

A query is narrowed by SQL where that is simple, and decided by `RecordQuery.matches`, as in memory.
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
from trio_sched.ipyparallel.records.query import RecordQuery
from trio_sched.ipyparallel.records.record import BUFFERS, DATES, Record, fail
from trio_sched.logs import get_logger

log = get_logger(__name__)
TABLE = "trio_sched_tasks"
#: With this many changed records, those of ended tasks are written at once;
DIRTY_LIMIT = 512
#: with this many bytes of buffers in them, all.
DIRTY_LIMIT_BYTES = 16 << 20
#: Buffers of requests of at least this size are stored in a table of their own.
LARGE_BYTES = 1 << 16
#: Records that are read at a time.
PAGE = 256
#: Time to wait for another controller that is opening the same file.
START_TIMEOUT_S = 60.0
LOST = "The controller that had this task ended before the task did"
_TEXT = ("msg_id", *DATES, "client_uuid", "engine_uuid", "resubmitted", "queue", "execute_input", "label")
_PIECES = ("stdout", "stderr")
#: All fields but `size_bytes`. The last, `number`, is the key, which SQLite assigns.
COLUMNS = Record.__struct_fields__[:-1]
_INSERTED = COLUMNS[:-1]
#: The columns that change after the request; the last, `msg_id`, identifies the row.
_UPDATED = (
    "engine_uuid", "started", "completed", "resubmitted", "received", "result_header", "result_metadata",
    "result_content", "result_buffers", "execute_input", "execute_result", "display_data", "error", "stdout", "stderr",
    "msg_id",
)  # fmt: skip
_BUFFERS_AT, _PIECES_AT, _TEXT_AT = (
    tuple(COLUMNS.index(name) for name in names) for names in (BUFFERS, _PIECES, ("execute_input", "label"))
)
_REQUEST_AT = COLUMNS.index("buffers")
#: The value of the column of buffers that are stored in the other table.
_STORED_APART = 0
_updated_columns = itemgetter(*map(COLUMNS.index, _UPDATED))
_SQL_OPERATORS = {"$eq": "=", "$lt": "<", "$lte": "<=", "$gt": ">", "$gte": ">="}


class SQLiteStore:
    """Keeps records in a table of an SQLite database."""

    def __init__(self, path: Path, table: str = TABLE) -> None:
        """:raises ConfigError: the file cannot be opened, or is not an SQLite database."""
        self._path = path
        #: Records that were added since the last commit.
        self._new: dict[str, Record] = {}
        #: Inserted records of unfinished tasks, which need not be read for the next change. Without the buffers of the
        #: request, which are in the database.
        self._unfinished: dict[str, Record] = {}
        #: Records with unwritten changes, in the order of the changes.
        self._dirty: dict[str, Record] = {}
        #: Ids of dirty records that the last `write_due` left unwritten, because their tasks had not ended.
        self._postponed: set[str] = set()
        self._dirty_bytes = 0
        #: The number of dirty records at which those of ended tasks are written.
        self._write_at_count = DIRTY_LIMIT
        self._closed = False
        #: The number of changes at the last checkpoint.
        self._checkpointed_changes = -1
        self._checkpoint_failing = False
        self._write_failing = False
        #: Changes of records that could not be written, for example because the disk was full.
        self.lost_count = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            for pragma in ("journal_mode = wal", "synchronous = normal", "wal_autocheckpoint = 0"):
                self._db.execute(f"pragma {pragma}")
            self._table = _quoted(self._find_table(table))
            self._create()
            columns = ", ".join(COLUMNS)
            places = ", ".join("?" * len(_INSERTED))
            changes = ", ".join(f"{name} = ?" for name in _UPDATED[:-1])
            self._select = f"select {columns} from {self._table}"
            self._insert = f"insert or ignore into {self._table} ({', '.join(_INSERTED)}) values ({places})"
            self._update = f"update {self._table} set {changes} where msg_id = ?"
            self._insert_buffers = f"insert or ignore into {self._buffers} (msg_id, buffers) values (?, ?)"
            self._lock = self._lock_and_mark_lost()
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"records cannot be kept in {path}: {error}") from None

    def _lock_and_mark_lost(self) -> sqlite3.Connection:
        """Mark the unfinished tasks of former controllers as lost, unless another controller is running.

        Returns the connection whose read transaction is the shared lock of this controller. The write transaction
        before it excludes others while tasks are marked.
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
                self._db.executemany(self._update, [_updated_columns(_row(record)) for record in records])
            marked += len(records)
        if marked:
            log.warning("tasks of a former controller are lost; they can be resubmitted", tasks=marked)

    def _find_table(self, table: str) -> str:
        """Return the name of a table with these columns: `table`, or `table_N` if that has other columns."""
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
        """Insert the added records, in one transaction."""
        if not self._new:
            return
        new, self._new = self._new, {}
        rows = [_row(record)[:-1] for record in new.values()]
        apart: list[tuple[str, bytes]] = []
        for row in rows:
            if row[_REQUEST_AT] is not None and len(row[_REQUEST_AT]) >= LARGE_BYTES:
                apart.append((row[0], row[_REQUEST_AT]))
                row[_REQUEST_AT] = _STORED_APART
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
        except sqlite3.Error as error:  # the caller has a message to relay all the same
            log.error("a record could not be read", reason=str(error))
            return None

    def changed(self, record: Record) -> None:
        """Note that a record was changed, and write changed records if there are many."""
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
        elif len(self._dirty) >= self._write_at_count:
            self._write([one for one in self._dirty.values() if one.completed is not None])
            self._write_at_count = len(self._dirty) + DIRTY_LIMIT

    def write_due(self) -> None:
        """Write the changed records of ended tasks, and those that were postponed by the last call."""
        self.commit()
        due = [one for one in self._dirty.values() if one.completed is not None or one.msg_id in self._postponed]
        self._write(due)
        self._postponed = set(self._dirty)

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

    def find(self, query: RecordQuery) -> Iterator[Record]:
        """Yield the records that match, oldest first, with all buffers."""
        self.flush()
        where, values = _narrowing_sql(query)
        last = 0
        while True:  # page by page, so that a large table is never in memory as a whole
            page = self._db.execute(
                f"{self._select} where number > ? {where} order by number limit {PAGE}", (last, *values)
            ).fetchall()
            for row in page:
                record = _record(row)
                if query.matches(record):
                    if row[_REQUEST_AT] == _STORED_APART:
                        record.buffers = self._buffers_of(record.msg_id)
                    yield record
            if len(page) < PAGE:
                return
            last = page[-1][-1]

    def _buffers_of(self, msg_id: str) -> tuple[bytes, ...]:
        row = self._fetch(f"select buffers from {self._buffers} where msg_id = ?", msg_id)
        return () if row is None else _decode_buffers(row[0])

    def history(self) -> list[str]:
        self.flush()
        rows = self._db.execute(
            f"select msg_id from {self._table} where submitted is not null order by submitted, number"
        )
        return [row[0] for row in rows]

    def flush(self) -> None:
        """Write all changes."""
        self.commit()
        self._write(list(self._dirty.values()))

    def _write(self, records: list[Record]) -> None:
        """Write these of the changed records."""
        if not records:
            return
        if len(records) == len(self._dirty):
            self._dirty.clear()
        else:
            for record in records:
                del self._dirty[record.msg_id]
        self._dirty_bytes = 0
        self._write_at_count = len(self._dirty) + DIRTY_LIMIT
        self._execute((self._update, [_updated_columns(_row(record)) for record in records]))

    def _execute(self, *work: tuple[str, list[Any]]) -> bool:
        """Execute statements with their rows in one transaction; the rows of the first are records.

        Returns whether it succeeded. The first of several failures is logged; the lost records are counted, and tasks
        go on without them.
        """
        if self._closed:
            return False
        try:
            with _Transaction(self._db):
                for statement, rows in work:
                    if rows:
                        self._db.executemany(statement, rows)
        except sqlite3.Error as error:
            self.lost_count += len(work[0][1])
            if not self._write_failing:
                log.error("records cannot be written", path=str(self._path), reason=str(error))
            self._write_failing = True
            return False
        self._write_failing = False
        return True

    def compact(self) -> None:
        """Transfer the write-ahead log to the file. May wait for the disk; may be called in another thread.

        The first of several failures is logged. A file that was removed is not created again.
        """
        changes = self._db.total_changes
        if changes == self._checkpointed_changes or not self._path.exists():
            return
        try:
            with closing(sqlite3.connect(self._path)) as db:
                db.execute("pragma wal_checkpoint(passive)")
        except sqlite3.Error as error:
            if not self._checkpoint_failing:
                log.warning("the write-ahead log of the records cannot be checkpointed", reason=str(error))
            self._checkpoint_failing = True
        else:
            self._checkpointed_changes, self._checkpoint_failing = changes, False

    def close(self) -> None:
        self.flush()
        self._closed = True
        self._db.close()
        self._lock.close()


class _Transaction:
    """Commits the statements of a block, or rolls them back if it raises."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("begin")

    def __exit__(self, kind: object, *_: object) -> None:
        if self._db.in_transaction:  # SQLite rolls back itself when the disk is full
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
    for at in _TEXT_AT:  # SQLite rejects lone surrogates
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


def _narrowing_sql(query: RecordQuery) -> tuple[str, list[Any]]:
    """Return SQL, with its values, that all records fulfil that match: it covers a part of the conditions."""
    parts: list[str] = []
    values: list[Any] = []
    for field, operator, wanted in query.conditions:
        if field not in _TEXT:
            continue
        if wanted is None and operator in ("$eq", "$ne"):
            parts.append(f"{field} is {'not ' if operator == '$ne' else ''}null")
        elif operator in _SQL_OPERATORS and isinstance(wanted, str):
            parts.append(f"{field} {_SQL_OPERATORS[operator]} ?")
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
