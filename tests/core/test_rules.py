"""R1-R9: ids and dependencies, told as stories. Each asserts all that is done, so that nothing else may be."""

from __future__ import annotations

from trio_sched.core.events import Dependency
from trio_sched.core.ids import make_task_id

from .story import Story, accepted, delivered, engine_forgotten, failed, recalled, refused, sent

ANY, EITHER, FAILURES = {"all": False}, {"failure": True}, {"success": False, "failure": True}


def native(counter: int, session: int = 1) -> int:
    return make_task_id(session, counter)


def busy_story() -> Story:
    """One engine, occupied by "long" until somebody ends it."""
    story = Story()
    story.engine("E")
    story.submit("long")
    return story


def dependency(*tasks: str, **flags: bool) -> Dependency:
    return Dependency(tasks, **flags)


# ---- R1: ids --------------------------------------------------------------------------------------------------------


def test_r01_a_task_is_accepted_sent_and_delivered() -> None:
    story = Story()
    assert story.engine("E") == []
    assert story.submit("a") == [accepted("a"), sent("a", "E")]
    assert story.ok("a") == [delivered("a", "ok", "E")]


def test_r01_the_same_id_again_runs_once_and_is_delivered_for_each_submission() -> None:
    story = Story()
    story.engine("E")
    story.submit("a")
    assert story.submit("a") == [accepted("a")]
    assert story.submit("a") == [accepted("a")]
    assert story.ok("a") == [delivered("a", "ok", "E")] * 3


def test_r01_the_same_id_again_after_its_end_is_delivered_at_once() -> None:
    story = Story()
    story.engine("E")
    story.submit("a")
    story.ok("a")
    assert story.submit("a") == [accepted("a"), delivered("a", "ok", "E")]
    story.received("a")
    assert story.submit("a") == [refused("a")]


def test_r01_the_id_of_another_session_is_refused() -> None:
    story = Story()
    story.client("you")
    story.engine("E")
    story.submit("a")
    assert story.submit("a", client="you") == [refused("a", client="you")]
    assert story.ok("a") == [delivered("a", "ok", "E")]
    assert story.submit("a", client="you") == [refused("a", client="you")]


def test_r01_a_native_id_of_another_session_is_refused_and_spoils_nothing() -> None:
    story = Story()
    story.client(1)
    story.client(2)
    assert story.submit(native(5, session=1), client=2) == [refused(native(5), client=2)]
    assert story.submit(native(5), client=1) == [accepted(native(5), client=1)]


def test_r01_a_native_id_that_was_passed_is_refused_as_forgotten() -> None:
    story = Story(keep_finished=0)
    story.client(1)
    story.engine("E")
    story.submit(native(1), client=1)
    story.submit(native(4), client=1)
    story.ok(native(1))
    assert story.submit(native(1), client=1) == [refused(native(1), client=1)]
    assert "forgotten" in story.words[0]
    assert story.submit(native(3), client=1) == [refused(native(3), client=1)]
    assert story.submit(native(4), client=1) == [accepted(native(4), client=1)]
    assert story.submit(native(5), client=1) == [accepted(native(5), client=1)]


def test_r01_a_refused_native_id_counts_as_seen() -> None:
    story = Story()
    story.client(1)
    nothing = Dependency((), success=False, failure=False)
    assert story.submit(native(7), client=1, after=nothing) == [refused(native(7), client=1)]
    assert story.submit(native(7), client=1) == [refused(native(7), client=1)]
    assert story.submit(native(6), client=1) == [refused(native(6), client=1)]
    assert story.submit(native(8), client=1) == [accepted(native(8), client=1)]


def test_r01_a_client_that_nobody_knows_is_refused() -> None:
    assert Story().submit("a", client="stranger") == [refused("a", client="stranger")]


# ---- R2-R4: after ---------------------------------------------------------------------------------------------------


def test_r02_a_dependency_under_which_no_end_counts_is_refused() -> None:
    story = Story()
    never = dependency("x", success=False, failure=False)
    assert story.submit("a", after=never) == [refused("a")]
    assert story.submit("b", follow=never) == [refused("b")]


def test_r02_too_many_dependencies_are_refused_with_the_limit() -> None:
    story = Story(max_dependencies=2)
    assert story.submit("a", after=["x", "y", "z"]) == [refused("a")]
    assert "2" in story.words[0]


