"""R17-R31: how tasks end and what engines and clients may do meanwhile, told as stories."""

from __future__ import annotations

import pytest

from trio_sched.core.effects import DeliverResult, ForgetEngine, Publish
from trio_sched.core.events import (
    MOST_BACKOFF_S,
    Dependency,
    EngineJoined,
    EngineLost,
    TaskFinished,
    TaskSubmitted,
    TimePassed,
    backoff_delay,
)

from .story import Story, accepted, delivered, engine_forgotten, failed, recalled, refused, sent, session_forgotten


def running(*tasks: str, **settings: object) -> Story:
    """One engine E (hwm 0 unless given), these tasks on it, the first of them running."""
    story = Story(**{"hwm": 0, "grace_s": 5.0, **settings})
    story.engine("E")
    for task in tasks:
        assert story.submit(task) == [accepted(task), sent(task, "E")]
    return story


# ---- R17: results ---------------------------------------------------------------------------------------------------


def test_r17_a_result_counts_only_from_the_engine_to_which_the_task_is_assigned() -> None:
    story = running("a")
    story.engine("F")
    assert story.finished("a", "ok", "F") == []
    assert story.finished("a", "ok", "nobody") == []
    assert story.ok("a") == [delivered("a", "ok", "E")]


def test_r17_a_result_counts_only_for_the_attempt_that_is_assigned() -> None:
    story = Story()
    story.engine("E")
    story.submit("a", retries=1)
    assert story.error("a") == [sent("a", "E", attempt=2)]
    assert story.finished("a", "ok", "E", attempt=1) == []
    assert story.finished("a", "ok", "E", attempt=3) == []
    assert story.finished("a", "ok", "E", attempt=None) == [delivered("a", "ok", "E")]


def test_r17_a_second_answer_changes_nothing() -> None:
    story = running("a")
    assert story.ok("a") == [delivered("a", "ok", "E")]
    assert story.error("a") == []
    assert story.declined("a") == []
    assert story.given_back("a") == []


def test_r17_a_client_that_left_for_good_gets_nothing_more() -> None:
    story = running("a")
    story.client("you")
    story.submit("b", client="you", after=["a"])
    assert story.leave("me") == []
    assert story.ok("a") == [session_forgotten("me"), sent("b", "E")]
    assert story.ok("b") == [delivered("b", "ok", "E", client="you")]


# ---- R18: retries ---------------------------------------------------------------------------------------------------


def test_r18_a_failure_with_retries_left_goes_elsewhere() -> None:
    story = Story()
    story.engine("F")
    story.engine("E")
    assert story.submit("a", retries=1) == [accepted("a"), sent("a", "E")]
    assert story.error("a") == [sent("a", "F", attempt=2)]
    assert story.error("a") == [delivered("a", "error", "F")]


def test_r18_waits_for_another_engine_that_matches_though_it_is_busy() -> None:
    story = Story()
    story.engine("F")
    story.engine("E")
    story.submit("a", retries=1)
    story.submit("long")
    assert story.error("a") == []
    assert story.ok("long") == [delivered("long", "ok", "F"), sent("a", "F", attempt=2)]


def test_r18_the_same_engine_when_no_other_matches() -> None:
    story = Story()
    story.engine("F")
    story.engine("E", gpu=1.0)
    story.submit("by resources", resources=(("gpu", 1.0),), retries=1)
    assert story.error("by resources") == [sent("by resources", "E", attempt=2)]
    story.ok("by resources")
    assert story.submit("by target", targets=["E"], retries=1) == [accepted("by target"), sent("by target", "E")]
    assert story.error("by target") == [sent("by target", "E", attempt=2)]


def test_r18_the_same_engine_once_the_last_other_one_is_gone() -> None:
    story = Story()
    story.engine("F")
    story.engine("E")
    story.submit("a", retries=1)
    story.submit("long")
    assert story.error("a") == []
    assert story.died("F") == [engine_forgotten("F"), sent("a", "E", attempt=2)]


def test_r18_not_the_same_engine_any_more_once_another_one_joined() -> None:
    story = Story()
    story.engine("E")
    story.submit("a", retries=1)
    story.submit("b", priority=1)
    assert story.error("a") == [sent("b", "E")]
    assert story.engine("F") == [sent("a", "F", attempt=2)]


