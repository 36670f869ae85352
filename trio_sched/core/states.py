"""The states of a task, and which state may follow which (docs/states.md is drawn from this table)."""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    """Where a task is between its acceptance and its end."""

    #: For dependencies (R3, R6).
    WAITING = "waiting"
    #: For the backoff before a retry (R18).
    DELAYED = "delayed"
    #: In a ready queue: it can go as soon as an engine that may take it has room.
    READY = "ready"
    #: Sent to an engine, running there or queued behind others.
    ASSIGNED = "assigned"
    #: Assigned, and asked back because its engine drains.
    RECALLING = "recalling"
    #: Assigned, cancelled, and keeping its place until the engine answers (R23).
    CANCELLING = "cancelling"
    ENDED = "ended"


WAITING: Final = State.WAITING
DELAYED: Final = State.DELAYED
READY: Final = State.READY
ASSIGNED: Final = State.ASSIGNED
RECALLING: Final = State.RECALLING
CANCELLING: Final = State.CANCELLING
ENDED: Final = State.ENDED

#: Into WAITING from elsewhere: the task's `follow` (any) lost the engines known so far, and more may come (R6).
TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    WAITING: frozenset({READY, ENDED}),
    DELAYED: frozenset({READY, WAITING, ENDED}),
    READY: frozenset({ASSIGNED, WAITING, ENDED}),
    ASSIGNED: frozenset({READY, DELAYED, WAITING, RECALLING, CANCELLING, ENDED}),
    RECALLING: frozenset({READY, DELAYED, WAITING, ASSIGNED, CANCELLING, ENDED}),
    CANCELLING: frozenset({ENDED}),
    ENDED: frozenset(),
}

PLACED: Final = frozenset({ASSIGNED, RECALLING, CANCELLING})
