"""Messages of the native wire as JSON text and msgpack binary: no data is lost, and plain data is JSON."""

from __future__ import annotations

import base64
import datetime
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_sched.errors import WireError
from trio_sched.web import messages
from trio_sched.wire import native, payload
from trio_sched.wire.native import (
    Bye,
    Call,
    Cancel,
    Finished,
    Hello,
    Options,
    Ping,
    Query,
    Results,
    Stop,
    Submit,
    TaskResult,
    Watch,
    Welcome,
)

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
FROM_CLIENT = [
    Hello("client", token="t", path=["a"], weight=2.0),
    Ping(3),
    Bye(True, "done"),
    Submit([Call(1, call="math:hypot", args=[3, 4], options=Options(after=[7], timeout_s=1.5))]),
    Submit([Call(1, fn=b"\0digest", body=b"\xff\0")], functions={b"\0digest": b"\x80pickle"}, drop=[b"\1"], received=4),
    Cancel([1, 2]),
    Query(1, "explain", 2),
    Watch(False),
    Stop("enough"),
]


def value_of(data: Any) -> TaskResult:
    """Return the result of a call by name that returned `data`."""
    return TaskResult(1, body=msgspec.msgpack.encode(data), codec="msgpack")


def as_json(end: TaskResult, *frames: bytes) -> dict[str, Any]:
    """Return the one result as a page receives it."""
    text = messages.encode(Results(1, [end]), frames, binary=False)
    assert isinstance(text, str)
    [result] = json.loads(text)["results"]
    assert isinstance(result, dict)
    return result


@pytest.mark.parametrize("message", FROM_CLIENT, ids=lambda message: type(message).__name__)
def test_messages_of_a_client_are_decoded_in_both_formats(message: Any) -> None:
    assert messages.decode(msgspec.json.encode(message).decode()) == (message, [])
    assert messages.decode(native.encode(message)) == (message, [])


def test_hand_written_json_is_decoded() -> None:
    text = '{"type": "submit", "tasks": [{"id": 1, "call": "math:hypot", "args": [3, 4.5], "kwargs": {}}], "new": 1}'
    assert messages.decode(text) == (Submit([Call(1, call="math:hypot", args=[3, 4.5], kwargs={})]), [])


def test_attached_buffers_become_frames() -> None:
    calls = [Call(1, body=b"a", attached=[b"1", b"2"]), Call(2, body=b"b", frames=9), Call(3, attached=[b"3"])]
    for binary in (True, False):
        submit = Submit(calls)
        data = native.encode(submit) if binary else msgspec.json.encode(submit).decode()
        message, frames = messages.decode(data)
        assert frames == [b"1", b"2", b"3"]
        assert isinstance(message, Submit)
        assert [(call.frames, call.attached) for call in message.tasks] == [(2, None), (0, None), (1, None)]
        native.attach(message.tasks, frames)


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        ("", "malformed", "not a message"),
        ("nonsense", "malformed", "not a message"),
        ("[" * 100_000, "malformed", "not a message"),
        ('"text"', "malformed", "not a message"),
        ('{"type": "hello"}', "malformed", "malformed 'hello' message"),
        ('{"type": "submit", "tasks": [{"id": "x"}]}', "malformed", "malformed 'submit' message"),
        ('{"type": "submit", "tasks": [{"id": 1, "body": "not base64!"}]}', "malformed", "malformed 'submit'"),
        ('{"type": "dance"}', "unknown_type", "'dance'"),
        ('{"type": "finished", "results": []}', "unknown_type", "a client cannot send 'finished'"),
        ("\ud800", "malformed", "not a message"),
        (
            '{"type": "submit", "tasks": [{"id": 1, "call": "a:b", "args": [18446744073709551616]}]}',
            "malformed",
            "ints",
        ),
        ('{"type": "hello", "role": "client", "pid": 18446744073709551616}', "malformed", "cannot be passed on"),
        ('{"type": "query", "what": "status", "request": -9223372036854775809}', "malformed", "cannot be passed on"),
        (b"", "malformed", "not a message"),
        (b"\xc1", "malformed", "not a message"),
        (native.encode(Finished([])), "unknown_type", "a client cannot send Finished"),
        (native.encode(Welcome(1, "s", "i")), "unknown_type", "welcome"),
    ],
)
def test_a_malformed_message_raises_with_the_reason(data: Any, kind: str, message: str) -> None:
    with pytest.raises(WireError, match=message) as caught:
        messages.decode(data)
    assert caught.value.kind == kind


