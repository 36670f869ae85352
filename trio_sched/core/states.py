"""The states of a task, and the table of transitions between them.

Rules:

- A task is in exactly one state, from its acceptance to its end.
- Its state changes only along the table. `records.check_state` verifies each change where tasks are `CheckedTask`,
  which they are in all tests of the core; the pictures and tables of docs/states.md are made from the table.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    """The state of a task, from its acceptance on."""

    #: Waits for dependencies (R3, R6).
    WAITING = "waiting"
    #: Waits for the backoff before a retry (R18).
    DELAYED = "delayed"
    #: In a ready queue; sent as soon as an engine that may take it has room (R12).
    READY = "ready"
    #: Sent to an engine; running there, or queued behind others.
    ASSIGNED = "assigned"
    #: Assigned, and recalled because the engine drains (R29).
    RECALLING = "recalling"
    #: Assigned and cancelled; on the engine until the engine answers (R23).
    CANCELLING = "cancelling"
    #: Ended with one of the outcomes (R24).
    ENDED = "ended"


WAITING: Final = State.WAITING
DELAYED: Final = State.DELAYED
READY: Final = State.READY
ASSIGNED: Final = State.ASSIGNED
RECALLING: Final = State.RECALLING
CANCELLING: Final = State.CANCELLING
ENDED: Final = State.ENDED

#: The names of the events that take a task off its engine.
_RELEASES: Final = ("EngineLost", "TaskFinished", "DependencyUnmet", "RecallAnswered", "EngineReturned", "TimePassed")

#: By state: the states that may follow, each with its causes, the usual ones first. A cause is the name of an event, or
#: of the step of its handling: "cascade" settles the dependents of ended tasks, "dispatch" sends ready tasks to
#: engines. A task becomes WAITING again when its `follow` (any) has lost all engines so far, and other followed tasks
#: have not ended (R6).
TRANSITIONS: Final[dict[State, dict[State, tuple[str, ...]]]] = {
    WAITING: {
        READY: ("TaskSubmitted", "cascade"),
        ENDED: ("cascade", "CancelRequested", "TaskSubmitted", "TimePassed", "EngineLost", "ClientLeft"),
    },
    DELAYED: {
        READY: ("TimePassed",),
        WAITING: ("EngineLost", "TimePassed"),
        ENDED: ("CancelRequested", "TimePassed", "EngineLost", "ClientLeft"),
    },
    READY: {
        ASSIGNED: ("dispatch",),
        WAITING: ("EngineLost", "TimePassed"),
        ENDED: ("CancelRequested", "TimePassed", "EngineLost", "ClientLeft", "cascade"),
    },
    ASSIGNED: {
        READY: _RELEASES,
        DELAYED: ("TaskFinished", "EngineLost", "TimePassed"),
        WAITING: _RELEASES,
        RECALLING: ("DrainRequested",),
        CANCELLING: ("CancelRequested", "ClientLeft"),
        ENDED: ("TaskFinished", *(each for each in _RELEASES if each != "TaskFinished")),
    },
    RECALLING: {
        READY: ("RecallAnswered", *(each for each in _RELEASES if each != "RecallAnswered")),
        DELAYED: ("TaskFinished", "EngineLost", "TimePassed"),
        WAITING: _RELEASES,
        ASSIGNED: ("RecallAnswered",),
        CANCELLING: ("CancelRequested", "ClientLeft"),
        ENDED: ("TaskFinished", *(each for each in _RELEASES if each != "TaskFinished")),
    },
    CANCELLING: {
        ENDED: ("RecallAnswered", "TaskFinished", "EngineLost", "DependencyUnmet", "EngineReturned", "TimePassed"),
    },
    ENDED: {},
}

#: The states in which a task is on an engine.
PLACED: Final = frozenset({ASSIGNED, RECALLING, CANCELLING})
