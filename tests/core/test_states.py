"""Tasks change their state only along the table of core/states.py, and take every transition of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest

from trio_sched.core import records
from trio_sched.core.events import Dependency, Event
from trio_sched.core.records import Task
from trio_sched.core.scheduler import Scheduler
from trio_sched.core.states import ENDED, TRANSITIONS, WAITING, State

from .scenario import Scenario
from .test_property import check_walk


def follower_of_a_or_b(hwm: int, **asks: Any) -> Scenario:
    """c follows a or b. a ran on E and b has not ended, so c may go to E only; the end of b may add an engine."""
    scenario = Scenario(hwm=hwm)
    scenario.engine("E", slots=1)
    scenario.submit("a")
    scenario.engine("F", hwm=1)
    scenario.submit("b", targets=["F"])
    scenario.submit("x", targets=["E"])
    scenario.submit("c", follow=Dependency(("a", "b"), all=False), **asks)
    scenario.ok("a")
    return scenario


def a_follower_loses_its_engine_while_ready() -> None:
    follower_of_a_or_b(hwm=1).died("E")


def a_follower_loses_its_engine_in_a_backoff() -> None:
    scenario = follower_of_a_or_b(hwm=2, retries=1, backoff_s=9.0)
    scenario.error("c")
    scenario.died("E")


def a_follower_loses_its_engine_while_recalled() -> None:
    scenario = follower_of_a_or_b(hwm=2)
    scenario.drain("E")
    scenario.died("E", "x")


def a_follower_loses_its_engine_while_assigned() -> None:
    follower_of_a_or_b(hwm=2).died("E", "x")


def a_recalled_task_is_cancelled() -> None:
    scenario = follower_of_a_or_b(hwm=2)
    scenario.drain("E")
    scenario.cancel("c")


def a_recalled_task_fails_and_waits_for_its_retry() -> None:
    scenario = follower_of_a_or_b(hwm=2, retries=1, backoff_s=9.0)
    scenario.drain("E")
    scenario.error("c")


def a_recalled_task_has_begun() -> None:
    scenario = follower_of_a_or_b(hwm=2)
    scenario.drain("E")
    scenario.kept("c")


#: Scenarios for transitions that random walks take once in a thousand.
RARE = [
    a_follower_loses_its_engine_while_ready,
    a_follower_loses_its_engine_in_a_backoff,
    a_follower_loses_its_engine_while_recalled,
    a_follower_loses_its_engine_while_assigned,
    a_recalled_task_is_cancelled,
    a_recalled_task_fails_and_waits_for_its_retry,
    a_recalled_task_has_begun,
]


class Recorder:
    """Records the transitions of all tasks, each with its cause: a step of the handling, or else the event."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: set[tuple[State, State, str]] = set()
        self._causes: list[str] = []
        self._check = records.check_state
        monkeypatch.setattr(records, "check_state", self._record)
        monkeypatch.setattr(Scheduler, "handle", self._noting(Scheduler.handle, lambda event: type(event).__name__))
        monkeypatch.setattr(Scheduler, "_cascade", self._noting(Scheduler._cascade, lambda _now: "cascade"))
        monkeypatch.setattr(Scheduler, "_dispatch", self._noting(Scheduler._dispatch, lambda _now: "dispatch"))

    def _record(self, task: Task, state: State) -> None:
        self._check(task, state)
        if state is not task.state:
            self.seen.add((task.state, state, self._causes[-1]))

    def _noting(self, method: Callable[..., Any], cause_of: Callable[[Any], str]) -> Callable[..., Any]:
        def wrapper(scheduler: Scheduler, first: Any, *others: Any) -> Any:
            self._causes.append(cause_of(first))
            try:
                return method(scheduler, first, *others)
            finally:
                self._causes.pop()

        return wrapper


def test_tasks_move_only_along_the_table_and_everywhere_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    for seed in range(60):
        check_walk(seed, 300)
    for scenario in RARE:
        scenario()
    allowed = {
        (before, after, cause)
        for before, afters in TRANSITIONS.items()
        for after, causes in afters.items()
        for cause in causes
    }
    assert recorder.seen - allowed == set()
    transitions = {(before, after) for before, after, _ in recorder.seen}
    assert {(before, after) for before, after, _ in allowed} - transitions == set()


def test_causes_are_events_or_steps_of_their_handling() -> None:
    causes = {cause for afters in TRANSITIONS.values() for causes in afters.values() for cause in causes}
    assert causes - {event.__name__ for event in get_args(Event)} == {"cascade", "dispatch"}


def test_the_table_names_every_state_and_only_the_end_is_final() -> None:
    assert set(TRANSITIONS) == set(State)
    assert [state for state, afters in TRANSITIONS.items() if not afters] == [ENDED]
    reachable = {WAITING}
    while grown := {after for before in reachable for after in TRANSITIONS[before]} - reachable:
        reachable |= grown
    assert reachable == set(State)
