"""The client's session without sockets: what it sends, how it applies messages, and how it resumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from trio_sched.client import session as session_module
from trio_sched.client.functions import Function, FunctionRegistry
from trio_sched.client.session import SchedulerSession, SessionUpdate
from trio_sched.errors import WireError
from trio_sched.wire import native
from trio_sched.wire.native import Call, Frame, TaskResult


class Handle:
    """The smallest object that a session accepts as a future."""

    def __init__(self, function: Function | None = None) -> None:
        self.function = function


class SessionHarness:
    """A session, with methods that send the scheduler's messages to it."""

    def __init__(self, *, credit: int = 1000, welcome: bool = True) -> None:
        self.functions = FunctionRegistry()
        self.session: SchedulerSession[Handle] = SchedulerSession(
            native.Hello(role="client", token="t"), self.functions
        )
        self.now = 100.0
        self.seq = 0
        if welcome:
            assert [type(message) for message in self.sent()] == [native.Hello]
            self.receive(native.Welcome(3, "secret", "instance", credit=credit))
            assert self.sent() == [native.Ping()]

    def sent(self) -> list[native.FromClient]:
        return [message for message, _ in self.session.outgoing(self.now)]

    def receive(self, message: native.ToClient, *frames: Frame) -> SessionUpdate[Handle]:
        return self.session.receive([native.encode(message), *frames], self.now)

    def submit(self, *, inputs: Sequence[int] = (), frames: Sequence[Frame] = (), function: bytes = b"") -> Handle:
        record = self.functions.intern(function) if function else None
        handle = Handle(record)
        call = Call(0, fn=record.digest if record else b"", body=b"args", frames=len(frames))
        number = self.session.submit(handle, call, frames, inputs)
        assert number is not None
        return handle

    def results(self, *counters: int, accepted: int = 0) -> SessionUpdate[Handle]:
        self.seq += 1
        results = [TaskResult(3 << 32 | counter) for counter in counters]
        return self.receive(native.Results(self.seq, results, accepted=accepted))


def submits(messages: Sequence[native.FromClient]) -> list[list[int]]:
    """Return the counters in each Submit."""
    return [[call.id for call in message.tasks] for message in messages if isinstance(message, native.Submit)]


def test_the_first_message_is_hello_and_nothing_else_before_the_welcome() -> None:
    harness = SessionHarness(welcome=False)
    harness.submit()
    assert harness.session.is_busy
    assert harness.sent() == [native.Hello(role="client", token="t")]
    assert harness.sent() == []
    assert not harness.session.is_busy
    update = harness.receive(native.Welcome(3, "secret", "instance", credit=10, pythons=["3.12.1"]))
    assert update == SessionUpdate(welcomed=True)
    assert (harness.session.number, harness.session.pythons) == (3, ["3.12.1"])
    assert submits(harness.sent()) == [[1]]


def test_many_tasks_are_sent_in_one_message_with_ascending_counters() -> None:
    harness = SessionHarness()
    handles = [harness.submit() for _ in range(3)]
    [message] = harness.sent()
    assert submits([message]) == [[1, 2, 3]]
    assert list(harness.session.tasks.values()) == handles
    assert harness.sent() == []


def test_unaccepted_calls_are_limited_by_the_credit() -> None:
    harness = SessionHarness(credit=2)
    for _ in range(5):
        harness.submit()
    assert submits(harness.sent()) == [[1, 2]]
    assert harness.session.has_unsent
    assert not harness.session.is_busy
    harness.receive(native.Accepted(1))
    assert submits(harness.sent()) == [[3]]
    harness.receive(native.Pong(accepted=3))
    assert submits(harness.sent()) == [[4, 5]]
    assert not harness.session.has_unsent
    assert not harness.session.all_accepted
    harness.receive(native.Accepted(5))
    assert harness.session.all_accepted


