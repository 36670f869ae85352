"""Records in memory, within bounds: beyond a number of records, or of bytes of buffers, the oldest tenth is dropped.

The defaults of the bounds are ipyparallel's. A dropped record is as if it had never existed: later output and results
of its task are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from trio_sched.ipyparallel.records.query import RecordQuery
from trio_sched.ipyparallel.records.record import Record

RECORD_LIMIT = 1024
SIZE_LIMIT_BYTES = 1 << 30
CULL_FRACTION = 0.1


class MemoryStore:
    """Keeps records in a dict, in the order of their addition."""

    def __init__(
        self,
        record_limit: int = RECORD_LIMIT,
        size_limit_bytes: int = SIZE_LIMIT_BYTES,
        cull_fraction: float = CULL_FRACTION,
    ) -> None:
        self._records: dict[str, Record] = {}
        self._bytes = 0
        self._added_count = 0
        self._record_limit = record_limit
        self._size_limit_bytes = size_limit_bytes
        self._cull_fraction = cull_fraction
        #: Records that were dropped to stay within the bounds.
        self.culled_count = 0

    def add(self, record: Record) -> bool:
        if record.msg_id in self._records:
            return False
        self._added_count += 1
        record.number = self._added_count
        record.size_bytes = record.measure()
        self._bytes += record.size_bytes
        self._records[record.msg_id] = record
        if len(self._records) > self._record_limit:
            self._cull(int(self._record_limit * self._cull_fraction) or 1)
        self._limit_size()
        return True

    def commit(self) -> None:
        """Do nothing: there is no file."""

    def get(self, msg_id: str) -> Record | None:
        return self._records.get(msg_id)

    def changed(self, record: Record) -> None:
        if record.msg_id in self._records:
            size_bytes = record.measure()
            self._bytes += size_bytes - record.size_bytes
            record.size_bytes = size_bytes
            self._limit_size()

    def drop(self, msg_ids: Iterable[str]) -> int:
        dropped = 0
        for msg_id in msg_ids:
            record = self._records.pop(msg_id, None)
            if record is not None:
                self._bytes -= record.size_bytes
                dropped += 1
        return dropped

    def find(self, query: RecordQuery) -> Iterator[Record]:
        ids = query.ids()
        if ids is None:
            return filter(query.matches, self._records.values())
        named = sorted((self._records[one] for one in ids if one in self._records), key=lambda record: record.number)
        return filter(query.matches, named)

    def history(self) -> list[str]:
        dated = [(record.submitted, record.number, record.msg_id) for record in self._records.values()]
        return [msg_id for submitted, _number, msg_id in sorted(one for one in dated if one[0] is not None)]

    def write_due(self) -> None:
        """Do nothing: there is no file."""

    def compact(self) -> None:
        """Do nothing: there is no file."""

    def close(self) -> None:
        """Do nothing: there is no file."""

    def _limit_size(self) -> None:
        if self._bytes > self._size_limit_bytes:
            target_bytes = self._size_limit_bytes * (1 - self._cull_fraction)
            while self._bytes > target_bytes and self._records:
                self._cull(1)

    def _cull(self, number: int) -> None:
        oldest = [msg_id for msg_id, _record in zip(self._records, range(number), strict=False)]
        self.culled_count += self.drop(oldest)
