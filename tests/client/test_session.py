"""The client's protocol core, without a socket: what it sends, what it makes of the answers, what it survives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from trio_sched.client import session as session_module
from trio_sched.client.functions import Function, Functions
from trio_sched.client.session import Session, SessionUpdate
from trio_sched.errors import WireError
from trio_sched.wire import native
from trio_sched.wire.native import Call, Frame, TaskEnd


class Handle:
    """The least that a session needs of a future."""

    def __init__(self, function: Function | None = None) -> None:
        self.function = function


class Line:
    """A session and the scheduler's side of its conversation, played by the test."""

    def __init__(self, *, credit: int = 1000, welcome: bool = True) -> None:
        self.functions = Functions()
        self.session: Session[Handle] = Session(native.Hello(role="client", token="t"), self.functions)
        self.now = 100.0
        self.seq = 0
        if welcome:
            assert [type(message) for message in self.sent()] == [native.Hello]
            self.hear(native.Welcome(3, "secret", "instance", credit=credit))
            assert self.sent() == [native.Ping()]

    def sent(self) -> list[native.FromClient]:
        return [message for message, _ in self.session.outgoing(self.now)]

    def hear(self, message: native.ToClient, *frames: Frame) -> SessionUpdate[Handle]:
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
        ends = [TaskEnd(3 << 32 | counter) for counter in counters]
        return self.hear(native.Results(self.seq, ends, accepted=accepted))


def submits(messages: Sequence[native.FromClient]) -> list[list[int]]:
    """The counters in each Submit."""
    return [[call.id for call in message.tasks] for message in messages if isinstance(message, native.Submit)]


def test_the_first_message_is_hello_and_nothing_else_before_the_welcome() -> None:
    line = Line(welcome=False)
    line.submit()
    assert line.session.is_busy
    assert line.sent() == [native.Hello(role="client", token="t")]
    assert line.sent() == []
    assert not line.session.is_busy
    update = line.hear(native.Welcome(3, "secret", "instance", credit=10, pythons=["3.12.1"]))
    assert update == SessionUpdate(welcomed=True)
    assert (line.session.number, line.session.pythons) == (3, ["3.12.1"])
    assert submits(line.sent()) == [[1]]


def test_many_tasks_travel_in_one_message_with_ascending_counters() -> None:
    line = Line()
    handles = [line.submit() for _ in range(3)]
    [message] = line.sent()
    assert submits([message]) == [[1, 2, 3]]
    assert list(line.session.tasks.values()) == handles
    assert line.sent() == []


def test_no_more_than_the_credit_is_under_way() -> None:
    line = Line(credit=2)
    for _ in range(5):
        line.submit()
    assert submits(line.sent()) == [[1, 2]]
    assert line.session.has_unsent
    assert not line.session.is_busy
    line.hear(native.Accepted(1))
    assert submits(line.sent()) == [[3]]
    line.hear(native.Pong(accepted=3))
    assert submits(line.sent()) == [[4, 5]]
    assert not line.session.has_unsent
    assert not line.session.all_accepted
    line.hear(native.Accepted(5))
    assert line.session.all_accepted


def test_a_submit_is_closed_when_it_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MAX_BYTES_PER_SUBMIT", 1000)
    monkeypatch.setattr(session_module, "MAX_TASKS_PER_SUBMIT", 4)
    line = Line()
    line.submit(frames=[b"x" * 600])
    line.submit(frames=[b"y" * 600])
    for _ in range(5):
        line.submit()
    assert submits(line.sent()) == [[1], [2, 3, 4, 5], [6, 7]]


def test_a_function_is_sent_once_and_dropped_when_nobody_needs_it() -> None:
    line = Line()
    line.submit(function=b"f")
    line.submit(function=b"g")
    line.submit(function=b"f")
    f, g = line.functions.intern(b"f"), line.functions.intern(b"g")
    [message] = line.sent()
    assert isinstance(message, native.Submit)
    assert message.functions == {f.digest: b"f", g.digest: b"g"}
    f.kept = 1  # its function object is still there
    line.results(1, 2, 3)
    assert line.sent() == [native.Submit([], drop=[g.digest], received=0)]
    line.submit(function=b"f")
    line.submit(function=b"g")
    [message] = line.sent()
    assert isinstance(message, native.Submit)
    assert message.functions == {g.digest: b"g"}


