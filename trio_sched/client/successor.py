"""Discovery of the next scheduler after a restart, for clients with `reconnect="same-name"`.

A restarted scheduler is another instance: it has new secrets, may have another address, and has no record of the
tasks of the former instance. The new instance is looked up under the same name or path.
"""

from __future__ import annotations

import os
from pathlib import Path

from trio_sched.client.settings import ClientSettings
from trio_sched.errors import SchedulerClosed, TrioSchedError
from trio_sched.transport.connection_info import ENV_CONNECTION, ConnectionInfo, find_connection

#: Seconds between two lookups of the next scheduler.
LOOKUP_PERIOD_S = 0.25
#: Seconds before a scheduler that refused the client is tried again: it may have been full.
REFUSAL_PAUSE_S = 5.0


class SuccessorFinder:
    """Finds the scheduler that runs now under the name or path of a client's first one."""

    def __init__(self, where: str | Path) -> None:
        self._where = where
        self._refused: ConnectionInfo | None = None
        self._retry_at = 0.0

    @classmethod
    def from_settings(cls, settings: ClientSettings, connection: ConnectionInfo) -> SuccessorFinder | None:
        """Make the finder of a client whose `where` led to `connection`; None: the client does not reconnect."""
        where = settings.where
        if settings.reconnect == "never":
            return None
        if isinstance(where, ConnectionInfo):
            return cls(connection.name)
        named = where or os.environ.get(ENV_CONNECTION) or connection.name
        if isinstance(named, Path) or "/" in named or named.endswith(".json"):
            return cls(Path(named).expanduser().absolute())
        return cls(named)

    def note_refusal(self, connection: ConnectionInfo, now: float) -> None:
        """Skip a scheduler that refused the client for `REFUSAL_PAUSE_S` seconds."""
        self._refused, self._retry_at = connection, now + REFUSAL_PAUSE_S

    def find(self, now: float) -> ConnectionInfo | None:
        """Look up the scheduler; None: there is none, several match, or this one has just refused the client."""
        found = self._look_up()
        return None if found == self._refused and now < self._retry_at else found

    def has_replaced(self, connection: ConnectionInfo) -> bool:
        """Return whether another scheduler instance runs there than that of `connection`."""
        found = self._look_up()
        return found is not None and found.scheduler != connection.scheduler

    def _look_up(self) -> ConnectionInfo | None:
        try:
            return find_connection(self._where, "client")
        except TrioSchedError:
            return None


def lost_task_error(reason: Exception) -> SchedulerClosed:
    """Make the error of the tasks that were lost with their scheduler."""
    return SchedulerClosed(f"{reason}; the task is lost, and is not submitted again by itself")


def disconnected_error(reason: Exception) -> SchedulerClosed:
    """Make the error that `submit` raises between the end of a scheduler and the first answer of the next one."""
    return SchedulerClosed(f"{reason}; this client connects again as soon as a scheduler runs there, submit again then")