def test_r18_without_same_engine_it_waits_for_another_and_times_out() -> None:
    story = Story()
    story.engine("E")
    story.submit("a", retries=1, same_engine=False, timeout_s=3.0)
    assert story.wait(2.0) == []
    assert story.error("a") == []
    assert story.wait(2.9) == []
    assert story.wait(0.1) == [failed("a", "TaskTimeout", "E")]


def test_r18_without_same_engine_the_exclusion_counts_for_targets() -> None:
    story = Story()
    story.engine("E")
    story.submit("a", retries=1, same_engine=False, targets=["E"])
    assert story.error("a") == [failed("a", "ImpossibleDependency", "E")]


def test_r18_backoff_doubles() -> None:
    story = Story()
    story.engine("E")
    story.submit("a", retries=3, backoff_s=1.0)
    for attempt, pause in [(2, 1.0), (3, 2.0), (4, 4.0)]:
        assert story.error("a") == []
        assert story.wait(pause - 0.25) == []
        assert story.wait(0.25) == [sent("a", "E", attempt=attempt)]
    assert story.error("a") == [delivered("a", "error", "E")]


def test_r18_backoff_is_at_most_a_day_whatever_the_number_of_retries() -> None:
    story = Story()
    story.engine("E")
    story.submit("a", retries=2, backoff_s=86_000.0)
    assert story.error("a") == []
    assert story.wait(86_000.0) == [sent("a", "E", attempt=2)]
    assert story.error("a") == []
    assert story.wait(86_399.0) == []
    assert story.wait(1.0) == [sent("a", "E", attempt=3)]


@pytest.mark.parametrize("first_s", [5e-324, 1e-9, 1.0, MOST_BACKOFF_S])
def test_r18_backoff_is_finite_for_every_retry(first_s: float) -> None:
    for retry in (1, 2, 64, 65, 1025, 1_000_000):
        assert 0.0 <= backoff_delay(first_s, retry) <= MOST_BACKOFF_S
    assert backoff_delay(1.0, 4) == 8.0


def test_r32_rounding_does_not_use_up_a_resource() -> None:
    story = Story(hwm=0)
    story.engine("E", mem=1e15)
    for number in range(50):
        story.submit(number, resources=(("mem", 0.1),))
        story.ok(number)
    assert story.submit("all", resources=(("mem", 1e15),)) == [accepted("all"), sent("all", "E")]


def test_r18_backoff_delays_nobody_else() -> None:
    story = Story()
    story.engine("E")
    story.submit("a", retries=1, backoff_s=1.0)
    story.submit("b")
    assert story.error("a") == [sent("b", "E")]
    assert story.wait(1.0) == []
    assert story.ok("b") == [delivered("b", "ok", "E"), sent("a", "E", attempt=2)]


# ---- R19: declined --------------------------------------------------------------------------------------------------


def test_r19_a_declined_task_goes_elsewhere_and_uses_no_retry() -> None:
    story = Story()
    story.engine("F")
    story.engine("E")
    story.submit("a")
    assert story.declined("a") == [sent("a", "F", attempt=2)]
    assert story.declined("a") == []
    assert story.engine("G") == [sent("a", "G", attempt=3)]
    assert story.ok("a") == [delivered("a", "ok", "G")]


def test_r19_every_target_declined_is_impossible() -> None:
    story = Story()
    story.engine("F")
    story.engine("E")
    story.submit("a", targets=["E", "F"])
    assert story.declined("a") == [sent("a", "F", attempt=2)]
    assert story.declined("a") == [failed("a", "ImpossibleDependency")]


def test_r19_declined_by_the_engine_it_must_follow_to_is_impossible() -> None:
    story = running("a")
    story.engine("F")
    story.ok("a")
    story.submit("b", follow=["a"])
    assert story.declined("b") == [failed("b", "ImpossibleDependency")]


def test_r19_declining_lasts_even_where_the_same_engine_would_do() -> None:
    story = Story()
    story.engine("E")
    story.submit("a", same_engine=True, retries=2)
    assert story.declined("a") == []
    assert story.died("E") == [engine_forgotten("E")]
    assert story.engine("F") == [sent("a", "F", attempt=2)]


