"""An orderly end (R29): when it was asked for, and when nothing is left to wait for."""

from __future__ import annotations

import trio

from trio_sched.core.scheduler import Scheduler
from trio_sched.server.outbox import Outbox
from trio_sched.server.sessions import Sessions
from trio_sched.wire.native import Closing

#: What a closing socket can still send.
LINGER_BYTES = 1 << 16


class Shutdown:
    """State of the actor: whether the scheduler shuts down, and how far that is."""

    def __init__(self, scheduler: Scheduler, sessions: Sessions, outbox: Outbox) -> None:
        self._scheduler = scheduler
        self._sessions = sessions
        self._outbox = outbox
        #: What peers are told; None while the scheduler runs.
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
        """Set `idle` if nothing is left to wait for; called after each turn of a shutdown."""
        for engine in self._sessions.engines.values():
            self._outbox.acknowledge(engine)  # engines leave when they know that their answers arrived
        running = any(engine.load and not engine.lost_until for engine in self._scheduler.engines.values())
        unsent = any(
            client.connection is not None and (client.queued_results or client.unacked_bytes > LINGER_BYTES)
            for client in self._sessions.clients.values()
        )
        if not running and not unsent:
            self.idle.set()
