"""Conversion of WebSocket messages: each one is a message of the native wire, as JSON text or msgpack binary.

A WebSocket message has no frames, so the frames of the native wire are part of their record: a large body is in `body`,
out-of-band buffers are in `attached`. In JSON, bytes are base64. The result of a call by name is plain data (`codec`
"msgpack"). In JSON it is in `value` if possible, and a missing `value` is null. As in JavaScript, NaN and infinities
become null, and the keys of objects become strings. A result that JSON cannot represent, or that is large, stays
msgpack in `body`.

Only messages of clients are decoded. Engines and nannies need frames and cannot connect to this front.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, cast, get_args

import msgspec
from msgspec.structs import replace

from trio_sched.errors import WireError
from trio_sched.wire import native
from trio_sched.wire.native import Call, Frame, FromClient, Message, Results, Submit, TaskResult

Data: TypeAlias = str | bytes
#: Larger results are not converted to JSON, which would block the event loop.
VALUE_BYTES = 4 << 20
#: Larger messages are decoded without garbage collection.
MANY_OBJECTS_BYTES = 1 << 16
#: Levels of nesting by which the check exceeds a message: the depth of the outbox's stack, with a margin.
SPARE_LEVELS = 64

_json = msgspec.json.Encoder()
_from_client: msgspec.json.Decoder[FromClient] = msgspec.json.Decoder(FromClient)
_FROM_CLIENT = get_args(FromClient)
_TAGS = frozenset(str(type_.__struct_config__.tag) for type_ in _FROM_CLIENT)


class _JsonTag(msgspec.Struct):
    type: str = ""


_tag = msgspec.json.Decoder(_JsonTag)


# ---- received messages ----------------------------------------------------------------------------------------------


def decode(data: Data) -> tuple[FromClient, list[Frame]]:
    """Decode a message of a client. Return it and the frames that were part of it.

    :raises WireError: the message is malformed, or a client cannot send it.
    """
    with _without_garbage_collection(len(data) >= MANY_OBJECTS_BYTES):
        message = _decode_text(data) if isinstance(data, str) else _decode_binary(data)
        _check_encodable(message)
    frames: list[Frame] = []
    if type(message) is Submit:
        for call in message.tasks:
            _extract_frames(call, frames)
    return message, frames


@contextlib.contextmanager
def _without_garbage_collection(is_large: bool) -> Iterator[None]:
    """Disable garbage collection for a large message.

    A decoder creates hundreds of thousands of objects and no garbage. Repeated collections, which visit all of them,
    would take four times as long as the decoding.
    """
    is_disabled_here = is_large and gc.isenabled()
    if is_disabled_here:
        gc.disable()
    try:
        yield
    finally:
        if is_disabled_here:
            gc.enable()


def _decode_text(data: str) -> FromClient:
    try:
        return _from_client.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        problem = str(error)
    try:
        tag = _tag.decode(data).type
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise WireError(f"not a message: {problem}") from None
    if tag in _TAGS:
        raise WireError(f"malformed {tag!r} message: {problem}")
    raise WireError(f"a client cannot send {tag!r}; the version of this scheduler is {native.VERSION}", "unknown_type")


def _decode_binary(data: bytes) -> FromClient:
    message: Any = native.decode_from_peer(data)
    if not isinstance(message, _FROM_CLIENT):
        raise WireError(f"a client cannot send {type(message).__name__}", "unknown_type")
    return cast(FromClient, message)


def _check_encodable(message: FromClient) -> None:
    """Check that the scheduler can encode the message for an engine.

    JSON has integers that msgpack does not have, and the permitted nesting depends on the depth of the stack. An error
    here is the sender's; the same error during a turn would be the scheduler's.

    :raises WireError: the message cannot be encoded.
    """
    deeper: Any = message
    for _ in range(SPARE_LEVELS):
        deeper = [deeper]
    try:
        native.encode(deeper)
    except (OverflowError, RecursionError) as error:
        raise WireError(f"the message cannot be passed on: {error}") from None


def _extract_frames(call: Call, frames: list[Frame]) -> None:
    """Move the buffers in `attached` to `frames`, and set the number of frames of the call."""
    attached = call.attached or ()
    call.frames = len(attached)
    call.attached = None
    frames += attached


# ---- sent messages --------------------------------------------------------------------------------------------------


def encode(message: Message, frames: Sequence[Frame], *, binary: bool) -> Data:
    """Encode a message, with its frames as parts of its records."""
    if type(message) is Results:
        message = replace(message, results=_embed_frames(message.results, frames, binary))
    return native.encode(message) if binary else _json.encode(message).decode()


def _embed_frames(results: list[TaskResult], frames: Sequence[Frame], binary: bool) -> list[TaskResult]:
    """Return the results with their frames inside. Changed ones are copies, because the originals may be sent again."""
    inside: list[TaskResult] = []
    at = 0
    for result in results:
        if result.frames:
            own = [bytes(frame) for frame in frames[at : at + result.frames]]
            at += result.frames
            body = result.body or own.pop(0)
            result = replace(result, body=body, frames=len(own), attached=own or None)
        if not binary and result.codec == "msgpack" and result.outcome == "ok":
            result = _with_value(result)
        inside.append(result)
    return inside


def _with_value(end: TaskResult) -> TaskResult:
    if len(end.body) > VALUE_BYTES:
        return end
    try:
        value: Any = msgspec.msgpack.decode(end.body)
        text = _json.encode(value)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        return end
    return replace(end, body=b"", value=None if value is None else msgspec.Raw(text))
