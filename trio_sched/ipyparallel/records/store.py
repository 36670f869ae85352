"""The interface of a store of records, and the store that keeps none.

A store returns the records themselves, not copies. The code that changes a record calls `changed`, so that the store
can count its bytes and write it. No caller keeps a record beyond the handling of one message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from trio_sched.errors import TrioSchedError
from trio_sched.ipyparallel.records.query import RecordQuery
from trio_sched.ipyparallel.records.record import Record


class NoRecordsError(TrioSchedError, KeyError):
    """Records were requested, and this controller keeps none."""

    def __str__(self) -> str:
        return (
            "this controller keeps no records (--nodb); start it with --dictdb or --sqlitedb to look up, resubmit or "
            "fetch results again"
        )


class Store(Protocol):
    """A store of records."""

    def add(self, record: Record) -> bool:
        """Add a record. Returns False, and changes nothing, if there is one of this id."""

    def commit(self) -> None:
        """Write the records that were added, so that they outlive this process however it ends."""

    def get(self, msg_id: str) -> Record | None:
        """Return the record of this id. A store may omit the buffers of a request that it has written."""

    def changed(self, record: Record) -> None:
        """Note that a record of this store was changed."""

    def drop(self, msg_ids: Iterable[str]) -> int:
        """Remove the records of these ids. Returns how many there were."""

    def find(self, query: RecordQuery) -> Iterator[Record]:
        """Yield the records that match, oldest first. The store must not be changed meanwhile."""

    def history(self) -> list[str]:
        """Return the ids of the records in the order of their time of submission; undated records are omitted."""

    def write_due(self) -> None:
        """Write the changes that are due. Called regularly."""

    def compact(self) -> None:
        """Do slow maintenance. Called rarely, in a thread."""

    def close(self) -> None:
        """Write all changes, and close the store."""


class NoStore:
    """Keeps no records."""

    def add(self, record: Record) -> bool:
        return False

    def commit(self) -> None:
        pass

    def get(self, msg_id: str) -> Record | None:
        return None

    def changed(self, record: Record) -> None:
        pass

    def drop(self, msg_ids: Iterable[str]) -> int:
        return 0

    def find(self, query: RecordQuery) -> Iterator[Record]:
        """:raises NoRecordsError: always."""
        raise NoRecordsError

    def history(self) -> list[str]:
        """:raises NoRecordsError: always."""
        raise NoRecordsError

    def write_due(self) -> None:
        pass

    def compact(self) -> None:
        pass

    def close(self) -> None:
        pass