def test_r03_after_all_is_met_when_every_task_ended_ok() -> None:
    story = Story(hwm=2)
    story.engine("E")
    story.submit("a")
    story.submit("b")
    assert story.submit("c", after=["a", "b"]) == [accepted("c")]
    assert story.ok("b") == [delivered("b", "ok", "E")]
    assert story.ok("a") == [delivered("a", "ok", "E"), sent("c", "E")]


def test_r03_after_any_is_met_by_the_first_that_counts() -> None:
    story = Story(hwm=2)
    story.engine("E")
    story.submit("a")
    story.submit("b")
    assert story.submit("c", after=dependency("a", "b", **ANY)) == [accepted("c")]
    assert story.error("a") == [delivered("a", "error", "E")]
    assert story.ok("b") == [delivered("b", "ok", "E"), sent("c", "E")]


def test_r03_ends_that_came_before_the_submission_count() -> None:
    story = Story()
    story.engine("E")
    story.submit("a")
    story.ok("a")
    assert story.submit("b", after=["a"]) == [accepted("b"), sent("b", "E")]


def test_r03_empty_is_met() -> None:
    story = Story()
    story.engine("E")
    assert story.submit("a", after=[], follow=dependency(all=False)) == [accepted("a"), sent("a", "E")]


def test_r03_failures_count_where_they_are_asked_for() -> None:
    story = Story(hwm=0)
    story.engine("E")
    story.submit("a")
    story.submit("either", after=dependency("a", **EITHER))
    story.submit("on failure", after=dependency("a", **FAILURES))
    assert story.error("a") == [delivered("a", "error", "E"), sent("either", "E"), sent("on failure", "E")]


def test_r04_after_all_is_impossible_at_the_first_end_that_does_not_count() -> None:
    story = Story(hwm=0)
    story.engine("E")
    story.submit("a")
    story.submit("b")
    story.submit("both", after=["a", "b"])
    story.submit("on failure", after=dependency("a", **FAILURES))
    assert story.error("b") == [delivered("b", "error", "E"), failed("both", "ImpossibleDependency")]
    assert story.ok("a") == [delivered("a", "ok", "E"), failed("on failure", "ImpossibleDependency")]


def test_r04_after_any_is_impossible_when_none_is_left() -> None:
    story = Story(hwm=0)
    story.engine("E")
    story.submit("a")
    story.submit("b")
    story.submit("c", after=dependency("a", "b", **ANY))
    assert story.error("a") == [delivered("a", "error", "E")]
    assert story.error("b") == [delivered("b", "error", "E"), failed("c", "ImpossibleDependency")]


def test_r04_impossible_already_at_submission() -> None:
    story = Story()
    story.engine("E")
    story.submit("a")
    story.error("a")
    assert story.submit("b", after=["a"]) == [accepted("b"), failed("b", "ImpossibleDependency")]
    assert story.submit("c", after=["b"]) == [accepted("c"), failed("c", "ImpossibleDependency")]
    assert story.submit("d", after=dependency("c", **EITHER)) == [accepted("d"), sent("d", "E")]


def test_r04_the_cascade_is_a_queue() -> None:
    """First all that depend on the head in the order of submission, then what depends on those."""
    story = busy_story()
    story.submit("head", after=["long"])
    story.submit("left", after=["head"])
    story.submit("below left", after=["left"])
    story.submit("right", after=["head"])
    story.submit("last", after=dependency("below left", "right", **FAILURES))
    impossible = [failed(task, "ImpossibleDependency") for task in ("head", "left", "right", "below left")]
    assert story.error("long") == [delivered("long", "error", "E"), *impossible, sent("last", "E")]


def test_r04_a_chain_of_100_000_fails_without_overflowing_the_stack() -> None:
    story = Story(check=False)
    story.engine("E")
    story.submit("0")
    for n in range(1, 100_000):
        story.submit(str(n), after=[str(n - 1)])
    effects = story.error("0")
    assert effects[0] == delivered("0", "error", "E")
    assert effects[1:] == [failed(str(n), "ImpossibleDependency") for n in range(1, 100_000)]


