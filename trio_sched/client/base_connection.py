"""The part of a client's connection that needs neither threads nor an event loop: the base of both connections."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, NoReturn

from msgspec.structs import replace

from trio_sched.client.functions import FunctionRegistry
from trio_sched.client.results import SessionRef, refuse_pickling
from trio_sched.client.scheduler_watch import SchedulerWatch
from trio_sched.client.session import H, SchedulerSession, SessionUpdate
from trio_sched.client.settings import ClientSettings
from trio_sched.client.successor import SuccessorFinder
from trio_sched.errors import SchedulerClosed, TrioSchedError, WireError
from trio_sched.transport.connection_info import ConnectionInfo
from trio_sched.wire.native import Frame

if TYPE_CHECKING:  # at run time only clients with a local cluster need `subprocess` and `tempfile`
    from trio_sched.client.local_cluster import LocalCluster


class BaseConnection(ABC, Generic[H]):
    """A client's session with its scheduler, and with the next one after a restart."""

    def __init__(self, settings: ClientSettings, info: ConnectionInfo, cluster: LocalCluster | None) -> None:
        """Prepare the session; nothing is sent yet.

        :param info: the connection of the scheduler that the settings lead to.
        :param cluster: the local cluster that the scheduler belongs to, if this client started it.
        :raises ValueError: the settings' name or weight is not valid.
        """
        self._hello = settings.make_hello(info)
        self._reconnect_s = settings.reconnect_s
        self._cluster = cluster
        self._successor = SuccessorFinder.from_settings(settings, info)
        self.functions = FunctionRegistry()
        self.session: SchedulerSession[H] = SchedulerSession(
            self._hello, self.functions, cluster.engines if cluster else 0
        )
        self.session_ref = SessionRef(0, self.cancel)
        self.watch = SchedulerWatch(info, self._hello.python, reconnect_s=self._reconnect_s, cluster=cluster)
        self.info = info

    def __reduce__(self) -> NoReturn:
        refuse_pickling()

    @abstractmethod
    def cancel(self, counter: int) -> None:
        """Request the cancellation of a task: one of this session by counter, any task by full id (R23)."""

    def _apply(
        self, parts: Sequence[Frame], now: float, thread: int = 0
    ) -> tuple[SessionUpdate[H], TrioSchedError | None]:
        """Let the session and the watch handle one message.

        :param thread: the ident of the client's own thread, if it has one.
        :returns: what the connection must do, and the error that ends the session, if the message does.
        """
        session = self.session
        try:
            update = session.receive(parts, now)
        except WireError as malformed:
            return SessionUpdate(), self.watch.on_malformed(malformed)
        error = self.watch.apply(session, update, was_welcomed=session.number != 0)
        ref = self.session_ref
        if update.welcomed and (ref.session, ref.scheduler) != (session.number, session.scheduler):
            self.session_ref = SessionRef(session.number, self.cancel, thread, session.scheduler)
        return update, error

    def _check_scheduler(self, now: float) -> TrioSchedError | bool:
        """Return the error that ends the session; else whether the connection must be opened again."""
        verdict = self.watch.check_scheduler(self.session, now)
        if verdict is True and self._successor is not None and self._successor.has_replaced(self.info):
            return SchedulerClosed(f"the scheduler {self.info.name!r} was replaced by another one")
        return verdict

    def _begin_session(self, info: ConnectionInfo, submit_error: Exception) -> None:
        """Begin a session with another scheduler; `submit` raises `submit_error` until it has answered."""
        self.info = info
        self.session = SchedulerSession(replace(self._hello, token=info.token), self.functions)
        self.watch = SchedulerWatch(
            info, self._hello.python, reconnect_s=self._reconnect_s, cluster=None, initial_error=submit_error
        )
