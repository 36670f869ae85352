"""Messages of clients and engines, for tests without sockets."""

from __future__ import annotations

from typing import Any

from trio_sched.wire.jupyter import Codec, JupyterMessage

CODEC = Codec(b"key")


def request(
    msg_id: str,
    *,
    date: str = "2026-03-01T12:00:00.000000Z",
    msg_type: str = "apply_request",
    metadata: dict[str, Any] | None = None,
    content: dict[str, Any] | None = None,
    buffers: tuple[bytes, ...] = (),
) -> JupyterMessage:
    """Make a request of the client "alice"."""
    header = {"msg_id": msg_id, "msg_type": msg_type, "session": "alice", "username": "a", "date": date}
    message = CODEC.message(msg_type, content or {}, header=header, metadata=metadata, buffers=buffers)
    return JupyterMessage([b"client"], message[1:])


def reply(
    to: str,
    *,
    msg_type: str = "apply_reply",
    date: str = "2026-03-01T12:00:05.000000Z",
    metadata: dict[str, Any] | None = None,
    content: dict[str, Any] | None = None,
    buffers: tuple[bytes, ...] = (),
) -> JupyterMessage:
    """Make the reply of an engine to a request, or its output."""
    header = {"msg_id": f"re-{to}", "msg_type": msg_type, "session": "engine", "username": "e", "date": date}
    message = CODEC.message(
        msg_type,
        content or {"status": "ok"},
        header=header,
        parent={"msg_id": to, "session": "alice"},
        metadata=metadata or {"status": "ok", "engine": "e-uuid", "started": "2026-03-01T12:00:04.000000Z"},
        buffers=buffers,
    )
    return JupyterMessage([b"engine"], message[1:])
