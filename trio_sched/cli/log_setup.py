"""The output of log records: text for people, or JSON. The library itself only makes records (`trio_sched.logs`)."""

from __future__ import annotations

import datetime
import logging
import sys
from typing import TextIO

import structlog

from trio_sched.logs import ROOT


def configure_logs(level: str, format_: str = "console", file: TextIO | None = None) -> None:
    """Set level, format and file of the package's logs; a second call replaces the first.

    `level` and `format_` are values of the settings `log_level` and `log_format`. `file` defaults to standard error.
    """
    file = file or sys.stderr
    handler = logging.StreamHandler(file)
    handler.setFormatter(_Formatter(as_json=format_ == "json", colors=file.isatty()))
    logger = logging.getLogger(ROOT)
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


class _Formatter(logging.Formatter):
    """Render time, level, event and fields of a record."""

    def __init__(self, *, as_json: bool, colors: bool) -> None:
        super().__init__()
        self._zone = datetime.UTC if as_json else None
        self._processors: list[structlog.typing.Processor] = (
            [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=repr)]
            if as_json
            else [structlog.dev.ConsoleRenderer(colors=colors)]
        )

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line. A traceback follows the line, or is a field of the JSON object."""
        level = record.levelname.lower()
        event: structlog.typing.EventDict = {
            "timestamp": datetime.datetime.fromtimestamp(record.created, self._zone).isoformat().replace("+00:00", "Z"),
            "level": level,
            "event": getattr(record, "event", None) or record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            event["exc_info"] = record.exc_info
        rendered = event
        for processor in self._processors:
            rendered = processor(None, level, rendered)  # type: ignore[assignment]  # the last one returns text
        return str(rendered)
