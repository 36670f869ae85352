"""R6, R7: follow dependencies and targets. Each scenario asserts all effects, so that no others are emitted."""

from __future__ import annotations

from trio_sched.core.events import Dependency

from .scenario import Scenario, accepted, busy_scenario, delivered, engine_forgotten, failed, refused, sent, two_engines

ANY, EITHER, FAILURES = {"all": False}, {"failure": True}, {"success": False, "failure": True}


def dependency(*tasks: str, **flags: bool) -> Dependency:
    return Dependency(tasks, **flags)


# ---- R6: follow -----------------------------------------------------------------------------------------------------


def test_r06_follow_all_runs_only_on_the_engine_of_the_followed_tasks() -> None:
    scenario = two_engines()
    assert scenario.submit("a", follow=["f"]) == [accepted("a"), sent("a", "F")]
    assert scenario.submit("b", follow=["f"]) == [accepted("b")]
    assert scenario.ok("a") == [delivered("a", "ok", "F"), sent("b", "F")]


def test_r06_follow_all_of_tasks_on_two_engines_is_impossible() -> None:
    scenario = two_engines()
    assert scenario.submit("a", follow=["e", "f"]) == [accepted("a"), failed("a", "ImpossibleDependency")]


def test_r06_follow_all_is_impossible_as_soon_as_two_followed_tasks_ran_on_different_engines() -> None:
    scenario = two_engines()
    scenario.submit("waits", after=["e"])
    scenario.submit("a", follow=["e", "f", "waits"])
    assert scenario.submit("b", follow=["e", "f", "waits"]) == [accepted("b"), failed("b", "ImpossibleDependency")]


def test_r06_follow_all_of_a_task_that_ran_nowhere_is_impossible() -> None:
    scenario = two_engines()
    scenario.submit("nowhere", after=["nobody"])
    either = dependency("nowhere", **EITHER)
    assert scenario.submit("a", follow=either) == [accepted("a"), failed("a", "ImpossibleDependency")]


def test_r06_follow_all_of_a_failed_task_runs_on_the_engine_where_it_failed() -> None:
    scenario = two_engines()
    scenario.submit("bad", targets=["F"])
    scenario.submit("after it", follow=dependency("bad", **FAILURES))
    scenario.submit("not after it", follow=["bad"])
    assert scenario.error("bad") == [
        delivered("bad", "error", "F"),
        failed("not after it", "ImpossibleDependency"),
        sent("after it", "F"),
    ]


def test_r06_follow_any_goes_as_soon_as_one_engine_has_room_and_the_set_of_engines_grows() -> None:
    scenario = Scenario()
    scenario.engine("F")
    scenario.engine("E")
    scenario.submit("e")
    scenario.submit("f")
    scenario.submit("x", follow=dependency("e", "f", **ANY))
    scenario.submit("y", follow=dependency("e", "f", **ANY))
    assert scenario.ok("e") == [delivered("e", "ok", "E"), sent("x", "E")]
    assert scenario.ok("f") == [delivered("f", "ok", "F"), sent("y", "F")]


def test_r06_follow_any_excludes_engines_of_outcomes_that_do_not_count() -> None:
    scenario = Scenario()
    scenario.engine("F")
    scenario.engine("E")
    scenario.submit("e")
    scenario.submit("f")
    scenario.submit("x", follow=dependency("e", "f", **ANY))
    assert scenario.error("e") == [delivered("e", "error", "E")]
    assert scenario.ok("f") == [delivered("f", "ok", "F"), sent("x", "F")]


def test_r06_follow_is_impossible_when_the_engine_is_gone() -> None:
    scenario = two_engines()
    scenario.lost("F", confirmed=True)
    assert scenario.submit("a", follow=["f"]) == [accepted("a"), failed("a", "ImpossibleDependency")]
    scenario.submit("busy", targets=["E"])
    scenario.submit("waits", follow=["e"])
    assert scenario.died("E") == [
        engine_forgotten("E"),
        failed("busy", "ImpossibleDependency"),
        failed("waits", "ImpossibleDependency"),
    ]


def test_r06_follow_any_waits_for_unfinished_tasks_even_if_the_engine_of_the_others_is_gone() -> None:
    scenario = two_engines()
    scenario.submit("g", targets=["E"])
    scenario.submit("on F", targets=["F"])
    assert scenario.submit("x", follow=dependency("f", "g", **ANY)) == [accepted("x")]
    assert scenario.died("F") == [engine_forgotten("F"), failed("on F", "ImpossibleDependency")]
    assert scenario.ok("g") == [delivered("g", "ok", "E"), sent("x", "E")]


