"""One WebSocket message is one message of the native wire: JSON in a text message, msgpack in a binary one.

There are no frames, so what would be a frame travels inside its record: a large body as `body`, out-of-band buffers as
`attached`. In JSON bytes are base64. The result of a call by name is plain data, and comes in JSON as `value` where it
can (`codec` "msgpack" tells; a `value` that is not there is null). As in JavaScript, NaN and infinities become null and
the keys of objects strings. What JSON cannot say, or is large, stays msgpack in `body`.

Only what clients say is understood: engines and nannies need frames, and do not come this way.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, get_args

import msgspec
from msgspec.structs import replace

from trio_sched.errors import WireError
from trio_sched.wire import native
from trio_sched.wire.native import Call, Frame, FromClient, Message, Results, Submit, TaskEnd

Data: TypeAlias = str | bytes
VALUE_BYTES = 4 << 20
"""Results larger than this are not turned into JSON by the scheduler, which has other things to do."""
MANY_OBJECTS_BYTES = 1 << 16
SPARE_LEVELS = 64
"""How much deeper than allowed a message may be nested for the decoder: the stack of the outbox, and some more."""

_json = msgspec.json.Encoder()
_from_client = msgspec.json.Decoder(FromClient)
_FROM_CLIENT = get_args(FromClient)
_TAGS = frozenset(str(type_.__struct_config__.tag) for type_ in _FROM_CLIENT)


class _Tag(msgspec.Struct):
    type: str = ""


_tag = msgspec.json.Decoder(_Tag)


# ---- what comes in --------------------------------------------------------------------------------------------------


def decode(data: Data) -> tuple[FromClient, list[Frame]]:
    """The message, and the frames that travelled inside. Raises WireError."""
    with _without_collections(len(data) >= MANY_OBJECTS_BYTES):
        message = _decode_text(data) if isinstance(data, str) else _decode_binary(data)
        _check_that_it_can_be_passed_on(message)
    frames: list[Frame] = []
    if type(message) is Submit:
        for call in message.tasks:
            _take_out(call, frames)
    return message, frames


@contextlib.contextmanager
def _without_collections(wanted: bool) -> Iterator[None]:
    """No garbage collections meanwhile: a decoder makes objects by the hundred thousand and no garbage, and looking
    through all of them again and again would take four times as long as the decoding."""
    wanted = wanted and gc.isenabled()
    if wanted:
        gc.disable()
    try:
        yield
    finally:
        if wanted:
            gc.enable()


def _decode_text(data: str) -> FromClient:
    try:
        return _from_client.decode(data)  # type: ignore[no-any-return]  # the decoder is typed by its union
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        problem = str(error)
    try:
        tag = _tag.decode(data).type
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise WireError(f"not a message: {problem}") from None
    if tag in _TAGS:
        raise WireError(f"malformed {tag!r} message: {problem}")
    raise WireError(f"a client cannot send {tag!r}; this side speaks version {native.VERSION}", "unknown_type")


def _decode_binary(data: bytes) -> FromClient:
    message: Any = native.decode_from_peer(data)
    if not isinstance(message, _FROM_CLIENT):
        raise WireError(f"a client cannot send {type(message).__name__}", "unknown_type")
    return message  # type: ignore[no-any-return]  # as just checked


def _check_that_it_can_be_passed_on(message: FromClient) -> None:
    """JSON has integers that msgpack has not, and both nest deeper in a shallow stack than in a deep one: found out
    here, it is the sender's error; in the middle of a turn it would be the scheduler's.
    """
    deeper: Any = message
    for _ in range(SPARE_LEVELS):
        deeper = [deeper]
    try:
        native.encode(deeper)
    except (OverflowError, RecursionError) as error:
        raise WireError(f"a message that cannot be passed on: {error}") from None


def _take_out(call: Call, frames: list[Frame]) -> None:
    """Its frames are those in `attached`, whatever it says of frames elsewhere."""
    attached = call.attached or ()
    call.frames = len(attached)
    call.attached = None
    frames += attached


# ---- what goes out --------------------------------------------------------------------------------------------------


def encode(message: Message, frames: Sequence[Frame], *, binary: bool) -> Data:
    """The message, with its frames inside."""
    if type(message) is Results:
        message = replace(message, results=_put_in(message.results, frames, binary))
    return native.encode(message) if binary else _json.encode(message).decode()


def _put_in(ends: list[TaskEnd], frames: Sequence[Frame], binary: bool) -> list[TaskEnd]:
    """Copies where something changes: the originals are kept to be sent again."""
    inside: list[TaskEnd] = []
    at = 0
    for end in ends:
        if end.frames:
            own = [bytes(frame) for frame in frames[at : at + end.frames]]
            at += end.frames
            body = end.body or own.pop(0)
            end = replace(end, body=body, frames=len(own), attached=own or None)
        if not binary and end.codec == "msgpack" and end.outcome == "ok":
            end = _with_value(end)
        inside.append(end)
    return inside


def _with_value(end: TaskEnd) -> TaskEnd:
    if len(end.body) > VALUE_BYTES:
        return end
    try:
        value: Any = msgspec.msgpack.decode(end.body)
        text = _json.encode(value)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        return end
    return replace(end, body=b"", value=None if value is None else msgspec.Raw(text))