def test_r19_holds_for_the_scheme_that_looks_at_nothing_else() -> None:
    story = Story(scheme="pure")
    story.engine("E")
    story.submit("a")
    assert story.declined("a") == []
    assert story.engine("F") == [sent("a", "F", attempt=2)]


# ---- R20: lost engines ----------------------------------------------------------------------------------------------


def test_r20_a_lost_engine_gets_nothing_more_and_its_late_results_count() -> None:
    story = running("a", "b")
    assert story.lost("E") == []
    assert story.submit("c") == [accepted("c")]
    assert story.wait(4.0) == []
    assert story.ok("a") == [delivered("a", "ok", "E")]
    story.engine("F")
    assert story.wait(1.0) == [engine_forgotten("E"), sent("b", "F", attempt=2)]


def test_r20_after_the_grace_period_results_are_dropped() -> None:
    story = running("a", "b")
    story.lost("E")
    assert story.wait(4.99) == []
    assert story.wait(0.01) == [engine_forgotten("E")]
    late = [story.finished("a", "ok", "E"), story.finished("b", "ok", "E")]
    assert late == [[], []]
    assert story.engine("F") == [sent("a", "F", attempt=2), sent("b", "F", attempt=2)]


def test_r20_a_confirmed_death_has_no_grace_period() -> None:
    story = running("a", "b")
    story.engine("F", hwm=1)
    assert story.died("E", "a") == [engine_forgotten("E"), sent("a", "F", attempt=2)]
    assert story.ok("a") == [delivered("a", "ok", "F"), sent("b", "F", attempt=2)]


def test_r20_a_death_confirmed_later_ends_the_grace_period() -> None:
    story = running("a")
    story.engine("F")
    assert story.lost("E") == []
    assert story.died("E", "a") == [engine_forgotten("E"), sent("a", "F", attempt=2)]
    assert story.wait(10.0) == []


def test_r20_a_running_task_survives_crash_limit_deaths() -> None:
    story = Story()
    story.submit("a", crash_limit=2)
    assert story.engine(1) == [sent("a", 1)]
    assert story.died(1, "a") == [engine_forgotten(1)]
    assert story.engine(2) == [sent("a", 2, attempt=2)]
    assert story.died(2, "a") == [engine_forgotten(2)]
    assert story.engine(3) == [sent("a", 3, attempt=3)]
    assert story.died(3, "a") == [engine_forgotten(3), failed("a", "EngineError", 3)]


def test_r20_more_crashes_than_the_limit_use_retries() -> None:
    story = Story()
    story.submit("a", crash_limit=0, retries=1)
    story.engine(1)
    assert story.died(1, "a") == [engine_forgotten(1)]
    assert story.engine(2) == [sent("a", 2, attempt=2)]
    assert story.died(2, "a") == [engine_forgotten(2), failed("a", "EngineError", 2)]


def test_r20_those_that_were_not_running_are_not_blamed() -> None:
    story = Story(hwm=0)
    story.engine("E", slots=2)
    for task in "abcd":
        story.submit(task, crash_limit=0)
    assert story.died("E", "b") == [engine_forgotten("E"), failed("b", "EngineError", "E")]
    assert story.engine("F") == [sent(task, "F", attempt=2) for task in "acd"]


def test_r20_when_nobody_knows_the_first_slots_were_running() -> None:
    story = Story(hwm=0)
    story.engine("E", slots=2)
    for task in "abcd":
        story.submit(task, crash_limit=0)
    assert story.lost("E", confirmed=True) == [
        engine_forgotten("E"),
        failed("a", "EngineError", "E"),
        failed("b", "EngineError", "E"),
    ]
    assert story.engine("F") == [sent("c", "F", attempt=2), sent("d", "F", attempt=2)]


def test_r20_without_a_crash_limit_all_that_were_outstanding_fail() -> None:
    story = Story(hwm=0)
    story.engine("E")
    story.submit("a", crash_limit=None)
    story.submit("b", crash_limit=None, retries=1)
    story.submit("c", crash_limit=None)
    assert story.died("E", "a") == [
        engine_forgotten("E"),
        failed("a", "EngineError", "E"),
        failed("c", "EngineError", "E"),
    ]
    assert story.engine("F") == [sent("b", "F", attempt=2)]


