"""Paused clients (R34)."""

from __future__ import annotations

from trio_sched.core import snapshot
from trio_sched.core.events import ClientLeft

from .story import Story, accepted, delivered, failed, sent


def two_clients() -> Story:
    """One engine that runs a task of "me"; one more of each client waits."""
    story = Story()
    story.client("you")
    story.engine("E")
    story.submit("a")
    story.submit("b")
    story.submit("c", client="you")
    return story


def test_r34_nothing_of_a_paused_client_is_sent_and_what_was_sent_goes_on() -> None:
    story = two_clients()
    assert story.pause() == []
    assert story.ok("a") == [delivered("a", "ok", "E"), sent("c", "E")]
    assert story.ok("c") == [delivered("c", "ok", "E", client="you")]
    assert story.submit("d") == [accepted("d")]
    assert story.engine("F") == []
    assert sorted(str(effect) for effect in story.resume()) == sorted(map(str, [sent("b", "F"), sent("d", "E")]))


def test_r34_its_tasks_keep_their_places() -> None:
    story = Story()
    for task, priority in (("a", 0), ("b", 0), ("c", 1)):
        story.submit(task, priority=priority)
    story.pause()
    story.submit("d", priority=1)
    story.engine("E")
    assert story.resume() == [sent("c", "E")]
    assert story.ok("c")[-1] == sent("d", "E")
    assert story.ok("d")[-1] == sent("a", "E")
    assert story.ok("a")[-1] == sent("b", "E")


def test_r34_tasks_of_a_paused_client_are_cancelled_and_time_out() -> None:
    story = Story()
    story.pause()
    story.submit("a")
    story.submit("b", timeout_s=1.0)
    story.engine("E")
    assert story.cancel("a") == [failed("a", "TaskCancelled")]
    assert story.wait(2.0) == [failed("b", "TaskTimeout")]
    assert story.resume() == []


def test_r34_r15_it_is_not_active_and_becomes_active_anew() -> None:
    story = two_clients()
    story.pause()
    for number in range(10):
        story.submit(f"c{number}", client="you")
    story.ok("a")
    for task in ("c", *(f"c{number}" for number in range(5))):
        story.ok(task)
    story.client("third")
    story.submit("t", client="third")
    story.submit("b2")
    me, you, third = (story.scheduler.clients[client].virtual_time for client in ("me", "you", "third"))
    assert third == you  # not that of the client that stands still
    story.resume()
    assert story.scheduler.clients["me"].virtual_time == you > me


def test_r34_one_that_left_for_good_is_resumed() -> None:
    story = two_clients()
    story.pause()
    story.ok("a")
    story.ok("c")
    assert story.happens(ClientLeft("me")) == [sent("b", "E")]


def test_r34_explain_says_why_and_status_who() -> None:
    story = two_clients()
    story.pause(reason="its client reads nothing")
    assert snapshot.explain(story.scheduler, "b", 0.0).endswith("its client reads nothing")
    view = snapshot.status(story.scheduler, 0.0)
    assert [client["paused"] for client in view["clients"]] == ["its client reads nothing", ""]
    assert view["tasks"]["ready"] == 2


def test_r34_what_cannot_be_is_counted() -> None:
    story = Story()
    assert story.pause("nobody") == []
    assert story.resume("nobody") == []
    assert story.resume() == []
    assert story.scheduler.counters == {"unknown_client_paused": 1, "not_paused": 2}
