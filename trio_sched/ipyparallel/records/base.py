"""The monitor: told of every request and reply, it keeps the records and knows where everything is.

The fronts tell it what passes through them: `submitted`, `arrived` (at an engine), `finished`, `output`, `engine_gone`;
and `commit` before they pass on or answer what was submitted.
Nothing here waits, and nothing is parsed that the front had not parsed anyway. `on` is False when no records are
kept: then the fronts tell it nothing, and need not parse for it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import trio
from msgspec import Struct

from trio_sched.ipyparallel.records.record import Record, decoded, fail, utc, utc_now
from trio_sched.ipyparallel.records.store import NoStore, Store
from trio_sched.wire.jupyter import Parsed
from trio_sched.wire.native import Frame

COMPLETED_KEPT = 1024
"""Ids of ended tasks that are kept for each engine."""
REST_S = 0.1
"""Time between two writes of what changed in records: a change is in memory only for at most twice as long."""
TIDY_EVERY = 20
"""After so many times the store may tidy up."""


class _Header(Struct, gc=False):
    msg_type: str = ""
    date: str = ""


class _Metadata(Struct, gc=False):
    label: str | None = None
    started: str | None = None
    status: str | None = None


_decode_header = msgspec.json.Decoder(_Header).decode
_decode_metadata = msgspec.json.Decoder(_Metadata).decode


def _of_header(frame: Frame) -> _Header:
    """The few fields that a record needs; as if there were none, if they cannot be read."""
    try:
        return _decode_header(frame)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Header()


def _of_metadata(frame: Frame) -> _Metadata:
    """The same of metadata."""
    try:
        return _decode_metadata(frame)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Metadata()


class EngineBook:
    """What one engine has to do, and did."""

    __slots__ = ("completed", "ended", "outstanding")

    def __init__(self) -> None:
        self.outstanding: dict[str, str] = {}
        """msg_id -> queue, in the order of arrival."""
        self.ended = 0
        self.completed: deque[str] = deque(maxlen=COMPLETED_KEPT)
        """The last of those that ended."""


class Monitor:
    """Keeps records in a store, and the books of what is pending where."""

    on = True

    def __init__(self, store: Store) -> None:
        self.store = store
        self.engines: dict[str, EngineBook] = {}
        """By uuid, those that have (had) something to do."""
        self.pending: dict[str, str | None] = {}
        """Unfinished requests: msg_id -> the uuid of the engine that has it, None while it waits for one."""

    # ---- what the fronts say ----------------------------------------------------------------------------------------

    def submitted(self, queue: str, message: Parsed, client: str, engine: str | None = None) -> None:
        """A client asked for something: over the task queue, of one engine, or of many (one call for each)."""
        msg_id = message.head.msg_id
        if msg_id in self.pending:
            return
        frames = message.frames
        record = Record(
            msg_id=msg_id,
            queue=queue,
            header=frames[1],
            metadata=frames[3],
            content=frames[4],
            buffers=tuple(frames[5:]),
            submitted=utc(_of_header(frames[1]).date),
            client_uuid=client,
            engine_uuid=engine,
            label=_of_metadata(frames[3]).label,
        )
        if self.store.add(record):
            self.pending[msg_id] = engine
            if engine is not None:
                self._book(engine).outstanding[msg_id] = queue

    def commit(self) -> None:
        """Write the requests that were submitted since the last call, in one transaction where there is a database."""
        self.store.commit()

    def arrived(self, engine: str, msg_id: str) -> None:
        """A task was assigned to an engine."""
        if msg_id not in self.pending:
            return
        self._leave(msg_id)
        self.pending[msg_id] = engine
        self._book(engine).outstanding[msg_id] = "task"
        record = self.store.get(msg_id)
        if record is not None:
            record.engine_uuid = engine
            self.store.changed(record)

    def finished(self, queue: str, reply: Parsed, engine: str | None) -> None:
        """The reply to a request went to its client."""
        frames = reply.frames
        msg_id = reply.parent.msg_id
        metadata = _of_metadata(frames[3])
        if msg_id in self.pending:
            at = self._leave(msg_id)
            del self.pending[msg_id]
            engine = engine or at
            book = self.engines.get(engine or "")
            if book is not None and (queue == "mux" or metadata.status != "aborted"):
                book.ended += 1
                book.completed.append(msg_id)
        record = self.store.get(msg_id)
        if record is None:
            return
        record.result_header = frames[1]
        record.result_metadata = frames[3]
        record.result_content = frames[4]
        record.result_buffers = tuple(frames[5:])
        record.started = utc(metadata.started)
        record.received = utc_now()
        record.completed = utc(_of_header(frames[1]).date) or record.received
        if engine:
            record.engine_uuid = engine
        self.store.changed(record)

    def output(self, message: Parsed) -> None:
        """An engine published something about a request: what it printed, showed, or how it failed."""
        keep = _OUTPUT.get(message.head.msg_type)
        if keep is None:
            return
        record = self.store.get(message.parent.msg_id)
        if record is not None and keep(record, message.frames[4]):
            self.store.changed(record)

    def engine_gone(self, engine: str) -> None:
        """An engine is no longer registered. What it was asked directly has failed; its tasks are the scheduler's
        business."""
        book = self.engines.pop(engine, None)
        for msg_id, queue in book.outstanding.items() if book else ():
            if queue == "task":
                continue
            self.pending.pop(msg_id, None)
            record = self.store.get(msg_id)
            if record is not None:
                fail(record, f"Engine {engine!r} died while running task {msg_id!r}")
                self.store.changed(record)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what is new from time to time; close the store at the end. A front runs this beside its sockets."""
        task_status.started()
        try:
            for times in itertools.count(1):
                await trio.sleep(REST_S)
                self.store.rest()
                if times % TIDY_EVERY == 0:
                    await trio.to_thread.run_sync(self.store.tidy)
        finally:
            self.store.close()

    # ---- the books --------------------------------------------------------------------------------------------------

    def unassigned(self) -> list[str]:
        """Tasks that wait for an engine."""
        return [msg_id for msg_id, engine in self.pending.items() if engine is None]

    def resubmitted(self, msg_id: str, as_: str) -> None:
        """A request was submitted again."""
        record = self.store.get(msg_id)
        if record is not None:
            record.resubmitted = as_
            self.store.changed(record)

    def _book(self, engine: str) -> EngineBook:
        book = self.engines.get(engine)
        if book is None:
            book = self.engines[engine] = EngineBook()
        return book

    def _leave(self, msg_id: str) -> str | None:
        """A request is no longer where it was; where that was."""
        at = self.pending[msg_id]
        if at is not None and at in self.engines:
            self.engines[at].outstanding.pop(msg_id, None)
        return at


