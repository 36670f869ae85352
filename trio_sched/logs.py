"""Log events with fields, through the standard library's `logging`.

`log.info("engine joined", number=3)` makes one record whose text is "engine joined number=3". The event and the fields
are also in `record.event` and `record.fields`, for formatters that show them separately (cli/log_setup.py). Without any
configuration of `logging`, a program that embeds a scheduler or a nanny gets what `logging` does for every library:
warnings and errors on standard error, and nothing below.
"""

from __future__ import annotations

import logging
from typing import Any

#: The name of the logger that is the parent of all loggers of this package.
ROOT = "trio_sched"


class Logger:
    """Logs events with fields."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: Any) -> None:
        """Log an event that helps to find a bug."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Log an event of normal operation."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log an event that may need the user's attention."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Log a failure."""
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, error: BaseException | None = None, **fields: Any) -> None:
        """Log a failure with the traceback of `error`; default: of the exception that is being handled."""
        self._log(logging.ERROR, event, fields, exc_info=error or True)

    def _log(self, level: int, event: str, fields: dict[str, Any], *, exc_info: bool | BaseException = False) -> None:
        if self._logger.isEnabledFor(level):
            text = " ".join([event, *(f"{name}={value!r}" for name, value in fields.items())])
            extra = {"event": event, "fields": fields}
            self._logger.log(level, text, exc_info=exc_info, extra=extra, stacklevel=3)


def get_logger(name: str) -> Logger:
    """Make a logger.

    :param name: begins with "trio_sched".
    """
    return Logger(name)
