"""Where the logs go: to standard error, as lines for people or as JSON. The library itself only makes events."""

from __future__ import annotations

import sys
from typing import TextIO

import structlog

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}


def configure_logs(level: str, format_: str = "console", file: TextIO | None = None) -> None:
    """Say once what is logged and how; `level` and `format_` as in `server.config`. Into `file`, if there is one."""
    file = file or sys.stderr
    last: structlog.typing.Processor
    if format_ == "json":
        last = structlog.processors.JSONRenderer()
    else:
        last = structlog.dev.ConsoleRenderer(colors=file.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=format_ == "json"),
            structlog.processors.format_exc_info if format_ == "json" else _as_it_is,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(file),
        cache_logger_on_first_use=True,
    )


def _as_it_is(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:  # the console renderer shows exceptions itself
    return event
