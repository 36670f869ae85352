"""What happened: the inputs of `Scheduler.handle`. Past tense, immutable, ids instead of objects.

A payload or a result is opaque here: the core keeps the reference and hands it on.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import Struct

from trio_sched.core.ids import COUNTER_BITS, ClientId, EngineId
from trio_sched.core.ids import TaskId as TaskId

#: The name that modules outside of the core import until they use the functions of `ids`.
SESSION_SHIFT = COUNTER_BITS


PayloadRef: TypeAlias = Any
Outcome: TypeAlias = Literal["ok", "error", "unreachable", "timeout", "lost", "cancelled"]
"""How a task ended (R24). "unreachable": a dependency or target is impossible or invalid. Every one but ok is a
failure.
"""

MOST_BACKOFF_S = 86_400.0
"""The longest wait before a retry (R18)."""


class Dependency(Struct, frozen=True, gc=False):
    """`after` or `follow`: a set of tasks and what must become of them (R2).

    `tasks` holds ids in the order given, without repeats. `all`: every one must, else any one. `success` and `failure`
    say which ends count; at least one of them must be set.
    """

    tasks: tuple[TaskId, ...] = ()
    all: bool = True
    success: bool = True
    failure: bool = False


class TaskSpec(Struct, frozen=True, gc=False):
    """What a submission asks for beside the call. The default asks for nothing, and most tasks share it."""

    after: Dependency | None = None
    follow: Dependency | None = None
    inputs: tuple[TaskId, ...] = ()
    """Tasks whose results are arguments (R9): all must succeed; their results go out with the assignment."""
    targets: frozenset[EngineId] | None = None
    """Only these engines (R7). None: any."""
    resources: tuple[tuple[str, float], ...] = ()
    """(name, amount) sorted by name, amounts > 0 (R16)."""
    priority: int = 0
    """Higher goes first (R12)."""
    retries: int = 0
    timeout_s: float | None = None
    """Longest wait to start (R21). None or 0: no limit."""
    backoff_s: float = 0.0
    """Wait before the n-th retry: backoff_s * 2**(n-1) seconds, at most MOST_BACKOFF_S (R18)."""
    same_engine: bool = True
    """A retry may run where it failed when no other registered engine matches (R18). False on the ipyparallel side."""
    crash_limit: int | None = 3
    """Engine deaths that a running task survives apart from its retries (R20). None: no such allowance, and the tasks
    queued behind it are failed with it, as ipyparallel expects."""
    label: str = ""
    kind: str = ""
    """Only engines of this kind understand the payload (R16)."""


DEFAULT_SPEC = TaskSpec()


class ClientJoined(Struct, frozen=True, gc=False):
    """A session began. `weight` is its fair share (R15), > 0."""

    client: ClientId
    weight: float = 1.0


class ClientLeft(Struct, frozen=True, gc=False):
    """A session ended for good: it is not coming back for results. With `cancel`, its unfinished tasks are cancelled.

    A client that merely disconnects is no event of the core: its tasks go on and its results wait in the outbox (R27).
    `unread`: the ended tasks whose results it has not received, where the server knows them; None: all are looked at.
    """

    client: ClientId
    cancel: bool = False
    unread: tuple[TaskId, ...] | None = None


class ClientPaused(Struct, frozen=True, gc=False):
    """Nothing more of this client is to be sent to engines (R34). `reason` says why in words; a second one changes only
    the reason."""

    client: ClientId
    reason: str = ""


class ClientResumed(Struct, frozen=True, gc=False):
    """The client's tasks may go again (R34)."""

    client: ClientId


class TaskSubmitted(Struct, frozen=True, gc=False):
    """A client submitted a task."""

    client: ClientId
    task: TaskId
    payload: PayloadRef
    spec: TaskSpec = DEFAULT_SPEC


class TaskFinished(Struct, frozen=True, gc=False):
    """An engine answered for a task. `attempt` is that of the assignment it answers; None where the wire has none."""

    engine: EngineId
    task: TaskId
    outcome: Literal["ok", "error", "cancelled"]
    result: PayloadRef = None
    reason: str = ""
    attempt: int | None = None


class DependencyUnmet(Struct, frozen=True, gc=False):
    """An engine declined a task: a functional dependency said no (R19)."""

    engine: EngineId
    task: TaskId
    reason: str = ""
    attempt: int | None = None


class ResultsReceived(Struct, frozen=True, gc=False):
    """The client has these results in hand: they need not be kept for it any longer."""

    client: ClientId
    tasks: tuple[TaskId, ...]


class EngineJoined(Struct, frozen=True, gc=False):
    """An engine registered. `hwm` None: the scheduler's own; 0: no limit (R10). `kind`: what payloads it reads."""

    engine: EngineId
    slots: int = 1
    hwm: int | None = None
    resources: tuple[tuple[str, float], ...] = ()
    kind: str = ""


class EngineLost(Struct, frozen=True, gc=False):
    """An engine is gone (R20). `confirmed`: its nanny saw it die (or it said good-bye), so there is no grace period.

    `running` names the tasks that it was running at its death, None when nobody knows.
    """

    engine: EngineId
    reason: str = ""
    confirmed: bool = False
    running: tuple[TaskId, ...] | None = None


class EngineReturned(Struct, frozen=True, gc=False):
    """An engine is back, lost or its loss unnoticed, and holds these tasks; results of others were sent before."""

    engine: EngineId
    holding: frozenset[TaskId] = frozenset()


class DrainRequested(Struct, frozen=True, gc=False):
    """Give this engine nothing more and recall what it has not begun; `engine` None: the whole scheduler (R29)."""

    engine: EngineId | None = None


class CancelRequested(Struct, frozen=True, gc=False):
    """Cancel a task (R23). `client` None: asked by an operator, who may cancel any; else only its own client may."""

    task: TaskId
    client: ClientId | None = None


class RecallAnswered(Struct, frozen=True, gc=False):
    """An engine answered a RecallTask: with `recalled` it had not begun the task and never will."""

    engine: EngineId
    task: TaskId
    recalled: bool
    attempt: int | None = None


class TimePassed(Struct, frozen=True, gc=False):
    """The clock reached a deadline: timeouts, grace periods, backoffs and retention are due."""


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
    | TimePassed
)
