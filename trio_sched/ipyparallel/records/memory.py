"""Records in memory, within bounds: beyond a number of records, or of bytes of buffers, the oldest tenth goes.

The bounds are those that ipyparallel's users know. A record that went is as if it had never been; what is still to be
said about it is not kept either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from trio_sched.ipyparallel.records.finding import Query
from trio_sched.ipyparallel.records.record import Record

RECORD_LIMIT = 1024
SIZE_LIMIT_BYTES = 1 << 30
CULL_FRACTION = 0.1


class MemoryStore:
    """A dict of records in the order in which they came."""

    keeps = True

    def __init__(
        self,
        record_limit: int = RECORD_LIMIT,
        size_limit_bytes: int = SIZE_LIMIT_BYTES,
        cull_fraction: float = CULL_FRACTION,
    ) -> None:
        self._records: dict[str, Record] = {}
        self._bytes = 0
        self._count = 0
        self._record_limit = record_limit
        self._size_limit = size_limit_bytes
        self._fraction = cull_fraction
        self.culled = 0
        """Records dropped to stay within the bounds."""

    def add(self, record: Record) -> bool:
        if record.msg_id in self._records:
            return False
        self._count += 1
        record.number = self._count
        record.size = record.measure()
        self._bytes += record.size
        self._records[record.msg_id] = record
        if len(self._records) > self._record_limit:
            self._cull(int(self._record_limit * self._fraction) or 1)
        self._hold_size()
        return True

    def commit(self) -> None:
        """Nothing to write."""

    def get(self, msg_id: str) -> Record | None:
        return self._records.get(msg_id)

    def changed(self, record: Record) -> None:
        if record.msg_id in self._records:
            size = record.measure()
            self._bytes += size - record.size
            record.size = size
            self._hold_size()

    def drop(self, msg_ids: Iterable[str]) -> int:
        dropped = 0
        for msg_id in msg_ids:
            record = self._records.pop(msg_id, None)
            if record is not None:
                self._bytes -= record.size
                dropped += 1
        return dropped

    def find(self, query: Query) -> Iterator[Record]:
        ids = query.ids()
        if ids is None:
            return filter(query.matches, self._records.values())
        named = sorted((self._records[one] for one in ids if one in self._records), key=lambda record: record.number)
        return filter(query.matches, named)

    def history(self) -> list[str]:
        """Ids by the time of submission; records without one are left out."""
        dated = [(record.submitted, record.number, record.msg_id) for record in self._records.values()]
        return [msg_id for submitted, _number, msg_id in sorted(one for one in dated if one[0] is not None)]

    def rest(self) -> None:
        """Nothing to write."""

    def tidy(self) -> None:
        """Nothing to tidy."""

    def close(self) -> None:
        """Nothing to let go of."""

    def _hold_size(self) -> None:
        if self._bytes > self._size_limit:
            wanted = self._size_limit * (1 - self._fraction)
            while self._bytes > wanted and self._records:
                self._cull(1)

    def _cull(self, number: int) -> None:
        oldest = [msg_id for msg_id, _record in zip(self._records, range(number), strict=False)]
        self.culled += self.drop(oldest)