def test_r20_one_that_returns_in_time_goes_on() -> None:
    story = running("a", "b", "c")
    story.lost("E")
    assert story.submit("d") == [accepted("d")]
    story.wait(4.0)
    assert story.returned("E", "a", "c") == [sent("b", "E"), sent("d", "E")]
    assert story.wait(10.0) == []
    assert [story.ok(task) for task in "abc"] == [[delivered(task, "ok", "E")] for task in "abc"]


def test_r20_one_whose_loss_nobody_noticed_returns_all_the_same() -> None:
    story = running("a", "b", grace_s=0.0)
    assert story.returned("E", "a") == [sent("b", "E")]
    assert story.scheduler.counters == {}


def test_r20_one_that_returns_too_late_is_not_known() -> None:
    story = running("a")
    story.lost("E")
    story.wait(5.0)
    assert story.returned("E", "a") == []
    assert story.submit("b") == [accepted("b")]


def test_r20_what_was_cancelled_before_the_death_ends_as_cancelled() -> None:
    story = running("a", "b")
    story.engine("F")
    assert story.cancel("a") == [recalled("a", "E")]
    assert story.died("E", "a") == [engine_forgotten("E"), failed("a", "TaskCancelled", "E"), sent("b", "F", attempt=2)]


def test_r20_a_lost_engine_is_not_asked_back_for_anything_until_it_returns() -> None:
    story = running("a", "b", "c")
    story.lost("E")
    assert story.cancel("a") == []
    assert story.drain("E") == []
    assert story.returned("E", "a", "b", "c") == [recalled(task, "E") for task in "abc"]
    assert story.given_back("a") == [failed("a", "TaskCancelled")]


def test_r20_what_was_recalled_and_an_engine_that_returns_does_not_hold_counts_as_given_back() -> None:
    story = running("a", "b", "c")
    story.cancel("b")
    story.drain("E")
    story.lost("E")
    story.engine("F")
    assert story.returned("E", "a") == [failed("b", "TaskCancelled"), sent("c", "F", attempt=2)]


def test_r20_what_was_cancelled_while_its_engine_was_lost_ends_with_the_grace_period() -> None:
    story = running("a", "b")
    story.lost("E")
    assert story.cancel("b") == []
    assert story.wait(5.0) == [engine_forgotten("E"), failed("b", "TaskCancelled")]
    assert story.engine("F") == [sent("a", "F", attempt=2)]


def test_r20_an_engine_is_forgotten_once_when_it_is_removed_for_good() -> None:
    story = Story()
    for engine in "EFGH":
        story.engine(engine)
    assert story.lost("E") == []
    assert story.returned("E") == []
    assert story.lost("E") == []
    assert story.wait(5.0) == [engine_forgotten("E")]
    assert story.lost("E") == story.died("E") == []
    assert story.died("F") == [engine_forgotten("F")]
    assert story.lost("G") == []
    assert story.died("G") == [engine_forgotten("G")]
    assert story.drain() == story.lost("H") == []
    assert story.wait(5.0) == [engine_forgotten("H")]


def test_r20_an_engine_without_a_grace_period_is_forgotten_when_it_is_lost() -> None:
    story = Story(grace_s=0.0)
    story.engine("E")
    assert story.lost("E") == [engine_forgotten("E")]


def test_r20_grace_periods_end_by_their_time() -> None:
    story = Story(grace_s=2.0)
    for task, engine in [("a", "E"), ("b", "F")]:
        story.engine(engine)
        story.submit(task, targets=[engine])
    story.lost("F")
    story.now += 1
    story.lost("E")
    story.now += 5
    assert story.happens(TimePassed()) == [
        engine_forgotten("F"),
        failed("b", "ImpossibleDependency", "F"),
        engine_forgotten("E"),
        failed("a", "ImpossibleDependency", "E"),
    ]


# ---- R21: timeout ---------------------------------------------------------------------------------------------------


