"""R2-R5, R8, R9: dependencies and inputs. Each scenario asserts all effects, so that no others are emitted."""

from __future__ import annotations

from trio_sched.core.events import Dependency

from .scenario import Scenario, accepted, busy_scenario, delivered, failed, native, recalled, refused, sent, two_engines

ANY, EITHER, FAILURES = {"all": False}, {"failure": True}, {"success": False, "failure": True}


def dependency(*tasks: str, **flags: bool) -> Dependency:
    return Dependency(tasks, **flags)


# ---- R2-R4: after ---------------------------------------------------------------------------------------------------


def test_r02_a_dependency_that_counts_no_outcome_is_refused() -> None:
    scenario = Scenario()
    never = dependency("x", success=False, failure=False)
    assert scenario.submit("a", after=never) == [refused("a")]
    assert scenario.submit("b", follow=never) == [refused("b")]


def test_r02_too_many_dependencies_are_refused_with_the_limit() -> None:
    scenario = Scenario(max_dependencies=2)
    assert scenario.submit("a", after=["x", "y", "z"]) == [refused("a")]
    assert "2" in scenario.reasons[0]


def test_r03_after_all_is_met_when_every_task_ended_ok() -> None:
    scenario = Scenario(hwm=2)
    scenario.engine("E")
    scenario.submit("a")
    scenario.submit("b")
    assert scenario.submit("c", after=["a", "b"]) == [accepted("c")]
    assert scenario.ok("b") == [delivered("b", "ok", "E")]
    assert scenario.ok("a") == [delivered("a", "ok", "E"), sent("c", "E")]


def test_r03_after_any_is_met_by_the_first_outcome_that_counts() -> None:
    scenario = Scenario(hwm=2)
    scenario.engine("E")
    scenario.submit("a")
    scenario.submit("b")
    assert scenario.submit("c", after=dependency("a", "b", **ANY)) == [accepted("c")]
    assert scenario.error("a") == [delivered("a", "error", "E")]
    assert scenario.ok("b") == [delivered("b", "ok", "E"), sent("c", "E")]


def test_r03_tasks_that_ended_before_the_submission_count() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a")
    scenario.ok("a")
    assert scenario.submit("b", after=["a"]) == [accepted("b"), sent("b", "E")]


def test_r03_an_empty_dependency_is_met() -> None:
    scenario = Scenario()
    scenario.engine("E")
    assert scenario.submit("a", after=[], follow=dependency(all=False)) == [accepted("a"), sent("a", "E")]


def test_r03_failures_count_for_a_dependency_that_says_so() -> None:
    scenario = Scenario(hwm=0)
    scenario.engine("E")
    scenario.submit("a")
    scenario.submit("either", after=dependency("a", **EITHER))
    scenario.submit("on failure", after=dependency("a", **FAILURES))
    assert scenario.error("a") == [delivered("a", "error", "E"), sent("either", "E"), sent("on failure", "E")]


def test_r04_after_all_is_impossible_at_the_first_outcome_that_does_not_count() -> None:
    scenario = Scenario(hwm=0)
    scenario.engine("E")
    scenario.submit("a")
    scenario.submit("b")
    scenario.submit("both", after=["a", "b"])
    scenario.submit("on failure", after=dependency("a", **FAILURES))
    assert scenario.error("b") == [delivered("b", "error", "E"), failed("both", "ImpossibleDependency")]
    assert scenario.ok("a") == [delivered("a", "ok", "E"), failed("on failure", "ImpossibleDependency")]


def test_r04_after_any_is_impossible_when_no_task_is_left_that_may_count() -> None:
    scenario = Scenario(hwm=0)
    scenario.engine("E")
    scenario.submit("a")
    scenario.submit("b")
    scenario.submit("c", after=dependency("a", "b", **ANY))
    assert scenario.error("a") == [delivered("a", "error", "E")]
    assert scenario.error("b") == [delivered("b", "error", "E"), failed("c", "ImpossibleDependency")]


def test_r04_a_dependency_that_is_impossible_at_submission_ends_the_task_at_once() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a")
    scenario.error("a")
    assert scenario.submit("b", after=["a"]) == [accepted("b"), failed("b", "ImpossibleDependency")]
    assert scenario.submit("c", after=["b"]) == [accepted("c"), failed("c", "ImpossibleDependency")]
    assert scenario.submit("d", after=dependency("c", **EITHER)) == [accepted("d"), sent("d", "E")]


def test_r04_the_cascade_is_a_queue() -> None:
    """First all that depend on the head in the order of submission, then what depends on those."""
    scenario = busy_scenario()
    scenario.submit("head", after=["long"])
    scenario.submit("left", after=["head"])
    scenario.submit("below left", after=["left"])
    scenario.submit("right", after=["head"])
    scenario.submit("last", after=dependency("below left", "right", **FAILURES))
    impossible = [failed(task, "ImpossibleDependency") for task in ("head", "left", "right", "below left")]
    assert scenario.error("long") == [delivered("long", "error", "E"), *impossible, sent("last", "E")]


