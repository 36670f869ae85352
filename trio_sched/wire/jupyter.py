"""The messages of Jupyter's wire, which ipyparallel's clients and engines speak: bytes in, bytes out, no sockets.

    identities..., <IDS|MSG>, signature, header, parent header, metadata, content, buffers...

Header, parent header, metadata and content are JSON; the signature is the hex HMAC of these four, in that order, with
the key of the connection file (empty without a key). Neither identities nor buffers are signed.

Nothing is decoded before someone looks at it, because decoding is what a message costs: a scheduler needs the header
and the metadata of a request, the parent header and the metadata of a reply. The frames themselves are relayed as they
came. Costs about 3 us to split and verify a message of 1.5 KB.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from trio_sched.errors import ConfigError, WireError
from trio_sched.wire.native import Frame

DELIMITER = b"<IDS|MSG>"
VERSION = "5.3"
SIGNED_FRAMES = 4
SIGNATURES_KEPT = 1 << 16
"""At least so many of the last signatures are remembered, and at most twice as many."""
_SCHEME = "hmac-"

Json: TypeAlias = dict[str, Any]
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises; the last for what is nested a thousand levels deep."""


class Head(Struct, gc=False):
    """What is looked at in the header of each request."""

    msg_id: str
    msg_type: str
    session: str


class Parent(Struct, gc=False):
    """What is looked at in the parent header of each reply."""

    msg_id: str = ""
    session: str = ""


class Fate(Struct, gc=False):
    """What the metadata of an engine's reply say of the task."""

    status: str = ""
    dependencies_met: bool = True
    engine: str = ""


_decode = msgspec.json.Decoder().decode
_decode_head = msgspec.json.Decoder(Head).decode
_decode_parent = msgspec.json.Decoder(Parent).decode
_decode_fate = msgspec.json.Decoder(Fate).decode
_encode = msgspec.json.Encoder().encode


class Parsed:
    """One message that was split; its parts are decoded when they are first looked at (and may raise WireError then).

    `frames` are those after the delimiter: signature, header, parent header, metadata, content, buffers.
    """

    __slots__ = ("_content", "_head", "_header", "_metadata", "_parent_header", "frames", "identities")

    def __init__(self, identities: list[bytes], frames: list[Frame]) -> None:
        self.identities = identities
        self.frames = frames
        self._head: Head | None = None
        self._header: Json | None = None
        self._parent_header: Json | None = None
        self._metadata: Json | None = None
        self._content: Json | None = None

    @property
    def head(self) -> Head:
        """The header's main fields: cheaper than `header`."""
        if self._head is None:
            try:
                self._head = _decode_head(self.frames[1])
            except UNREADABLE as error:
                raise WireError(f"the header cannot be read: {error}") from None
        return self._head

    @property
    def parent(self) -> Parent:
        """The parent header's main fields; empty where there is none."""
        try:
            return _decode_parent(self.frames[2])
        except UNREADABLE as error:
            raise WireError(f"the parent header cannot be read: {error}") from None

    @property
    def fate(self) -> Fate:
        """What the metadata say of the task that this replies to."""
        try:
            return _decode_fate(self.frames[3])
        except UNREADABLE as error:
            raise WireError(f"the metadata cannot be read: {error}") from None

    @property
    def header(self) -> Json:
        """All of the header."""
        if self._header is None:
            self._header = _dict(self.frames[1], "header")
        return self._header

    @property
    def parent_header(self) -> Json:
        """All of the parent header."""
        if self._parent_header is None:
            self._parent_header = _dict(self.frames[2], "parent header")
        return self._parent_header

    @property
    def metadata(self) -> Json:
        """All metadata."""
        if self._metadata is None:
            self._metadata = _dict(self.frames[3], "metadata")
        return self._metadata

    @property
    def content(self) -> Json:
        """The content."""
        if self._content is None:
            self._content = _dict(self.frames[4], "content")
        return self._content

    @property
    def buffers(self) -> list[Frame]:
        """What follows the content, as it came."""
        return self.frames[5:]


def _dict(data: Frame, what: str) -> Json:
    try:
        value = _decode(data)
    except UNREADABLE as error:
        raise WireError(f"the {what} cannot be read: {error}") from None
    if type(value) is not dict:
        raise WireError(f"the {what} is no dictionary")
    return value


