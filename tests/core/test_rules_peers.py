"""R26-R29, R31: invalid events, sessions that end, monitors, draining, and the order of events."""

from __future__ import annotations

from trio_sched.core.effects import ForgetEngine, Publish
from trio_sched.core.events import (
    EngineJoined,
    EngineLost,
    MonitoringChanged,
    TaskFinished,
    TaskSubmitted,
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


def test_r26_engines_that_join_twice_leave_twice_or_are_unknown_do_no_harm() -> None:
    scenario = running("a", hwm=1)
    scenario.submit("b")
    assert scenario.engine("E", slots=5) == []
    assert scenario.lost("F") == []
    assert scenario.returned("F") == []
    assert scenario.drain("F") == []
    assert scenario.died("E", "a") == [engine_forgotten("E")]
    assert scenario.died("E", "a") == []
    assert scenario.lost("E") == []
    assert scenario.wait(20.0) == []
    assert scenario.finished("a", "ok", "E") == []
    assert scenario.engine("G") == [sent("a", "G", attempt=2)]


def test_r26_an_engine_that_registers_again_with_the_same_id_is_a_new_one() -> None:
    for scheme in ("leastload", "lru", "twobin", "weighted", "pure"):
        scenario = Scenario(scheme=scheme)
        scenario.engine("E")
        scenario.died("E")
        assert scenario.engine("E") == []
        assert scenario.submit("a") == [accepted("a"), sent("a", "E")]
        assert scenario.ok("a") == [delivered("a", "ok", "E")]


def test_r26_invalid_events_are_counted() -> None:
    scenario = running("a")
    before = dict(scenario.scheduler.counters)
    for task, engine in [("a", "F"), ("b", "E"), ("b", "F")]:
        assert scenario.finished(task, "ok", engine) == []
    assert sum(scenario.scheduler.counters.values()) >= sum(before.values()) + 3


def test_r26_a_client_that_joins_twice_keeps_its_weight() -> None:
    scenario = running("a")
    assert scenario.client("me", weight=100.0) == []
    assert scenario.ok("a") == [delivered("a", "ok", "E")]


def test_r27_the_tasks_of_a_client_that_leaves_go_on_unless_it_cancels_them() -> None:
    scenario = running("a", hwm=1)
    scenario.client("you")
    scenario.submit("b", client="you")
    scenario.submit("c")
    assert scenario.leave("me", cancel=True) == [recalled("a", "E")]
    assert scenario.given_back("a") == [session_forgotten("me"), sent("b", "E")]
    assert scenario.leave("you", cancel=False) == []
    assert scenario.ok("b") == [session_forgotten("you")]
    assert scenario.submit("d", client="you") == [refused("d", client="you")]


def test_r27_a_session_is_forgotten_when_it_has_left_and_its_last_task_has_ended() -> None:
    scenario = running("a", "b", hwm=2)
    scenario.submit("c", timeout_s=9.0)
    assert scenario.leave() == []
    assert scenario.ok("a") == [sent("c", "E")]
    assert scenario.ok("b") == []
    assert scenario.ok("c") == [session_forgotten("me")]
    assert scenario.leave() == []


def test_r27_a_session_without_unfinished_tasks_is_forgotten_when_it_leaves() -> None:
    scenario = running("a")
    assert scenario.leave("unknown") == []
    scenario.ok("a")
    assert scenario.leave() == [session_forgotten("me")]


def test_r27_a_session_whose_waiting_tasks_are_cancelled_is_forgotten_when_it_leaves() -> None:
    scenario = Scenario()
    scenario.submit("a")
    scenario.submit("b", after=["a"])
    assert scenario.leave(cancel=True) == [session_forgotten("me")]


def test_r27_a_session_is_forgotten_when_its_last_task_times_out() -> None:
    scenario = Scenario()
    scenario.submit("a", timeout_s=1.0)
    scenario.leave()
    assert scenario.wait(1.0) == [session_forgotten("me")]


def test_r27_a_session_is_forgotten_when_its_last_task_is_lost_with_its_engine() -> None:
    scenario = Scenario()
    scenario.engine("E")
    scenario.submit("a", crash_limit=0)
    scenario.leave()
    assert scenario.lost("E") == []
    assert scenario.wait(5.0) == [engine_forgotten("E"), session_forgotten("me")]


def test_r27_an_id_that_is_used_by_a_later_session_is_forgotten_with_the_last_of_them() -> None:
    scenario = running("a", hwm=2)
    scenario.leave()
    scenario.client("me")
    scenario.submit("b")
    assert scenario.ok("a") == []
    assert scenario.leave() == []
    assert scenario.ok("b") == [session_forgotten("me")]


def test_r28_the_loss_of_an_engine_is_published_right_after_it_is_forgotten() -> None:
    scenario = running("a")
    scenario.submit("b", targets=["E"])
    scenario.leave()
    scenario.happens(MonitoringChanged(True))
    effects = scenario.scheduler.handle(EngineLost("E", "gone", confirmed=True, running=("a",)), scenario.now)
    assert effects == [
        ForgetEngine("E"),
        Publish("engine_lost", engine="E"),
        Publish("finished", "b", None, "me", "unreachable"),
    ]
    assert scenario.cancel("a", None) == [session_forgotten("me")]


def test_r28_each_change_is_published_once_and_none_without_monitors() -> None:
    scenario = Scenario()
    scenario.happens(MonitoringChanged(True))
    published: list[tuple[object, ...]] = []
    happened = [
        EngineJoined("E"),
        TaskSubmitted("me", "a", "call a"),
        TaskFinished("E", "a", "ok", "ok a"),
    ]
    for event in happened:
        published += [
            (e.what, e.task, e.engine) for e in scenario.scheduler.handle(event, 0.0) if isinstance(e, Publish)
        ]
    assert published == [
        ("engine_joined", None, "E"),
        ("submitted", "a", None),
        ("assigned", "a", "E"),
        ("finished", "a", "E"),
    ]
    scenario.happens(MonitoringChanged(False))
    quiet = scenario.scheduler.handle(TaskSubmitted("me", "b", "call b"), 0.0)
    assert quiet == [accepted("b"), sent("b", "E")]


def test_r29_a_draining_engine_is_sent_nothing_and_its_waiting_tasks_are_recalled() -> None:
    scenario = running("a", "b", "c")
    scenario.engine("F", hwm=1)
    scenario.submit("d", targets=["F"])
    assert scenario.drain("E") == [recalled("b", "E"), recalled("c", "E")]
    assert scenario.drain("E") == []
    assert scenario.given_back("b") == []
    assert scenario.kept("c") == []
    assert scenario.ok("d") == [delivered("d", "ok", "F"), sent("b", "F", attempt=2)]
    assert scenario.ok("a") == [delivered("a", "ok", "E")]
    assert scenario.ok("c") == [delivered("c", "ok", "E")]


def test_r29_a_draining_scheduler_accepts_and_sends_nothing() -> None:
    scenario = running("a", "b")
    scenario.submit("waits", after=["a"])
    assert scenario.drain() == [recalled("b", "E")]
    assert scenario.submit("c") == [refused("c")]
    assert scenario.engine("F") == []
    assert scenario.given_back("b") == []
    assert scenario.ok("a") == [delivered("a", "ok", "E")]
    assert scenario.cancel("b") == [failed("b", "TaskCancelled")]


def test_r29_a_draining_scheduler_still_answers_repeated_submissions() -> None:
    scenario = running("a", "b")
    scenario.ok("a")
    scenario.drain()
    assert scenario.submit("a") == [accepted("a"), delivered("a", "ok", "E")]
    assert scenario.submit("b") == [accepted("b")]
    assert scenario.ok("b") == [delivered("b", "ok", "E")] * 2


def test_r31_results_that_an_engine_sent_before_it_left_count() -> None:
    scenario = running("a", "b")
    scenario.engine("F")
    assert scenario.ok("a") == [delivered("a", "ok", "E")]
    assert scenario.died("E", "b") == [engine_forgotten("E"), sent("b", "F", attempt=2)]


def test_r31_an_engine_that_joined_before_a_submission_was_read_can_take_it() -> None:
    scenario = Scenario()
    scenario.engine("E")
    assert scenario.submit("a", targets=["E"]) == [accepted("a"), sent("a", "E")]
