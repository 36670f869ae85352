"""R17-R31: how tasks end and what engines and clients may do meanwhile, as scenarios."""

from __future__ import annotations

import pytest

from trio_sched.core.effects import DeliverResult
from trio_sched.core.events import (
    MAX_BACKOFF_S,
    Dependency,
    TimePassed,
    backoff_delay,
)

from .scenario import (
    Scenario,
    accepted,
    delivered,
    engine_forgotten,
    failed,
    recalled,
    refused,
    running,
    sent,
    session_forgotten,
)

# ---- R17: results ---------------------------------------------------------------------------------------------------


def test_r17_a_result_counts_only_from_the_engine_to_which_the_task_is_assigned() -> None:
    scenario = running("a")
    scenario.engine("F")
    assert scenario.finished("a", "ok", "F") == []
    assert scenario.finished("a", "ok", "nobody") == []
    assert scenario.ok("a") == [delivered("a", "ok", "E")]


def test_r17_a_result_counts_only_for_the_attempt_that_is_assigned() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a", retries=1)
    assert scenario.error("a") == [sent("a", "E", attempt=2)]
    assert scenario.finished("a", "ok", "E", attempt=1) == []
    assert scenario.finished("a", "ok", "E", attempt=3) == []
    assert scenario.finished("a", "ok", "E", attempt=None) == [delivered("a", "ok", "E")]


def test_r17_a_second_answer_changes_nothing() -> None:
    scenario = running("a")
    assert scenario.ok("a") == [delivered("a", "ok", "E")]
    assert scenario.error("a") == []
    assert scenario.declined("a") == []
    assert scenario.given_back("a") == []


def test_r17_a_client_that_left_for_good_gets_nothing_more() -> None:
    scenario = running("a")
    scenario.client("you")
    scenario.submit("b", client="you", after=["a"])
    assert scenario.leave("me") == []
    assert scenario.ok("a") == [session_forgotten("me"), sent("b", "E")]
    assert scenario.ok("b") == [delivered("b", "ok", "E", client="you")]


# ---- R18: retries ---------------------------------------------------------------------------------------------------


def test_r18_a_failed_task_with_retries_left_goes_to_another_engine() -> None:
    scenario = Scenario()
    scenario.engine("F")
    scenario.engine("E")
    assert scenario.submit("a", retries=1) == [accepted("a"), sent("a", "E")]
    assert scenario.error("a") == [sent("a", "F", attempt=2)]
    assert scenario.error("a") == [delivered("a", "error", "F")]


def test_r18_a_retry_waits_for_another_engine_that_matches_and_is_busy() -> None:
    scenario = Scenario()
    scenario.engine("F")
    scenario.engine("E")
    scenario.submit("a", retries=1)
    scenario.submit("long")
    assert scenario.error("a") == []
    assert scenario.ok("long") == [delivered("long", "ok", "F"), sent("a", "F", attempt=2)]


def test_r18_a_retry_goes_to_the_same_engine_when_no_other_matches() -> None:
    scenario = Scenario()
    scenario.engine("F")
    scenario.engine("E", gpu=1.0)
    scenario.submit("by resources", resources=(("gpu", 1.0),), retries=1)
    assert scenario.error("by resources") == [sent("by resources", "E", attempt=2)]
    scenario.ok("by resources")
    assert scenario.submit("by target", targets=["E"], retries=1) == [accepted("by target"), sent("by target", "E")]
    assert scenario.error("by target") == [sent("by target", "E", attempt=2)]


def test_r18_a_retry_goes_to_the_same_engine_once_the_last_other_one_is_gone() -> None:
    scenario = Scenario()
    scenario.engine("F")
    scenario.engine("E")
    scenario.submit("a", retries=1)
    scenario.submit("long")
    assert scenario.error("a") == []
    assert scenario.died("F") == [engine_forgotten("F"), sent("a", "E", attempt=2)]


def test_r18_a_retry_avoids_the_same_engine_once_another_one_has_joined() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a", retries=1)
    scenario.submit("b", priority=1)
    assert scenario.error("a") == [sent("b", "E")]
    assert scenario.engine("F") == [sent("a", "F", attempt=2)]


def test_r18_without_same_engine_a_retry_waits_for_another_engine_and_times_out() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a", retries=1, same_engine=False, timeout_s=3.0)
    assert scenario.wait(2.0) == []
    assert scenario.error("a") == []
    assert scenario.wait(2.9) == []
    assert scenario.wait(0.1) == [failed("a", "TaskTimeout", "E")]


