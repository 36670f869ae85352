"""Judging the other end: is it there, and can it run what we pickle?"""

from __future__ import annotations

import os
import sys

import pytest

from trio_sched.client.functions import Functions
from trio_sched.client.lookout import CLOSING_LOOK_S, QUIET_S, Lookout, hello, version_problem
from trio_sched.client.news import News
from trio_sched.client.session import Session
from trio_sched.errors import NoSchedulerError, SchedulerClosed, VersionMismatch, WireError
from trio_sched.transport.connection import Connection
from trio_sched.wire import native

HERE = os.uname().nodename


@pytest.mark.parametrize(
    ("theirs", "problem", "warning"),
    [
        ([], "", ""),
        (["3.12.4"], "", ""),
        (["3.11.4"], "start engines with Python 3.12", ""),
        (["3.11.4", "3.13.0"], "the engines run Python 3.11.4, 3.13.0, which cannot read", ""),
        (["3.12.4", "3.11.4"], "", "some engines run Python 3.11.4; tasks that land there may fail"),
        (["3.12.5"], "", "this is Python 3.12.4, but some engines run Python 3.12.5"),
        (["3.1.4"], "which cannot read calls", ""),
    ],
)
def test_versions(theirs: list[str], problem: str, warning: str) -> None:
    found = version_problem("3.12.4", theirs)
    assert [bool(text) for text in found] == [bool(problem), bool(warning)]
    assert problem in found[0]
    assert warning in found[1]


def test_a_hello_fits_what_a_scheduler_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection("far", "client", "tcp://far:1", "t", pid=os.getpid(), host=HERE)
    entries = ["x" * 1000] * 300
    monkeypatch.setattr(sys, "path", entries)
    with pytest.warns(UserWarning, match="sys.path has 300 entries, .* get the first 262"):
        made = hello(connection, name="", weight=1.0, cancel_on_leave=False)
    assert made.path == entries[:262]
    monkeypatch.setattr(sys, "path", ["x"] * 10_000)
    assert len(hello(connection, name="", weight=1.0, cancel_on_leave=False).path) == 10_000
    with pytest.raises(ValueError, match="name has 1,001 characters; the most is 1,000"):
        hello(connection, name="x" * 1001, weight=1.0, cancel_on_leave=False)


class Other:
    """A companion that the test lets go."""

    gone = False

    def is_gone(self) -> bool:
        return self.gone

    def close(self) -> None: ...
    def let_go(self) -> None: ...


def watching(host: str = "elsewhere", companion: Other | None = None) -> tuple[Lookout, Session]:  # type: ignore[type-arg]
    connection = Connection("far", "client", "tcp://far:1", "t", pid=os.getpid(), host=host)
    session: Session = Session(native.Hello(role="client"), Functions())  # type: ignore[type-arg]
    session.outgoing(0.0)
    session.receive([native.encode(native.Welcome(3, "s", "i"))], 0.0)
    return Lookout(connection, "3.12.4", reconnect_s=20.0, companion=companion), session


def test_a_scheduler_elsewhere_is_given_up_after_a_while() -> None:
    lookout, session = watching()
    opened = []
    now = 0.0
    while not isinstance(verdict := lookout.look(session, now), SchedulerClosed):
        if verdict:
            opened.append(now)
            session.opened(now)
        now += 2.0
    assert opened == [12.0, 24.0]
    assert "'far' at tcp://far:1 was not heard of for 20 s" in str(verdict)


def test_hearing_of_it_again_ends_the_count() -> None:
    lookout, session = watching()
    for now in (2.0, 4.0, 6.0, 8.0, 10.0):
        assert lookout.look(session, now) is False
    assert lookout.look(session, 12.0) is True
    session.opened(12.0)
    lookout.note(session, session.receive([native.encode(native.Welcome(3, "s", "i", resumed=True))], 13.0), begun=True)
    for now in (14.0, 16.0, 18.0, 20.0, 22.0):
        assert lookout.look(session, now) is False
    assert lookout.look(session, 24.0) is True


def test_a_dead_process_is_noticed_soon() -> None:
    other = Other()
    lookout, session = watching(companion=other)
    assert lookout.look(session, 0.6) is False
    other.gone = True
    assert lookout.look(session, 0.4) is False  # while it is heard, nobody looks
    assert "is gone: process" in str(lookout.look(session, 0.6))


def test_who_waits_for_a_local_scheduler_looks_more_often() -> None:
    lookout, session = watching(host=HERE)
    session.outgoing(0.0)
    assert lookout.patience_s(session, 0.0) == 2.0
    session.tasks[1] = object()
    assert lookout.patience_s(session, 0.0) == QUIET_S
    lookout, session = watching()
    session.outgoing(0.0)
    session.tasks[1] = object()
    assert lookout.patience_s(session, 1.5) == 0.5


def test_a_closing_scheduler_is_watched_closely() -> None:
    other = Other()
    lookout, session = watching(companion=other)
    news = session.receive([native.encode(native.Closing("SIGTERM"))], 1.0)
    assert lookout.note(session, news, begun=True) is None
    with pytest.raises(SchedulerClosed, match="shuts down: SIGTERM"):
        lookout.check()
    session.outgoing(1.0)
    assert lookout.patience_s(session, 1.0) == CLOSING_LOOK_S
    assert lookout.look(session, 1.2) is False
    other.gone = True
    assert "is gone: SIGTERM" in str(lookout.look(session, 1.4))


def test_trouble_keeps_its_first_cause_but_not_a_mismatch() -> None:
    lookout, session = watching()
    session.pythons = ["3.11.1"]
    lookout.note(session, News(), begun=True)
    with pytest.raises(VersionMismatch):
        lookout.check()
    lookout.check_talking()
    session.pythons = ["3.12.4"]
    lookout.note(session, News(), begun=True)
    lookout.check()
    lookout.over(SchedulerClosed("first"))
    lookout.over(SchedulerClosed("second"))
    with pytest.raises(SchedulerClosed, match="first"):
        lookout.check_talking()


def test_rubbish_from_the_scheduler_ends_the_client_but_news_of_an_unknown_kind_does_not() -> None:
    lookout, _ = watching()
    assert lookout.misunderstood(WireError("unknown message type 'x'", "unknown_type")) is None
    assert isinstance(lookout.misunderstood(WireError("not a message")), SchedulerClosed)


def test_a_refusal_has_two_names() -> None:
    lookout, session = watching()
    assert isinstance(lookout.note(session, News(rejected="no"), begun=False), NoSchedulerError)
    assert isinstance(lookout.note(session, News(rejected="no"), begun=True), SchedulerClosed)