def test_r21_the_longest_a_task_may_wait_to_start() -> None:
    story = running("long", hwm=1)
    story.submit("a", timeout_s=2.0)
    story.submit("forever", timeout_s=0.0)
    assert story.scheduler.next_deadline() == 2.0
    assert story.wait(1.99) == []
    assert story.wait(0.01) == [failed("a", "TaskTimeout")]
    assert story.scheduler.next_deadline() is None


def test_r21_dependencies_included() -> None:
    story = running("long", hwm=2)
    story.submit("a", after=["long"], timeout_s=2.0)
    story.submit("b", after=["a"])
    assert story.wait(2.0) == [failed("a", "TaskTimeout"), failed("b", "ImpossibleDependency")]


def test_r21_assigned_counts_as_started() -> None:
    story = Story()
    story.engine("E")
    story.submit("a", timeout_s=1.0)
    assert story.wait(50.0) == []


def test_r21_a_task_that_can_be_placed_at_once_never_times_out() -> None:
    story = Story()
    story.engine("E")
    assert story.submit("a", timeout_s=1e-9) == [accepted("a"), sent("a", "E")]
    story.submit("b", timeout_s=1.0)
    story.submit("c", timeout_s=1.0)
    story.now = 2.0  # the auditor is late; room comes first
    assert story.ok("a") == [delivered("a", "ok", "E"), sent("b", "E")]
    assert story.happens(TimePassed()) == [failed("c", "TaskTimeout")]


def test_r21_room_that_a_grace_period_or_a_backoff_makes_comes_before_the_timeouts() -> None:
    story = Story(grace_s=2.0)
    story.engine("E")
    story.submit("a", retries=1, backoff_s=2.0, timeout_s=2.0)
    assert story.error("a") == []
    assert story.wait(2.0) == [sent("a", "E", attempt=2)]


def test_r21_anew_when_a_retry_queues_it_again() -> None:
    story = Story()
    story.engine("E")
    story.submit("a", retries=1, timeout_s=3.0)
    story.submit("b", priority=1)
    story.wait(2.0)
    assert story.error("a") == [sent("b", "E")]
    assert story.wait(2.99) == []
    assert story.wait(0.01) == [failed("a", "TaskTimeout", "E")]


def test_r21_a_recalled_task_takes_up_its_old_clock() -> None:
    story = running("long")
    story.submit("a", timeout_s=3.0)
    story.wait(2.0)
    assert story.drain("E") == [recalled("a", "E")]
    assert story.given_back("a") == []
    assert story.wait(0.99) == []
    assert story.wait(0.01) == [failed("a", "TaskTimeout")]


def test_r21_unblamed_from_a_dead_engine_takes_up_its_old_clock() -> None:
    story = running("long")
    story.submit("a", timeout_s=3.0)
    story.wait(50.0)
    assert story.died("E", "long") == [engine_forgotten("E")]
    assert story.wait(0.0) == [failed("a", "TaskTimeout")]


def test_r21_a_declined_task_takes_up_its_old_clock() -> None:
    story = Story()
    story.engine("E")
    story.submit("a", timeout_s=3.0)
    story.wait(2.0)
    assert story.declined("a") == []
    assert story.wait(0.99) == []
    assert story.wait(0.01) == [failed("a", "TaskTimeout")]


def test_r21_due_timeouts_end_by_deadline_then_by_submission() -> None:
    story = Story()
    story.submit("a", timeout_s=3.0)
    story.submit("b", timeout_s=2.0)
    story.submit("c", timeout_s=2.0)
    story.submit("d", timeout_s=2.0, after=["a"])
    story.now = 3.0
    assert story.happens(TimePassed()) == [failed(task, "TaskTimeout") for task in "bcda"]


def test_r21_what_waited_for_a_failure_goes_when_that_is_a_timeout() -> None:
    story = running("long", hwm=1)
    story.engine("F")
    story.submit("busy")
    story.submit("a", targets=["E"], timeout_s=1.0)
    story.submit("instead", after=Dependency(("a",), success=False, failure=True))
    story.ok("busy")
    assert story.wait(1.0) == [failed("a", "TaskTimeout"), sent("instead", "F")]


# ---- R22: retention -------------------------------------------------------------------------------------------------