def test_r18_without_same_engine_the_exclusion_counts_for_targets() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a", retries=1, same_engine=False, targets=["E"])
    assert scenario.error("a") == [failed("a", "ImpossibleDependency", "E")]


def test_r18_backoff_doubles() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a", retries=3, backoff_s=1.0)
    for attempt, pause in [(2, 1.0), (3, 2.0), (4, 4.0)]:
        assert scenario.error("a") == []
        assert scenario.wait(pause - 0.25) == []
        assert scenario.wait(0.25) == [sent("a", "E", attempt=attempt)]
    assert scenario.error("a") == [delivered("a", "error", "E")]


def test_r18_backoff_is_at_most_a_day_for_any_number_of_retries() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a", retries=2, backoff_s=86_000.0)
    assert scenario.error("a") == []
    assert scenario.wait(86_000.0) == [sent("a", "E", attempt=2)]
    assert scenario.error("a") == []
    assert scenario.wait(86_399.0) == []
    assert scenario.wait(1.0) == [sent("a", "E", attempt=3)]


@pytest.mark.parametrize("first_s", [5e-324, 1e-9, 1.0, MAX_BACKOFF_S])
def test_r18_backoff_is_finite_for_every_retry(first_s: float) -> None:
    for retry in (1, 2, 64, 65, 1025, 1_000_000):
        assert 0.0 <= backoff_delay(first_s, retry) <= MAX_BACKOFF_S
    assert backoff_delay(1.0, 4) == 8.0


def test_r32_rounding_does_not_use_up_a_resource() -> None:
    scenario = Scenario(hwm=0)
    scenario.engine("E", mem=1e15)
    for number in range(50):
        scenario.submit(number, resources=(("mem", 0.1),))
        scenario.ok(number)
    assert scenario.submit("all", resources=(("mem", 1e15),)) == [accepted("all"), sent("all", "E")]


def test_r18_backoff_delays_no_other_task() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a", retries=1, backoff_s=1.0)
    scenario.submit("b")
    assert scenario.error("a") == [sent("b", "E")]
    assert scenario.wait(1.0) == []
    assert scenario.ok("b") == [delivered("b", "ok", "E"), sent("a", "E", attempt=2)]


# ---- R19: declined --------------------------------------------------------------------------------------------------


def test_r19_a_declined_task_goes_to_another_engine_and_uses_no_retry() -> None:
    scenario = Scenario()
    scenario.engine("F")
    scenario.engine("E")
    scenario.submit("a")
    assert scenario.declined("a") == [sent("a", "F", attempt=2)]
    assert scenario.declined("a") == []
    assert scenario.engine("G") == [sent("a", "G", attempt=3)]
    assert scenario.ok("a") == [delivered("a", "ok", "G")]


def test_r19_a_task_that_every_target_declined_is_impossible() -> None:
    scenario = Scenario()
    scenario.engine("F")
    scenario.engine("E")
    scenario.submit("a", targets=["E", "F"])
    assert scenario.declined("a") == [sent("a", "F", attempt=2)]
    assert scenario.declined("a") == [failed("a", "ImpossibleDependency")]


def test_r19_a_task_declined_by_the_only_engine_to_follow_to_is_impossible() -> None:
    scenario = running("a")
    scenario.engine("F")
    scenario.ok("a")
    scenario.submit("b", follow=["a"])
    assert scenario.declined("b") == [failed("b", "ImpossibleDependency")]


def test_r19_an_engine_that_declined_stays_excluded_with_same_engine() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a", same_engine=True, retries=2)
    assert scenario.declined("a") == []
    assert scenario.died("E") == [engine_forgotten("E")]
    assert scenario.engine("F") == [sent("a", "F", attempt=2)]


def test_r19_pure_skips_engines_that_declined() -> None:
    scenario = Scenario(scheme="pure")
    scenario.engine("E")
    scenario.submit("a")
    assert scenario.declined("a") == []
    assert scenario.engine("F") == [sent("a", "F", attempt=2)]


# ---- R20: lost engines ----------------------------------------------------------------------------------------------


def test_r20_a_lost_engine_is_sent_nothing_and_its_late_results_count() -> None:
    scenario = running("a", "b")
    assert scenario.lost("E") == []
    assert scenario.submit("c") == [accepted("c")]
    assert scenario.wait(4.0) == []
    assert scenario.ok("a") == [delivered("a", "ok", "E")]
    scenario.engine("F")
    assert scenario.wait(1.0) == [engine_forgotten("E"), sent("b", "F", attempt=2)]


