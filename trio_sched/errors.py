"""All errors that trio_sched raises, under one root.

There are two families: errors of this process (configuration, discovery, the wire, a call that cannot be sent), and the
classes below `TaskError` for tasks whose outcome is not ok (R24). The wire carries the names of the latter. An
exception that a task raised arrives as its own type, with a `RemoteTraceback` as its cause.
"""

from __future__ import annotations


class TrioSchedError(Exception):
    """Root of all errors of this package."""


# ---- errors of this process -----------------------------------------------------------------------------------------


class ConfigError(TrioSchedError):
    """A setting is invalid. The message has the setting, its value, and the values that are valid."""


class ConnectionFileError(TrioSchedError):
    """A connection file is missing, stale, malformed, or readable by other users."""


class NoSchedulerError(TrioSchedError):
    """No running scheduler was found, it does not answer, or engines that a client started did not join it."""


class AddressInUseError(TrioSchedError):
    """A socket could not be bound because another process holds its address."""


class WireError(TrioSchedError):
    """A message is malformed, too large, or of an unknown type or version (R25).

    `kind` is the counter of the scheduler that counts it: "malformed", "too_large", "unknown_type",
    "unknown_version", "unauthenticated".
    """

    def __init__(self, message: str, kind: str = "malformed") -> None:
        super().__init__(message)
        self.kind = kind


class SubmitError(TrioSchedError):
    """A call cannot be sent, because its function or an argument cannot be pickled. The message names the object."""


class SubmissionRefused(TrioSchedError):
    """The scheduler refused a submission: invalid options, a limit, an id of another session, or a shutdown."""


class VersionMismatch(TrioSchedError):
    """The client's Python version differs from that of every engine, which could not unpickle its calls."""


class SchedulerClosed(TrioSchedError):
    """The scheduler shut down, or was replaced by another one, which has no record of this session."""


class InvariantError(TrioSchedError, AssertionError):
    """The scheduler's state contradicts itself: a bug in trio_sched. Only checks in tests and recovery raise it."""


# ---- outcomes of remote tasks other than ok -------------------------------------------------------------------------


class TaskError(TrioSchedError):
    """Root of the errors of a task that the scheduler or the engine decided, not the code of the task."""


class ImpossibleDependency(TaskError):
    """A dependency can no longer be met (R4, R6), or all targets are gone or excluded (R7, R19)."""


class InvalidDependency(TaskError):
    """A dependency names the task itself, or a task that is unknown or forgotten (R5)."""


class TaskTimeout(TaskError, TimeoutError):
    """The task did not start within its `timeout` (R21)."""


class EngineError(TaskError):
    """The engine died while it ran the task (R20)."""


class TaskCancelled(TaskError):
    """The task was cancelled (R23)."""


class SchedulerError(TaskError):
    """The scheduler failed while it handled the task (R33): a bug in trio_sched. Its log has the traceback."""


class ResultError(TaskError):
    """The task ran, but its result, or the exception that it raised, could not be pickled or unpickled."""


class CallError(TaskError):
    """The engine could not load the call: its module, function or an argument failed to import or unpickle."""


class UnmetDependency(TaskError):
    """Raise it in a task to decline this engine: the task goes to another engine, and no retry is used (R19)."""


class RemoteTraceback(TrioSchedError):
    """The traceback of the remote exception, as text; it is the `__cause__` of the exception raised here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
