"""Every error that trio_sched raises, under one root.

Two families. What went wrong *here*: configuration, discovery, the wire, a call that cannot be sent. And how a
*remote task* ended other than ok (R24): the classes below `TaskError`, whose names travel as the task's error name.
An exception that the task itself raised arrives as its own type, with a `RemoteTraceback` as its cause.
"""

from __future__ import annotations


class TrioSchedError(Exception):
    """Root of all errors of this package."""


# ---- what went wrong here -------------------------------------------------------------------------------------------


class ConfigError(TrioSchedError):
    """A setting is wrong; the message names the setting, its value and what would do."""


class ConnectionFileError(TrioSchedError):
    """A connection file is missing, stale, malformed, or readable by others."""


class NoSchedulerError(TrioSchedError):
    """No running scheduler was found, or it does not answer, or engines that a client started did not join it."""


class AddressInUseError(TrioSchedError):
    """A socket could not be bound because another process holds its address."""


class WireError(TrioSchedError):
    """A message that cannot be read: garbage, too large, of an unknown type or version (R25).

    `kind` is the counter under which the scheduler counts it: "malformed", "too_large", "unknown_type",
    "unknown_version", "unauthenticated".
    """

    def __init__(self, message: str, kind: str = "malformed") -> None:
        super().__init__(message)
        self.kind = kind


class SubmitError(TrioSchedError):
    """A call cannot be sent, because its function or an argument cannot be pickled; the message names the object."""


class SubmissionRefused(TrioSchedError):
    """The scheduler refused a submission (bad options, a limit, an id of another session, shutting down)."""


class VersionMismatch(TrioSchedError):
    """The client's Python differs from that of every engine, so that pickled calls could not be read there."""


class SchedulerClosed(TrioSchedError):
    """The scheduler shut down, or was replaced by one that does not know this session."""


class InvariantError(TrioSchedError, AssertionError):
    """The scheduler's state contradicts itself: a bug in trio_sched. Raised by `core.invariants.check` only."""


# ---- how a remote task ended, other than ok -------------------------------------------------------------------------


class TaskError(TrioSchedError):
    """Root of the ends of a task that the scheduler or the engine decided, not the task's own code."""


class ImpossibleDependency(TaskError):
    """A dependency can no longer be met (R4, R6), or no target that would do is left (R7, R19)."""


class InvalidDependency(TaskError):
    """A dependency names the task itself, or one that the scheduler does not know (any more) (R5)."""


class TaskTimeout(TaskError, TimeoutError):
    """The task did not start within its `timeout` (R21)."""


class EngineError(TaskError):
    """The engine died while it ran the task (R20)."""


class TaskCancelled(TaskError):
    """The task was cancelled before it ended by itself (R23)."""


class SchedulerError(TaskError):
    """The scheduler failed while it handled the task (R33): a bug in trio_sched. Its log has the traceback."""


class ResultError(TaskError):
    """The task ran, but its result (or the exception it raised) could not be pickled or unpickled."""


class CallError(TaskError):
    """The engine could not load the call: its module, function or an argument failed to import or unpickle."""


class UnmetDependency(TaskError):
    """Raised inside a task to say "not on this engine": the task goes elsewhere, without using up a retry (R19)."""


class RemoteTraceback(TrioSchedError):
    """The traceback of the remote exception, as text; it is the `__cause__` of the exception raised here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