def test_r04_a_chain_of_100_000_fails_without_overflowing_the_stack() -> None:
    scenario = Scenario(check=False)
    scenario.engine("E")
    scenario.submit("0")
    for n in range(1, 100_000):
        scenario.submit(str(n), after=[str(n - 1)])
    effects = scenario.error("0")
    assert effects[0] == delivered("0", "error", "E")
    assert effects[1:] == [failed(str(n), "ImpossibleDependency") for n in range(1, 100_000)]


def test_r04_a_fan_of_10_000_fails_in_order() -> None:
    scenario = Scenario(check=False)
    scenario.engine("E")
    scenario.submit("head")
    for n in range(10_000):
        scenario.submit(n, after=["head"])
    assert scenario.error("head")[1:] == [failed(n, "ImpossibleDependency") for n in range(10_000)]


# ---- R5: invalid ----------------------------------------------------------------------------------------------------


def test_r05_the_reason_distinguishes_the_task_itself_unknown_and_forgotten_ids() -> None:
    scenario = Scenario(keep_finished=0)
    scenario.client(1)
    scenario.engine("E")
    scenario.submit(native(1), client=1)
    scenario.ok(native(1))
    for counter, named, why in [(2, 1, "forgotten"), (3, 3, "itself"), (4, 99, "never submitted")]:
        task = native(counter)
        effects = scenario.submit(task, client=1, after=[native(named)])
        assert effects == [accepted(task, client=1), failed(task, "InvalidDependency", client=1)]
        assert why in scenario.reasons[0]


def test_r05_invalid_ids_in_after_follow_and_inputs_are_treated_alike() -> None:
    scenario = Scenario()
    scenario.engine("E")
    for name in ("after", "follow", "inputs"):
        task = f"by {name}"
        assert scenario.submit(task, **{name: ("nobody",)}) == [accepted(task), failed(task, "InvalidDependency")]


def test_r05_invalid_comes_before_impossible_and_before_met() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("bad")
    scenario.error("bad")
    scenario.submit("good")
    scenario.ok("good")
    assert scenario.submit("a", after=["bad", "nobody"]) == [accepted("a"), failed("a", "InvalidDependency")]
    some = dependency("good", "nobody", **ANY)
    assert scenario.submit("b", after=some) == [accepted("b"), failed("b", "InvalidDependency")]
    assert scenario.submit("c", after=["nobody"], targets=["F"]) == [accepted("c"), failed("c", "InvalidDependency")]


def test_r05_the_task_itself_is_invalid_in_an_any_dependency_too() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("good")
    scenario.ok("good")
    some = dependency("good", "a", **ANY)
    assert scenario.submit("a", after=some) == [accepted("a"), failed("a", "InvalidDependency")]


# ---- R8, R9 ---------------------------------------------------------------------------------------------------------


def test_r08_after_and_follow_must_both_be_met_and_may_name_tasks_of_any_client() -> None:
    scenario = two_engines()
    scenario.client("you")
    scenario.submit("first", targets=["E"])
    assert scenario.submit("a", client="you", after=["first"], follow=["f"]) == [accepted("a", client="you")]
    assert scenario.ok("first") == [delivered("first", "ok", "E"), sent("a", "F")]
    assert scenario.ok("a") == [delivered("a", "ok", "F", client="you")]


def test_r09_results_are_sent_with_the_assignment_in_the_order_of_the_inputs() -> None:
    scenario = Scenario(hwm=2)
    scenario.engine("E")
    scenario.submit("a")
    scenario.submit("b")
    scenario.submit("sum", inputs=("b", "a"))
    scenario.ok("a")
    assert scenario.ok("b") == [delivered("b", "ok", "E"), sent("sum", "E", inputs=("ok b", "ok a"))]


def test_r09_a_failed_input_makes_the_task_impossible() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a")
    scenario.submit("b", inputs=("a",))
    assert scenario.error("a") == [delivered("a", "error", "E"), failed("b", "ImpossibleDependency")]


def test_r09_a_result_is_kept_while_an_unfinished_task_needs_it() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a")
    scenario.submit("needs a", inputs=("a",), retries=1)
    scenario.ok("a")
    scenario.received("a")
    assert scenario.submit("also", inputs=("a",)) == [accepted("also")]
    assert scenario.error("needs a") == [sent("needs a", "E", attempt=2, inputs=("ok a",))]
    scenario.ok("needs a")
    scenario.ok("also")
    assert scenario.submit("late", inputs=("a",)) == [accepted("late"), failed("late", "InvalidDependency")]
    assert scenario.submit("in time only", after=["a"]) == [accepted("in time only"), sent("in time only", "E")]


def test_r09_a_dropped_result_is_an_invalid_input() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a")
    scenario.ok("a")
    scenario.received("a")
    assert scenario.submit("b", inputs=("a",)) == [accepted("b"), failed("b", "InvalidDependency")]


def test_r09_a_cancelled_input_makes_the_task_impossible() -> None:
    scenario = busy_scenario()
    scenario.submit("a")
    scenario.submit("b", inputs=("a",))
    assert scenario.cancel("long") == [recalled("long", "E")]
    assert scenario.cancel("a") == [failed("a", "TaskCancelled"), failed("b", "ImpossibleDependency")]
