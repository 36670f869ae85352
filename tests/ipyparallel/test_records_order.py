"""Requests are recorded before they are sent: one commit for each batch, then the messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.ipyparallel.messages import CODEC
from trio_sched.ipyparallel.broadcast import BroadcastRelay
from trio_sched.ipyparallel.records.recorder import NullRecorder, QueueName
from trio_sched.ipyparallel.relay import Relay
from trio_sched.wire.jupyter import JupyterMessage
from trio_sched.wire.native import Frame


class Log(NullRecorder):
    """A recorder and a socket that keep the order of their calls."""

    on = True

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[str] = []

    def submitted(self, queue: QueueName, message: JupyterMessage, client: str, engine: str | None = None) -> None:
        self.entries.append(f"submitted {engine}")

    def commit(self) -> None:
        self.entries.append("commit")

    async def receive(self) -> list[list[Frame]]:
        return []

    def send(self, frames: Sequence[Frame]) -> bool:
        self.entries.append(f"sent {bytes(frames[0]).decode()}")
        return True

    def flush(self) -> None:
        pass

    def reject(self, index: int) -> None:
        raise AssertionError("no message of these tests is malformed")


def request(*identities: bytes, **metadata: Any) -> list[Frame]:
    header = {**CODEC.header("apply_request")}
    return [*identities, *CODEC.message("apply_request", {}, header=header, metadata=metadata)]


def test_direct_calls_are_recorded_before_they_are_sent() -> None:
    log = Log()
    Relay("mux", log, log, CODEC, lambda reason: None, log).relay_requests(
        [request(b"client", b"e0"), request(b"c", b"e1")]
    )
    assert log.entries == ["submitted e0", "submitted e1", "commit", "sent e0", "sent e1"]


def test_broadcasts_are_recorded_before_they_are_sent() -> None:
    log = Log()
    broadcast = BroadcastRelay(log, log, CODEC, lambda reason: None, log)
    broadcast.relay_requests([request(b"client", targets=[["e0", 0], ["e1", 1]])])
    assert log.entries == ["submitted e0", "submitted e1", "commit", "sent e0", "sent e1"]
    broadcast.relay_requests([request(b"client", targets=[["e1", 1]])])
    assert log.entries[5:] == ["submitted e1", "commit", "sent e1"]
