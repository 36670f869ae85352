"""Answers to the requests of clients on the registration socket, except registration itself. No sockets here.

An error is the content of the usual reply where clients expect it there, and else a `hub_error`. Both have the fields
of an exception, which the client raises.

    connection_request     registered engines            db_request          records that match a query
    queue_request          tasks of each engine          purge_request       forget records
    load_request           number of tasks of each       resubmit_request    run tasks again, under new ids
    result_request         results, also of others       shutdown_request    stop the controller
    history_request        ids of all records            become_dask_request, stop_distributed_request
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from sqlite3 import DatabaseError
from typing import Any, Protocol

from msgspec import Struct

from trio_sched.errors import WireError
from trio_sched.ipyparallel.records.query import InvalidQueryError, RecordQuery
from trio_sched.ipyparallel.records.record import (
    BUFFERS,
    FIELDS,
    Record,
    as_dict,
    decoded,
    encoded,
    utc_now,
    value,
)
from trio_sched.ipyparallel.records.recorder import EngineHistory, TaskRecorder
from trio_sched.ipyparallel.records.store import NoRecordsError
from trio_sched.wire.jupyter import Codec, Json, JupyterMessage, error_content
from trio_sched.wire.native import Frame

_IO = ("execute_input", "execute_result", "error", "stdout", "stderr")
_RESULT = ("header", "metadata", "result_metadata", "result_header", "result_content", "received")
#: The metadata that a resubmitted task keeps. Its dependencies and targets may not exist any more.
_KEPT_METADATA = ("label", "retries", "timeout")


class Answer(Struct):
    """A reply to send."""

    msg_type: str
    content: Json
    buffers: Sequence[Frame] = ()
    #: Called after the reply was sent.
    after_sending: Callable[[], None] | None = None
    #: Returns the content to send instead of `content`, when it is known.
    pending_content: Callable[[], Awaitable[Json]] | None = None


class Dask(Protocol):
    """The part of `dask.DaskScheduler` that is used here. Both methods return the content of the reply."""

    async def start(self, arguments: Json, /) -> Json: ...
    async def stop(self) -> Json: ...


class QueryError(Exception):
    """A request cannot be answered. The client raises an exception of the name `ename`."""

    def __init__(self, ename: str, evalue: str) -> None:
        super().__init__(evalue)
        self.ename = ename


class RecordQueries:
    """Answers requests from the records and the histories of the engines."""

    def __init__(
        self,
        codec: Codec,
        recorder: TaskRecorder,
        engines: Callable[[], Mapping[int, str]],
        resubmit: Callable[[JupyterMessage], None],
        shut_down: Callable[[], None],
        dask: Dask,
        unfinished: Callable[[], Mapping[str, str | None]] = dict,
    ) -> None:
        """Prepare to answer requests.

        :param engines: returns the uuids of the registered engines by number.
        :param resubmit: submits a request to the task queue; its reply is not sent to a client.
        :param shut_down: called after the reply to a shutdown request was sent.
        :param dask: starts and stops a Dask scheduler.
        :param unfinished: returns the ids of unfinished tasks with the uuids of their engines; used without records.
        """
        self._unfinished = unfinished
        self._codec = codec
        self._recorder = recorder
        self._engines = engines
        self._resubmit = resubmit
        self._shut_down = shut_down
        self._dask = dask
        self._handlers: dict[str, Callable[[Json], Answer]] = {
            "connection_request": self._connection,
            "queue_request": self._queue,
            "load_request": self._load,
            "result_request": self._result,
            "history_request": self._history,
            "db_request": self._db,
            "purge_request": self._purge,
            "resubmit_request": self._resubmission,
            "shutdown_request": self._shutdown,
            "become_dask_request": self._become_dask,
            "stop_distributed_request": self._stop_distributed,
        }

    def answer(self, message: JupyterMessage) -> Answer:
        """Return the answer to any request except those of engines that register or unregister."""
        msg_type = ""
        try:
            msg_type = message.head.msg_type
            handler = self._handlers.get(msg_type)
            if handler is None:
                raise QueryError("KeyError", f"Bad Message Type: {msg_type!r}")
            return handler(message.content)
        except QueryError as error:
            content = error_content(error.ename, str(error))
        except NoRecordsError as error:
            content = error_content("NoData", str(error))
        except InvalidQueryError as error:
            content = error_content("ValueError", str(error))
        except DatabaseError as error:
            content = error_content("DatabaseError", str(error))
        except (WireError, KeyError, TypeError, ValueError) as error:
            content = error_content(type(error).__name__, f"{msg_type or 'the request'} cannot be understood: {error}")
        return Answer(_ERROR_TYPES.get(msg_type, "hub_error"), content)

    # ---- engines ----------------------------------------------------------------------------------------------------

    def _connection(self, _content: Json) -> Answer:
        engines = {str(number): uuid for number, uuid in self._engines().items()}
        return Answer("connection_reply", {"status": "ok", "engines": engines})

    def _targets(self, targets: Any) -> dict[int, str]:
        """Return the uuids by number of the engines that a request names by number or uuid; None names all."""
        engines = self._engines()
        if targets is None:
            return dict(engines)
        numbers = {uuid: number for number, uuid in engines.items()}
        asked = list(targets) if isinstance(targets, (list, tuple)) else [targets]
        if not asked:
            raise QueryError("IndexError", "No Engines Registered")
        found: list[Any] = [numbers.get(one, one) if isinstance(one, str) else one for one in asked]
        unknown = [one for one in found if not isinstance(one, int) or one not in engines]
        if unknown:
            raise QueryError("IndexError", f"No Such Engine: {unknown!r}")
        return {number: engines[number] for number in found}

    def _queue(self, content: Json) -> Answer:
        show = list if content.get("verbose", False) else len
        reply: Json = {"status": "ok"}
        histories, unassigned = self._histories()
        for number, uuid in self._targets(content.get("targets")).items():
            history = histories.get(uuid) or EngineHistory()
            reply[str(number)] = {
                "queue": show([msg_id for msg_id, queue in history.outstanding.items() if queue != "task"]),
                "completed": list(history.completed) if show is list else history.completed_count,
                "tasks": show([msg_id for msg_id, queue in history.outstanding.items() if queue == "task"]),
            }
        reply["unassigned"] = show(unassigned)
        return Answer("queue_reply", reply)

    def _load(self, content: Json) -> Answer:
        histories, _unassigned = self._histories()
        loads = {
            str(number): len(histories[uuid].outstanding) if uuid in histories else 0
            for number, uuid in self._targets(content.get("targets")).items()
        }
        return Answer("load_reply", {"status": "ok", **loads})

    def _histories(self) -> tuple[Mapping[str, EngineHistory], list[str]]:
        """Return the histories by uuid of engine, and the ids of unassigned tasks. Without records, histories contain
        the unfinished tasks only."""
        if self._recorder.on:
            return self._recorder.engines, self._recorder.unassigned()
        histories = {uuid: EngineHistory() for uuid in self._engines().values()}
        unassigned = []
        for msg_id, uuid in self._unfinished().items():
            if uuid in histories:
                histories[uuid].outstanding[msg_id] = "task"
            else:
                unassigned.append(msg_id)
        return histories, unassigned

    # ---- records ----------------------------------------------------------------------------------------------------

    def _result(self, content: Json) -> Answer:
        """Answer with results. Their buffers are in the order of the sorted ids, as clients expect."""
        reply: Json = {"status": "ok", "pending": [], "completed": []}
        buffers: list[Frame] = []
        wanted = sorted(set(_ids(content)))
        records = {record.msg_id: record for record in self._find(wanted)}
        for msg_id in wanted:
            record = records.get(msg_id)
            if msg_id in self._recorder.pending or (record is not None and record.completed is None):
                reply["pending"].append(msg_id)
            elif record is None:
                raise QueryError("KeyError", f"No such message: {msg_id}")
            else:
                reply["completed"].append(msg_id)
                if not content.get("status_only", False):
                    reply[msg_id] = {**as_dict(record, _RESULT), "io": as_dict(record, _IO)}
                    buffers += record.result_buffers
        return Answer("result_reply", reply, buffers)

    def _history(self, _content: Json) -> Answer:
        return Answer("history_reply", {"status": "ok", "history": self._recorder.store.history()})

    def _db(self, content: Json) -> Answer:
        query = RecordQuery(content.get("query") or {})
        asked = content.get("keys")
        fields = _fields(asked)
        records: list[Json] = []
        buffers: list[Frame] = []
        lengths: dict[str, list[int]] = {name: [] for name in BUFFERS if asked is not None and name in fields}
        shown = [name for name in fields if name not in BUFFERS]
        for record in self._recorder.store.find(query):
            records.append(as_dict(record, shown))
            for name, counts in lengths.items():
                found = value(record, name)
                counts.append(len(found))
                buffers += found
        return Answer(
            "db_reply",
            {
                "status": "ok",
                "records": records,
                "buffer_lens": lengths.get("buffers"),
                "result_buffer_lens": lengths.get("result_buffers"),
            },
            buffers,
        )

    def _purge(self, content: Json) -> Answer:
        recorder = self._recorder
        msg_ids = content.get("msg_ids") or []
        if msg_ids == "all":
            self._drop({"completed": {"$ne": None}})
            return Answer("purge_reply", {"status": "ok"})
        msg_ids = _ids({"msg_ids": msg_ids})
        for msg_id in msg_ids:
            if msg_id in recorder.pending:
                raise QueryError("IndexError", f"msg pending: {msg_id!r}")
        engines = self._engines()
        uuids = []
        for number in content.get("engine_ids") or []:
            if number not in engines:
                raise QueryError("IndexError", f"No such engine: {number}")
            uuids.append(engines[number])
        recorder.store.drop(msg_ids)
        if uuids:
            self._drop({"engine_uuid": {"$in": uuids}, "completed": {"$ne": None}})
        return Answer("purge_reply", {"status": "ok"})

    def _drop(self, query: Json) -> None:
        if self._recorder.on:
            store = self._recorder.store
            store.drop([record.msg_id for record in store.find(RecordQuery(query))])

    def _find(self, msg_ids: Sequence[str]) -> Iterable[Record]:
        return self._recorder.store.find(RecordQuery({"msg_id": {"$in": list(msg_ids)}}))

    # ---- actions ----------------------------------------------------------------------------------------------------

    def _resubmission(self, content: Json) -> Answer:
        """Submit tasks with the content and the buffers of recorded ones. The old records name the new ids."""
        wanted = _ids(content)
        records = {record.msg_id: record for record in self._find(wanted)}
        missing = [msg_id for msg_id in wanted if msg_id not in records]
        if missing:
            raise QueryError("KeyError", f"No such msg(s): {missing!r}")
        requests = {msg_id: self._new_request(records[msg_id]) for msg_id in dict.fromkeys(wanted)}
        for msg_id, message in requests.items():
            self._resubmit(message)
            self._recorder.resubmitted(msg_id, message.head.msg_id)
        mapping = {msg_id: message.head.msg_id for msg_id, message in requests.items()}
        return Answer("resubmit_reply", {"status": "ok", "resubmitted": mapping})

    def _new_request(self, record: Record) -> JupyterMessage:
        """Make a request of the same content under a new id."""
        header = decoded(record.header)
        if not isinstance(header, dict) or record.content is None:
            raise QueryError("ValueError", f"the record of {record.msg_id!r} lacks the request")
        if record.queue == "broadcast":
            raise QueryError(
                "ValueError", f"{record.msg_id!r} was broadcast, and its record has no buffers; send it again"
            )
        new_header = self._codec.header(str(header.get("msg_type")))
        metadata = decoded(record.metadata)
        kept = {key: metadata[key] for key in _KEPT_METADATA if key in metadata} if isinstance(metadata, dict) else {}
        parts: list[Frame] = [
            encoded({**header, "msg_id": new_header["msg_id"], "date": utc_now()}),
            record.header or b"{}",
            encoded(kept),
            record.content,
        ]
        return JupyterMessage([], self._codec.sign_parts(parts, record.buffers)[1:])

    def _shutdown(self, _content: Json) -> Answer:
        return Answer("shutdown_reply", {"status": "ok"}, after_sending=self._shut_down)

    def _become_dask(self, content: Json) -> Answer:
        arguments = content.get("scheduler_args") or {}
        if not isinstance(arguments, dict):
            raise QueryError("TypeError", f"scheduler_args must be a dict, not {arguments!r}")
        return Answer("become_dask_reply", {}, pending_content=partial(self._dask.start, arguments))

    def _stop_distributed(self, _content: Json) -> Answer:
        return Answer("stop_distributed_reply", {}, pending_content=self._dask.stop)


#: The types of replies with errors, by type of request, where clients do not expect a `hub_error`.
_ERROR_TYPES = {
    "result_request": "result_reply",
    "history_request": "history_reply",
    "db_request": "db_reply",
    "purge_request": "purge_reply",
    "resubmit_request": "resubmit_reply",
    "become_dask_request": "become_dask_reply",
}


def _ids(content: Json) -> list[str]:
    """Return the msg_ids that a request names.

    :raises QueryError: `msg_ids` is not a list of text.
    """
    msg_ids = content.get("msg_ids")
    if not isinstance(msg_ids, list) or not all(isinstance(one, str) for one in msg_ids):
        raise QueryError("TypeError", f"msg_ids must be a list of ids, not {msg_ids!r}")
    return msg_ids


def _fields(keys: Any) -> list[str]:
    """Return the fields that a query asks for, and msg_id.

    :raises QueryError: a field is unknown.
    """
    if not keys:
        return list(FIELDS)
    asked = [keys] if isinstance(keys, str) else list(keys)
    for one in asked:
        if one not in FIELDS:
            raise QueryError("KeyError", f"records have no field {one!r}; they have {', '.join(FIELDS)}")
    return list(dict.fromkeys(["msg_id", *asked]))