def test_a_submit_is_closed_when_it_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MAX_BYTES_PER_SUBMIT", 1000)
    monkeypatch.setattr(session_module, "MAX_TASKS_PER_SUBMIT", 4)
    harness = SessionHarness()
    harness.submit(frames=[b"x" * 600])
    harness.submit(frames=[b"y" * 600])
    for _ in range(5):
        harness.submit()
    assert submits(harness.sent()) == [[1], [2, 3, 4, 5], [6, 7]]


def test_a_function_is_sent_once_and_dropped_when_it_is_unneeded() -> None:
    harness = SessionHarness()
    harness.submit(function=b"f")
    harness.submit(function=b"g")
    harness.submit(function=b"f")
    f, g = harness.functions.intern(b"f"), harness.functions.intern(b"g")
    [message] = harness.sent()
    assert isinstance(message, native.Submit)
    assert message.functions == {f.digest: b"f", g.digest: b"g"}
    f.kept = 1  # its function object exists
    harness.results(1, 2, 3)
    assert harness.sent() == [native.Submit([], drop=[g.digest], received=0)]
    harness.submit(function=b"f")
    harness.submit(function=b"g")
    [message] = harness.sent()
    assert isinstance(message, native.Submit)
    assert message.functions == {g.digest: b"g"}


def test_a_renewed_session_continues_at_its_position() -> None:
    harness = SessionHarness(credit=2)
    harness.submit(function=b"f")
    [first] = harness.sent()
    assert isinstance(first, native.Submit)
    harness.results(1, accepted=1)
    second, third, fourth = (harness.submit(function=b"f") for _ in range(3))
    harness.session.cancel((3,))
    assert submits(harness.sent()) == [[2, 3]]
    harness.session.connection_opened(harness.now)
    [hello] = harness.sent()
    assert isinstance(hello, native.Hello)
    assert (hello.session, hello.accepted, hello.received) == (3, 1, 1)
    update = harness.receive(native.Welcome(3, "secret", "instance", resumed=True, renewed=True, accepted=1, credit=2))
    assert update == SessionUpdate(welcomed=True)
    again = harness.sent()
    assert submits(again) == [[2, 3]]
    assert isinstance(again[0], native.Submit)
    assert again[0].functions == first.functions
    assert native.Cancel([3]) in again
    assert [handle for handle, _ in harness.results(2, 3, accepted=3).ended] == [second, third]
    assert submits(harness.sent()) == [[4]]
    assert list(harness.session.tasks.values()) == [fourth]


def test_accepted_tasks_are_lost_when_a_session_is_renewed() -> None:
    harness = SessionHarness()
    first, second = harness.submit(), harness.submit()
    harness.sent()
    harness.receive(native.Accepted(1))
    harness.session.connection_opened(harness.now)
    harness.sent()
    update = harness.receive(native.Welcome(3, "secret", "instance", resumed=True, renewed=True, accepted=1, credit=9))
    assert update.lost == [first]
    assert submits(harness.sent()) == [[2]]
    assert list(harness.session.tasks.values()) == [second]


def test_r17_each_task_ends_once_with_its_handle() -> None:
    harness = SessionHarness()
    first, second = harness.submit(), harness.submit()
    harness.sent()
    update = harness.results(2, accepted=2)
    assert update.ended == [(second, TaskResult(3 << 32 | 2))]
    harness.seq = 0
    assert harness.results(2).ended == []  # a repetition of the same message
    update = harness.results(2, 1, 77)  # a result received before, a new one, and one of an unknown task
    assert [handle for handle, _ in update.ended] == [first]
    assert harness.session.open_count == 0


def test_frames_are_attached_to_their_results() -> None:
    harness = SessionHarness()
    harness.submit()
    harness.submit()
    harness.sent()
    results = [TaskResult(1, frames=1), TaskResult(2, frames=2)]
    update = harness.receive(native.Results(1, results), b"a", b"b", b"c")
    attached: list[Any] = [result for _, result in update.ended]
    assert [result.frames for result in attached] == [(b"a",), (b"b", b"c")]