def test_a_renewed_session_goes_on_where_it_was() -> None:
    line = Line(credit=2)
    line.submit(function=b"f")
    [first] = line.sent()
    assert isinstance(first, native.Submit)
    line.results(1, accepted=1)
    second, third, fourth = (line.submit(function=b"f") for _ in range(3))
    line.session.cancel((3,))
    assert submits(line.sent()) == [[2, 3]]
    line.session.opened(line.now)
    [hello] = line.sent()
    assert isinstance(hello, native.Hello)
    assert (hello.session, hello.accepted, hello.received) == (3, 1, 1)
    update = line.hear(native.Welcome(3, "secret", "instance", resumed=True, renewed=True, accepted=1, credit=2))
    assert update == SessionUpdate(welcomed=True)
    again = line.sent()
    assert submits(again) == [[2, 3]]
    assert isinstance(again[0], native.Submit)
    assert again[0].functions == first.functions
    assert native.Cancel([3]) in again
    assert [handle for handle, _ in line.results(2, 3, accepted=3).ended] == [second, third]
    assert submits(line.sent()) == [[4]]
    assert list(line.session.tasks.values()) == [fourth]


def test_a_renewed_session_has_lost_the_accepted_tasks_that_had_not_ended() -> None:
    line = Line()
    first, second = line.submit(), line.submit()
    line.sent()
    line.hear(native.Accepted(1))
    line.session.opened(line.now)
    line.sent()
    update = line.hear(native.Welcome(3, "secret", "instance", resumed=True, renewed=True, accepted=1, credit=9))
    assert update.lost == [first]
    assert submits(line.sent()) == [[2]]
    assert list(line.session.tasks.values()) == [second]


def test_r17_ends_come_with_their_handles_and_once() -> None:
    line = Line()
    first, second = line.submit(), line.submit()
    line.sent()
    update = line.results(2, accepted=2)
    assert update.ended == [(second, TaskEnd(3 << 32 | 2))]
    line.seq = 0
    assert line.results(2).ended == []  # the same message again
    update = line.results(2, 1, 77)  # an end that we had, one we want, one never ours
    assert [handle for handle, _ in update.ended] == [first]
    assert line.session.open_count == 0


def test_frames_go_to_the_ends_that_they_belong_to() -> None:
    line = Line()
    line.submit()
    line.submit()
    line.sent()
    ends = [TaskEnd(1, frames=1), TaskEnd(2, frames=2)]
    update = line.hear(native.Results(1, ends), b"a", b"b", b"c")
    attached: list[Any] = [end for _, end in update.ended]
    assert [end.frames for end in attached] == [(b"a",), (b"b", b"c")]


def test_a_gap_in_the_results_asks_for_them_again() -> None:
    line = Line()
    line.submit()
    line.sent()
    update = line.hear(native.Results(2, [TaskEnd(1)]))
    assert update.rejoin
    assert update.ended == []
    line.session.opened(line.now)
    [hello] = line.sent()
    assert isinstance(hello, native.Hello)
    assert (hello.session, hello.secret, hello.scheduler, hello.received) == (3, "secret", "instance", 0)


def test_refused_submissions_come_back_with_the_reason() -> None:
    line = Line()
    handle = line.submit()
    line.sent()
    assert line.hear(native.Refused(1, "no such engine")).refused == [(handle, "no such engine")]
    assert line.session.open_count == 0


# ---- broken connections ---------------------------------------------------------------------------------------------


def test_what_was_not_accepted_is_sent_again_on_resumption() -> None:
    line = Line(credit=5)
    for number in range(3):
        line.submit(frames=[b"%d" % number], function=b"f")
    line.sent()
    line.submit()
    line.sent()
    line.submit()
    line.session.opened(line.now)
    assert [type(message) for message in line.sent()] == [native.Hello]
    line.hear(native.Welcome(3, "secret", "instance", resumed=True, accepted=2, credit=5))
    out = line.session.outgoing(line.now)
    assert submits([message for message, _ in out]) == [[3], [4], [5]]
    assert [list(frames) for _, frames in out][:2] == [[b"2"], []]
    assert out[0][0].functions  # type: ignore[union-attr]
    line.hear(native.Accepted(5))
    assert line.sent() == []


def test_cancels_and_questions_are_repeated_on_resumption() -> None:
    line = Line()
    line.submit()
    line.sent()
    line.session.cancel([1])
    request = line.session.ask("status")
    assert line.sent() == [native.Cancel([1]), native.Query(request, "status")]
    line.session.opened(line.now)
    line.sent()
    line.hear(native.Welcome(3, "secret", "instance", resumed=True, accepted=1, credit=5))
    assert line.sent() == [native.Cancel([1]), native.Query(request, "status"), native.Ping()]
    assert line.hear(native.Reply(request, {"a": 1})).replies == [(request, {"a": 1}, "")]
    assert line.hear(native.Reply(request, {"a": 1})).replies == []


