"""Paused clients (R34)."""

from __future__ import annotations

from trio_sched.core import snapshot
from trio_sched.core.events import ClientLeft

from .scenario import Scenario, accepted, delivered, failed, sent


def two_clients() -> Scenario:
    """One engine that runs a task of "me"; another task of each client waits."""
    scenario = Scenario()
    scenario.client("you")
    scenario.engine("E")
    scenario.submit("a")
    scenario.submit("b")
    scenario.submit("c", client="you")
    return scenario


def test_r34_no_task_of_a_paused_client_is_sent_and_sent_ones_go_on() -> None:
    scenario = two_clients()
    assert scenario.pause() == []
    assert scenario.ok("a") == [delivered("a", "ok", "E"), sent("c", "E")]
    assert scenario.ok("c") == [delivered("c", "ok", "E", client="you")]
    assert scenario.submit("d") == [accepted("d")]
    assert scenario.engine("F") == []
    assert sorted(str(effect) for effect in scenario.resume()) == sorted(map(str, [sent("b", "F"), sent("d", "E")]))


def test_r34_the_tasks_of_a_paused_client_keep_their_places() -> None:
    scenario = Scenario()
    for task, priority in (("a", 0), ("b", 0), ("c", 1)):
        scenario.submit(task, priority=priority)
    scenario.pause()
    scenario.submit("d", priority=1)
    scenario.engine("E")
    assert scenario.resume() == [sent("c", "E")]
    assert scenario.ok("c")[-1] == sent("d", "E")
    assert scenario.ok("d")[-1] == sent("a", "E")
    assert scenario.ok("a")[-1] == sent("b", "E")


def test_r34_tasks_of_a_paused_client_are_cancelled_and_time_out() -> None:
    scenario = Scenario()
    scenario.pause()
    scenario.submit("a")
    scenario.submit("b", timeout_s=1.0)
    scenario.engine("E")
    assert scenario.cancel("a") == [failed("a", "TaskCancelled")]
    assert scenario.wait(2.0) == [failed("b", "TaskTimeout")]
    assert scenario.resume() == []


def test_r34_r15_a_paused_client_is_not_active_and_becomes_active_when_resumed() -> None:
    scenario = two_clients()
    scenario.pause()
    for number in range(10):
        scenario.submit(f"c{number}", client="you")
    scenario.ok("a")
    for task in ("c", *(f"c{number}" for number in range(5))):
        scenario.ok(task)
    scenario.client("third")
    scenario.submit("t", client="third")
    scenario.submit("b2")
    me, you, third = (scenario.scheduler.clients[client].virtual_time for client in ("me", "you", "third"))
    assert third == you  # not that of the paused client
    scenario.resume()
    assert scenario.scheduler.clients["me"].virtual_time == you > me


def test_r34_a_paused_client_that_leaves_for_good_is_resumed() -> None:
    scenario = two_clients()
    scenario.pause()
    scenario.ok("a")
    scenario.ok("c")
    assert scenario.happens(ClientLeft("me")) == [sent("b", "E")]


def test_r34_explain_says_why_a_client_is_paused_and_status_which_one() -> None:
    scenario = two_clients()
    scenario.pause(reason="its client reads nothing")
    assert snapshot.explain(scenario.scheduler, "b", 0.0).endswith("its client reads nothing")
    view = snapshot.status(scenario.scheduler, 0.0)
    assert [client["paused"] for client in view["clients"]] == ["its client reads nothing", ""]
    assert view["tasks"]["ready"] == 2


def test_r34_invalid_events_are_counted() -> None:
    scenario = Scenario()
    assert scenario.pause("nobody") == []
    assert scenario.resume("nobody") == []
    assert scenario.resume() == []
    assert scenario.scheduler.counters == {"unknown_client_paused": 1, "not_paused": 2}
