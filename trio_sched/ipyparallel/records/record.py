"""One task's record: what was asked, what came back, and what was printed meanwhile.

A record keeps the raw frames and decodes them when somebody asks, which is rarely: to keep a task costs a few
microseconds, to parse its content would cost more than to schedule it. Dates are text in one form of fixed width, in
UTC, so that they sort and compare as they are, here and in SQL.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct

from trio_sched.wire.native import Frame

DATES = ("submitted", "started", "completed", "received")
BUFFERS = ("buffers", "result_buffers")
_PLAIN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)


class Record(Struct, gc=False):
    """What is known of one request. Frames are as they came; None: not there (yet)."""

    msg_id: str
    queue: str = ""
    """"task", "mux" or "broadcast"."""
    header: Frame | None = None
    metadata: Frame | None = None
    content: Frame | None = None
    buffers: tuple[Frame, ...] = ()
    submitted: str | None = None
    client_uuid: str | None = None
    engine_uuid: str | None = None
    started: str | None = None
    completed: str | None = None
    resubmitted: str | None = None
    """The msg_id under which it was submitted again."""
    received: str | None = None
    result_header: Frame | None = None
    result_metadata: Frame | None = None
    result_content: Frame | None = None
    result_buffers: tuple[Frame, ...] = ()
    execute_input: str | None = None
    execute_result: Frame | None = None
    display_data: Frame | None = None
    error: Frame | None = None
    stdout: list[str] = []  # msgspec gives each record its own
    stderr: list[str] = []
    label: str | None = None
    number: int = 0
    """Records are counted as they come: the order in which queries return them."""
    size: int = 0
    """Bytes of its buffers and output, as last counted."""

    def measure(self) -> int:
        """Bytes of buffers and output: what makes a record large."""
        return (
            sum(map(len, self.buffers))
            + sum(map(len, self.result_buffers))
            + sum(map(len, self.stdout))
            + sum(map(len, self.stderr))
        )


_JSON_FIELDS = (
    "header", "metadata", "content", "result_header", "result_metadata", "result_content", "execute_result",
    "display_data", "error",
)  # fmt: skip
_TEXT_PIECES = ("stdout", "stderr")
FIELDS = (
    "msg_id", "header", "metadata", "content", "buffers", "submitted", "client_uuid", "engine_uuid", "started",
    "completed", "resubmitted", "received", "result_header", "result_metadata", "result_content", "result_buffers",
    "queue", "execute_input", "execute_result", "display_data", "error", "stdout", "stderr", "label",
)  # fmt: skip
"""What a query can ask for and compare, in the order in which whole records show it."""


def value(record: Record, field: str) -> Any:
    """A field as users see it: JSON decoded, output in one piece, dates as text. An unknown field is None."""
    if field in _JSON_FIELDS:
        return decoded(getattr(record, field))
    if field in _TEXT_PIECES:
        return "".join(getattr(record, field))
    if field in BUFFERS:
        return list(getattr(record, field))
    return (getattr(record, field) or None) if field in FIELDS else None


def as_dict(record: Record, fields: Iterable[str] = FIELDS) -> dict[str, Any]:
    """The record as users see it."""
    return {field: value(record, field) for field in fields}


def decoded(frame: Frame | None) -> Any:
    """What a JSON frame says; None if it says nothing that can be read."""
    if frame is None:
        return None
    try:
        return msgspec.json.decode(frame)
    except msgspec.DecodeError:
        pass
    try:  # Python's own JSON knows NaN
        return json.loads(bytes(frame))
    except ValueError:
        return None


def encoded(value: Any) -> bytes:
    """A value as a JSON frame."""
    return msgspec.json.encode(value)


def fail(record: Record, reason: str) -> None:
    """Give an unfinished record the reply of a request that ended with EngineError, as clients read it."""
    now = utc_now()
    header = decoded(record.header)
    header = header if isinstance(header, dict) else {}
    kind = str(header.get("msg_type", "apply_request")).removesuffix("_request") + "_reply"
    record.result_header = encoded({**header, "msg_type": kind, "date": now})
    record.result_metadata = encoded({"status": "error", "engine": record.engine_uuid})
    record.result_content = encoded(
        {
            "status": "error",
            "ename": "EngineError",
            "evalue": reason,
            "traceback": [f"EngineError: {reason}"],
            "engine_info": {},
        }
    )
    record.completed = record.received = now


def utc(date: Any) -> str | None:
    """A date in the form in which records keep it; None if it is none. One without a zone is local time."""
    if not isinstance(date, str):
        return None
    if _PLAIN.fullmatch(date):
        return date
    try:
        moment = datetime.fromisoformat(date)
    except ValueError:
        return None
    return in_utc(moment)


def in_utc(moment: datetime) -> str | None:
    """The same for a datetime."""
    try:
        return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"
    except (ValueError, OverflowError):  # beyond the calendar
        return None


def utc_now() -> str:
    """Now, in that form."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"
