"""Scenarios for the scheduler: one method for each event, which returns the effects.

    scenario = Scenario()
    scenario.engine("E")
    assert scenario.submit("a") == [accepted("a"), sent("a", "E")]
    assert scenario.ok("a") == [delivered("a", "ok", "E")]

Effects come without their reasons; `scenario.reasons` has those of the last event. The invariants are checked after
each event.
"""

from __future__ import annotations

import random
from typing import Any

from numpy.random import default_rng

from trio_sched.core import invariants
from trio_sched.core.effects import (
    Accept,
    AssignTask,
    DeliverResult,
    Effect,
    ForgetEngine,
    ForgetSession,
    RecallTask,
    Refuse,
)
from trio_sched.core.events import (
    CancelRequested,
    ClientJoined,
    ClientLeft,
    ClientPaused,
    ClientResumed,
    Dependency,
    DependencyUnmet,
    DrainRequested,
    EngineJoined,
    EngineLost,
    EngineReturned,
    Event,
    RecallAnswered,
    ResultsReceived,
    TaskFinished,
    TaskSpec,
    TaskSubmitted,
    TimePassed,
)
from trio_sched.core.ids import ClientId, EngineId, TaskId, make_task_id
from trio_sched.core.scheduler import Scheduler, Settings

from .naive import without_reasons

#: The attempt of a task's first assignment.
FIRST = 1


