"""What both faces need to know about the other end: who we are to it, whether it is there, whether it can run calls.

A scheduler of this host whose process is gone is found out within a second; one elsewhere counts as gone when it has
not been heard of for `reconnect_s`, during which the line is opened anew again and again. A client that finds its
scheduler gone ends every unfinished task with SchedulerClosed: nobody waits for ever.
"""

from __future__ import annotations

import logging
import numbers
import os
import platform
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from trio_sched.client.ends import Ended
from trio_sched.client.news import H, News
from trio_sched.client.session import Session
from trio_sched.errors import (
    NoSchedulerError,
    SchedulerClosed,
    SubmissionRefused,
    TrioSchedError,
    VersionMismatch,
    WireError,
)
from trio_sched.transport.connection import Connection, host_name, is_stale
from trio_sched.transport.reach import describe_unanswered
from trio_sched.wire import native
from trio_sched.wire.ranges import LENGTHS, MOST_PATH_CHARACTERS, RANGES, check_length

CLOSING_LOOK_S = 0.2
"""How often to look whether a scheduler that said it closes has gone."""
QUIET_S = 0.5
"""Without a word for so long, while tasks are unfinished, we look whether a local scheduler's process is there."""
log = logging.getLogger("trio_sched.client")


class Companion(Protocol):
    """A scheduler of our own, which goes when we go."""

    @property
    def engines(self) -> int: ...
    def last_words(self) -> str: ...
    def is_gone(self) -> bool: ...
    def close(self) -> None: ...
    def let_go(self) -> None: ...


class Lookout:
    """Watches one scheduler for one client. `trouble`: why nothing can be submitted now, to be raised by submit."""

    def __init__(
        self,
        connection: Connection,
        python: str,
        *,
        reconnect_s: float,
        companion: Companion | None,
        away: Exception | None = None,
    ) -> None:
        """`away`: the trouble until this scheduler has answered, if it is the successor of another one."""
        self.trouble = self._away = away
        self.refused = False
        """Whether the scheduler will not have us: it is of no use to ask it again in the same way."""
        self.warning = ""
        """Something to warn the user of, in the user's thread."""
        self._connection = connection
        self._python = python
        self._reconnect_s = reconnect_s
        self._companion = companion
        self._local = connection.host == host_name()
        self._unheard_since: float | None = None
        self._pythons: list[str] | None = None
        self._warned: set[str] = set()

    # ---- before a submission ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """:raises: what keeps us from submitting."""
        if self.trouble is not None:
            raise self.trouble.with_traceback(None)

    def check_talking(self) -> None:
        """:raises: what keeps us from asking."""
        if self.trouble is not None and not isinstance(self.trouble, VersionMismatch):
            raise self.trouble.with_traceback(None)

    def warn(self) -> None:
        """Tell the user, once for each cause, of what may go wrong."""
        warning, self.warning = self.warning, ""
        if warning not in self._warned:
            self._warned.add(warning)
            warnings.warn(warning, RuntimeWarning, stacklevel=4)  # where submit was called

    def unready(self, session: Session[Any], timeout_s: float) -> NoSchedulerError | None:
        """Why the client cannot begin, `timeout_s` seconds after it said hello; None: it begins with the engines that
        are here. Engines of its own must all have joined. May take two seconds, to find out.
        """
        if session.number == 0:
            return NoSchedulerError(
                f"the scheduler {self._connection.name!r} at {self._connection.address} did not answer within "
                f"{timeout_s:g} s{describe_unanswered(self._connection.address)}"
            )
        if self._companion is None:
            return None
        return NoSchedulerError(
            f"{session.engine_count} of the {session.engines_due} engines that this client started joined within "
            f"connect_timeout={timeout_s:g} s; the client is closed. Their output:\n{self._companion.last_words()}"
        )

    def over(self, why: Exception) -> None:
        """From now on nothing can be submitted. The first cause stays."""
        if self.trouble is None or isinstance(self.trouble, VersionMismatch):
            self.trouble = why

    # ---- in the loop ------------------------------------------------------------------------------------------------

    def patience_s(self, session: Session[Any], now: float) -> float:
        """How long a face may sleep when nobody wakes it."""
        if session.busy:
            return 0.0
        if session.closing is not None:
            return CLOSING_LOOK_S
        if session.tasks and self._local:
            return QUIET_S
        ping_at, heartbeat_s = session.liveness.ping_at, session.liveness.heartbeat_s
        return heartbeat_s if ping_at is None else max(0.0, min(ping_at - now, heartbeat_s))

    def look(self, session: Session[Any], now: float) -> TrioSchedError | bool:
        """Why it is over, if it is; else whether the line should be opened anew."""
        name, closing = self._connection.name, session.closing
        quiet = session.liveness.quiet_s(now) > QUIET_S
        if (quiet or closing is not None) and self._is_gone():
            return SchedulerClosed(
                f"the scheduler {name!r} is gone: {closing or f'process {self._connection.pid} died'}"
            )
        if not session.liveness.silent(now):
            return False
        if closing is not None:
            return SchedulerClosed(f"the scheduler {name!r} shut down: {closing}")
        self._unheard_since = self._unheard_since or now
        if now - self._unheard_since > self._reconnect_s:
            return SchedulerClosed(
                f"the scheduler {name!r} at {self._connection.address} was not heard of for {self._reconnect_s:.0f} s"
            )
        return True

    def _is_gone(self) -> bool:
        return is_stale(self._connection) or (self._companion is not None and self._companion.is_gone())

    def note(self, session: Session[Any], news: News[Any], *, begun: bool) -> TrioSchedError | None:
        """Draw the conclusions from a message; returns why it is over, if it is."""
        if news.welcomed:
            self._unheard_since = None
            if self._away is not None and self.trouble is self._away:
                self.trouble = None
            self._away = None
        if session.pythons is not self._pythons:
            self._pythons = session.pythons
            self._note_versions()
        if news.closing is not None:
            self.over(SchedulerClosed(f"the scheduler shuts down: {news.closing}"))
        if news.complaint:
            log.error("the scheduler did not take a message: %s", news.complaint)
            if session.unaccepted:  # it may have been a Submit, whose tasks would wait for ever
                return SchedulerClosed(f"the scheduler did not take a message of this client: {news.complaint}")
        if news.rejected:
            self.refused = True
            return (SchedulerClosed if begun else NoSchedulerError)(f"the scheduler refuses us: {news.rejected}")
        return None

    def misunderstood(self, error: WireError) -> TrioSchedError | None:
        """A message could not be read. One of a type that we do not know is somebody else's business; any other may
        have held results, for which somebody would wait for ever."""
        log.error("a message from the scheduler was not understood: %s", error)
        if error.kind == "unknown_type":
            return None
        return SchedulerClosed(f"a message from the scheduler was not understood: {error}")

    def _note_versions(self) -> None:
        problem, self.warning = version_problem(self._python, self._pythons or ())
        if problem and self.trouble is None:
            self.trouble = VersionMismatch(problem)
        elif not problem and isinstance(self.trouble, VersionMismatch):
            self.trouble = None