def test_r20_after_the_grace_period_results_are_dropped() -> None:
    scenario = running("a", "b")
    scenario.lost("E")
    assert scenario.wait(4.99) == []
    assert scenario.wait(0.01) == [engine_forgotten("E")]
    late = [scenario.finished("a", "ok", "E"), scenario.finished("b", "ok", "E")]
    assert late == [[], []]
    assert scenario.engine("F") == [sent("a", "F", attempt=2), sent("b", "F", attempt=2)]


def test_r20_a_confirmed_death_has_no_grace_period() -> None:
    scenario = running("a", "b")
    scenario.engine("F", hwm=1)
    assert scenario.died("E", "a") == [engine_forgotten("E"), sent("a", "F", attempt=2)]
    assert scenario.ok("a") == [delivered("a", "ok", "F"), sent("b", "F", attempt=2)]


def test_r20_a_death_confirmed_later_ends_the_grace_period() -> None:
    scenario = running("a")
    scenario.engine("F")
    assert scenario.lost("E") == []
    assert scenario.died("E", "a") == [engine_forgotten("E"), sent("a", "F", attempt=2)]
    assert scenario.wait(10.0) == []


def test_r20_a_running_task_survives_crash_limit_deaths() -> None:
    scenario = Scenario()
    scenario.submit("a", crash_limit=2)
    assert scenario.engine(1) == [sent("a", 1)]
    assert scenario.died(1, "a") == [engine_forgotten(1)]
    assert scenario.engine(2) == [sent("a", 2, attempt=2)]
    assert scenario.died(2, "a") == [engine_forgotten(2)]
    assert scenario.engine(3) == [sent("a", 3, attempt=3)]
    assert scenario.died(3, "a") == [engine_forgotten(3), failed("a", "EngineError", 3)]


def test_r20_more_crashes_than_the_limit_use_retries() -> None:
    scenario = Scenario()
    scenario.submit("a", crash_limit=0, retries=1)
    scenario.engine(1)
    assert scenario.died(1, "a") == [engine_forgotten(1)]
    assert scenario.engine(2) == [sent("a", 2, attempt=2)]
    assert scenario.died(2, "a") == [engine_forgotten(2), failed("a", "EngineError", 2)]


def test_r20_tasks_that_were_not_running_are_not_blamed() -> None:
    scenario = Scenario(hwm=0)
    scenario.engine("E", slots=2)
    for task in "abcd":
        scenario.submit(task, crash_limit=0)
    assert scenario.died("E", "b") == [engine_forgotten("E"), failed("b", "EngineError", "E")]
    assert scenario.engine("F") == [sent(task, "F", attempt=2) for task in "acd"]


def test_r20_without_a_report_the_tasks_in_the_first_slots_were_running() -> None:
    scenario = Scenario(hwm=0)
    scenario.engine("E", slots=2)
    for task in "abcd":
        scenario.submit(task, crash_limit=0)
    assert scenario.lost("E", confirmed=True) == [
        engine_forgotten("E"),
        failed("a", "EngineError", "E"),
        failed("b", "EngineError", "E"),
    ]
    assert scenario.engine("F") == [sent("c", "F", attempt=2), sent("d", "F", attempt=2)]


def test_r20_without_a_crash_limit_all_outstanding_tasks_fail() -> None:
    scenario = Scenario(hwm=0)
    scenario.engine("E")
    scenario.submit("a", crash_limit=None)
    scenario.submit("b", crash_limit=None, retries=1)
    scenario.submit("c", crash_limit=None)
    assert scenario.died("E", "a") == [
        engine_forgotten("E"),
        failed("a", "EngineError", "E"),
        failed("c", "EngineError", "E"),
    ]
    assert scenario.engine("F") == [sent("b", "F", attempt=2)]


def test_r20_an_engine_that_returns_in_time_continues() -> None:
    scenario = running("a", "b", "c")
    scenario.lost("E")
    assert scenario.submit("d") == [accepted("d")]
    scenario.wait(4.0)
    assert scenario.returned("E", "a", "c") == [sent("b", "E"), sent("d", "E")]
    assert scenario.wait(10.0) == []
    assert [scenario.ok(task) for task in "abc"] == [[delivered(task, "ok", "E")] for task in "abc"]