@pytest.mark.parametrize("binary", [True, False])
def test_a_decoded_message_can_be_encoded_in_a_deeper_stack(binary: bool) -> None:
    """Decoder and encoder use the stack. The scheduler encodes during a turn, where an error would end the turn."""

    def nested(levels: int) -> Any:
        data: Any = b"\x91" * levels + b"\x90" if binary else "[" * levels + "[]" + "]" * levels
        if binary:
            submit = native.encode(Submit([Call(1, call="a:b", args=[])]))
            assert submit.endswith(b"\xa4args\x90")
            return submit[:-1] + b"\x91" + data
        return '{"type": "submit", "tasks": [{"id": 1, "call": "a:b", "args": [' + data + "]}]}"

    def deeper(levels: int, message: Any) -> None:
        if levels:
            deeper(levels - 1, message)
        else:
            native.encode(native.Assign(message.tasks))

    def decoded(levels: int) -> Any:
        try:
            return messages.decode(nested(levels))[0]
        except WireError:
            return None

    # The permitted depth depends on the version of Python: since 3.12 C code has its own limit.
    accepted, refused = 100, 1_000_000
    assert decoded(accepted) is not None
    assert decoded(refused) is None
    while refused - accepted > 1:
        middle = (accepted + refused) // 2
        message = decoded(middle)
        if message is None:
            refused = middle
        else:
            deeper(30, message)
            accepted = middle


@given(PLAIN)
def test_plain_data_is_converted_to_json(data: Any) -> None:
    result = as_json(value_of(data))
    assert result.get("value") == data
    assert result["codec"] == "msgpack"
    assert "body" not in result


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (float("nan"), None),
        ([float("inf")], [None]),
        ({1: 2}, {"1": 2}),
        (b"\xff", base64.b64encode(b"\xff").decode()),
        (datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC), "2020-01-02T00:00:00Z"),
    ],
)
def test_special_values_follow_javascript(data: Any, value: Any) -> None:
    assert as_json(value_of(data)).get("value") == value


@pytest.mark.parametrize(
    "body",
    [
        msgspec.msgpack.encode(msgspec.msgpack.Ext(5, b"x")),
        msgspec.msgpack.encode({None: 1}),
        msgspec.msgpack.encode("x" * messages.VALUE_BYTES),
        b"\x91" * 100_000,
        b"\xc1",
        b"",
    ],
    ids=["extension", "odd key", "large", "deep", "garbage", "empty"],
)
def test_results_that_json_cannot_represent_stay_bytes(body: bytes) -> None:
    result = as_json(TaskResult(1, body=body, codec="msgpack"))
    assert base64.b64decode(result.get("body", "")) == body
    assert "value" not in result


def test_a_pickled_result_is_sent_as_bytes() -> None:
    body, _ = payload.dumps({1, 2})
    result = as_json(TaskResult(1, body=body))
    assert payload.loads(base64.b64decode(result["body"])) == {1, 2}
    assert "codec" not in result


def test_a_large_body_is_part_of_its_record() -> None:
    body = payload.dumps("x" * 100_000)[0]
    result = as_json(TaskResult(1, frames=1), body)
    assert payload.loads(base64.b64decode(result["body"])) == "x" * 100_000
    assert "frames" not in result
    assert (
        as_json(TaskResult(1, frames=1, codec="msgpack"), msgspec.msgpack.encode("y" * 100_000))["value"]
        == "y" * 100_000
    )


@pytest.mark.parametrize("binary", [True, False])
def test_buffers_are_attached_to_their_own_record(binary: bool) -> None:
    ends = [
        TaskResult(1, frames=2, body=b"1"),
        TaskResult(2, body=b"2"),
        TaskResult(3, frames=2),
        TaskResult(4, frames=1),
    ]
    frames = [b"a", memoryview(b"b"), bytearray(b"3"), b"c", b"4"]
    message = Results(7, ends, 9)
    data = messages.encode(message, frames, binary=binary)
    decode = msgspec.msgpack.decode if binary else msgspec.json.decode
    decoded = decode(data, type=Results)
    assert [(end.body, end.attached, end.frames) for end in decoded.results] == [
        (b"1", [b"a", b"b"], 2),
        (b"2", None, 0),
        (b"3", [b"c"], 1),
        (b"4", None, 0),
    ]
    assert (decoded.seq, decoded.accepted) == (7, 9)
    assert message.results is ends, "the original, which may be sent again, is unchanged"
    assert [(end.body, end.frames) for end in ends] == [(b"1", 2), (b"2", 0), (b"", 2), (b"", 1)]


def test_plain_data_stays_msgpack_in_binary_messages() -> None:
    data = messages.encode(Results(1, [value_of([1, 2])]), (), binary=True)
    [end] = msgspec.msgpack.decode(data, type=Results).results
    assert (msgspec.msgpack.decode(end.body), end.value) == ([1, 2], None)


def test_errors_have_name_message_and_traceback() -> None:
    error = native.RemoteError("ValueError", "no", "Traceback ...")
    result = as_json(TaskResult(1, "error", body=b"pickle", error=error, reason="it failed"))
    assert result["error"] == {"name": "ValueError", "message": "no", "traceback": "Traceback ..."}
    assert (result["outcome"], result["reason"]) == ("error", "it failed")