def ends_of(news: News[H]) -> Iterator[tuple[H, Ended]]:
    """The futures that a message ends, and how."""
    yield from news.ended
    for future, reason in news.refused:
        yield future, SubmissionRefused(reason)
    if news.lost:
        why = SchedulerClosed(
            "the scheduler does not know this task: it was replaced by another one, or the result waited too long"
        )
        for future in news.lost:
            yield future, why


def check_seconds(**given: float) -> None:
    """:raises ValueError: one of these is not a number of seconds, 0 or more; the message names it."""
    for name, value in given.items():
        if not isinstance(value, numbers.Real) or isinstance(value, bool) or not value >= 0:
            raise ValueError(f"{name}={value!r}: must be a number of seconds, 0 or more")


def hello(connection: Connection, *, name: str, weight: float, cancel_on_leave: bool) -> native.Hello:
    """The first message. Engines run our tasks in our directory and with our sys.path, where they exist, and where
    their names can be sent.

    :raises ValueError: a value cannot be right; the message names it.
    """
    if not isinstance(name, str):
        raise ValueError(f"name={name!r}: must be text")
    if not isinstance(weight, numbers.Real) or weight not in RANGES["weight"]:
        raise ValueError(f"weight={weight!r}: must be a number {RANGES['weight']}")
    check_length("name", native.sendable(name))
    try:
        cwd = os.getcwd()
    except OSError:  # it was removed
        cwd = ""
    path = [place for entry in sys.path if _can_be_sent(place := entry or cwd)]
    return native.Hello(
        role="client",
        token=connection.token,
        name=native.sendable(name),
        host=native.sendable(platform.node())[: LENGTHS["host"]],
        pid=os.getpid(),
        python=platform.python_version(),
        weight=float(weight),
        cwd=cwd if _can_be_sent(cwd) and len(cwd) <= LENGTHS["cwd"] else "",
        path=_shortened(path),
        cancel_on_leave=bool(cancel_on_leave),
    )


def _shortened(path: list[str]) -> list[str]:
    """The first entries of sys.path, as many as a Hello may have. Warns of those that are left out."""
    characters = 0
    for count, entry in enumerate(path):
        characters += len(entry)
        if count == LENGTHS["path"] or characters > MOST_PATH_CHARACTERS:
            warnings.warn(
                f"sys.path has {len(path):,} entries, too many or too long to be sent: engines get the first {count:,}",
                stacklevel=3,
            )
            return path[:count]
    return path


def _can_be_sent(path: object) -> bool:
    """Python ignores what is not text in sys.path; so do we."""
    return isinstance(path, str) and native.sendable(path) == path


def version_problem(ours: str, theirs: Sequence[str]) -> tuple[str, str]:
    """(why nothing can be submitted, what to warn of); empty: nothing. `theirs`: the Python versions of the engines.

    Pickled functions hold bytecode, which differs between minor versions, so an engine of another one cannot run them.
    """
    minor = _minor(ours)
    same = [version for version in theirs if _minor(version) == minor]
    others = ", ".join(sorted(set(theirs) - {ours}))
    if not others:
        return "", ""
    if not same:
        advice = f"which cannot read calls pickled here; start engines with Python {minor}"
        return f"this is Python {ours}, but the engines run Python {others}, {advice}", ""
    if len(same) < len(theirs):
        return "", f"this is Python {ours}, but some engines run Python {others}; tasks that land there may fail"
    return "", f"this is Python {ours}, but some engines run Python {others}"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