def test_r20_an_engine_whose_loss_was_not_noticed_returns_likewise() -> None:
    scenario = running("a", "b", grace_s=0.0)
    assert scenario.returned("E", "a") == [sent("b", "E")]
    assert scenario.scheduler.counters == {}


def test_r20_an_engine_that_returns_too_late_is_not_known() -> None:
    scenario = running("a")
    scenario.lost("E")
    scenario.wait(5.0)
    assert scenario.returned("E", "a") == []
    assert scenario.submit("b") == [accepted("b")]


def test_r20_a_task_cancelled_before_the_death_of_its_engine_ends_as_cancelled() -> None:
    scenario = running("a", "b")
    scenario.engine("F")
    assert scenario.cancel("a") == [recalled("a", "E")]
    assert scenario.died("E", "a") == [
        engine_forgotten("E"),
        failed("a", "TaskCancelled", "E"),
        sent("b", "F", attempt=2),
    ]


def test_r20_no_recall_is_sent_to_a_lost_engine_until_it_returns() -> None:
    scenario = running("a", "b", "c")
    scenario.lost("E")
    assert scenario.cancel("a") == []
    assert scenario.drain("E") == []
    assert scenario.returned("E", "a", "b", "c") == [recalled(task, "E") for task in "abc"]
    assert scenario.given_back("a") == [failed("a", "TaskCancelled")]


def test_r20_recalled_tasks_that_a_returning_engine_does_not_hold_count_as_given_back() -> None:
    scenario = running("a", "b", "c")
    scenario.cancel("b")
    scenario.drain("E")
    scenario.lost("E")
    scenario.engine("F")
    assert scenario.returned("E", "a") == [failed("b", "TaskCancelled"), sent("c", "F", attempt=2)]


def test_r20_a_task_cancelled_while_its_engine_is_lost_ends_with_the_grace_period() -> None:
    scenario = running("a", "b")
    scenario.lost("E")
    assert scenario.cancel("b") == []
    assert scenario.wait(5.0) == [engine_forgotten("E"), failed("b", "TaskCancelled")]
    assert scenario.engine("F") == [sent("a", "F", attempt=2)]


def test_r20_an_engine_is_forgotten_once_when_it_is_removed_for_good() -> None:
    scenario = Scenario()
    for engine in "EFGH":
        scenario.engine(engine)
    assert scenario.lost("E") == []
    assert scenario.returned("E") == []
    assert scenario.lost("E") == []
    assert scenario.wait(5.0) == [engine_forgotten("E")]
    assert scenario.lost("E") == scenario.died("E") == []
    assert scenario.died("F") == [engine_forgotten("F")]
    assert scenario.lost("G") == []
    assert scenario.died("G") == [engine_forgotten("G")]
    assert scenario.drain() == scenario.lost("H") == []
    assert scenario.wait(5.0) == [engine_forgotten("H")]


def test_r20_an_engine_without_a_grace_period_is_forgotten_when_it_is_lost() -> None:
    scenario = Scenario(grace_s=0.0)
    scenario.engine("E")
    assert scenario.lost("E") == [engine_forgotten("E")]


def test_r20_grace_periods_end_in_the_order_of_their_deadlines() -> None:
    scenario = Scenario(grace_s=2.0)
    for task, engine in [("a", "E"), ("b", "F")]:
        scenario.engine(engine)
        scenario.submit(task, targets=[engine])
    scenario.lost("F")
    scenario.now += 1
    scenario.lost("E")
    scenario.now += 5
    assert scenario.happens(TimePassed()) == [
        engine_forgotten("F"),
        failed("b", "ImpossibleDependency", "F"),
        engine_forgotten("E"),
        failed("a", "ImpossibleDependency", "E"),
    ]


# ---- R21: timeout ---------------------------------------------------------------------------------------------------


def test_r21_a_task_that_does_not_start_in_time_times_out() -> None:
    scenario = running("long", hwm=1)
    scenario.submit("a", timeout_s=2.0)
    scenario.submit("forever", timeout_s=0.0)
    assert scenario.scheduler.next_deadline() == 2.0
    assert scenario.wait(1.99) == []
    assert scenario.wait(0.01) == [failed("a", "TaskTimeout")]
    assert scenario.scheduler.next_deadline() is None


def test_r21_the_timeout_includes_the_wait_for_dependencies() -> None:
    scenario = running("long", hwm=2)
    scenario.submit("a", after=["long"], timeout_s=2.0)
    scenario.submit("b", after=["a"])
    assert scenario.wait(2.0) == [failed("a", "TaskTimeout"), failed("b", "ImpossibleDependency")]


