"""Following a scheduler across its restarts, for clients that ask for it with `reconnect="same-name"`.

A scheduler that was restarted is another one: it has new secrets, perhaps another address, and knows no task of the
former one. It is found where that was found: under the same name or path.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from trio_sched.errors import SchedulerClosed, TrioSchedError
from trio_sched.transport.connection import ENV_CONNECTION, Connection, find

Reconnect: TypeAlias = Literal["never", "same-name"]
LOOK_UP_S = 0.25
"""Seconds between two looks for the successor of a scheduler that is gone."""
REFUSED_S = 5.0
"""Seconds before a scheduler that refused the client is asked again: it may have been full."""


class Successor:
    """Finds the scheduler that runs now where a client found its first one."""

    def __init__(self, where: str | Path) -> None:
        self._where = where
        self._refused: Connection | None = None
        self._ask_again_at = 0.0

    @classmethod
    def if_asked(
        cls, reconnect: Reconnect, where: str | Path | Connection | None, connection: Connection, *, own: bool
    ) -> Successor | None:
        """One, if a client's arguments ask for it; `connection` is what `where` led to.

        :raises ValueError: `reconnect` is not one of its values.
        :raises TypeError: the scheduler is the client's own, which goes with the client.
        """
        if reconnect not in get_args(Reconnect):
            choices = " or ".join(map(repr, get_args(Reconnect)))
            raise ValueError(f"reconnect={reconnect!r}: must be {choices}")
        if reconnect == "never":
            return None
        if own:
            raise TypeError('Client(engines=N, reconnect="same-name"): a scheduler of its own is never restarted')
        if isinstance(where, Connection):
            return cls(connection.name)
        named = where or os.environ.get(ENV_CONNECTION) or connection.name
        if isinstance(named, Path) or "/" in named or named.endswith(".json"):
            return cls(Path(named).expanduser().absolute())
        return cls(named)

    def was_refused(self, connection: Connection, now: float) -> None:
        """That scheduler will not have the client: `find` passes it over for `REFUSED_S` seconds."""
        self._refused, self._ask_again_at = connection, now + REFUSED_S

    def find(self, now: float) -> Connection | None:
        """The scheduler that runs there now; None: there is none, or it cannot be told, or it has just refused."""
        found = self._look()
        return None if found == self._refused and now < self._ask_again_at else found

    def replaced(self, connection: Connection) -> bool:
        """Whether another scheduler than that of `connection` is there."""
        found = self._look()
        return found is not None and found.scheduler != connection.scheduler

    def _look(self) -> Connection | None:
        try:
            return find(self._where, "client")
        except TrioSchedError:
            return None


def lost(why: Exception) -> SchedulerClosed:
    """How the tasks of a scheduler that is gone end."""
    return SchedulerClosed(f"{why}; the task is lost, and is not submitted again by itself")


def away(why: Exception) -> SchedulerClosed:
    """What `submit` raises between the end of a scheduler and the first answer of its successor."""
    return SchedulerClosed(f"{why}; this client connects again as soon as a scheduler runs there, submit again then")
