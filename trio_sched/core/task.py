"""One record per task, its states, and which state may follow which.

Everything that decides what state a task is in belongs to `Scheduler`, which moves tasks only along `TRANSITIONS`;
`invariants.check` verifies the states and docs/states.md is drawn from this table. Unfinished tasks are a `Task`,
which is as small as it can be because there may be a million; ended ones leave an `Ended` (R22).
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from trio_sched.core.events import Outcome, PayloadRef, TaskSpec
from trio_sched.core.ids import ClientId, EngineId, TaskId

if TYPE_CHECKING:
    from trio_sched.core.dependency import Needs
    from trio_sched.core.engines import Engine
    from trio_sched.core.ready import Client, Pool, ReadyQueue


class State(Enum):
    """Where a task is between its acceptance and its end."""

    WAITING = "waiting"
    """For dependencies (R3, R6)."""
    DELAYED = "delayed"
    """For the backoff before a retry (R18)."""
    READY = "ready"
    """In a ready queue: it can go as soon as an engine that may take it has room."""
    ASSIGNED = "assigned"
    """Sent to an engine, running there or queued behind others."""
    RECALLING = "recalling"
    """Assigned, and asked back because its engine drains."""
    CANCELLING = "cancelling"
    """Assigned, cancelled, and keeping its place until the engine answers (R23)."""
    ENDED = "ended"


WAITING: Final = State.WAITING
DELAYED: Final = State.DELAYED
READY: Final = State.READY
ASSIGNED: Final = State.ASSIGNED
RECALLING: Final = State.RECALLING
CANCELLING: Final = State.CANCELLING
ENDED: Final = State.ENDED

TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    WAITING: frozenset({READY, ENDED}),
    DELAYED: frozenset({READY, WAITING, ENDED}),
    READY: frozenset({ASSIGNED, WAITING, ENDED}),
    ASSIGNED: frozenset({READY, DELAYED, WAITING, RECALLING, CANCELLING, ENDED}),
    RECALLING: frozenset({READY, DELAYED, WAITING, ASSIGNED, CANCELLING, ENDED}),
    CANCELLING: frozenset({ENDED}),
    ENDED: frozenset(),
}
"""Into WAITING from elsewhere: the task's `follow` (any) lost the engines known so far, and more may come (R6)."""

UNPLACED: Final = frozenset({WAITING, DELAYED, READY})
"""The states in which the timeout runs (R21)."""
PLACED: Final = frozenset({ASSIGNED, RECALLING, CANCELLING})

NOBODY: Final[frozenset[EngineId]] = frozenset()


class Task(Struct, gc=False):
    """An accepted task that has not ended."""

    id: TaskId
    client: Client
    seq: int
    """Submission number: its place in the order (R12)."""
    payload: PayloadRef
    spec: TaskSpec
    accepted_at: float
    state: State = WAITING
    retries_left: int = 0
    attempt: int = 0
    """Number of assignments so far."""
    crashes: int = 0
    """Engine deaths while it ran (R20)."""
    copies: int = 1
    """Accepted submissions of this id: so often is its end delivered (R1)."""
    engine: Engine | None = None
    ran_on: EngineId | None = None
    """Where its last attempt ran, if that has ended."""
    assigned_at: float = 0.0
    deadline: float = 0.0
    """When its timeout is over; 0: none."""
    wake_at: float = 0.0
    """When its backoff is over, in state DELAYED."""
    refused: frozenset[EngineId] = NOBODY
    """Engines that it will never run on: they declined it, or it failed there and may not return (R18, R19)."""
    failed: frozenset[EngineId] = NOBODY
    """Engines where it failed and runs again only when no other matches (R18)."""
    needs: Needs | None = None
    """What it waits for, while there is anything left to hear of."""
    queue: ReadyQueue | None = None
    """The ready queue it is in, in state READY."""
    bound: Pool | None = None
    """The requirement that can make it impossible while it is in no queue: WAITING or DELAYED, with targets (R7)."""
    history: tuple[tuple[float, str], ...] = ()
    """What happened beyond the ordinary, for its story."""


class Ended(Struct, gc=False):
    """What remains of an ended task: enough for later dependencies, repeats and its story."""

    client: ClientId
    outcome: Outcome
    engine: EngineId | None
    result: PayloadRef
    error: str
    reason: str
    attempt: int
    accepted_at: float
    assigned_at: float
    ended_at: float
    received: bool = False
    """Its client has the end in hand."""
    dropped: bool = False
    """The result is gone (R22)."""
    history: tuple[tuple[float, str], ...] = ()