def test_r22_the_oldest_ends_are_forgotten_first() -> None:
    story = Story(keep_finished=2)
    story.engine("E")
    for task in "abc":
        story.submit(task)
        story.ok(task)
    assert story.submit("after c", after=["c"]) == [accepted("after c"), sent("after c", "E")]
    assert story.submit("after b", after=["b"]) == [accepted("after b")]
    assert story.submit("after a", after=["a"]) == [accepted("after a"), failed("after a", "InvalidDependency")]


def test_r22_but_not_while_their_result_is_an_input_of_an_unfinished_task() -> None:
    story = Story(keep_finished=1)
    story.engine("E")
    story.submit("a")
    story.submit("never", targets=["E"], inputs=("a",), resources=(("gpu", 1.0),))
    story.ok("a")
    for n in range(5):
        story.submit(n)
        story.ok(n)
    assert story.engine("F", gpu=1.0) == []
    assert story.submit("also", inputs=("a",))[1:] == [sent("also", "F", inputs=("ok a",))]


def test_r22_a_forgotten_task_still_counts_for_those_that_waited_for_it() -> None:
    story = Story(keep_finished=0, hwm=2)
    story.engine("E")
    story.submit("a")
    story.submit("b")
    story.submit("c", after=["a", "b"], follow=["a"])
    assert story.ok("a") == [delivered("a", "ok", "E")]
    assert story.ok("b") == [delivered("b", "ok", "E"), sent("c", "E")]


def test_r22_an_end_that_was_not_received_is_delivered_again_one_that_was_is_not() -> None:
    story = running("a")
    story.ok("a")
    story.received("a", client="stranger")
    assert story.submit("a") == [accepted("a"), delivered("a", "ok", "E")]
    story.received("a")
    assert story.submit("a") == [refused("a")]


# ---- R23: cancel ----------------------------------------------------------------------------------------------------


def test_r23_a_waiting_task_ends_at_once_and_settles_its_dependents() -> None:
    story = running("long", hwm=1)
    story.submit("a")
    story.submit("b", after=["a"])
    assert story.cancel("a") == [failed("a", "TaskCancelled"), failed("b", "ImpossibleDependency")]
    assert story.cancel("a") == []
    assert story.ok("long") == [delivered("long", "ok", "E")]


def test_r23_an_assigned_one_is_recalled_and_keeps_its_place_until_the_engine_answers() -> None:
    story = running("a", hwm=1)
    story.submit("next")
    assert story.cancel("a") == [recalled("a", "E")]
    assert story.cancel("a") == []
    assert story.given_back("a") == [failed("a", "TaskCancelled"), sent("next", "E")]


def test_r23_whatever_the_engine_answers_it_ends_as_cancelled() -> None:
    for answer in ("ok", "error", "aborted", "declined", "given_back"):
        story = Story()
        story.engine("E")
        story.submit("a", retries=3)
        story.cancel("a")
        [end] = getattr(story, answer)("a")
        assert isinstance(end, DeliverResult)
        assert (end.outcome, end.error, end.result) == ("cancelled", "TaskCancelled", None), answer


def test_r23_a_task_that_was_begun_keeps_its_place_until_it_ends() -> None:
    story = running("a", hwm=1)
    story.submit("next")
    story.cancel("a")
    assert story.kept("a") == []
    assert story.ok("a") == [failed("a", "TaskCancelled", "E"), sent("next", "E")]


def test_r23_only_its_own_client_or_an_operator_may() -> None:
    story = running("a")
    story.client("you")
    story.submit("b", after=["a"])
    assert story.cancel("b", client="you") == []
    assert story.cancel("b", client=None) == [failed("b", "TaskCancelled")]
    assert story.cancel("nobody", client=None) == []


def test_r23_an_engine_that_aborts_a_task_ends_it_without_retry() -> None:
    story = Story()
    story.engine("E")
    story.submit("a", retries=3)
    [end] = story.aborted("a")
    assert isinstance(end, DeliverResult)
    assert (end.outcome, end.engine) == ("cancelled", "E")