def test_a_gap_in_the_results_requires_a_resumption() -> None:
    harness = SessionHarness()
    harness.submit()
    harness.sent()
    update = harness.receive(native.Results(2, [TaskResult(1)]))
    assert update.rejoin
    assert update.ended == []
    harness.session.connection_opened(harness.now)
    [hello] = harness.sent()
    assert isinstance(hello, native.Hello)
    assert (hello.session, hello.secret, hello.scheduler, hello.received) == (3, "secret", "instance", 0)


def test_refused_submissions_are_returned_with_the_reason() -> None:
    harness = SessionHarness()
    handle = harness.submit()
    harness.sent()
    assert harness.receive(native.Refused(1, "no such engine")).refused == [(handle, "no such engine")]
    assert harness.session.open_count == 0


# ---- broken connections ---------------------------------------------------------------------------------------------


def test_unaccepted_calls_are_sent_again_on_resumption() -> None:
    harness = SessionHarness(credit=5)
    for number in range(3):
        harness.submit(frames=[b"%d" % number], function=b"f")
    harness.sent()
    harness.submit()
    harness.sent()
    harness.submit()
    harness.session.connection_opened(harness.now)
    assert [type(message) for message in harness.sent()] == [native.Hello]
    harness.receive(native.Welcome(3, "secret", "instance", resumed=True, accepted=2, credit=5))
    out = harness.session.outgoing(harness.now)
    assert submits([message for message, _ in out]) == [[3], [4], [5]]
    assert [list(frames) for _, frames in out][:2] == [[b"2"], []]
    assert isinstance(out[0][0], native.Submit)
    assert out[0][0].functions
    harness.receive(native.Accepted(5))
    assert harness.sent() == []


def test_cancels_and_queries_are_repeated_on_resumption() -> None:
    harness = SessionHarness()
    harness.submit()
    harness.sent()
    harness.session.cancel([1])
    request = harness.session.query("status")
    assert harness.sent() == [native.Cancel([1]), native.Query(request, "status")]
    harness.session.connection_opened(harness.now)
    harness.sent()
    harness.receive(native.Welcome(3, "secret", "instance", resumed=True, accepted=1, credit=5))
    assert harness.sent() == [native.Cancel([1]), native.Query(request, "status"), native.Ping()]
    assert harness.receive(native.Reply(request, {"a": 1})).replies == [(request, {"a": 1}, "")]
    assert harness.receive(native.Reply(request, {"a": 1})).replies == []


def test_another_scheduler_instance_has_lost_the_tasks() -> None:
    harness = SessionHarness(credit=1)
    handles = [harness.submit(function=b"f"), harness.submit()]
    harness.sent()
    harness.session.connection_opened(harness.now)
    harness.sent()
    update = harness.receive(native.Welcome(9, "other", "instance 2", resumed=False, credit=1))
    assert update.lost == handles
    assert update.welcomed
    assert harness.session.number == 9
    harness.submit(function=b"f")
    [message] = submits_of(harness)
    assert [call.id for call in message.tasks] == [3]
    assert message.functions
    harness.seq = 0
    assert len(harness.results(3).ended) == 1


def submits_of(harness: SessionHarness) -> list[native.Submit]:
    return [message for message in harness.sent() if isinstance(message, native.Submit)]


def test_one_hello_is_sent_to_a_scheduler_that_forgot_the_client() -> None:
    harness = SessionHarness()
    harness.submit()
    harness.sent()
    harness.receive(native.Error("unknown_peer", "say hello"))
    assert [type(message) for message in harness.sent()] == [native.Hello]
    harness.receive(native.Error("unknown_peer", "say hello"))
    assert harness.sent() == []


def test_an_error_before_the_welcome_rejects_the_client_and_a_later_one_does_not() -> None:
    harness = SessionHarness(welcome=False)
    harness.sent()
    assert harness.receive(native.Error("unauthenticated", "wrong token")).rejected == "wrong token (unauthenticated)"
    assert SessionHarness().receive(native.Error("malformed", "what?")).error == "what? (malformed)"
    assert "version 2" in SessionHarness(welcome=False).receive(native.Welcome(1, "s", "i", version=2)).rejected


