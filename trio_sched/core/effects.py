"""Effects: what `Scheduler.handle` returns.

Rules:

- An effect is imperative and immutable. It is data; the server carries it out.
- Effects are complete: for everything that the server has to send, to drop or to publish there is an effect, so the
  server need not read the state of the core.
- Effects are carried out in the order in which they are returned.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from trio_sched.core.events import Outcome, PayloadRef
from trio_sched.core.ids import ClientId, EngineId, TaskId


class Accept(Struct, frozen=True, gc=False):
    """Tell the client that its submission is accepted.

    Exactly one `DeliverResult` follows for it. Each submission has one `Accept` or one `Refuse`.
    """

    client: ClientId
    task: TaskId


class Refuse(Struct, frozen=True, gc=False):
    """Tell the client that its submission is refused, and changes nothing. `reason` has the value, the limit, the
    remedy.
    """

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
    """Send the outcome of the task to its client (R17).

    `engine` is the one on which the task last ran, None if it never ran. `result` is the one that the engine sent. It
    is None if the scheduler ended the task; then `error` is the name of a class in trio_sched.errors and `reason` says
    why.
    """

    client: ClientId
    task: TaskId
    outcome: Outcome
    engine: EngineId | None = None
    result: PayloadRef = None
    error: str = ""
    reason: str = ""


class RecallTask(Struct, frozen=True, gc=False):
    """Ask the engine to return the task if it has not begun it. The engine answers in any case (`RecallAnswered`)."""

    engine: EngineId
    task: TaskId
    attempt: int


class ForgetEngine(Struct, frozen=True, gc=False):
    """Drop the session of the engine: the core has removed the engine for good (R20).

    Emitted once for each engine that joined, before the effects that follow from its removal. Also emitted for an
    `EngineJoined` that could not be handled (R33).
    """

    engine: EngineId


class ForgetSession(Struct, frozen=True, gc=False):
    """Drop the memory held for the client session: it ended for good, and the last of its tasks has ended (R27).

    Emitted once for each session that joined; no other effect names the session later. Also emitted for a
    `ClientJoined` that could not be handled (R33). If a later session has the same id, the effect is emitted once, for
    the last of them.
    """

    client: ClientId


class Publish(Struct, frozen=True, gc=False):
    """Tell the monitors (R28). Emitted only while monitors watch (`MonitoringChanged`)."""

    what: Literal["submitted", "assigned", "finished", "engine_joined", "engine_lost"]
    task: TaskId | None = None
    engine: EngineId | None = None
    client: ClientId | None = None
    outcome: Outcome | None = None


Effect: TypeAlias = Accept | Refuse | AssignTask | DeliverResult | RecallTask | ForgetEngine | ForgetSession | Publish