def test_r06_follow_is_impossible_at_once_while_after_is_pending() -> None:
    scenario = two_engines()
    scenario.submit("long", targets=["E"])
    assert scenario.submit("a", after=["long"], follow=["f"]) == [accepted("a")]
    assert scenario.submit("b", inputs=("long",), follow=["f"], targets=["E"]) == [
        accepted("b"),
        failed("b", "ImpossibleDependency"),
    ]
    assert scenario.died("F") == [engine_forgotten("F"), failed("a", "ImpossibleDependency")]


def test_r06_follow_is_restricted_to_the_targets() -> None:
    scenario = two_engines()
    assert scenario.submit("a", follow=["f"], targets=["E"]) == [accepted("a"), failed("a", "ImpossibleDependency")]
    some = dependency("e", "f", **ANY)
    assert scenario.submit("b", follow=some, targets=["E"]) == [accepted("b"), sent("b", "E")]


def test_r06_a_lost_engine_counts_until_its_grace_period_is_over() -> None:
    scenario = two_engines(grace_s=5.0)
    scenario.lost("F")
    assert scenario.submit("a", follow=["f"]) == [accepted("a")]
    assert scenario.wait(4.9) == []
    assert scenario.wait(0.1) == [engine_forgotten("F"), failed("a", "ImpossibleDependency")]


# ---- R7: targets ----------------------------------------------------------------------------------------------------


def test_r07_too_many_targets_are_refused_with_the_limit() -> None:
    scenario = Scenario(max_targets=2)
    assert scenario.submit("a", targets=["E", "F", "G"]) == [refused("a")]
    assert "3 targets; the limit is 2 (max_targets)" in scenario.reasons[0]


def test_r07_the_reason_lists_only_the_first_targets() -> None:
    scenario = Scenario()
    targets = [f"E{number:03}" for number in range(900)]
    assert scenario.submit("a", targets=targets) == [accepted("a"), failed("a", "ImpossibleDependency")]
    assert scenario.reasons[-1].endswith("(of E000, E001, E002, E003, E004 and 895 more)")


def test_r07_a_task_runs_only_on_its_targets() -> None:
    scenario = Scenario()
    scenario.engine("F")
    scenario.engine("E")
    assert scenario.submit("a", targets=["F"]) == [accepted("a"), sent("a", "F")]
    assert scenario.submit("b", targets=["F"]) == [accepted("b")]
    assert scenario.ok("a") == [delivered("a", "ok", "F"), sent("b", "F")]


def test_r07_unknown_targets_do_not_count() -> None:
    scenario = Scenario()
    assert scenario.submit("a", targets=["E"]) == [accepted("a"), failed("a", "ImpossibleDependency")]
    scenario.engine("E")
    assert scenario.submit("b", targets=["E", "F"]) == [accepted("b"), sent("b", "E")]


def test_r07_a_task_without_targets_left_ends_at_once_while_it_waits() -> None:
    scenario = busy_scenario()
    scenario.engine("F")
    scenario.submit("a", after=["long"], targets=["F"])
    assert scenario.lost("F", confirmed=True) == [engine_forgotten("F"), failed("a", "ImpossibleDependency")]
    assert scenario.submit("b", after=["long"], targets=["F"]) == [accepted("b"), failed("b", "ImpossibleDependency")]


def test_r07_a_lost_target_counts_until_its_grace_period_is_over() -> None:
    scenario = Scenario(grace_s=5.0)
    scenario.engine("E")
    scenario.lost("E")
    assert scenario.submit("a", targets=["E"]) == [accepted("a")]
    assert scenario.wait(4.9) == []
    assert scenario.wait(0.1) == [engine_forgotten("E"), failed("a", "ImpossibleDependency")]


def test_r07_a_draining_target_counts_until_it_is_removed() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.drain("E")
    assert scenario.submit("a", targets=["E"]) == [accepted("a")]
    assert scenario.lost("E", confirmed=True) == [engine_forgotten("E"), failed("a", "ImpossibleDependency")]


def test_r07_a_task_whose_target_is_gone_settles_its_dependents() -> None:
    scenario = busy_scenario()
    scenario.engine("F")
    scenario.submit("a", after=["long"], targets=["F"])
    scenario.submit("b", after=["a"])
    scenario.submit("c", after=dependency("b", **FAILURES), targets=["E"])
    assert scenario.died("F") == [
        engine_forgotten("F"),
        failed("a", "ImpossibleDependency"),
        failed("b", "ImpossibleDependency"),
    ]
    assert scenario.ok("long") == [delivered("long", "ok", "E"), sent("c", "E")]