class Scenario:
    """A scheduler, a clock, and a client "me". Keywords are those of `Settings`; the default of hwm is 1."""

    def __init__(self, *, seed: int = 1, check: bool = True, **settings: Any) -> None:
        self.scheduler = Scheduler(Settings(**{"hwm": 1, **settings}), random.Random(seed), default_rng(seed))
        self.now = 0.0
        self.checked = check
        self.where: dict[TaskId, AssignTask] = {}
        self.reasons: list[str] = []
        self.client("me")

    def happens(self, event: Event) -> list[Effect]:
        effects = self.scheduler.handle(event, self.now)
        if self.checked:
            invariants.check(self.scheduler)
        self.where.update({effect.task: effect for effect in effects if isinstance(effect, AssignTask)})
        self.reasons = [effect.reason for effect in effects if isinstance(effect, (DeliverResult, Refuse))]
        return without_reasons(effects)

    # ---- clients ----------------------------------------------------------------------------------------------------

    def client(self, client: ClientId, weight: float = 1.0) -> list[Effect]:
        return self.happens(ClientJoined(client, weight))

    def pause(self, client: ClientId = "me", reason: str = "") -> list[Effect]:
        return self.happens(ClientPaused(client, reason))

    def resume(self, client: ClientId = "me") -> list[Effect]:
        return self.happens(ClientResumed(client))

    def submit(self, task: TaskId, client: ClientId = "me", **asks: Any) -> list[Effect]:
        """Submit a task. `after` and `follow` are each a Dependency, or ids."""
        for name in asks.keys() & {"after", "follow"}:
            if not isinstance(asks[name], Dependency):
                asks[name] = Dependency(tuple(asks[name]))
        if "targets" in asks:
            asks["targets"] = frozenset(asks["targets"])
        return self.happens(TaskSubmitted(client, task, f"call {task}", TaskSpec(**asks)))

    def cancel(self, task: TaskId, client: ClientId | None = "me") -> list[Effect]:
        return self.happens(CancelRequested(task, client))

    def received(self, *tasks: TaskId, client: ClientId = "me") -> list[Effect]:
        return self.happens(ResultsReceived(client, tasks))

    def leave(self, client: ClientId = "me", cancel: bool = False) -> list[Effect]:
        return self.happens(ClientLeft(client, cancel))

    # ---- engines ----------------------------------------------------------------------------------------------------

    def engine(
        self, engine: EngineId, slots: int = 1, hwm: int | None = None, kind: str = "", **offers: float
    ) -> list[Effect]:
        return self.happens(EngineJoined(engine, slots, hwm, tuple(sorted(offers.items())), kind))

    def lost(
        self, engine: EngineId, confirmed: bool = False, running: tuple[TaskId, ...] | None = None
    ) -> list[Effect]:
        return self.happens(EngineLost(engine, "gone", confirmed, running))

    def died(self, engine: EngineId, *running: TaskId) -> list[Effect]:
        """The nanny of the engine reports its death and what it was running."""
        return self.lost(engine, True, running)

    def returned(self, engine: EngineId, *holding: TaskId) -> list[Effect]:
        return self.happens(EngineReturned(engine, frozenset(holding)))

    def drain(self, engine: EngineId | None = None) -> list[Effect]:
        return self.happens(DrainRequested(engine))

    def finished(self, task: TaskId, outcome: Any, engine: EngineId, attempt: int | None = None) -> list[Effect]:
        return self.happens(TaskFinished(engine, task, outcome, f"{outcome} {task}", "", attempt))

    def ok(self, task: TaskId) -> list[Effect]:
        """The engine to which the task was sent last answers."""
        return self.finished(task, "ok", self.where[task].engine, self.where[task].attempt)

    def error(self, task: TaskId) -> list[Effect]:
        return self.finished(task, "error", self.where[task].engine, self.where[task].attempt)

    def aborted(self, task: TaskId) -> list[Effect]:
        return self.finished(task, "cancelled", self.where[task].engine, self.where[task].attempt)

    def declined(self, task: TaskId) -> list[Effect]:
        return self.happens(DependencyUnmet(self.where[task].engine, task, "", self.where[task].attempt))

    def given_back(self, task: TaskId) -> list[Effect]:
        return self.happens(RecallAnswered(self.where[task].engine, task, True, self.where[task].attempt))

    def kept(self, task: TaskId) -> list[Effect]:
        return self.happens(RecallAnswered(self.where[task].engine, task, False, self.where[task].attempt))

    # ---- time -------------------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> list[Effect]:
        """Advance the clock, with a `TimePassed` at each deadline and at the end."""
        until, effects = self.now + seconds, []
        while (deadline := self.scheduler.next_deadline()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            effects += self.happens(TimePassed())
            after = self.scheduler.next_deadline()
            assert after is None or after > self.now, "a deadline stays behind"
        self.now = until
        return effects + self.happens(TimePassed())


# ---- first steps of scenarios ----------------------------------------------------------------------------------------


def native(counter: int, session: int = 1) -> int:
    return make_task_id(session, counter)


def busy_scenario() -> Scenario:
    """One engine, on which "long" runs."""
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("long")
    return scenario


def two_engines(**settings: object) -> Scenario:
    """Two idle engines: E has run "e", F has run "f"."""
    scenario = Scenario(**settings)
    scenario.engine("F")
    scenario.engine("E")
    scenario.submit("e")
    scenario.submit("f")
    scenario.ok("e")
    scenario.ok("f")
    return scenario


def running(*tasks: str, **settings: object) -> Scenario:
    """One engine E (without hwm unless given) with these tasks, of which the first runs."""
    scenario = Scenario(**{"hwm": 0, "grace_s": 5.0, **settings})
    scenario.engine("E")
    for task in tasks:
        assert scenario.submit(task) == [accepted(task), sent(task, "E")]
    return scenario


# ---- effects ---------------------------------------------------------------------------------------------------------


def accepted(task: TaskId, client: ClientId = "me") -> Accept:
    return Accept(client, task)


def refused(task: TaskId, client: ClientId = "me") -> Refuse:
    return Refuse(client, task, "")


def sent(task: TaskId, engine: EngineId, attempt: int = FIRST, inputs: tuple[Any, ...] = ()) -> AssignTask:
    return AssignTask(engine, task, attempt, f"call {task}", inputs)


def recalled(task: TaskId, engine: EngineId, attempt: int = FIRST) -> RecallTask:
    return RecallTask(engine, task, attempt)


def engine_forgotten(engine: EngineId) -> ForgetEngine:
    return ForgetEngine(engine)


def session_forgotten(client: ClientId = "me") -> ForgetSession:
    return ForgetSession(client)


def delivered(task: TaskId, outcome: Any, engine: EngineId, client: ClientId = "me") -> DeliverResult:
    """The result that the engine sent."""
    return DeliverResult(client, task, outcome, engine, f"{outcome} {task}")


OUTCOMES = {
    "ImpossibleDependency": "unreachable",
    "InvalidDependency": "unreachable",
    "TaskTimeout": "timeout",
    "EngineError": "lost",
    "TaskCancelled": "cancelled",
}


def failed(task: TaskId, error: str, engine: EngineId | None = None, client: ClientId = "me") -> DeliverResult:
    """An outcome that the scheduler decided. `engine` is the one on which the task last ran."""
    return DeliverResult(client, task, OUTCOMES[error], engine, None, error)  # type: ignore[arg-type]  # from the table
