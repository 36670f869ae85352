"""`SchedulerWatch`: whether the scheduler runs, and whether its engines can run pickled calls; and the Hello."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from trio_sched.client.functions import FunctionRegistry
from trio_sched.client.scheduler_watch import CLOSING_CHECK_S, QUIET_CHECK_S, SchedulerWatch, compare_versions
from trio_sched.client.session import SchedulerSession, SessionUpdate
from trio_sched.client.settings import ClientSettings
from trio_sched.errors import NoSchedulerError, SchedulerClosed, VersionMismatch, WireError
from trio_sched.transport.connection_info import ConnectionInfo
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
def test_python_versions_are_compared(theirs: list[str], problem: str, warning: str) -> None:
    found = compare_versions("3.12.4", theirs)
    assert [bool(text) for text in found] == [bool(problem), bool(warning)]
    assert problem in found[0]
    assert warning in found[1]


def test_a_hello_fits_the_limits_of_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = ConnectionInfo("far", "client", "tcp://far:1", "t", pid=os.getpid(), host=HERE)
    entries = ["x" * 1000] * 300
    monkeypatch.setattr(sys, "path", entries)
    with pytest.warns(UserWarning, match="sys.path has 300 entries, .* get the first 262"):
        made = ClientSettings().make_hello(connection)
    assert made.path == entries[:262]
    monkeypatch.setattr(sys, "path", ["x"] * 10_000)
    assert len(ClientSettings().make_hello(connection).path) == 10_000
    with pytest.raises(ValueError, match="name has 1,001 characters; the limit is 1,000"):
        ClientSettings(name="x" * 1001).make_hello(connection)


class FakeCluster:
    """A local cluster that the test ends."""

    gone = False

    def has_ended(self) -> bool:
        return self.gone


def make_watch(
    host: str = "elsewhere", cluster: FakeCluster | None = None
) -> tuple[SchedulerWatch, SchedulerSession[Any]]:
    connection = ConnectionInfo("far", "client", "tcp://far:1", "t", pid=os.getpid(), host=host)
    session: SchedulerSession[Any] = SchedulerSession(native.Hello(role="client"), FunctionRegistry())
    session.outgoing(0.0)
    session.receive([native.encode(native.Welcome(3, "s", "i"))], 0.0)
    return SchedulerWatch(connection, "3.12.4", reconnect_s=20.0, cluster=cluster), session


def test_a_silent_scheduler_on_another_host_is_gone_after_reconnect_s() -> None:
    watch, session = make_watch()
    opened = []
    now = 0.0
    while not isinstance(verdict := watch.check_scheduler(session, now), SchedulerClosed):
        if verdict:
            opened.append(now)
            session.connection_opened(now)
        now += 2.0
    assert opened == [12.0, 24.0]
    assert "'far' at tcp://far:1 sent nothing for 20 s" in str(verdict)


def test_a_welcome_restarts_the_count_of_silence() -> None:
    watch, session = make_watch()
    for now in (2.0, 4.0, 6.0, 8.0, 10.0):
        assert watch.check_scheduler(session, now) is False
    assert watch.check_scheduler(session, 12.0) is True
    session.connection_opened(12.0)
    watch.apply(
        session, session.receive([native.encode(native.Welcome(3, "s", "i", resumed=True))], 13.0), was_welcomed=True
    )
    for now in (14.0, 16.0, 18.0, 20.0, 22.0):
        assert watch.check_scheduler(session, now) is False
    assert watch.check_scheduler(session, 24.0) is True


def test_a_dead_scheduler_process_is_noticed_after_a_short_silence() -> None:
    cluster = FakeCluster()
    watch, session = make_watch(cluster=cluster)
    assert watch.check_scheduler(session, 0.6) is False
    cluster.gone = True
    assert watch.check_scheduler(session, 0.4) is False  # after a recent message the process is not checked
    assert "is gone: process" in str(watch.check_scheduler(session, 0.6))


def test_a_local_scheduler_with_unfinished_tasks_is_checked_more_often() -> None:
    watch, session = make_watch(host=HERE)
    session.outgoing(0.0)
    assert watch.idle_timeout_s(session, 0.0) == 2.0
    session.tasks[1] = object()
    assert watch.idle_timeout_s(session, 0.0) == QUIET_CHECK_S
    watch, session = make_watch()
    session.outgoing(0.0)
    session.tasks[1] = object()
    assert watch.idle_timeout_s(session, 1.5) == 0.5


def test_a_closing_scheduler_is_checked_often() -> None:
    cluster = FakeCluster()
    watch, session = make_watch(cluster=cluster)
    update = session.receive([native.encode(native.Closing("SIGTERM"))], 1.0)
    assert watch.apply(session, update, was_welcomed=True) is None
    with pytest.raises(SchedulerClosed, match="shuts down: SIGTERM"):
        watch.check_can_submit()
    session.outgoing(1.0)
    assert watch.idle_timeout_s(session, 1.0) == CLOSING_CHECK_S
    assert watch.check_scheduler(session, 1.2) is False
    cluster.gone = True
    assert "is gone: SIGTERM" in str(watch.check_scheduler(session, 1.4))


def test_the_first_submit_error_stays_unless_it_is_a_version_mismatch() -> None:
    watch, session = make_watch()
    session.pythons = ["3.11.1"]
    watch.apply(session, SessionUpdate(), was_welcomed=True)
    with pytest.raises(VersionMismatch):
        watch.check_can_submit()
    watch.check_can_query()
    session.pythons = ["3.12.4"]
    watch.apply(session, SessionUpdate(), was_welcomed=True)
    watch.check_can_submit()
    watch.stop_submissions(SchedulerClosed("first"))
    watch.stop_submissions(SchedulerClosed("second"))
    with pytest.raises(SchedulerClosed, match="first"):
        watch.check_can_query()


def test_a_malformed_message_ends_the_client_but_one_of_an_unknown_type_does_not() -> None:
    watch, _ = make_watch()
    assert watch.on_malformed(WireError("unknown message type 'x'", "unknown_type")) is None
    assert isinstance(watch.on_malformed(WireError("not a message")), SchedulerClosed)


def test_a_refusal_is_no_scheduler_error_before_the_first_welcome_and_scheduler_closed_after() -> None:
    watch, session = make_watch()
    assert isinstance(watch.apply(session, SessionUpdate(rejected="no"), was_welcomed=False), NoSchedulerError)
    assert isinstance(watch.apply(session, SessionUpdate(rejected="no"), was_welcomed=True), SchedulerClosed)
