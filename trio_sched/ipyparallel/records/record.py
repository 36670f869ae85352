"""The record of one task: its request, its reply, and its output.

A record keeps the raw frames, which are decoded when a client asks for them. That is rare: keeping a task costs a few
microseconds, decoding its content would cost more than scheduling it. Dates are text of one form and width, in UTC, so
that they sort and compare as text, also in SQL.
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
_NORMALIZED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)


class Record(Struct, gc=False):
    """One request, and what is known of its execution. Frames are as received; None: not received."""

    msg_id: str
    #: "task", "mux" or "broadcast".
    queue: str = ""
    header: Frame | None = None
    metadata: Frame | None = None
    content: Frame | None = None
    buffers: tuple[Frame, ...] = ()
    submitted: str | None = None
    client_uuid: str | None = None
    engine_uuid: str | None = None
    started: str | None = None
    completed: str | None = None
    #: The msg_id under which the request was submitted again.
    resubmitted: str | None = None
    received: str | None = None
    result_header: Frame | None = None
    result_metadata: Frame | None = None
    result_content: Frame | None = None
    result_buffers: tuple[Frame, ...] = ()
    execute_input: str | None = None
    execute_result: Frame | None = None
    display_data: Frame | None = None
    error: Frame | None = None
    stdout: list[str] = []  # msgspec copies the default for each record
    stderr: list[str] = []
    label: str | None = None
    #: The number of the record in the order of addition, in which queries return records.
    number: int = 0
    #: Bytes of buffers and output, as last measured.
    size_bytes: int = 0

    def measure(self) -> int:
        """Return the bytes of buffers and output, which make up nearly all of a large record."""
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
#: The fields that queries can name, in the order in which whole records have them.
FIELDS = (
    "msg_id", "header", "metadata", "content", "buffers", "submitted", "client_uuid", "engine_uuid", "started",
    "completed", "resubmitted", "received", "result_header", "result_metadata", "result_content", "result_buffers",
    "queue", "execute_input", "execute_result", "display_data", "error", "stdout", "stderr", "label",
)  # fmt: skip


def value(record: Record, field: str) -> Any:
    """Return a field as users get it: JSON decoded, output joined, dates as text. An unknown field is None."""
    if field in _JSON_FIELDS:
        return decoded(getattr(record, field))
    if field in _TEXT_PIECES:
        return "".join(getattr(record, field))
    if field in BUFFERS:
        return list(getattr(record, field))
    return (getattr(record, field) or None) if field in FIELDS else None


def as_dict(record: Record, fields: Iterable[str] = FIELDS) -> dict[str, Any]:
    """Return these fields of a record as users get them."""
    return {field: value(record, field) for field in fields}


def decoded(frame: Frame | None) -> Any:
    """Decode a JSON frame. Returns None if there is no frame, or it is malformed."""
    if frame is None:
        return None
    try:
        return msgspec.json.decode(frame)
    except msgspec.DecodeError:
        pass
    try:  # Python's JSON accepts NaN
        return json.loads(bytes(frame))
    except ValueError:
        return None


def encoded(value: Any) -> bytes:
    """Encode a value as a JSON frame."""
    return msgspec.json.encode(value)


def fail(record: Record, reason: str) -> None:
    """Give an unfinished record the reply of a request that failed with EngineError, in the form that clients read."""
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
    """Convert an ISO 8601 date to the form of records. A date without a zone is local time.

    Returns None if it is not a date, or out of the calendar's range in UTC.
    """
    if not isinstance(date, str):
        return None
    if _NORMALIZED.fullmatch(date):
        return date
    try:
        return f"{datetime.fromisoformat(date).astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"
    except (ValueError, OverflowError):
        return None


def utc_now() -> str:
    """Return the current time in the form of records."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"