def test_r23_a_task_in_backoff_is_cancelled_at_once() -> None:
    story = Story()
    story.engine("E")
    story.submit("a", retries=1, backoff_s=10.0)
    story.error("a")
    assert story.cancel("a") == [failed("a", "TaskCancelled", "E")]
    assert story.scheduler.next_deadline() is None
    assert story.wait(20.0) == []


# ---- R24 ------------------------------------------------------------------------------------------------------------


def test_r24_every_end_that_we_decide_says_why() -> None:
    story = running("long", hwm=1)
    story.submit("late", timeout_s=1.0)
    story.submit("next", after=["late"])
    story.submit("strange", after=["nobody"])
    assert all(story.words)
    story.wait(1.0)
    story.now += 1
    story.submit("gone", targets=["F"])
    assert all(story.words)
    story.cancel("long")
    story.given_back("long")
    assert all(story.words)
    story.submit("dies", crash_limit=0)
    story.died("E", "dies")
    [words] = story.words
    assert words.startswith("engine E died while running task dies")


# ---- R26-R29, R31: the outside --------------------------------------------------------------------------------------


def test_r26_engines_that_join_twice_leave_twice_or_were_never_there_do_no_harm() -> None:
    story = running("a", hwm=1)
    story.submit("b")
    assert story.engine("E", slots=5) == []
    assert story.lost("F") == []
    assert story.returned("F") == []
    assert story.drain("F") == []
    assert story.died("E", "a") == [engine_forgotten("E")]
    assert story.died("E", "a") == []
    assert story.lost("E") == []
    assert story.wait(20.0) == []
    assert story.finished("a", "ok", "E") == []
    assert story.engine("G") == [sent("a", "G", attempt=2)]


def test_r26_an_engine_that_registers_anew_under_its_old_id_is_a_new_one() -> None:
    for scheme in ("leastload", "lru", "twobin", "weighted", "pure"):
        story = Story(scheme=scheme)
        story.engine("E")
        story.died("E")
        assert story.engine("E") == []
        assert story.submit("a") == [accepted("a"), sent("a", "E")]
        assert story.ok("a") == [delivered("a", "ok", "E")]


def test_r26_what_makes_no_sense_is_counted() -> None:
    story = running("a")
    before = dict(story.scheduler.counters)
    for task, engine in [("a", "F"), ("b", "E"), ("b", "F")]:
        assert story.finished(task, "ok", engine) == []
    assert sum(story.scheduler.counters.values()) >= sum(before.values()) + 3


def test_r26_a_client_that_joins_twice_keeps_its_weight() -> None:
    story = running("a")
    assert story.client("me", weight=100.0) == []
    assert story.ok("a") == [delivered("a", "ok", "E")]


def test_r27_a_client_that_leaves_keeps_its_tasks_unless_it_asked_otherwise() -> None:
    story = running("a", hwm=1)
    story.client("you")
    story.submit("b", client="you")
    story.submit("c")
    assert story.leave("me", cancel=True) == [recalled("a", "E")]
    assert story.given_back("a") == [session_forgotten("me"), sent("b", "E")]
    assert story.leave("you", cancel=False) == []
    assert story.ok("b") == [session_forgotten("you")]
    assert story.submit("d", client="you") == [refused("d", client="you")]


def test_r27_a_session_is_forgotten_when_it_has_left_and_its_last_task_has_ended() -> None:
    story = running("a", "b", hwm=2)
    story.submit("c", timeout_s=9.0)
    assert story.leave() == []
    assert story.ok("a") == [sent("c", "E")]
    assert story.ok("b") == []
    assert story.ok("c") == [session_forgotten("me")]
    assert story.leave() == []


def test_r27_a_session_without_unfinished_tasks_is_forgotten_when_it_leaves() -> None:
    story = running("a")
    assert story.leave("unknown") == []
    story.ok("a")
    assert story.leave() == [session_forgotten("me")]


def test_r27_a_session_whose_waiting_tasks_are_cancelled_is_forgotten_when_it_leaves() -> None:
    story = Story()
    story.submit("a")
    story.submit("b", after=["a"])
    assert story.leave(cancel=True) == [session_forgotten("me")]


def test_r27_a_session_is_forgotten_when_its_last_task_times_out() -> None:
    story = Story()
    story.submit("a", timeout_s=1.0)
    story.leave()
    assert story.wait(1.0) == [session_forgotten("me")]