def test_r04_a_fan_of_10_000_fails_in_order() -> None:
    story = Story(check=False)
    story.engine("E")
    story.submit("head")
    for n in range(10_000):
        story.submit(n, after=["head"])
    assert story.error("head")[1:] == [failed(n, "ImpossibleDependency") for n in range(10_000)]


# ---- R5: invalid ----------------------------------------------------------------------------------------------------


def test_r05_itself_unknown_and_forgotten_are_told_apart() -> None:
    story = Story(keep_finished=0)
    story.client(1)
    story.engine("E")
    story.submit(native(1), client=1)
    story.ok(native(1))
    for counter, named, why in [(2, 1, "forgotten"), (3, 3, "itself"), (4, 99, "never submitted")]:
        task = native(counter)
        effects = story.submit(task, client=1, after=[native(named)])
        assert effects == [accepted(task, client=1), failed(task, "InvalidDependency", client=1)]
        assert why in story.words[0]


def test_r05_after_follow_and_inputs_alike() -> None:
    story = Story()
    story.engine("E")
    for name in ("after", "follow", "inputs"):
        task = f"by {name}"
        assert story.submit(task, **{name: ("nobody",)}) == [accepted(task), failed(task, "InvalidDependency")]


def test_r05_invalid_wins_over_impossible_and_over_met() -> None:
    story = Story()
    story.engine("E")
    story.submit("bad")
    story.error("bad")
    story.submit("good")
    story.ok("good")
    assert story.submit("a", after=["bad", "nobody"]) == [accepted("a"), failed("a", "InvalidDependency")]
    some = dependency("good", "nobody", **ANY)
    assert story.submit("b", after=some) == [accepted("b"), failed("b", "InvalidDependency")]
    assert story.submit("c", after=["nobody"], targets=["F"]) == [accepted("c"), failed("c", "InvalidDependency")]


def test_r05_itself_is_invalid_even_where_any_would_do() -> None:
    story = Story()
    story.engine("E")
    story.submit("good")
    story.ok("good")
    some = dependency("good", "a", **ANY)
    assert story.submit("a", after=some) == [accepted("a"), failed("a", "InvalidDependency")]


# ---- R6: follow -----------------------------------------------------------------------------------------------------


def two_engines(**settings: object) -> Story:
    """E has run "e", F has run "f"; both are free."""
    story = Story(**settings)
    story.engine("F")
    story.engine("E")
    story.submit("e")
    story.submit("f")
    story.ok("e")
    story.ok("f")
    return story


def test_r06_follow_all_goes_where_they_ran_and_nowhere_else() -> None:
    story = two_engines()
    assert story.submit("a", follow=["f"]) == [accepted("a"), sent("a", "F")]
    assert story.submit("b", follow=["f"]) == [accepted("b")]
    assert story.ok("a") == [delivered("a", "ok", "F"), sent("b", "F")]


def test_r06_follow_all_of_tasks_on_two_engines_is_impossible() -> None:
    story = two_engines()
    assert story.submit("a", follow=["e", "f"]) == [accepted("a"), failed("a", "ImpossibleDependency")]


def test_r06_follow_all_is_impossible_as_soon_as_they_part() -> None:
    story = two_engines()
    story.submit("waits", after=["e"])
    story.submit("a", follow=["e", "f", "waits"])
    assert story.submit("b", follow=["e", "f", "waits"]) == [accepted("b"), failed("b", "ImpossibleDependency")]


def test_r06_follow_all_of_one_that_ran_nowhere_is_impossible() -> None:
    story = two_engines()
    story.submit("nowhere", after=["nobody"])
    either = dependency("nowhere", **EITHER)
    assert story.submit("a", follow=either) == [accepted("a"), failed("a", "ImpossibleDependency")]


def test_r06_follow_all_of_a_failure_goes_where_it_failed() -> None:
    story = two_engines()
    story.submit("bad", targets=["F"])
    story.submit("after it", follow=dependency("bad", **FAILURES))
    story.submit("not after it", follow=["bad"])
    assert story.error("bad") == [
        delivered("bad", "error", "F"),
        failed("not after it", "ImpossibleDependency"),
        sent("after it", "F"),
    ]


def test_r06_follow_any_may_go_as_soon_as_one_has_room_and_the_set_grows() -> None:
    story = Story()
    story.engine("F")
    story.engine("E")
    story.submit("e")
    story.submit("f")
    story.submit("x", follow=dependency("e", "f", **ANY))
    story.submit("y", follow=dependency("e", "f", **ANY))
    assert story.ok("e") == [delivered("e", "ok", "E"), sent("x", "E")]
    assert story.ok("f") == [delivered("f", "ok", "F"), sent("y", "F")]


