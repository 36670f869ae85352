"""The admission of connections while the thread of the monitor is behind, in virtual time with fakes."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing

from trio_sched.transport.zmq_admission import AdmissionControl, WatchedSocket


class LateMonitor:
    """A monitor that has caught up after `busy_polls` questions."""

    def __init__(self, busy_polls: int) -> None:
        self.busy_polls = busy_polls

    def is_caught_up(self) -> bool:
        self.busy_polls -= 1
        return self.busy_polls < 0

    def take_events(self) -> list[tuple[bool, int]]:
        return []


class FakeSocket:
    """A socket that is idle, and records what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def is_idle(self) -> bool:
        return True

    def unblock(self, descriptors: Any) -> None:
        assert not list(descriptors)

    def send(self, frames: Any) -> bool:
        self.sent.append(frames)
        return True

    def flush(self) -> None:
        pass


def replies(busy_polls: int) -> list[Any]:
    """Return what is answered to one request for admission."""
    zap: Any = FakeSocket()
    socket: Any = FakeSocket()
    monitor: Any = LateMonitor(busy_polls)
    watched = WatchedSocket("task", socket, monitor, admits_any_address=False, must_settle=True)
    admission = AdmissionControl(lambda *_, **__: None, None)
    trio.run(admission._admit_later, zap, watched, ["reply"], clock=trio.testing.MockClock(autojump_threshold=0))
    return zap.sent


def test_a_connection_is_admitted_when_the_monitor_has_caught_up_at_last() -> None:
    assert replies(busy_polls=2_000) == [["reply"]]


def test_a_connection_that_the_monitor_never_reports_is_not_admitted() -> None:
    assert replies(busy_polls=1_000_000) == []