def test_r21_assigned_counts_as_started() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a", timeout_s=1.0)
    assert scenario.wait(50.0) == []


def test_r21_a_task_that_can_start_at_once_does_not_time_out() -> None:
    scenario = Scenario()
    scenario.engine("E")
    assert scenario.submit("a", timeout_s=1e-9) == [accepted("a"), sent("a", "E")]
    scenario.submit("b", timeout_s=1.0)
    scenario.submit("c", timeout_s=1.0)
    scenario.now = 2.0  # the auditor is late; room comes first
    assert scenario.ok("a") == [delivered("a", "ok", "E"), sent("b", "E")]
    assert scenario.happens(TimePassed()) == [failed("c", "TaskTimeout")]


def test_r21_grace_periods_and_backoffs_are_handled_before_timeouts() -> None:
    scenario = Scenario(grace_s=2.0)
    scenario.engine("E")
    scenario.submit("a", retries=1, backoff_s=2.0, timeout_s=2.0)
    assert scenario.error("a") == []
    assert scenario.wait(2.0) == [sent("a", "E", attempt=2)]


def test_r21_a_retry_restarts_the_timeout() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a", retries=1, timeout_s=3.0)
    scenario.submit("b", priority=1)
    scenario.wait(2.0)
    assert scenario.error("a") == [sent("b", "E")]
    assert scenario.wait(2.99) == []
    assert scenario.wait(0.01) == [failed("a", "TaskTimeout", "E")]


def test_r21_a_recalled_task_keeps_its_deadline() -> None:
    scenario = running("long")
    scenario.submit("a", timeout_s=3.0)
    scenario.wait(2.0)
    assert scenario.drain("E") == [recalled("a", "E")]
    assert scenario.given_back("a") == []
    assert scenario.wait(0.99) == []
    assert scenario.wait(0.01) == [failed("a", "TaskTimeout")]


def test_r21_an_unblamed_task_of_a_dead_engine_keeps_its_deadline() -> None:
    scenario = running("long")
    scenario.submit("a", timeout_s=3.0)
    scenario.wait(50.0)
    assert scenario.died("E", "long") == [engine_forgotten("E")]
    assert scenario.wait(0.0) == [failed("a", "TaskTimeout")]


def test_r21_a_declined_task_keeps_its_deadline() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a", timeout_s=3.0)
    scenario.wait(2.0)
    assert scenario.declined("a") == []
    assert scenario.wait(0.99) == []
    assert scenario.wait(0.01) == [failed("a", "TaskTimeout")]


def test_r21_due_timeouts_end_by_deadline_then_by_submission() -> None:
    scenario = Scenario()
    scenario.submit("a", timeout_s=3.0)
    scenario.submit("b", timeout_s=2.0)
    scenario.submit("c", timeout_s=2.0)
    scenario.submit("d", timeout_s=2.0, after=["a"])
    scenario.now = 3.0
    assert scenario.happens(TimePassed()) == [failed(task, "TaskTimeout") for task in "bcda"]


def test_r21_a_timeout_meets_a_dependency_that_counts_failures() -> None:
    scenario = running("long", hwm=1)
    scenario.engine("F")
    scenario.submit("busy")
    scenario.submit("a", targets=["E"], timeout_s=1.0)
    scenario.submit("instead", after=Dependency(("a",), success=False, failure=True))
    scenario.ok("busy")
    assert scenario.wait(1.0) == [failed("a", "TaskTimeout"), sent("instead", "F")]


# ---- R22: retention -------------------------------------------------------------------------------------------------


def test_r22_the_oldest_ends_are_forgotten_first() -> None:
    scenario = Scenario(keep_finished=2)
    scenario.engine("E")
    for task in "abc":
        scenario.submit(task)
        scenario.ok(task)
    assert scenario.submit("after c", after=["c"]) == [accepted("after c"), sent("after c", "E")]
    assert scenario.submit("after b", after=["b"]) == [accepted("after b")]
    assert scenario.submit("after a", after=["a"]) == [accepted("after a"), failed("after a", "InvalidDependency")]


def test_r22_inputs_of_unfinished_tasks_are_not_forgotten() -> None:
    scenario = Scenario(keep_finished=1)
    scenario.engine("E")
    scenario.submit("a")
    scenario.submit("never", targets=["E"], inputs=("a",), resources=(("gpu", 1.0),))
    scenario.ok("a")
    for n in range(5):
        scenario.submit(n)
        scenario.ok(n)
    assert scenario.engine("F", gpu=1.0) == []
    assert scenario.submit("also", inputs=("a",))[1:] == [sent("also", "F", inputs=("ok a",))]


