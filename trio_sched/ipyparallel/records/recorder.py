"""The recorder: a record of each request, and the unfinished requests of each engine.

The relays and the task queue call `submitted`, `assigned`, `finished`, `output` and `engine_removed` for the messages
that pass, and `commit` before they send or answer what was submitted. No method waits, and none decodes more than a few
fields. `on` is False when no records are kept: then callers need not call, or decode messages for the recorder.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import trio
from msgspec import Struct

from trio_sched.ipyparallel.config import IppConfig
from trio_sched.ipyparallel.records.memory import MemoryStore
from trio_sched.ipyparallel.records.record import Record, decoded, fail, utc, utc_now
from trio_sched.ipyparallel.records.sqlite import TABLE, SQLiteStore
from trio_sched.ipyparallel.records.store import NoStore, Store
from trio_sched.wire.jupyter import JupyterMessage
from trio_sched.wire.native import Frame

QueueName: TypeAlias = Literal["task", "mux", "broadcast", "control"]
#: Ids of ended tasks that are kept for each engine.
COMPLETED_KEPT = 1024
#: Seconds between two writes of changed records. A change is unwritten for at most twice this time.
WRITE_INTERVAL_S = 0.1
#: The store compacts once in this many writes.
COMPACT_EVERY = 20
FILE = "tasks.db"


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
    """Decode the fields of a header that a record needs; a header that cannot be read counts as empty."""
    try:
        return _decode_header(frame)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Header()


def _of_metadata(frame: Frame) -> _Metadata:
    """Decode the fields of metadata that a record needs; metadata that cannot be read count as empty."""
    try:
        return _decode_metadata(frame)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Metadata()


class EngineHistory:
    """The requests that one engine has and had."""

    __slots__ = ("completed", "completed_count", "outstanding")

    def __init__(self) -> None:
        #: Names of queues by msg_id, in the order of assignment.
        self.outstanding: dict[str, str] = {}
        self.completed_count = 0
        #: The ids of the requests that ended last.
        self.completed: deque[str] = deque(maxlen=COMPLETED_KEPT)


class TaskRecorder:
    """Keeps records in a store, and the history of each engine."""

    #: Whether records are kept.
    on = True

    def __init__(self, store: Store) -> None:
        self.store = store
        #: By uuid of engine, for the registered engines that were assigned a request.
        self.engines: dict[str, EngineHistory] = {}
        #: Engines by msg_id of unfinished request; None: the request waits for an engine.
        self.pending: dict[str, str | None] = {}

    # ---- messages ---------------------------------------------------------------------------------------------------

    def submitted(self, queue: QueueName, message: JupyterMessage, client: str, engine: str | None = None) -> None:
        """Record a request. A request that is broadcast is recorded once for each engine.

        :param client: the session of the client.
        :param engine: the engine that it goes to, if that is known.
        """
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
                self._history(engine).outstanding[msg_id] = queue

    def commit(self) -> None:
        """Write the requests that were submitted since the last call, in one transaction if there is a database."""
        self.store.commit()

    def assigned(self, engine: str, msg_id: str) -> None:
        """Record that a task was assigned to an engine."""
        if msg_id not in self.pending:
            return
        self._take_from_engine(msg_id)
        self.pending[msg_id] = engine
        self._history(engine).outstanding[msg_id] = "task"
        record = self.store.get(msg_id)
        if record is not None:
            record.engine_uuid = engine
            self.store.changed(record)

    def finished(self, queue: QueueName, reply: JupyterMessage, engine: str | None) -> None:
        """Record the reply to a request; `engine` is None if the reply was made here."""
        frames = reply.frames
        msg_id = reply.parent.msg_id
        metadata = _of_metadata(frames[3])
        if msg_id in self.pending:
            assigned_to = self._take_from_engine(msg_id)
            del self.pending[msg_id]
            engine = engine or assigned_to
            history = self.engines.get(engine or "")
            if history is not None and (queue == "mux" or metadata.status != "aborted"):
                history.completed_count += 1
                history.completed.append(msg_id)
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

    def output(self, message: JupyterMessage) -> None:
        """Record output of a request that an engine published."""
        add = _ADD_OUTPUT.get(message.head.msg_type)
        if add is None:
            return
        record = self.store.get(message.parent.msg_id)
        if record is not None and add(record, message.frames[4]):
            self.store.changed(record)

    def engine_removed(self, engine: str) -> None:
        """Record the direct calls of an engine that was removed as failed. The scheduler decides about its tasks."""
        history = self.engines.pop(engine, None)
        for msg_id, queue in history.outstanding.items() if history else ():
            if queue == "task":
                continue
            self.pending.pop(msg_id, None)
            record = self.store.get(msg_id)
            if record is not None:
                fail(record, f"Engine {engine!r} died while running task {msg_id!r}")
                self.store.changed(record)

    async def run(self) -> None:
        """Write changed records regularly until cancelled, and close the store then."""
        try:
            for writes in itertools.count(1):
                await trio.sleep(WRITE_INTERVAL_S)
                self.store.write_due()
                if writes % COMPACT_EVERY == 0:
                    await trio.to_thread.run_sync(self.store.compact)
        finally:
            self.store.close()

    # ---- requests and engines ---------------------------------------------------------------------------------------

    def unassigned(self) -> list[str]:
        """Return the ids of the tasks that wait for an engine."""
        return [msg_id for msg_id, engine in self.pending.items() if engine is None]

    def resubmitted(self, msg_id: str, new_id: str) -> None:
        """Record that a request was submitted again, under another id."""
        record = self.store.get(msg_id)
        if record is not None:
            record.resubmitted = new_id
            self.store.changed(record)

    def _history(self, engine: str) -> EngineHistory:
        history = self.engines.get(engine)
        if history is None:
            history = self.engines[engine] = EngineHistory()
        return history

    def _take_from_engine(self, msg_id: str) -> str | None:
        """Remove an unfinished request from the history of its engine. Returns the engine; None: no engine has it."""
        engine = self.pending[msg_id]
        if engine is not None and engine in self.engines:
            self.engines[engine].outstanding.pop(msg_id, None)
        return engine


class NullRecorder(TaskRecorder):
    """Keeps no records, at no cost."""

    on = False

    def __init__(self) -> None:
        super().__init__(NoStore())

    def submitted(self, queue: QueueName, message: JupyterMessage, client: str, engine: str | None = None) -> None:
        """Do nothing."""

    def assigned(self, engine: str, msg_id: str) -> None:
        """Do nothing."""

    def finished(self, queue: QueueName, reply: JupyterMessage, engine: str | None) -> None:
        """Do nothing."""

    def output(self, message: JupyterMessage) -> None:
        """Do nothing."""

    def engine_removed(self, engine: str) -> None:
        """Do nothing."""

    async def run(self) -> None:
        """Return at once."""


def open_recorder(config: IppConfig) -> TaskRecorder:
    """Make the recorder for these settings: with records in memory, in SQLite, or none.

    :raises ConfigError: the database cannot be opened.
    """
    options: Mapping[str, Any] = config.database_options
    if config.database == "dictdb":
        return TaskRecorder(MemoryStore(**options))
    if config.database == "sqlitedb":
        directory = Path(options.get("location") or config.profile_dir)
        return TaskRecorder(SQLiteStore(directory / options.get("filename", FILE), options.get("table") or TABLE))
    return NullRecorder()


# ---- output ---------------------------------------------------------------------------------------------------------


def _add_stream(record: Record, content: Any) -> bool:
    output = decoded(content)
    if not isinstance(output, dict) or not isinstance(output.get("text"), str):
        return False
    pieces = {"stdout": record.stdout, "stderr": record.stderr}.get(output.get("name", ""))
    if pieces is None:
        return False
    pieces.append(output["text"])
    return True


def _add_execute_input(record: Record, content: Any) -> bool:
    output = decoded(content)
    if not isinstance(output, dict) or not isinstance(output.get("code"), str):
        return False
    record.execute_input = output["code"]
    return True


def _set_field(field: str) -> Callable[[Record, Any], bool]:
    def add(record: Record, content: Any) -> bool:
        setattr(record, field, content)
        return True

    return add


#: Functions that add output to a record, by message type; each returns whether the record changed. Other output
#: (status, welcome, ...) is not recorded.
_ADD_OUTPUT: dict[str, Callable[[Record, Any], bool]] = {
    "stream": _add_stream,
    "execute_input": _add_execute_input,
    "execute_result": _set_field("execute_result"),
    "display_data": _set_field("display_data"),
    "error": _set_field("error"),
}
