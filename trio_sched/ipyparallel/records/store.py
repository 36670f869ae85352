"""Where records are kept: what the monitor and the queries need of such a place.

A store hands out the records themselves. Who changes one says so with `changed`, so that the store can count bytes
and write; nobody keeps one across turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from trio_sched.errors import TrioSchedError
from trio_sched.ipyparallel.records.finding import Query
from trio_sched.ipyparallel.records.record import Record


class NotKept(TrioSchedError, KeyError):
    """Asked for records where none are kept."""

    def __str__(self) -> str:
        return (
            "this controller keeps no records (--nodb); start it with --dictdb or --sqlitedb to look up, resubmit or "
            "fetch results again"
        )


class Store(Protocol):
    """A place for records."""

    keeps: bool
    """Whether there are records at all. What is not kept need not be parsed."""

    def add(self, record: Record) -> bool:
        """Keep a record. False: there is one of that id already, which stays as it is."""

    def commit(self) -> None:
        """Write the records that were added, so that they outlive this process however it ends."""

    def get(self, msg_id: str) -> Record | None:
        """The record of this id. A store may leave out the buffers of a request that it has written."""

    def changed(self, record: Record) -> None:
        """A record that this store handed out, or was given, says more than before."""

    def drop(self, msg_ids: Iterable[str]) -> int:
        """Forget these; how many there were."""

    def find(self, query: Query) -> Iterator[Record]:
        """Those that match, oldest first. Do not change the store meanwhile."""

    def history(self) -> list[str]:
        """Ids by the time of submission."""

    def rest(self) -> None:
        """Called from time to time: write what should not wait any longer."""

    def tidy(self) -> None:
        """Called now and then, in a thread: what may take its time."""

    def close(self) -> None:
        """Write all and let go."""


class NoStore:
    """Keeps nothing, and says so when asked."""

    keeps = False

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

    def find(self, query: Query) -> Iterator[Record]:
        """:raises NotKept: always."""
        raise NotKept

    def history(self) -> list[str]:
        """:raises NotKept: always."""
        raise NotKept

    def rest(self) -> None:
        pass

    def tidy(self) -> None:
        pass

    def close(self) -> None:
        pass
