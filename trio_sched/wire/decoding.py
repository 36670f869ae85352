"""Decoding of tagged messages, with errors that tell what was wrong."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from trio_sched.errors import WireError


class _Tag(Struct):
    type: str = ""


_tag = msgspec.msgpack.Decoder(_Tag)


def tags(*types: type[Struct]) -> frozenset[str]:
    """The tags of these messages."""
    return frozenset(str(t.__struct_config__.tag) for t in types)


def decode(decoder: msgspec.msgpack.Decoder[Any], data: bytes | bytearray | memoryview, known: frozenset[str]) -> Any:
    """The message in `data`.

    :raises WireError: it is not a message, or of a type whose tag is not among the `known` ones.
    """
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem = str(error)
    try:
        tag = _tag.decode(data).type
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise WireError(f"not a message: {problem}", "malformed") from None
    if tag in known:
        raise WireError(f"malformed {tag!r} message: {problem}", "malformed")
    raise WireError(f"unknown message type {tag!r}", "unknown_type")
