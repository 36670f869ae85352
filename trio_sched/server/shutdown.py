"""An orderly end (R29): whether a shutdown was requested, and whether running tasks and unsent results remain."""

from __future__ import annotations

import trio

from trio_sched.core.scheduler import Scheduler
from trio_sched.server.outbox import Outbox
from trio_sched.server.sessions import Sessions
from trio_sched.wire.native import Closing

#: Unacknowledged bytes of a client that need not be waited for: a closing socket can still send them.
LINGER_BYTES = 1 << 16


class Shutdown:
    """State of the actor: whether the scheduler shuts down, and whether it can end now."""

    def __init__(self, scheduler: Scheduler, sessions: Sessions, outbox: Outbox) -> None:
        self._scheduler = scheduler
        self._sessions = sessions
        self._outbox = outbox
        #: The message to all peers; None while the scheduler runs.
        self.closing: Closing | None = None
        #: Set when the shutdown begins.
        self.began = trio.Event()
        #: Set when no task runs that could still end, and connected clients have their results.
        self.idle = trio.Event()

    def begin(self, reason: str) -> bool:
        """Begin to shut down. Returns False if the shutdown began before: the first reason counts."""
        if self.closing is not None:
            return False
        self.closing = Closing(reason)
        self.began.set()
        return True

    def check_idle(self) -> None:
        """Set `idle` if no task runs and all results are sent; called after each turn of a shutdown."""
        for engine in self._sessions.engines.values():
            self._outbox.acknowledge(engine)  # engines leave when their answers are acknowledged
        running = any(engine.load and not engine.lost_until for engine in self._scheduler.engines.values())
        unsent = any(
            client.connection is not None and (client.queued_results or client.unacked_bytes > LINGER_BYTES)
            for client in self._sessions.clients.values()
        )
        if not running and not unsent:
            self.idle.set()
