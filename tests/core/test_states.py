"""Tasks move only along the table of core/task.py, and every line of the table is one that tasks take."""

from __future__ import annotations

from typing import Any

import pytest

from trio_sched.core import records
from trio_sched.core.events import Dependency
from trio_sched.core.records import Task
from trio_sched.core.states import ENDED, TRANSITIONS, WAITING, State

from .story import Story
from .test_property import check_walk


def follower_of_a_or_b(hwm: int, **asks: Any) -> Story:
    """c follows a or b; a ran on E, b has not ended, so c may go to E only, and hears of more."""
    story = Story(hwm=hwm)
    story.engine("E", slots=1)
    story.submit("a")
    story.engine("F", hwm=1)
    story.submit("b", targets=["F"])
    story.submit("x", targets=["E"])
    story.submit("c", follow=Dependency(("a", "b"), all=False), **asks)
    story.ok("a")
    return story


def a_follower_loses_its_engine_while_ready() -> None:
    follower_of_a_or_b(hwm=1).died("E")


def a_follower_loses_its_engine_in_a_backoff() -> None:
    story = follower_of_a_or_b(hwm=2, retries=1, backoff_s=9.0)
    story.error("c")
    story.died("E")


def a_follower_loses_its_engine_while_recalled() -> None:
    story = follower_of_a_or_b(hwm=2)
    story.drain("E")
    story.died("E", "x")


def a_follower_loses_its_engine_while_assigned() -> None:
    follower_of_a_or_b(hwm=2).died("E", "x")


def a_recalled_task_is_cancelled() -> None:
    story = follower_of_a_or_b(hwm=2)
    story.drain("E")
    story.cancel("c")


def a_recalled_task_fails_and_waits_for_its_retry() -> None:
    story = follower_of_a_or_b(hwm=2, retries=1, backoff_s=9.0)
    story.drain("E")
    story.error("c")


def a_recalled_task_has_begun() -> None:
    story = follower_of_a_or_b(hwm=2)
    story.drain("E")
    story.kept("c")


#: What random walks come upon once in a thousand.
SELDOM = [
    a_follower_loses_its_engine_while_ready,
    a_follower_loses_its_engine_in_a_backoff,
    a_follower_loses_its_engine_while_recalled,
    a_follower_loses_its_engine_while_assigned,
    a_recalled_task_is_cancelled,
    a_recalled_task_fails_and_waits_for_its_retry,
    a_recalled_task_has_begun,
]


def test_tasks_move_only_along_the_table_and_everywhere_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[State, State]] = set()

    check = records.check_state

    def record(task: Task, state: State) -> None:
        check(task, state)
        if state is not task.state:
            seen.add((task.state, state))

    monkeypatch.setattr(records, "check_state", record)
    for seed in range(60):
        check_walk(seed, 300)
    for story in SELDOM:
        story()
    allowed = {(before, after) for before, afters in TRANSITIONS.items() for after in afters}
    assert seen - allowed == set()
    assert allowed - seen == set()


def test_the_table_names_every_state_and_only_the_end_is_final() -> None:
    assert set(TRANSITIONS) == set(State)
    assert [state for state, afters in TRANSITIONS.items() if not afters] == [ENDED]
    reachable = {WAITING}
    while grown := {after for before in reachable for after in TRANSITIONS[before]} - reachable:
        reachable |= grown
    assert reachable == set(State)