def test_r06_follow_any_does_not_go_where_one_ran_that_does_not_count() -> None:
    story = Story()
    story.engine("F")
    story.engine("E")
    story.submit("e")
    story.submit("f")
    story.submit("x", follow=dependency("e", "f", **ANY))
    assert story.error("e") == [delivered("e", "error", "E")]
    assert story.ok("f") == [delivered("f", "ok", "F"), sent("x", "F")]


def test_r06_follow_is_impossible_when_the_engine_is_gone() -> None:
    story = two_engines()
    story.lost("F", confirmed=True)
    assert story.submit("a", follow=["f"]) == [accepted("a"), failed("a", "ImpossibleDependency")]
    story.submit("busy", targets=["E"])
    story.submit("waits", follow=["e"])
    assert story.died("E") == [
        engine_forgotten("E"),
        failed("busy", "ImpossibleDependency"),
        failed("waits", "ImpossibleDependency"),
    ]


def test_r06_follow_any_waits_while_some_have_not_ended_even_if_the_engine_is_gone() -> None:
    story = two_engines()
    story.submit("g", targets=["E"])
    story.submit("on F", targets=["F"])
    assert story.submit("x", follow=dependency("f", "g", **ANY)) == [accepted("x")]
    assert story.died("F") == [engine_forgotten("F"), failed("on F", "ImpossibleDependency")]
    assert story.ok("g") == [delivered("g", "ok", "E"), sent("x", "E")]


def test_r06_follow_is_impossible_at_once_though_it_waits_for_something_else_too() -> None:
    story = two_engines()
    story.submit("long", targets=["E"])
    assert story.submit("a", after=["long"], follow=["f"]) == [accepted("a")]
    assert story.submit("b", inputs=("long",), follow=["f"], targets=["E"]) == [
        accepted("b"),
        failed("b", "ImpossibleDependency"),
    ]
    assert story.died("F") == [engine_forgotten("F"), failed("a", "ImpossibleDependency")]


def test_r06_follow_among_targets() -> None:
    story = two_engines()
    assert story.submit("a", follow=["f"], targets=["E"]) == [accepted("a"), failed("a", "ImpossibleDependency")]
    some = dependency("e", "f", **ANY)
    assert story.submit("b", follow=some, targets=["E"]) == [accepted("b"), sent("b", "E")]


def test_r06_a_lost_engine_counts_until_its_grace_is_over() -> None:
    story = two_engines(grace_s=5.0)
    story.lost("F")
    assert story.submit("a", follow=["f"]) == [accepted("a")]
    assert story.wait(4.9) == []
    assert story.wait(0.1) == [engine_forgotten("F"), failed("a", "ImpossibleDependency")]


# ---- R7: targets ----------------------------------------------------------------------------------------------------


def test_r07_too_many_targets_are_refused_with_the_limit() -> None:
    story = Story(max_targets=2)
    assert story.submit("a", targets=["E", "F", "G"]) == [refused("a")]
    assert "3 targets; the limit is 2 (max_targets)" in story.words[0]


def test_r07_a_reason_names_only_the_first_targets() -> None:
    story = Story()
    targets = [f"E{number:03}" for number in range(900)]
    assert story.submit("a", targets=targets) == [accepted("a"), failed("a", "ImpossibleDependency")]
    assert story.words[-1].endswith("(of E000, E001, E002, E003, E004 and 895 more)")


def test_r07_only_the_targets() -> None:
    story = Story()
    story.engine("F")
    story.engine("E")
    assert story.submit("a", targets=["F"]) == [accepted("a"), sent("a", "F")]
    assert story.submit("b", targets=["F"]) == [accepted("b")]
    assert story.ok("a") == [delivered("a", "ok", "F"), sent("b", "F")]


def test_r07_unknown_targets_do_not_count() -> None:
    story = Story()
    assert story.submit("a", targets=["E"]) == [accepted("a"), failed("a", "ImpossibleDependency")]
    story.engine("E")
    assert story.submit("b", targets=["E", "F"]) == [accepted("b"), sent("b", "E")]