def test_a_wrong_count_of_the_scheduler_is_an_error() -> None:
    harness = SessionHarness()
    with pytest.raises(WireError, match="accepted 4 submissions, but 0 were sent"):
        harness.receive(native.Accepted(4))
    with pytest.raises(WireError):
        harness.session.receive([b"rubbish"], harness.now)


# ---- acknowledgements and inputs ------------------------------------------------------------------------------------


def test_results_are_acknowledged_with_the_next_message() -> None:
    harness = SessionHarness()
    harness.submit()
    harness.sent()
    harness.results(1)
    assert harness.sent() == []
    harness.submit()
    assert submits_of(harness)[0].received == 1
    harness.now += 2.1
    assert harness.sent() == [native.Ping(received=1)]


def test_many_unacknowledged_results_are_acknowledged_in_a_message_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "ACK_RESULTS", 2)
    harness = SessionHarness()
    for _ in range(3):
        harness.submit()
    harness.sent()
    harness.results(1)
    assert harness.sent() == []
    harness.results(2)
    assert harness.sent() == [native.Ping(received=2)]
    monkeypatch.setattr(session_module, "ACK_BYTES", 10)
    harness.results(3)
    assert harness.sent() == [native.Ping(received=3)]


def test_r9_a_result_is_not_acknowledged_while_a_call_that_needs_it_is_unaccepted() -> None:
    harness = SessionHarness()
    harness.submit()
    harness.sent()
    harness.receive(native.Accepted(1))
    harness.submit(inputs=[1])
    harness.results(1)
    assert submits_of(harness)[0].received == 0
    harness.now += 2.1
    assert harness.sent() == [native.Ping(received=0)]
    harness.receive(native.Accepted(2))
    harness.now += 2.1
    assert harness.sent() == [native.Ping(received=1)]


def test_r9_a_call_with_an_input_that_has_ended_is_not_queued() -> None:
    harness = SessionHarness()
    harness.submit()
    harness.sent()
    harness.results(1)
    assert harness.session.submit(Handle(), Call(0), (), [1]) is None
    assert harness.session.open_count == 0


# ---- cancelling -----------------------------------------------------------------------------------------------------


def test_r23_a_cancel_follows_the_submission_that_it_cancels() -> None:
    harness = SessionHarness(credit=1)
    harness.submit()
    harness.submit()
    harness.session.cancel([1, 2, 9 << 32 | 4])
    harness.session.cancel([1])
    assert harness.session.open_count == 0
    submit, *cancels = harness.sent()
    assert submits([submit]) == [[1]]
    assert cancels == [native.Cancel([1]), native.Cancel([9 << 32 | 4])]
    harness.receive(native.Accepted(1))
    submit, *cancels = harness.sent()
    assert submits([submit]) == [[2]]
    assert cancels == [native.Cancel([2])]
    harness.results(1, 2)
    assert harness.session.open_count == 0


def test_unsent_calls_can_be_dropped() -> None:
    harness = SessionHarness(credit=1)
    first, second = harness.submit(), harness.submit(frames=[b"x"])
    third = harness.submit(inputs=[1])
    harness.sent()
    assert harness.session.drop_unsent() == [second, third]
    assert list(harness.session.tasks.values()) == [first]
    harness.results(1)
    harness.now += 2.1
    assert harness.sent() == [native.Ping(received=1)]  # no unaccepted call needs it


def test_a_reset_session_has_no_unsent_calls() -> None:
    harness = SessionHarness()
    sent = harness.submit()
    harness.sent()
    unsent = harness.submit()
    assert harness.session.reset() == [sent, unsent]
    assert harness.session.drop_unsent() == []


# ---- liveness -------------------------------------------------------------------------------------------------------


def test_silence_for_more_than_five_heartbeats_is_a_broken_connection() -> None:
    harness = SessionHarness()
    for _ in range(5):
        harness.now += 2.0
        assert harness.session.check_silence(harness.now) is not None
    harness.now += 0.1
    assert harness.session.check_silence(harness.now) is None
    harness.session.connection_opened(harness.now)
    assert harness.session.check_silence(harness.now) is not None