def test_another_scheduler_has_lost_our_tasks() -> None:
    line = Line(credit=1)
    handles = [line.submit(function=b"f"), line.submit()]
    line.sent()
    line.session.opened(line.now)
    line.sent()
    update = line.hear(native.Welcome(9, "other", "instance 2", resumed=False, credit=1))
    assert update.lost == handles
    assert update.welcomed
    assert line.session.number == 9
    line.submit(function=b"f")
    [message] = submits_of(line)
    assert [call.id for call in message.tasks] == [3]
    assert message.functions
    line.seq = 0
    assert len(line.results(3).ended) == 1


def submits_of(line: Line) -> list[native.Submit]:
    return [message for message in line.sent() if isinstance(message, native.Submit)]


def test_a_scheduler_that_forgot_us_is_greeted_again_once() -> None:
    line = Line()
    line.submit()
    line.sent()
    line.hear(native.Error("unknown_peer", "say hello"))
    assert [type(message) for message in line.sent()] == [native.Hello]
    line.hear(native.Error("unknown_peer", "say hello"))
    assert line.sent() == []


def test_errors_before_the_welcome_are_final_and_later_ones_complaints() -> None:
    line = Line(welcome=False)
    line.sent()
    assert line.hear(native.Error("unauthenticated", "wrong token")).rejected == "wrong token (unauthenticated)"
    assert Line().hear(native.Error("malformed", "what?")).error == "what? (malformed)"
    assert "version 2" in Line(welcome=False).hear(native.Welcome(1, "s", "i", version=2)).rejected


def test_a_scheduler_that_counts_wrong_is_an_error() -> None:
    line = Line()
    with pytest.raises(WireError, match="accepted 4 submissions, but 0 were sent"):
        line.hear(native.Accepted(4))
    with pytest.raises(WireError):
        line.session.receive([b"rubbish"], line.now)


# ---- acknowledgements and inputs ------------------------------------------------------------------------------------


def test_received_results_are_acknowledged_with_what_is_sent_anyway() -> None:
    line = Line()
    line.submit()
    line.sent()
    line.results(1)
    assert line.sent() == []
    line.submit()
    assert submits_of(line)[0].received == 1
    line.now += 2.1
    assert line.sent() == [native.Ping(received=1)]


def test_many_unacknowledged_results_are_worth_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "ACK_RESULTS", 2)
    line = Line()
    for _ in range(3):
        line.submit()
    line.sent()
    line.results(1)
    assert line.sent() == []
    line.results(2)
    assert line.sent() == [native.Ping(received=2)]
    monkeypatch.setattr(session_module, "ACK_BYTES", 10)
    line.results(3)
    assert line.sent() == [native.Ping(received=3)]


def test_r9_a_result_is_not_acknowledged_while_a_call_that_needs_it_is_under_way() -> None:
    line = Line()
    line.submit()
    line.sent()
    line.hear(native.Accepted(1))
    line.submit(inputs=[1])
    line.results(1)
    assert submits_of(line)[0].received == 0
    line.now += 2.1
    assert line.sent() == [native.Ping(received=0)]
    line.hear(native.Accepted(2))
    line.now += 2.1
    assert line.sent() == [native.Ping(received=1)]


def test_r9_an_input_that_has_ended_must_go_by_value() -> None:
    line = Line()
    line.submit()
    line.sent()
    line.results(1)
    assert line.session.submit(Handle(), Call(0), (), [1]) is None
    assert line.session.open_count == 0


# ---- cancelling -----------------------------------------------------------------------------------------------------


def test_r23_a_cancel_follows_the_submission_that_it_cancels() -> None:
    line = Line(credit=1)
    line.submit()
    line.submit()
    line.session.cancel([1, 2, 9 << 32 | 4])
    line.session.cancel([1])
    assert line.session.open_count == 0
    submit, *cancels = line.sent()
    assert submits([submit]) == [[1]]
    assert cancels == [native.Cancel([1]), native.Cancel([9 << 32 | 4])]
    line.hear(native.Accepted(1))
    submit, *cancels = line.sent()
    assert submits([submit]) == [[2]]
    assert cancels == [native.Cancel([2])]
    line.results(1, 2)
    assert line.session.open_count == 0