def test_r27_a_session_is_forgotten_when_its_last_task_is_lost_with_its_engine() -> None:
    story = Story()
    story.engine("E")
    story.submit("a", crash_limit=0)
    story.leave()
    assert story.lost("E") == []
    assert story.wait(5.0) == [engine_forgotten("E"), session_forgotten("me")]


def test_r27_an_id_that_is_used_by_a_later_session_is_forgotten_with_the_last_of_them() -> None:
    story = running("a", hwm=2)
    story.leave()
    story.client("me")
    story.submit("b")
    assert story.ok("a") == []
    assert story.leave() == []
    assert story.ok("b") == [session_forgotten("me")]


def test_r28_monitors_are_told_of_a_removed_engine_right_after_it_is_forgotten() -> None:
    story = running("a")
    story.submit("b", targets=["E"])
    story.leave()
    story.scheduler.monitored = True
    effects = story.scheduler.handle(EngineLost("E", "gone", confirmed=True, running=("a",)), story.now)
    assert effects == [
        ForgetEngine("E"),
        Publish("engine_lost", engine="E"),
        Publish("finished", "b", None, "me", "unreachable"),
    ]
    assert story.cancel("a", None) == [session_forgotten("me")]


def test_r28_monitors_are_told_each_thing_once_and_nothing_when_nobody_listens() -> None:
    story = Story()
    story.scheduler.monitored = True
    told: list[tuple[object, ...]] = []
    happened = [
        EngineJoined("E"),
        TaskSubmitted("me", "a", "call a"),
        TaskFinished("E", "a", "ok", "ok a"),
    ]
    for event in happened:
        told += [(e.what, e.task, e.engine) for e in story.scheduler.handle(event, 0.0) if isinstance(e, Publish)]
    assert told == [
        ("engine_joined", None, "E"),
        ("submitted", "a", None),
        ("assigned", "a", "E"),
        ("finished", "a", "E"),
    ]
    story.scheduler.monitored = False
    quiet = story.scheduler.handle(TaskSubmitted("me", "b", "call b"), 0.0)
    assert quiet == [accepted("b"), sent("b", "E")]


def test_r29_a_draining_engine_gets_nothing_more_and_gives_back_what_it_has_not_begun() -> None:
    story = running("a", "b", "c")
    story.engine("F", hwm=1)
    story.submit("d", targets=["F"])
    assert story.drain("E") == [recalled("b", "E"), recalled("c", "E")]
    assert story.drain("E") == []
    assert story.given_back("b") == []
    assert story.kept("c") == []
    assert story.ok("d") == [delivered("d", "ok", "F"), sent("b", "F", attempt=2)]
    assert story.ok("a") == [delivered("a", "ok", "E")]
    assert story.ok("c") == [delivered("c", "ok", "E")]


def test_r29_a_draining_scheduler_takes_and_sends_nothing_more() -> None:
    story = running("a", "b")
    story.submit("waits", after=["a"])
    assert story.drain() == [recalled("b", "E")]
    assert story.submit("c") == [refused("c")]
    assert story.engine("F") == []
    assert story.given_back("b") == []
    assert story.ok("a") == [delivered("a", "ok", "E")]
    assert story.cancel("b") == [failed("b", "TaskCancelled")]


def test_r29_while_draining_a_repeat_is_still_answered() -> None:
    story = running("a", "b")
    story.ok("a")
    story.drain()
    assert story.submit("a") == [accepted("a"), delivered("a", "ok", "E")]
    assert story.submit("b") == [accepted("b")]
    assert story.ok("b") == [delivered("b", "ok", "E")] * 2


def test_r31_what_an_engine_sent_before_it_left_is_handled_before_its_leaving() -> None:
    story = running("a", "b")
    story.engine("F")
    assert story.ok("a") == [delivered("a", "ok", "E")]
    assert story.died("E", "b") == [engine_forgotten("E"), sent("b", "F", attempt=2)]


def test_r31_an_engine_that_joined_before_a_submission_was_read_can_take_it() -> None:
    story = Story()
    story.engine("E")
    assert story.submit("a", targets=["E"]) == [accepted("a"), sent("a", "E")]
