"""The core against the naive model: random events, with the same effects from both after each.

The driver (`model_driver.py`) is used twice. Hypothesis looks for a short sequence of events for which the two differ.
Random walks reach states in which many tasks wait, have run and have failed. `HYPOTHESIS_PROFILE=long`
(nox -s property) runs for minutes.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from trio_sched.core import deadlines, records, request_classes

from .model_driver import ACTIONS, Choose, ModelDriver

LONG = settings.default.max_examples > 1000
pytestmark = pytest.mark.timeout(0 if LONG else 900)  # a failure takes minutes to shrink
WALKS, STEPS = (3000, 400) if LONG else (250, 300)


def by_hypothesis(data: st.DataObject) -> Choose:
    return lambda values: data.draw(st.sampled_from(values))


class Rules(RuleBasedStateMachine):
    """The driver with the choices of Hypothesis: fewer steps, but failures are reduced to short sequences."""

    driver: ModelDriver

    def act(self, action: str, data: st.DataObject) -> None:
        self.driver.choose = by_hypothesis(data)
        getattr(self.driver, action)()

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.driver = ModelDriver(by_hypothesis(data))

    @rule(data=st.data(), action=st.sampled_from(["plain_tasks", "careful_task", "careful_task"]))
    def client_submits(self, data: st.DataObject, action: str) -> None:
        self.act("plain_tasks" if self.driver.plain_only else action, data)

    @precondition(lambda self: not self.driver.plain_only)
    @rule(data=st.data())
    def client_submits_dependent(self, data: st.DataObject) -> None:
        self.act("dependent_task", data)

    @rule(data=st.data(), action=st.sampled_from(["submission_again", "cancel", "results_received"]))
    def client_acts(self, data: st.DataObject, action: str) -> None:
        self.act(action, data)

    @precondition(lambda self: self.driver.open)
    @rule(data=st.data())
    def engines_answer(self, data: st.DataObject) -> None:
        self.act("engines_answer", data)

    @precondition(lambda self: self.driver.recalls)
    @rule(data=st.data())
    def recalls_answered(self, data: st.DataObject) -> None:
        self.act("recalls_answered", data)

    @rule(data=st.data(), action=st.sampled_from(["engine_joins", "engine_lost", "engine_returns"]))
    def engines_come_and_go(self, data: st.DataObject, action: str) -> None:
        self.act(action, data)

    @rule(data=st.data(), action=st.sampled_from(["answer_out_of_turn", "rare_event"]))
    def rare_events(self, data: st.DataObject, action: str) -> None:
        self.act(action, data)

    @rule(data=st.data(), action=st.sampled_from(["auditor_wakes", "time_passes"]))
    def time_goes_on(self, data: st.DataObject, action: str) -> None:
        self.act(action, data)


TestRules = Rules.TestCase
TestRules.settings = settings(  # a profile may ask for more
    max_examples=max(200, settings.default.max_examples),
    stateful_step_count=max(50, settings.default.stateful_step_count),
    report_multiple_bugs=False,
)


def check_walk(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    driver = ModelDriver(rng.choice)
    often = {action: weight * rng.choice([0, 1, 1, 1, 3]) for action, weight in ACTIONS.items()}
    if driver.plain_only:
        often["careful_task"] = often["dependent_task"] = 0
    often["plain_tasks"] += 1
    often["engines_answer"] += 4
    for action in rng.choices(list(often), list(often.values()), k=steps):
        getattr(driver, action)()


@pytest.mark.parametrize("block", range(10))
def test_random_walks_agree(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frequencies of actions differ from walk to walk, to reach different states. In every other block, what is
    swept occasionally is swept all the time.
    """
    if block % 2:
        monkeypatch.setattr(records, "_SWEEP", 1)
        monkeypatch.setattr(deadlines, "_SWEEP", 1)
        monkeypatch.setattr(request_classes, "_MAX_IDLE_CLASSES", 1)
    for seed in range(block, WALKS, 10):
        try:
            check_walk(seed, STEPS)
        except Exception as error:
            error.add_note(f"check_walk({seed}, {STEPS}) shows it")
            raise