def test_what_was_not_sent_can_be_taken_back() -> None:
    line = Line(credit=1)
    first, second = line.submit(), line.submit(frames=[b"x"])
    third = line.submit(inputs=[1])
    line.sent()
    assert line.session.drop_unsent() == [second, third]
    assert list(line.session.tasks.values()) == [first]
    line.results(1)
    line.now += 2.1
    assert line.sent() == [native.Ping(received=1)]  # nothing under way needs it


def test_nothing_is_left_unsent_once_the_scheduler_is_given_up() -> None:
    line = Line()
    sent = line.submit()
    line.sent()
    unsent = line.submit()
    assert line.session.reset() == [sent, unsent]
    assert line.session.drop_unsent() == []


# ---- liveness -------------------------------------------------------------------------------------------------------


def test_silence_for_five_heartbeats_is_a_broken_line() -> None:
    line = Line()
    for _ in range(5):
        line.now += 2.0
        assert line.session.check_silence(line.now) is not None
    line.now += 0.1
    assert line.session.check_silence(line.now) is None
    line.session.opened(line.now)
    assert line.session.check_silence(line.now) is not None


def test_after_a_pause_of_our_own_the_scheduler_gets_one_more_period() -> None:
    line = Line()
    assert line.session.check_silence(line.now) is not None
    line.now += 3600.0
    assert line.session.check_silence(line.now) is not None
    line.now += 1.9
    assert line.session.check_silence(line.now) is not None
    line.now += 0.2
    assert line.session.check_silence(line.now) is None


def test_it_is_ready_when_the_engines_that_are_being_started_have_joined() -> None:
    line = Line(welcome=False)
    assert not line.session.is_ready
    line.sent()
    line.hear(native.Welcome(3, "secret", "instance", engines=1, starting=2))
    assert not line.session.is_ready
    line.hear(native.Engines(["3.11.2"], 2))
    assert not line.session.is_ready
    line.hear(native.Engines(["3.11.2"], 3))
    assert line.session.is_ready


def test_it_is_ready_with_no_fewer_engines_than_its_client_wants() -> None:
    session: Session[Handle] = Session(native.Hello(role="client"), Functions(), engines=2)
    session.receive([native.encode(native.Welcome(3, "secret", "instance", engines=1))], 0.0)
    assert not session.is_ready
    session.receive([native.encode(native.Engines([], 2))], 0.0)
    assert session.is_ready


def test_closing_and_engines_are_noted() -> None:
    line = Line()
    assert line.hear(native.Closing("SIGTERM")).closing == "SIGTERM"
    line.hear(native.Engines(["3.11.2"], 4))
    assert (line.session.pythons, line.session.engine_count) == (["3.11.2"], 4)
    assert line.hear(native.Events([native.Happened("finished")])).events == [native.Happened("finished")]


def test_no_more_than_the_credit_in_bytes_is_under_way() -> None:
    line = Line()
    size = 1000 + native.TASK_BYTES + len(b"args")
    line.hear(native.Accepted(0, credit_bytes=2 * size + 1, limit="client_bytes"))
    for _ in range(5):
        line.submit(frames=[b"x" * 1000])
    assert submits(line.sent()) == [[1, 2], [3]]  # the last one may exceed it
    assert line.session.is_blocked
    assert line.session.limiting_setting == "client_bytes"
    assert not line.session.is_busy
    line.hear(native.Accepted(1))
    assert submits(line.sent()) == []  # a Submit counts until all of it was accepted
    line.hear(native.Accepted(3))
    assert submits(line.sent()) == [[4, 5]]
    assert not line.session.is_blocked
    line.hear(native.Accepted(5, credit_bytes=0))
    line.submit()
    assert submits(line.sent()) == []
    assert line.session.is_blocked
    line.session.opened(line.now)
    line.sent()
    line.hear(native.Welcome(3, "secret", "instance", resumed=True, accepted=5, credit=9))
    assert submits(line.sent()) == [[6]]  # this scheduler says nothing of bytes
    assert not line.session.is_blocked


def test_what_is_sent_again_takes_its_credit_again() -> None:
    line = Line()
    for _ in range(3):
        line.submit(frames=[b"x" * 1000])
    line.sent()
    line.session.opened(line.now)
    line.sent()
    line.hear(native.Welcome(3, "secret", "instance", resumed=True, accepted=1, credit=9, credit_bytes=1000))
    line.submit()
    assert submits(line.sent()) == [[2, 3]]
    assert line.session.is_blocked
    line.hear(native.Accepted(3))
    assert submits(line.sent()) == [[4]]
    assert line.session._unaccepted_bytes == native.TASK_BYTES + len(b"args")
