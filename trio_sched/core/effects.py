"""What to do: the outputs of `Scheduler.handle`. Imperative, immutable, in the order in which they are to be done."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from trio_sched.core.events import Outcome, PayloadRef
from trio_sched.core.ids import ClientId, EngineId, TaskId


class Accept(Struct, frozen=True, gc=False):
    """The submission is taken: exactly one `DeliverResult` will follow for it. One Accept or Refuse per submission."""

    client: ClientId
    task: TaskId


class Refuse(Struct, frozen=True, gc=False):
    """The submission is not taken and changes nothing. `reason` says why, with the value, and what to do."""

    client: ClientId
    task: TaskId
    reason: str


class AssignTask(Struct, frozen=True, gc=False):
    """Send the task to the engine. `inputs` are the results of `spec.inputs`, in that order (R9)."""

    engine: EngineId
    task: TaskId
    attempt: int
    payload: PayloadRef
    inputs: tuple[PayloadRef, ...] = ()


class DeliverResult(Struct, frozen=True, gc=False):
    """Send the end of the task to its client (R17).

    `engine` is the one on which the task last ran, None if it never ran. `result` is what the engine sent, None when
    the scheduler itself ended the task; then `error` names the class in trio_sched.errors and `reason` says why.
    """

    client: ClientId
    task: TaskId
    outcome: Outcome
    engine: EngineId | None = None
    result: PayloadRef = None
    error: str = ""
    reason: str = ""


class RecallTask(Struct, frozen=True, gc=False):
    """Ask the engine to give the task back if it has not begun it; it answers in any case."""

    engine: EngineId
    task: TaskId
    attempt: int


class ForgetEngine(Struct, frozen=True, gc=False):
    """Drop what is kept for the engine: it is unregistered for good, and its id is not used again (R20).

    Emitted once for each registered engine, before what follows from its removal. It is also the answer to an
    `EngineJoined` that the core could not handle (R33).
    """

    engine: EngineId


class ForgetSession(Struct, frozen=True, gc=False):
    """Drop what is kept for the client's session: the session ended for good, and so has the last of its tasks.

    The core keeps ended tasks of the session (R22), but emits no further effect for it. It is also the answer to a
    `ClientJoined` that the core could not handle (R33).
    """

    client: ClientId


class Publish(Struct, frozen=True, gc=False):
    """Tell the monitors (R28); made only while the scheduler's `monitored` is set."""

    what: Literal["submitted", "assigned", "finished", "engine_joined", "engine_lost"]
    task: TaskId | None = None
    engine: EngineId | None = None
    client: ClientId | None = None
    outcome: Outcome | None = None


Effect: TypeAlias = Accept | Refuse | AssignTask | DeliverResult | RecallTask | ForgetEngine | ForgetSession | Publish
