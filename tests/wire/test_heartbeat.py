"""`Heartbeat`: when heartbeats are due, and when a peer counts as silent, also after a suspension of the observer."""

from __future__ import annotations

import math

import pytest

from trio_sched.wire.heartbeat import FIRST_PERIOD_S, MISSED_HEARTBEATS, NEVER, Heartbeat


def ticked(heartbeat: Heartbeat, until: float, every_s: float = 1.0) -> None:
    """Tick regularly from the time 0 to `until`, which is included."""
    for step in range(1, math.floor(until / every_s) + 1):
        assert not heartbeat.tick(step * every_s)


# ---- sending --------------------------------------------------------------------------------------------------------


def test_the_first_heartbeat_is_due_a_period_after_the_beginning() -> None:
    assert Heartbeat(10.0, period_s=3.0).due_at == 13.0


def test_without_a_beginning_the_first_heartbeat_is_due_at_once() -> None:
    assert Heartbeat().due_at == NEVER


def test_a_heartbeat_is_due_a_period_after_the_one_before() -> None:
    heartbeat = Heartbeat(0.0, period_s=3.0)
    heartbeat.sent(7.0)
    assert heartbeat.due_at == 10.0


def test_another_period_moves_the_next_heartbeat() -> None:
    heartbeat = Heartbeat(0.0)
    assert heartbeat.due_at == FIRST_PERIOD_S
    heartbeat.period_s = 0.5
    assert heartbeat.due_at == 0.5


def test_a_heartbeat_can_be_made_due_at_once() -> None:
    heartbeat = Heartbeat(0.0)
    heartbeat.make_due()
    assert heartbeat.due_at < 0.0
    heartbeat.sent(1.0)
    assert heartbeat.due_at == 1.0 + FIRST_PERIOD_S


# ---- silence --------------------------------------------------------------------------------------------------------


def test_a_peer_is_silent_after_the_missed_periods() -> None:
    heartbeat = Heartbeat(0.0, period_s=1.0)
    ticked(heartbeat, 20.0)
    last_received_at = 20.0 - MISSED_HEARTBEATS
    assert not heartbeat.is_silent(last_received_at, 20.0)
    assert heartbeat.is_silent(last_received_at, 20.1)


def test_silence_is_counted_from_the_last_message() -> None:
    heartbeat = Heartbeat(0.0, period_s=1.0)
    assert heartbeat.silence_s(3.0, 4.5) == 1.5


@pytest.mark.parametrize("begin", [None, 100.0])
def test_the_silence_of_a_peer_that_never_sent_is_counted_from_the_beginning(begin: float | None) -> None:
    heartbeat = Heartbeat(begin, period_s=1.0)
    assert not heartbeat.tick(100.0)
    assert heartbeat.silence_s(NEVER, 102.0) == 2.0


def test_a_tick_that_is_late_by_less_than_a_period_is_not_a_suspension() -> None:
    heartbeat = Heartbeat(0.0, period_s=1.0)
    assert not heartbeat.tick(2.0)
    assert heartbeat.silence_s(0.0, 2.0) == 2.0


def test_after_a_suspension_a_peer_gets_all_periods_again() -> None:
    heartbeat = Heartbeat(0.0, period_s=1.0, missed=5)
    assert heartbeat.tick(3600.0)
    assert heartbeat.silence_s(0.0, 3600.0) == 0.0
    assert not heartbeat.tick(3601.0)
    assert not heartbeat.is_silent(0.0, 3605.0)
    assert heartbeat.is_silent(0.0, 3605.1)


def test_after_a_suspension_a_peer_gets_as_many_periods_as_the_grace_says() -> None:
    heartbeat = Heartbeat(0.0, period_s=1.0, missed=5, grace=1)
    assert heartbeat.tick(3600.0)
    assert not heartbeat.is_silent(0.0, 3601.0)
    assert heartbeat.is_silent(0.0, 3601.1)


def test_grace_never_shortens_the_time_of_a_peer() -> None:
    """Neither of a peer that has just sent a message, nor of a peer that is observed for a short time."""
    heartbeat = Heartbeat(100.0, period_s=1.0, missed=5, grace=1)
    assert heartbeat.tick(103.0)
    assert heartbeat.silence_s(NEVER, 103.0) == 3.0
    assert heartbeat.silence_s(102.5, 103.0) == 0.5


def test_each_suspension_counts() -> None:
    heartbeat = Heartbeat(0.0, period_s=1.0)
    assert heartbeat.tick(100.0)
    assert heartbeat.tick(200.0)
    assert heartbeat.silence_s(0.0, 200.0) == 0.0


def test_a_longer_period_changes_what_counts_as_a_suspension() -> None:
    heartbeat = Heartbeat(0.0, period_s=1.0)
    heartbeat.period_s = 10.0
    assert not heartbeat.tick(20.0)