class NullMonitor(Monitor):
    """Keeps nothing and costs nothing."""

    on = False

    def __init__(self) -> None:
        super().__init__(NoStore())

    def submitted(self, queue: str, message: Parsed, client: str, engine: str | None = None) -> None:
        """Not kept."""

    def arrived(self, engine: str, msg_id: str) -> None:
        """Not kept."""

    def finished(self, queue: str, reply: Parsed, engine: str | None) -> None:
        """Not kept."""

    def output(self, message: Parsed) -> None:
        """Not kept."""

    def engine_gone(self, engine: str) -> None:
        """Not kept."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Nothing to write, ever."""
        task_status.started()


# ---- output ---------------------------------------------------------------------------------------------------------


def _stream(record: Record, content: Any) -> bool:
    said = decoded(content)
    if not isinstance(said, dict) or not isinstance(said.get("text"), str):
        return False
    pieces = {"stdout": record.stdout, "stderr": record.stderr}.get(said.get("name", ""))
    if pieces is None:
        return False
    pieces.append(said["text"])
    return True


def _execute_input(record: Record, content: Any) -> bool:
    said = decoded(content)
    if not isinstance(said, dict) or not isinstance(said.get("code"), str):
        return False
    record.execute_input = said["code"]
    return True


def _as_it_is(field: str) -> Callable[[Record, Any], bool]:
    def keep(record: Record, content: Any) -> bool:
        setattr(record, field, content)
        return True

    return keep


_OUTPUT: dict[str, Callable[[Record, Any], bool]] = {
    "stream": _stream,
    "execute_input": _execute_input,
    "execute_result": _as_it_is("execute_result"),
    "display_data": _as_it_is("display_data"),
    "error": _as_it_is("error"),
}
"""What is kept of each kind of output. Others (status, welcome, ...) are not."""
