"""The Jupyter protocol: splitting, verifying, refusing and reading messages, and compatibility with jupyter_client."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_sched.errors import ConfigError, WireError
from trio_sched.wire import jupyter
from trio_sched.wire.jupyter import DELIMITER, Codec, error_content, split

KEY = b"the key"


def refusal(codec: Codec, frames: list[Any]) -> str:
    """The kind of the error that reading the frames raises."""
    with pytest.raises(WireError) as caught:
        codec.read(frames)
    return caught.value.kind


def test_a_message_is_read_as_it_was_built() -> None:
    sender, receiver = Codec(KEY), Codec(KEY)
    parent = {"msg_id": "p", "msg_type": "t", "session": "s"}
    sent = sender.message("apply_request", {"x": 1}, parent=parent, metadata={"status": "ok"}, buffers=[b"b1", b"b2"])
    message = receiver.read([b"router", b"client", *sent])
    assert message.identities == [b"router", b"client"]
    assert message.head.msg_type == message.header["msg_type"] == "apply_request"
    assert message.head.session == sender.session
    assert message.parent.msg_id == "p"
    assert message.parent_header == parent
    assert message.reply_status.status == "ok"
    assert message.reply_status.dependencies_met
    assert message.metadata == {"status": "ok"}
    assert message.content == {"x": 1}
    assert message.buffers == [b"b1", b"b2"]
    assert [DELIMITER, *message.frames] == sent


def test_message_ids_are_unique() -> None:
    codec = Codec(KEY)
    assert codec.header("a")["msg_id"] != codec.header("a")["msg_id"]
    assert codec.header("a")["date"].endswith("Z")


def test_r25_unsigned_wrongly_signed_malformed_and_replayed_messages_are_refused() -> None:
    codec, sender = Codec(KEY), Codec(KEY)
    good = sender.message("t", {})
    assert refusal(codec, [DELIMITER, b"", *good[2:]]) == "unsigned"
    assert refusal(codec, [DELIMITER, b"0" * 64, *good[2:]]) == "wrongly_signed"
    assert refusal(codec, [*good[:5], b'{"x": 2}']) == "wrongly_signed"
    assert refusal(codec, Codec(b"another key").message("t", {})) == "wrongly_signed"
    assert refusal(codec, good[:5]) == "malformed"
    assert refusal(codec, good[1:]) == "malformed"
    assert refusal(codec, []) == "malformed"
    codec.read(good)
    assert refusal(codec, good) == "replayed"
    assert refusal(codec, [b"from another", *good]) == "replayed"


def test_without_a_key_messages_are_neither_signed_nor_verified() -> None:
    codec = Codec(b"")
    message = codec.message("t", {})
    assert message[1] == b""
    for _ in range(2):
        assert codec.read(message).head.msg_type == "t"


def test_a_wrong_signature_is_not_kept() -> None:
    codec = Codec(KEY)
    good = Codec(KEY).message("t", {})
    refusal(codec, [DELIMITER, good[1], *good[3:], b"{}"])
    codec.read(good)


def test_the_number_of_kept_signatures_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jupyter, "SIGNATURES_KEPT", 10)
    codec, sender = Codec(KEY), Codec(KEY)
    messages = [sender.message("t", {}) for _ in range(100)]
    for message in messages:
        codec.read(message)
        assert len(codec._seen) + len(codec._seen_before) <= 20
    assert [refusal(codec, message) for message in messages[-10:]] == ["replayed"] * 10


@pytest.mark.parametrize("part", [b"", b"[]", b"1", b"{", b"\xff", b'{"a": NaN}', b"[" * 100_000, b'{"msg_id": 1}'])
def test_r25_malformed_parts_raise_a_wire_error(part: bytes) -> None:
    message = split([DELIMITER, b"", part, part, part, part])
    readable = part == b'{"msg_id": 1}'
    for name in ("header", "parent_header", "metadata", "content"):
        if readable:
            assert getattr(message, name) == {"msg_id": 1}
        else:
            with pytest.raises(WireError):
                getattr(message, name)
    for name in ("head", "parent"):
        with pytest.raises(WireError):
            getattr(message, name)


def test_an_unknown_scheme_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="signature_scheme"):
        Codec(KEY, "rot13")


def test_errors_of_the_scheduler_have_no_engine_info() -> None:
    assert "engine_info" not in error_content("TaskTimeout", "too late")
    assert isinstance(error_content("TaskTimeout", "too late")["traceback"], list)


@given(st.lists(st.one_of(st.binary(max_size=20), st.just(DELIMITER)), max_size=12))
def test_r25_any_frames_are_refused_or_split(frames: list[bytes]) -> None:
    try:
        message = split(frames)
    except WireError:
        return
    assert [*message.identities, DELIMITER, *message.frames] == frames


@given(st.dictionaries(st.text(), st.one_of(st.none(), st.booleans(), st.text(), st.integers(-(2**53), 2**53))))
def test_messages_are_compatible_with_jupyter_client(content: dict[str, Any]) -> None:
    sessions = pytest.importorskip("jupyter_client.session")
    other = sessions.Session(key=KEY)
    codec = Codec(KEY)
    built = codec.message("apply_reply", content, parent={"msg_id": "p", "session": "s"}, metadata={"a": [1]})
    _, parts = other.feed_identities([bytes(frame) for frame in built])
    read = other.deserialize(parts)
    assert read["content"] == content
    assert read["parent_header"]["msg_id"] == "p"
    sent = other.serialize(other.msg("apply_request", content), ident=[b"me"])
    message = codec.read([bytes(frame) for frame in sent])
    assert message.content == content
    assert message.head.session == other.session
