"""R1: ids of tasks. Each scenario asserts all effects, so that no others are emitted."""

from __future__ import annotations

from trio_sched.core.events import Dependency

from .scenario import Scenario, accepted, delivered, native, refused, sent

# ---- R1: ids --------------------------------------------------------------------------------------------------------


def test_r01_a_task_is_accepted_sent_and_delivered() -> None:
    scenario = Scenario()
    assert scenario.engine("E") == []
    assert scenario.submit("a") == [accepted("a"), sent("a", "E")]
    assert scenario.ok("a") == [delivered("a", "ok", "E")]


def test_r01_the_same_id_again_runs_once_and_is_delivered_for_each_submission() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a")
    assert scenario.submit("a") == [accepted("a")]
    assert scenario.submit("a") == [accepted("a")]
    assert scenario.ok("a") == [delivered("a", "ok", "E")] * 3


def test_r01_the_same_id_again_after_its_end_is_delivered_at_once() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a")
    scenario.ok("a")
    assert scenario.submit("a") == [accepted("a"), delivered("a", "ok", "E")]
    scenario.received("a")
    assert scenario.submit("a") == [refused("a")]


def test_r01_the_id_of_another_session_is_refused() -> None:
    scenario = Scenario()
    scenario.client("you")
    scenario.engine("E")
    scenario.submit("a")
    assert scenario.submit("a", client="you") == [refused("a", client="you")]
    assert scenario.ok("a") == [delivered("a", "ok", "E")]
    assert scenario.submit("a", client="you") == [refused("a", client="you")]


def test_r01_a_native_id_of_another_session_is_refused_and_stays_usable_there() -> None:
    scenario = Scenario()
    scenario.client(1)
    scenario.client(2)
    assert scenario.submit(native(5, session=1), client=2) == [refused(native(5), client=2)]
    assert scenario.submit(native(5), client=1) == [accepted(native(5), client=1)]


def test_r01_a_native_id_below_the_highest_one_seen_is_refused_as_forgotten() -> None:
    scenario = Scenario(keep_finished=0)
    scenario.client(1)
    scenario.engine("E")
    scenario.submit(native(1), client=1)
    scenario.submit(native(4), client=1)
    scenario.ok(native(1))
    assert scenario.submit(native(1), client=1) == [refused(native(1), client=1)]
    assert "forgotten" in scenario.reasons[0]
    assert scenario.submit(native(3), client=1) == [refused(native(3), client=1)]
    assert scenario.submit(native(4), client=1) == [accepted(native(4), client=1)]
    assert scenario.submit(native(5), client=1) == [accepted(native(5), client=1)]


def test_r01_a_refused_native_id_counts_as_seen() -> None:
    scenario = Scenario()
    scenario.client(1)
    nothing = Dependency((), success=False, failure=False)
    assert scenario.submit(native(7), client=1, after=nothing) == [refused(native(7), client=1)]
    assert scenario.submit(native(7), client=1) == [refused(native(7), client=1)]
    assert scenario.submit(native(6), client=1) == [refused(native(6), client=1)]
    assert scenario.submit(native(8), client=1) == [accepted(native(8), client=1)]


def test_r01_a_submission_of_an_unknown_client_is_refused() -> None:
    assert Scenario().submit("a", client="unknown") == [refused("a", client="unknown")]
