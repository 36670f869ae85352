"""Where the logs go: to standard error, as lines for people or as JSON. The library itself only makes records."""

from __future__ import annotations

import datetime
import logging
import sys
from typing import TextIO

import structlog

from trio_sched.logs import ROOT

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}


def configure_logs(level: str, format_: str = "console", file: TextIO | None = None) -> None:
    """Say what is logged and how; `level` and `format_` as in `server.config`. Into `file`, if there is one. What was
    said before no longer holds.
    """
    file = file or sys.stderr
    handler = logging.StreamHandler(file)
    handler.setFormatter(_Formatter(as_json=format_ == "json", colors=file.isatty()))
    logger = logging.getLogger(ROOT)
    logger.handlers[:] = [handler]
    logger.setLevel(LEVELS[level])
    logger.propagate = False


class _Formatter(logging.Formatter):
    """Renders the event and the fields of a record, with the time and the level."""

    def __init__(self, *, as_json: bool, colors: bool) -> None:
        super().__init__()
        self._zone = datetime.UTC if as_json else None
        self._processors: list[structlog.typing.Processor] = (
            [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=repr)]
            if as_json
            else [structlog.dev.ConsoleRenderer(colors=colors)]
        )

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line, with the traceback behind it (as JSON within it)."""
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
            rendered = processor(None, level, rendered)  # type: ignore[assignment]  # the last makes text
        return str(rendered)