def test_after_a_suspension_of_the_client_the_scheduler_gets_one_more_period() -> None:
    harness = SessionHarness()
    assert harness.session.check_silence(harness.now) is not None
    harness.now += 3600.0
    assert harness.session.check_silence(harness.now) is not None
    harness.now += 1.9
    assert harness.session.check_silence(harness.now) is not None
    harness.now += 0.2
    assert harness.session.check_silence(harness.now) is None


def test_a_session_is_ready_when_the_starting_engines_have_joined() -> None:
    harness = SessionHarness(welcome=False)
    assert not harness.session.is_ready
    harness.sent()
    harness.receive(native.Welcome(3, "secret", "instance", engines=1, starting=2))
    assert not harness.session.is_ready
    harness.receive(native.Engines(["3.11.2"], 2))
    assert not harness.session.is_ready
    harness.receive(native.Engines(["3.11.2"], 3))
    assert harness.session.is_ready


def test_a_session_is_ready_with_the_engines_of_its_local_cluster() -> None:
    session: SchedulerSession[Handle] = SchedulerSession(native.Hello(role="client"), FunctionRegistry(), engines=2)
    session.receive([native.encode(native.Welcome(3, "secret", "instance", engines=1))], 0.0)
    assert not session.is_ready
    session.receive([native.encode(native.Engines([], 2))], 0.0)
    assert session.is_ready


def test_closing_engines_and_events_are_noted() -> None:
    harness = SessionHarness()
    assert harness.receive(native.Closing("SIGTERM")).closing == "SIGTERM"
    harness.receive(native.Engines(["3.11.2"], 4))
    assert (harness.session.pythons, harness.session.engine_count) == (["3.11.2"], 4)
    assert harness.receive(native.Events([native.MonitorEvent("finished")])).events == [native.MonitorEvent("finished")]


def test_unaccepted_bytes_are_limited_by_the_credit_in_bytes() -> None:
    harness = SessionHarness()
    size = 1000 + native.TASK_BYTES + len(b"args")
    harness.receive(native.Accepted(0, credit_bytes=2 * size + 1, limit="client_bytes"))
    for _ in range(5):
        harness.submit(frames=[b"x" * 1000])
    assert submits(harness.sent()) == [[1, 2], [3]]  # the last call may exceed it
    assert harness.session.is_blocked
    assert harness.session.limiting_setting == "client_bytes"
    assert not harness.session.is_busy
    harness.receive(native.Accepted(1))
    assert submits(harness.sent()) == []  # a Submit counts until all of its calls are accepted
    harness.receive(native.Accepted(3))
    assert submits(harness.sent()) == [[4, 5]]
    assert not harness.session.is_blocked
    harness.receive(native.Accepted(5, credit_bytes=0))
    harness.submit()
    assert submits(harness.sent()) == []
    assert harness.session.is_blocked
    harness.session.connection_opened(harness.now)
    harness.sent()
    harness.receive(native.Welcome(3, "secret", "instance", resumed=True, accepted=5, credit=9))
    assert submits(harness.sent()) == [[6]]  # this scheduler does not limit bytes
    assert not harness.session.is_blocked


def test_calls_that_are_sent_again_count_against_the_credit_in_bytes() -> None:
    harness = SessionHarness()
    for _ in range(3):
        harness.submit(frames=[b"x" * 1000])
    harness.sent()
    harness.session.connection_opened(harness.now)
    harness.sent()
    harness.receive(native.Welcome(3, "secret", "instance", resumed=True, accepted=1, credit=9, credit_bytes=1000))
    harness.submit()
    assert submits(harness.sent()) == [[2, 3]]
    assert harness.session.is_blocked
    harness.receive(native.Accepted(3))
    assert submits(harness.sent()) == [[4]]
    assert harness.session._unaccepted_bytes == native.TASK_BYTES + len(b"args")
