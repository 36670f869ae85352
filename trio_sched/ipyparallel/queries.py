"""What clients ask the controller on the registration socket, beside registering: the answers, and nothing of sockets.

An answer that cannot be given says why: as the reply's content where clients look there, else as `hub_error`. Both
have the fields of an exception, which the client raises.

    connection_request     who is here                   db_request          records that match a query
    queue_request          what waits and runs where     purge_request       forget records
    load_request           how much each engine has      resubmit_request    run tasks again, under new ids
    result_request         results of (others') tasks    shutdown_request    stop the controller
    history_request        ids of all records            become_dask_request, stop_distributed_request
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from sqlite3 import DatabaseError
from typing import Any, Protocol

from msgspec import Struct

from trio_sched.errors import WireError
from trio_sched.ipyparallel.records.base import EngineBook, Monitor
from trio_sched.ipyparallel.records.finding import Query, QueryError
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
from trio_sched.ipyparallel.records.store import NotKept
from trio_sched.wire.jupyter import Codec, Json, Parsed, failure
from trio_sched.wire.native import Frame

Engines = Callable[[], Mapping[int, str]]
_IO = ("execute_input", "execute_result", "error", "stdout", "stderr")
_RESULT = ("header", "metadata", "result_metadata", "result_header", "result_content", "received")
_KEPT_METADATA = ("label", "retries", "timeout")
"""What of a task's metadata a resubmission keeps: dependencies and targets may be long gone."""


class Answer(Struct):
    """What to send back, and what to do when that is sent."""

    msg_type: str
    content: Json
    buffers: Sequence[Frame] = ()
    then: Callable[[], None] | None = None
    later: Callable[[], Awaitable[Json]] | None = None
    """What takes time: waits for it, and returns the content to send instead of `content`."""


class Dask(Protocol):
    """Who runs a Dask scheduler: `dask.DaskScheduler`. Both return the content of the reply."""

    async def start(self, arguments: Json, /) -> Json: ...
    async def stop(self) -> Json: ...


class Refusal(Exception):
    """A question that has no answer: the client raises an exception of this name."""

    def __init__(self, ename: str, evalue: str) -> None:
        super().__init__(evalue)
        self.ename = ename