def test_r22_a_forgotten_task_still_counts_for_its_dependents() -> None:
    scenario = Scenario(keep_finished=0, hwm=2)
    scenario.engine("E")
    scenario.submit("a")
    scenario.submit("b")
    scenario.submit("c", after=["a", "b"], follow=["a"])
    assert scenario.ok("a") == [delivered("a", "ok", "E")]
    assert scenario.ok("b") == [delivered("b", "ok", "E"), sent("c", "E")]


def test_r22_only_a_result_that_was_not_received_is_delivered_again() -> None:
    scenario = running("a")
    scenario.ok("a")
    scenario.received("a", client="unknown")
    assert scenario.submit("a") == [accepted("a"), delivered("a", "ok", "E")]
    scenario.received("a")
    assert scenario.submit("a") == [refused("a")]


# ---- R23: cancel ----------------------------------------------------------------------------------------------------


def test_r23_a_waiting_task_ends_at_once_and_settles_its_dependents() -> None:
    scenario = running("long", hwm=1)
    scenario.submit("a")
    scenario.submit("b", after=["a"])
    assert scenario.cancel("a") == [failed("a", "TaskCancelled"), failed("b", "ImpossibleDependency")]
    assert scenario.cancel("a") == []
    assert scenario.ok("long") == [delivered("long", "ok", "E")]


def test_r23_an_assigned_task_is_recalled_and_keeps_its_place_until_the_engine_answers() -> None:
    scenario = running("a", hwm=1)
    scenario.submit("next")
    assert scenario.cancel("a") == [recalled("a", "E")]
    assert scenario.cancel("a") == []
    assert scenario.given_back("a") == [failed("a", "TaskCancelled"), sent("next", "E")]


def test_r23_a_cancelled_task_ends_as_cancelled_with_any_answer_of_the_engine() -> None:
    for answer in ("ok", "error", "aborted", "declined", "given_back"):
        scenario = Scenario()
        scenario.engine("E")
        scenario.submit("a", retries=3)
        scenario.cancel("a")
        [end] = getattr(scenario, answer)("a")
        assert isinstance(end, DeliverResult)
        assert (end.outcome, end.error, end.result) == ("cancelled", "TaskCancelled", None), answer


def test_r23_a_cancelled_task_that_has_begun_keeps_its_place_until_it_ends() -> None:
    scenario = running("a", hwm=1)
    scenario.submit("next")
    scenario.cancel("a")
    assert scenario.kept("a") == []
    assert scenario.ok("a") == [failed("a", "TaskCancelled", "E"), sent("next", "E")]


def test_r23_only_the_own_client_or_an_operator_may_cancel() -> None:
    scenario = running("a")
    scenario.client("you")
    scenario.submit("b", after=["a"])
    assert scenario.cancel("b", client="you") == []
    assert scenario.cancel("b", client=None) == [failed("b", "TaskCancelled")]
    assert scenario.cancel("nobody", client=None) == []


def test_r23_an_engine_that_aborts_a_task_ends_it_without_retry() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a", retries=3)
    [end] = scenario.aborted("a")
    assert isinstance(end, DeliverResult)
    assert (end.outcome, end.engine) == ("cancelled", "E")


def test_r23_a_task_in_backoff_is_cancelled_at_once() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a", retries=1, backoff_s=10.0)
    scenario.error("a")
    assert scenario.cancel("a") == [failed("a", "TaskCancelled", "E")]
    assert scenario.scheduler.next_deadline() is None
    assert scenario.wait(20.0) == []


# ---- R24 ------------------------------------------------------------------------------------------------------------


def test_r24_every_outcome_that_the_scheduler_decides_has_a_reason() -> None:
    scenario = running("long", hwm=1)
    scenario.submit("late", timeout_s=1.0)
    scenario.submit("next", after=["late"])
    scenario.submit("strange", after=["nobody"])
    assert all(scenario.reasons)
    scenario.wait(1.0)
    scenario.now += 1
    scenario.submit("gone", targets=["F"])
    assert all(scenario.reasons)
    scenario.cancel("long")
    scenario.given_back("long")
    assert all(scenario.reasons)
    scenario.submit("dies", crash_limit=0)
    scenario.died("E", "dies")
    [words] = scenario.reasons
    assert words.startswith("engine E died while running task dies")
