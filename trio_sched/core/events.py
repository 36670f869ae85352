"""Events: what `Scheduler.handle` takes.

Rules:

- An event is past tense and immutable, and names clients, engines and tasks by id.
- Payloads and results are opaque: the core keeps the reference and passes it on.
- Time is an event, too: the core has no clock.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import Struct

from trio_sched.core.ids import ClientId, EngineId, TaskId

PayloadRef: TypeAlias = Any
#: How a task ended (R24). "unreachable": a dependency or a target is impossible or invalid. All but "ok" are failures.
Outcome: TypeAlias = Literal["ok", "error", "unreachable", "timeout", "lost", "cancelled"]

#: The longest wait before a retry, in seconds (R18).
MAX_BACKOFF_S = 86_400.0
#: The most doublings of a backoff. More of them exceed MAX_BACKOFF_S, and could overflow.
MAX_DOUBLINGS = 64


def backoff_delay(first_s: float, retry: int) -> float:
    """Seconds to wait before the n-th retry, n = `retry` from 1 (R18)."""
    return min(first_s * 2.0 ** min(retry - 1, MAX_DOUBLINGS), MAX_BACKOFF_S)


class Dependency(Struct, frozen=True, gc=False):
    """A dependency, `after` or `follow`: tasks, and which of their outcomes count (R2)."""

    #: Ids in the order given, each once.
    tasks: tuple[TaskId, ...] = ()
    #: Whether all tasks must end with an outcome that counts; else any one of them.
    all: bool = True
    #: Whether "ok" counts. At least one of `success` and `failure` is set.
    success: bool = True
    #: Whether the other outcomes count.
    failure: bool = False


class TaskSpec(Struct, frozen=True, gc=False):
    """The options of a submission. Most tasks share `DEFAULT_SPEC`."""

    #: Tasks that must have ended (R3).
    after: Dependency | None = None
    #: Tasks on whose engine this one runs (R6).
    follow: Dependency | None = None
    #: Tasks whose results are arguments (R9). All must succeed; their results are sent with the assignment.
    inputs: tuple[TaskId, ...] = ()
    #: The only engines on which it may run (R7); None: any engine.
    targets: frozenset[EngineId] | None = None
    #: Pairs of name and amount, sorted by name, amounts > 0 (R16).
    resources: tuple[tuple[str, float], ...] = ()
    #: Tasks with a higher priority go first (R12).
    priority: int = 0
    #: How many failures are retried (R18).
    retries: int = 0
    #: The longest wait to start, in seconds (R21); None or 0: no limit.
    timeout_s: float | None = None
    #: The n-th retry waits backoff_s * 2**(n-1) seconds, at most MAX_BACKOFF_S (R18).
    backoff_s: float = 0.0
    #: Whether a retry may run on an engine where the task failed, if no other registered engine matches (R18). False
    #: for tasks of ipyparallel clients.
    same_engine: bool = True
    #: Engine deaths that the running task survives without a retry (R20). None: each death is a failure, also of tasks
    #: that were queued on the engine, as ipyparallel clients expect.
    crash_limit: int | None = 3
    #: A name for people.
    label: str = ""
    #: The kind of engine that reads the payload; engines of another kind do not match (R16).
    kind: str = ""


DEFAULT_SPEC = TaskSpec()


class ClientJoined(Struct, frozen=True, gc=False):
    """A client session began. `weight` > 0 is its part of a fair share (R15)."""

    client: ClientId
    weight: float = 1.0


class ClientLeft(Struct, frozen=True, gc=False):
    """A client session ended for good (R17). With `cancel`, its unfinished tasks are cancelled.

    The core has no event for a client that only disconnects: its tasks go on, and its results wait in the server (R27).
    `unread`: the ended tasks whose results the client has not received; None: not known.
    """

    client: ClientId
    cancel: bool = False
    unread: tuple[TaskId, ...] | None = None


class ClientPaused(Struct, frozen=True, gc=False):
    """A client was paused: none of its tasks is sent to engines (R34). A second event changes only the `reason`."""

    client: ClientId
    reason: str = ""


class ClientResumed(Struct, frozen=True, gc=False):
    """A paused client was resumed (R34)."""

    client: ClientId


class TaskSubmitted(Struct, frozen=True, gc=False):
    """A client submitted a task."""

    client: ClientId
    task: TaskId
    payload: PayloadRef
    spec: TaskSpec = DEFAULT_SPEC


class TaskFinished(Struct, frozen=True, gc=False):
    """An engine finished a task. `attempt` is the one of the assignment, None if the wire does not carry it (R17)."""

    engine: EngineId
    task: TaskId
    outcome: Literal["ok", "error", "cancelled"]
    result: PayloadRef = None
    reason: str = ""
    attempt: int | None = None


class DependencyUnmet(Struct, frozen=True, gc=False):
    """An engine declined a task, because a condition of the task does not hold there (R19)."""

    engine: EngineId
    task: TaskId
    reason: str = ""
    attempt: int | None = None


class ResultsReceived(Struct, frozen=True, gc=False):
    """A client received these results; they are kept only for tasks that have them as inputs (R9, R22)."""

    client: ClientId
    tasks: tuple[TaskId, ...]


class EngineJoined(Struct, frozen=True, gc=False):
    """An engine registered.

    `hwm` None: the one of the settings; 0: no limit (R10). `resources`: pairs of name and amount. `kind`: the kind of
    payloads that it reads (R16).
    """

    engine: EngineId
    slots: int = 1
    hwm: int | None = None
    resources: tuple[tuple[str, float], ...] = ()
    kind: str = ""


class EngineLost(Struct, frozen=True, gc=False):
    """An engine was lost (R20).

    `confirmed`: its nanny reported its death, or it left, so there is no grace period. `running`: the tasks that it was
    running at its death; None: not known.
    """

    engine: EngineId
    reason: str = ""
    confirmed: bool = False
    running: tuple[TaskId, ...] | None = None


class EngineReturned(Struct, frozen=True, gc=False):
    """An engine reconnected, with or without an `EngineLost` before (R20).

    `holding`: the tasks that it has: running, queued, or ended with a result that is not acknowledged. Results of other
    tasks have arrived before.
    """

    engine: EngineId
    holding: frozenset[TaskId] = frozenset()


class DrainRequested(Struct, frozen=True, gc=False):
    """An operator or an engine requested draining (R29). `engine` None: the whole scheduler."""

    engine: EngineId | None = None


class CancelRequested(Struct, frozen=True, gc=False):
    """A client requested the cancellation of its own task, or an operator (`client` None) of any task (R23)."""

    task: TaskId
    client: ClientId | None = None


class RecallAnswered(Struct, frozen=True, gc=False):
    """An engine answered a `RecallTask`. `recalled`: it has not begun the task and never will."""

    engine: EngineId
    task: TaskId
    recalled: bool
    attempt: int | None = None


class MonitoringChanged(Struct, frozen=True, gc=False):
    """The first monitor began to watch, or the last one stopped: `Publish` effects are emitted from now on if `on`
    (R28).
    """

    on: bool


class TimePassed(Struct, frozen=True, gc=False):
    """The clock reached the next deadline: timeouts, grace periods and backoffs are due (R21)."""


Event: TypeAlias = (
    ClientJoined
    | ClientLeft
    | ClientPaused
    | ClientResumed
    | TaskSubmitted
    | TaskFinished
    | DependencyUnmet
    | ResultsReceived
    | EngineJoined
    | EngineLost
    | EngineReturned
    | DrainRequested
    | CancelRequested
    | RecallAnswered
    | MonitoringChanged
    | TimePassed
)
