"""The client's watch on its scheduler: whether it runs, whether its engines can run calls, and what `submit` raises.

The end of a scheduler process on this host is noticed within a second. A scheduler on another host counts as ended when
no message was received for `reconnect_s`; during that time the connection is opened repeatedly. When the scheduler has
ended, the client ends every unfinished task with SchedulerClosed, so that no caller waits for ever.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from trio_sched.client.results import Outcome
from trio_sched.client.session import H, SchedulerSession, SessionUpdate
from trio_sched.errors import (
    NoSchedulerError,
    SchedulerClosed,
    SubmissionRefused,
    TrioSchedError,
    VersionMismatch,
    WireError,
)
from trio_sched.transport.connection_info import ConnectionInfo, host_name, is_stale
from trio_sched.transport.reachability import describe_unanswered

if TYPE_CHECKING:  # at run time only clients with a local cluster need `subprocess` and `tempfile`
    from trio_sched.client.local_cluster import LocalCluster

#: Seconds between two checks whether a scheduler that announced its shutdown has ended.
CLOSING_CHECK_S = 0.2
#: Seconds without a message, while tasks are unfinished, after which the process of a local scheduler is checked.
QUIET_CHECK_S = 0.5
log = logging.getLogger("trio_sched.client")


class SchedulerWatch:
    """Watches one scheduler for one client."""

    def __init__(
        self,
        connection: ConnectionInfo,
        python: str,
        *,
        reconnect_s: float,
        cluster: LocalCluster | None,
        initial_error: Exception | None = None,
    ) -> None:
        """Begin to watch.

        :param python: the version of this Python, as in the Hello.
        :param reconnect_s: seconds without a message after which the scheduler counts as ended.
        :param cluster: the local cluster that the scheduler belongs to, if this client started it.
        :param initial_error: the submit error until the scheduler answers, if it is the successor of another one.
        """
        #: The error that `submit` raises; None: calls can be submitted.
        self.submit_error = self._initial_error = initial_error
        #: Whether the scheduler refuses this client, so that the same Hello would be refused again.
        self.has_refused = False
        #: The text of a warning to issue in the caller's thread.
        self.warning = ""
        self._connection = connection
        self._python = python
        self._reconnect_s = reconnect_s
        self._cluster = cluster
        self._is_local = connection.host == host_name()
        self._silent_since: float | None = None
        self._pythons: list[str] | None = None
        self._warned: set[str] = set()

    # ---- submissions ------------------------------------------------------------------------------------------------

    def check_can_submit(self) -> None:
        """Raise the submit error, if there is one.

        :raises Exception: calls cannot be submitted now.
        """
        if self.submit_error is not None:
            raise self.submit_error.with_traceback(None)

    def check_can_query(self) -> None:
        """Raise the submit error, unless only the versions of Python do not match.

        :raises Exception: queries cannot be sent now.
        """
        if self.submit_error is not None and not isinstance(self.submit_error, VersionMismatch):
            raise self.submit_error.with_traceback(None)

    def emit_warning(self) -> None:
        """Issue the pending warning as a RuntimeWarning, each text once."""
        warning, self.warning = self.warning, ""
        if warning not in self._warned:
            self._warned.add(warning)
            warnings.warn(warning, RuntimeWarning, stacklevel=4)  # the caller of `submit`

    def startup_error(self, session: SchedulerSession[Any], timeout_s: float) -> NoSchedulerError | None:
        """Return why the client cannot start, `timeout_s` seconds after its Hello; None: it starts with the engines
        that have joined. All engines of a local cluster must have joined. May take two seconds to find the reason.
        """
        if session.number == 0:
            return NoSchedulerError(
                f"the scheduler {self._connection.name!r} at {self._connection.address} did not answer within "
                f"{timeout_s:g} s{describe_unanswered(self._connection.address)}"
            )
        if self._cluster is None:
            return None
        return NoSchedulerError(
            f"{session.engine_count} of the {session.expected_engine_count} engines that this client started "
            f"joined within connect_timeout={timeout_s:g} s; the client is closed. "
            f"Their output:\n{self._cluster.output_tail()}"
        )

    def stop_submissions(self, error: Exception, *, replace: bool = False) -> None:
        """Set the submit error. An earlier one stays, except a VersionMismatch, or with `replace`."""
        if replace or self.submit_error is None or isinstance(self.submit_error, VersionMismatch):
            self.submit_error = error

    # ---- the connection's loop --------------------------------------------------------------------------------------

    def idle_timeout_s(self, session: SchedulerSession[Any], now: float) -> float:
        """Return for how many seconds the connection may sleep if nothing wakes it."""
        if session.is_busy:
            return 0.0
        if session.closing is not None:
            return CLOSING_CHECK_S
        if session.tasks and self._is_local:
            return QUIET_CHECK_S
        period_s = session.heartbeat.period_s
        return max(0.0, min(session.heartbeat.due_at - now, period_s)) if session.is_welcomed else period_s

    def check_scheduler(self, session: SchedulerSession[Any], now: float) -> TrioSchedError | bool:
        """Return the error that ends the session; else whether the connection must be opened again."""
        name, closing = self._connection.name, session.closing
        silence_s = session.check_silence(now)
        is_quiet = silence_s is None or silence_s > QUIET_CHECK_S
        if (is_quiet or closing is not None) and self._has_ended():
            return SchedulerClosed(
                f"the scheduler {name!r} is gone: {closing or f'process {self._connection.pid} died'}"
            )
        if silence_s is not None:
            return False
        if closing is not None:
            return SchedulerClosed(f"the scheduler {name!r} shut down: {closing}")
        self._silent_since = self._silent_since or now
        if now - self._silent_since > self._reconnect_s:
            return SchedulerClosed(
                f"the scheduler {name!r} at {self._connection.address} sent nothing for {self._reconnect_s:.0f} s"
            )
        return True

    def _has_ended(self) -> bool:
        return is_stale(self._connection) or (self._cluster is not None and self._cluster.has_ended())

    def apply(
        self, session: SchedulerSession[Any], update: SessionUpdate[Any], *, was_welcomed: bool
    ) -> TrioSchedError | None:
        """Apply what a message means for submissions, and return the error that ends the session, if it does.

        :param was_welcomed: whether the scheduler has ever answered this client.
        """
        if update.welcomed:
            self._silent_since = None
            if self._initial_error is not None and self.submit_error is self._initial_error:
                self.submit_error = None
            self._initial_error = None
        if session.pythons is not self._pythons:
            self._pythons = session.pythons
            self._compare_versions()
        if update.closing is not None:
            self.stop_submissions(SchedulerClosed(f"the scheduler shuts down: {update.closing}"))
        if update.error:
            log.error("the scheduler did not take a message: %s", update.error)
            if session.has_unaccepted:  # it may have been a Submit, whose tasks would never end
                return SchedulerClosed(f"the scheduler did not take a message of this client: {update.error}")
        if update.rejected:
            self.has_refused = True
            error_class = SchedulerClosed if was_welcomed else NoSchedulerError
            return error_class(f"the scheduler refuses this client: {update.rejected}")
        return None

    def on_malformed(self, error: WireError) -> TrioSchedError | None:
        """Log a message that could not be decoded, and return the error that ends the session, if it does.

        A message of an unknown type is ignored; any other may have held results, whose tasks would never end.
        """
        log.error("a message from the scheduler was not understood: %s", error)
        if error.kind == "unknown_type":
            return None
        return SchedulerClosed(f"a message from the scheduler was not understood: {error}")

    def _compare_versions(self) -> None:
        mismatch, self.warning = compare_versions(self._python, self._pythons or ())
        if mismatch:
            self.submit_error = self.submit_error or VersionMismatch(mismatch)
        elif isinstance(self.submit_error, VersionMismatch):
            self.submit_error = None


def outcomes_of(update: SessionUpdate[H]) -> Iterator[tuple[H, Outcome]]:
    """Return the futures that a message ends, each with its outcome."""
    yield from update.ended
    for future, reason in update.refused:
        yield future, SubmissionRefused(reason)
    if update.lost:
        error = SchedulerClosed(
            "the scheduler does not know this task: it was replaced by another one, or the result waited too long"
        )
        for future in update.lost:
            yield future, error


def compare_versions(client: str, engines: Sequence[str]) -> tuple[str, str]:
    """Compare the client's Python version with those of the engines.

    Pickled functions hold bytecode, which differs between minor versions: an engine of another minor version cannot run
    them.

    :returns: (why no call can be submitted, what to warn of); each is empty if there is no such problem.
    """
    minor = _minor(client)
    same = [version for version in engines if _minor(version) == minor]
    others = ", ".join(sorted(set(engines) - {client}))
    if not others:
        return "", ""
    if not same:
        advice = f"which cannot read calls pickled here; start engines with Python {minor}"
        return f"this is Python {client}, but the engines run Python {others}, {advice}", ""
    if len(same) < len(engines):
        return "", f"this is Python {client}, but some engines run Python {others}; tasks that land there may fail"
    return "", f"this is Python {client}, but some engines run Python {others}"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