def split(frames: Sequence[Frame]) -> Parsed:
    """Find the parts of a message. Raises WireError: there are not enough of them."""
    try:
        at = list(frames).index(DELIMITER)
    except ValueError:
        raise WireError("there is no delimiter in it") from None
    parts = list(frames[at + 1 :])
    if len(parts) <= SIGNED_FRAMES:
        raise WireError(f"only {len(parts)} frames follow the delimiter; there must be 5")
    return Parsed([bytes(frame) for frame in frames[:at]], parts)


class Codec:
    """Splits and verifies what comes in, builds and signs what goes out."""

    def __init__(self, key: bytes, scheme: str = "hmac-sha256", *, username: str = "trio_sched") -> None:
        digest = scheme.removeprefix(_SCHEME)
        if not scheme.startswith(_SCHEME) or digest not in hashlib.algorithms_available:
            raise ConfigError(f"signature_scheme = {scheme!r}: it must be such as hmac-sha256")
        self.key = key
        self.scheme = scheme
        self.session = uuid.uuid4().hex
        """Ours, as the headers of our own messages name it."""
        self._mac = hmac.new(key, digestmod=digest)
        """Copied for each message, which is cheaper than a new one."""
        self._username = username
        self._messages = 0
        self._seen: set[bytes] = set()
        self._seen_before: set[bytes] = set()

    # ---- coming in --------------------------------------------------------------------------------------------------

    def read(self, frames: Sequence[Frame]) -> Parsed:
        """Split and verify a message.

        :raises WireError: it is malformed, unsigned, wrongly signed or a replay; `kind` says which.
        """
        message = split(frames)
        if self.key:
            self.verify(message)
        return message

    def verify(self, message: Parsed) -> None:
        """Whether the one who signed it has the key, and nobody has sent it before. Raises WireError."""
        parts = message.frames
        signature = bytes(parts[0])
        if not signature:
            raise WireError("it is not signed", "unsigned")
        if signature in self._seen or signature in self._seen_before:
            raise WireError("it was sent before", "replayed")
        if not hmac.compare_digest(signature, self._sign(parts[1 : SIGNED_FRAMES + 1])):
            raise WireError("its signature is wrong", "wrongly_signed")
        self._remember(signature)

    def _sign(self, parts: Sequence[Frame]) -> bytes:
        mac = self._mac.copy()
        mac.update(b"".join(parts))
        return mac.hexdigest().encode("ascii")

    def _remember(self, signature: bytes) -> None:
        """Only proven signatures are remembered, so that nobody without the key can push others out."""
        self._seen.add(signature)
        if len(self._seen) >= SIGNATURES_KEPT:
            self._seen, self._seen_before = set(), self._seen

    # ---- going out --------------------------------------------------------------------------------------------------

    def header(self, msg_type: str, **more: object) -> Json:
        """A header for a message of ours."""
        self._messages += 1
        date = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        return {
            "msg_id": f"{self.session}_{self._messages}",
            "msg_type": msg_type,
            "username": self._username,
            "session": self.session,
            "date": date,
            "version": VERSION,
            **more,
        }

    def message(
        self,
        msg_type: str,
        content: Mapping[str, Any],
        *,
        parent: Frame | Mapping[str, Any] = b"{}",
        metadata: Mapping[str, Any] | None = None,
        header: Mapping[str, Any] | None = None,
        buffers: Sequence[Frame] = (),
    ) -> list[Frame]:
        """A message of ours from its delimiter on. `parent` is the header of the request, best as it came."""
        parent = _encode(parent) if isinstance(parent, Mapping) else parent
        parts: list[Frame] = [
            _encode(header or self.header(msg_type)), parent, _encode(metadata or {}), _jsonable(content),
        ]  # fmt: skip
        return [DELIMITER, self._sign(parts) if self.key else b"", *parts, *buffers]

    def resigned(self, parts: Sequence[Frame], buffers: Sequence[Frame] = ()) -> list[Frame]:
        """A message from its delimiter on: header, parent header, metadata and content as given, signed anew."""
        return [DELIMITER, self._sign(parts) if self.key else b"", *parts, *buffers]


def _jsonable(content: Mapping[str, Any]) -> bytes:
    """What msgspec cannot write (surrogates that came out of somebody's bytes, say) Python's own can."""
    try:
        return _encode(content)
    except (TypeError, UnicodeEncodeError, msgspec.EncodeError):
        return json.dumps(content, default=str).encode("utf-8", "replace")


def failure(ename: str, evalue: str) -> Json:
    """The content of a reply that tells of an error of ours. (`engine_info` stays away: with it a client would wait for
    the engine's output.)
    """
    return {"status": "error", "ename": ename, "evalue": evalue, "traceback": [f"{ename}: {evalue}"]}