def test_r07_fails_at_once_even_while_it_waits_for_something_else() -> None:
    story = busy_story()
    story.engine("F")
    story.submit("a", after=["long"], targets=["F"])
    assert story.lost("F", confirmed=True) == [engine_forgotten("F"), failed("a", "ImpossibleDependency")]
    assert story.submit("b", after=["long"], targets=["F"]) == [accepted("b"), failed("b", "ImpossibleDependency")]


def test_r07_a_lost_target_counts_until_its_grace_is_over() -> None:
    story = Story(grace_s=5.0)
    story.engine("E")
    story.lost("E")
    assert story.submit("a", targets=["E"]) == [accepted("a")]
    assert story.wait(4.9) == []
    assert story.wait(0.1) == [engine_forgotten("E"), failed("a", "ImpossibleDependency")]


def test_r07_a_draining_target_counts_until_it_has_gone() -> None:
    story = Story()
    story.engine("E")
    story.drain("E")
    assert story.submit("a", targets=["E"]) == [accepted("a")]
    assert story.lost("E", confirmed=True) == [engine_forgotten("E"), failed("a", "ImpossibleDependency")]


def test_r07_what_fails_because_its_target_is_gone_settles_its_dependents() -> None:
    story = busy_story()
    story.engine("F")
    story.submit("a", after=["long"], targets=["F"])
    story.submit("b", after=["a"])
    story.submit("c", after=dependency("b", **FAILURES), targets=["E"])
    assert story.died("F") == [
        engine_forgotten("F"),
        failed("a", "ImpossibleDependency"),
        failed("b", "ImpossibleDependency"),
    ]
    assert story.ok("long") == [delivered("long", "ok", "E"), sent("c", "E")]


# ---- R8, R9 ---------------------------------------------------------------------------------------------------------


def test_r08_after_and_follow_must_both_be_met_and_may_name_tasks_of_any_client() -> None:
    story = two_engines()
    story.client("you")
    story.submit("first", targets=["E"])
    assert story.submit("a", client="you", after=["first"], follow=["f"]) == [accepted("a", client="you")]
    assert story.ok("first") == [delivered("first", "ok", "E"), sent("a", "F")]
    assert story.ok("a") == [delivered("a", "ok", "F", client="you")]


def test_r09_results_go_out_with_the_assignment_in_the_order_of_the_inputs() -> None:
    story = Story(hwm=2)
    story.engine("E")
    story.submit("a")
    story.submit("b")
    story.submit("sum", inputs=("b", "a"))
    story.ok("a")
    assert story.ok("b") == [delivered("b", "ok", "E"), sent("sum", "E", inputs=("ok b", "ok a"))]


def test_r09_an_input_that_failed_makes_it_impossible() -> None:
    story = Story()
    story.engine("E")
    story.submit("a")
    story.submit("b", inputs=("a",))
    assert story.error("a") == [delivered("a", "error", "E"), failed("b", "ImpossibleDependency")]


def test_r09_a_result_is_kept_while_an_unfinished_task_needs_it() -> None:
    story = Story()
    story.engine("E")
    story.submit("a")
    story.submit("needs a", inputs=("a",), retries=1)
    story.ok("a")
    story.received("a")
    assert story.submit("also", inputs=("a",)) == [accepted("also")]
    assert story.error("needs a") == [sent("needs a", "E", attempt=2, inputs=("ok a",))]
    story.ok("needs a")
    story.ok("also")
    assert story.submit("late", inputs=("a",)) == [accepted("late"), failed("late", "InvalidDependency")]
    assert story.submit("in time only", after=["a"]) == [accepted("in time only"), sent("in time only", "E")]


def test_r09_a_dropped_result_is_an_invalid_input() -> None:
    story = Story()
    story.engine("E")
    story.submit("a")
    story.ok("a")
    story.received("a")
    assert story.submit("b", inputs=("a",)) == [accepted("b"), failed("b", "InvalidDependency")]


def test_r09_a_cancelled_input_makes_it_impossible() -> None:
    story = busy_story()
    story.submit("a")
    story.submit("b", inputs=("a",))
    assert story.cancel("long") == [recalled("long", "E")]
    assert story.cancel("a") == [failed("a", "TaskCancelled"), failed("b", "ImpossibleDependency")]