class Queries:
    """Answers questions from the records and the monitor's books."""

    def __init__(
        self,
        codec: Codec,
        monitor: Monitor,
        engines: Engines,
        resubmit: Callable[[Parsed], None],
        shut_down: Callable[[], None],
        dask: Dask,
        whereabouts: Callable[[], Mapping[str, str | None]] = dict,
    ) -> None:
        """`engines`: uuids by number. `resubmit` is given a request as if a client had sent it on the task queue, and
        sends its reply to nobody. `shut_down` is called when the one who asked for it has its answer. `dask` starts and
        stops a Dask scheduler. `whereabouts`:
        unfinished tasks and the uuids of the engines they were sent to, for want of a monitor that knows.
        """
        self._whereabouts = whereabouts
        self._codec = codec
        self._monitor = monitor
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

    def answer(self, message: Parsed) -> Answer:
        """The answer to any request but those that register."""
        msg_type = ""
        try:
            msg_type = message.head.msg_type
            handler = self._handlers.get(msg_type)
            if handler is None:
                raise Refusal("KeyError", f"Bad Message Type: {msg_type!r}")
            return handler(message.content)
        except Refusal as error:
            content = failure(error.ename, str(error))
        except NotKept as error:
            content = failure("NoData", str(error))
        except QueryError as error:
            content = failure("ValueError", str(error))
        except DatabaseError as error:
            content = failure("DatabaseError", str(error))
        except (WireError, KeyError, TypeError, ValueError) as error:
            content = failure(type(error).__name__, f"{msg_type or 'the request'} cannot be understood: {error}")
        return Answer(_ERROR_TYPES.get(msg_type, "hub_error"), content)

    # ---- engines ----------------------------------------------------------------------------------------------------

    def _connection(self, _content: Json) -> Answer:
        engines = {str(number): uuid for number, uuid in self._engines().items()}
        return Answer("connection_reply", {"status": "ok", "engines": engines})

    def _targets(self, targets: Any) -> dict[int, str]:
        """Uuids by number of the engines that a request names, by either."""
        engines = self._engines()
        if targets is None:
            return dict(engines)
        numbers = {uuid: number for number, uuid in engines.items()}
        asked = list(targets) if isinstance(targets, (list, tuple)) else [targets]
        if not asked:
            raise Refusal("IndexError", "No Engines Registered")
        found: list[Any] = [numbers.get(one, one) if isinstance(one, str) else one for one in asked]
        unknown = [one for one in found if not isinstance(one, int) or one not in engines]
        if unknown:
            raise Refusal("IndexError", f"No Such Engine: {unknown!r}")
        return {number: engines[number] for number in found}

    def _queue(self, content: Json) -> Answer:
        show = list if content.get("verbose", False) else len
        reply: Json = {"status": "ok"}
        books, unassigned = self._books()
        for number, uuid in self._targets(content.get("targets")).items():
            book = books.get(uuid) or EngineBook()
            reply[str(number)] = {
                "queue": show([msg_id for msg_id, queue in book.outstanding.items() if queue != "task"]),
                "completed": list(book.completed) if show is list else book.ended,
                "tasks": show([msg_id for msg_id, queue in book.outstanding.items() if queue == "task"]),
            }
        reply["unassigned"] = show(unassigned)
        return Answer("queue_reply", reply)

    def _load(self, content: Json) -> Answer:
        books, _unassigned = self._books()
        loads = {
            str(number): len(books[uuid].outstanding) if uuid in books else 0
            for number, uuid in self._targets(content.get("targets")).items()
        }
        return Answer("load_reply", {"status": "ok", **loads})

    def _books(self) -> tuple[Mapping[str, EngineBook], list[str]]:
        """What each engine has to do, and the tasks that wait for one. Without a monitor only tasks are known of."""
        if self._monitor.on:
            return self._monitor.engines, self._monitor.unassigned()
        books = {uuid: EngineBook() for uuid in self._engines().values()}
        unassigned = []
        for msg_id, uuid in self._whereabouts().items():
            if uuid in books:
                books[uuid].outstanding[msg_id] = "task"
            else:
                unassigned.append(msg_id)
        return books, unassigned

    # ---- records ----------------------------------------------------------------------------------------------------

    def _result(self, content: Json) -> Answer:
        """Results lie in the buffers in the order of the sorted ids: that is how clients take them apart."""
        reply: Json = {"status": "ok", "pending": [], "completed": []}
        buffers: list[Frame] = []
        wanted = sorted(set(_ids(content)))
        records = {record.msg_id: record for record in self._find(wanted)}
        for msg_id in wanted:
            record = records.get(msg_id)
            if msg_id in self._monitor.pending or (record is not None and record.completed is None):
                reply["pending"].append(msg_id)
            elif record is None:
                raise Refusal("KeyError", f"No such message: {msg_id}")
            else:
                reply["completed"].append(msg_id)
                if not content.get("status_only", False):
                    reply[msg_id] = {**as_dict(record, _RESULT), "io": as_dict(record, _IO)}
                    buffers += record.result_buffers
        return Answer("result_reply", reply, buffers)

    def _history(self, _content: Json) -> Answer:
        return Answer("history_reply", {"status": "ok", "history": self._monitor.store.history()})

    def _db(self, content: Json) -> Answer:
        query = Query(content.get("query") or {})
        asked = content.get("keys")
        fields = _fields(asked)
        records: list[Json] = []
        buffers: list[Frame] = []
        lengths: dict[str, list[int]] = {name: [] for name in BUFFERS if asked is not None and name in fields}
        shown = [name for name in fields if name not in BUFFERS]
        for record in self._monitor.store.find(query):
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
        monitor = self._monitor
        msg_ids = content.get("msg_ids") or []
        if msg_ids == "all":
            self._drop({"completed": {"$ne": None}})
            return Answer("purge_reply", {"status": "ok"})
        msg_ids = _ids({"msg_ids": msg_ids})
        for msg_id in msg_ids:
            if msg_id in monitor.pending:
                raise Refusal("IndexError", f"msg pending: {msg_id!r}")
        engines = self._engines()
        uuids = []
        for number in content.get("engine_ids") or []:
            if number not in engines:
                raise Refusal("IndexError", f"No such engine: {number}")
            uuids.append(engines[number])
        monitor.store.drop(msg_ids)
        if uuids:
            self._drop({"engine_uuid": {"$in": uuids}, "completed": {"$ne": None}})
        return Answer("purge_reply", {"status": "ok"})

    def _drop(self, query: Json) -> None:
        if self._monitor.on:
            store = self._monitor.store
            store.drop([record.msg_id for record in store.find(Query(query))])

    def _find(self, msg_ids: Sequence[str]) -> Iterable[Record]:
        return self._monitor.store.find(Query({"msg_id": {"$in": list(msg_ids)}}))

    # ---- what changes something -------------------------------------------------------------------------------------

    def _resubmission(self, content: Json) -> Answer:
        """New tasks with the content and the buffers of old ones. The old records name the new ids."""
        wanted = _ids(content)
        records = {record.msg_id: record for record in self._find(wanted)}
        missing = [msg_id for msg_id in wanted if msg_id not in records]
        if missing:
            raise Refusal("KeyError", f"No such msg(s): {missing!r}")
        anew = {msg_id: self._anew(records[msg_id]) for msg_id in dict.fromkeys(wanted)}
        for msg_id, message in anew.items():
            self._resubmit(message)
            self._monitor.resubmitted(msg_id, message.head.msg_id)
        mapping = {msg_id: message.head.msg_id for msg_id, message in anew.items()}
        return Answer("resubmit_reply", {"status": "ok", "resubmitted": mapping})

    def _anew(self, record: Record) -> Parsed:
        """A request that asks for the same, under a new id."""
        header = decoded(record.header)
        if not isinstance(header, dict) or record.content is None:
            raise Refusal("ValueError", f"the record of {record.msg_id!r} lacks the request")
        if record.queue == "broadcast":
            raise Refusal("ValueError", f"{record.msg_id!r} was broadcast, and its record has no buffers; send it anew")
        fresh = self._codec.header(str(header.get("msg_type")))
        metadata = decoded(record.metadata)
        kept = {key: metadata[key] for key in _KEPT_METADATA if key in metadata} if isinstance(metadata, dict) else {}
        parts: list[Frame] = [
            encoded({**header, "msg_id": fresh["msg_id"], "date": utc_now()}),
            record.header or b"{}",
            encoded(kept),
            record.content,
        ]
        return Parsed([], self._codec.resigned(parts, record.buffers)[1:])

    def _shutdown(self, _content: Json) -> Answer:
        return Answer("shutdown_reply", {"status": "ok"}, then=self._shut_down)

    def _become_dask(self, content: Json) -> Answer:
        arguments = content.get("scheduler_args") or {}
        if not isinstance(arguments, dict):
            raise Refusal("TypeError", f"scheduler_args must be a dict, not {arguments!r}")
        return Answer("become_dask_reply", {}, later=partial(self._dask.start, arguments))

    def _stop_distributed(self, _content: Json) -> Answer:
        return Answer("stop_distributed_reply", {}, later=self._dask.stop)


_ERROR_TYPES = {
    "result_request": "result_reply",
    "history_request": "history_reply",
    "db_request": "db_reply",
    "purge_request": "purge_reply",
    "resubmit_request": "resubmit_reply",
    "become_dask_request": "become_dask_reply",
}
"""Whose errors come as the usual reply."""


def _ids(content: Json) -> list[str]:
    """The msg_ids that a request names."""
    msg_ids = content.get("msg_ids")
    if not isinstance(msg_ids, list) or not all(isinstance(one, str) for one in msg_ids):
        raise Refusal("TypeError", f"msg_ids must be a list of ids, not {msg_ids!r}")
    return msg_ids


def _fields(keys: Any) -> list[str]:
    """The fields that a query asks for; msg_id always is among them."""
    if not keys:
        return list(FIELDS)
    asked = [keys] if isinstance(keys, str) else list(keys)
    for one in asked:
        if one not in FIELDS:
            raise Refusal("KeyError", f"records have no field {one!r}; they have {', '.join(FIELDS)}")
    return list(dict.fromkeys(["msg_id", *asked]))
