"""Control messages: lines of JSON from a nanny to its worker."""

from __future__ import annotations

from trio_sched.engine.control_messages import NannyJoined, StartWorker, decode, encode
from trio_sched.transport.connection_info import ConnectionInfo


def test_a_control_message_is_one_line() -> None:
    start = StartWorker(ConnectionInfo("n", "engine", "ipc:///x", "secret\n"), name="a\nb", resources={"gpu": 1.0})
    for message in (start, NannyJoined(3, "one")):
        data = encode(message)
        assert data.count(b"\n") == 1
        assert decode(data) == message
