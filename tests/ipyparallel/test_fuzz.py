"""R25, R26: no message on any socket breaks the controller or loses a task, and dropped messages are counted."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.ipyparallel.controller_fixture import TIMEOUT_S, RawPeers, running_controller
from tests.zmq_peers import Peers
from trio_sched.wire.jupyter import DELIMITER, Codec, split

CLIENT_CHANNELS = ("registration", "control", "mux", "task", "broadcast", "iopub", "notification")
ENGINE_CHANNELS = ("control", "mux", "task", "broadcast", "iopub", "hb_ping", "hb_pong")
#: The kind of socket that can send to a channel, if it is not a DEALER.
SENDERS = {
    ("client", "iopub"): "xsub",
    ("client", "notification"): "xsub",
    ("engine", "iopub"): "pub",
    ("engine", "hb_ping"): "xsub",
}
MESSAGES = 400
ODD_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1 << 70,
    1e300,
    "",
    "x",
    "\x00",
    [],
    [[]],
    {},
    {"a": 1},
    [["u", 0]],
    ["a", 1],
]
KINDS = (
    "apply_request", "apply_reply", "registration_request", "unregistration_request", "connection_request",
    "queue_request", "result_request", "db_request", "purge_request", "load_request", "history_request",
    "resubmit_request", "shutdown_reply", "stream", "become_dask_request", "abort_request", "unknown_type",
)  # fmt: skip
WORDS = (
    "uuid", "id", "targets", "after", "follow", "retries", "timeout", "dependencies", "all", "success", "failure",
    "query", "keys", "msg_ids", "is_coalescing", "is_broadcast", "status", "dependencies_met", "msg_id", "verbose",
    "statusonly", "engine_ids",
)  # fmt: skip


@pytest.fixture
def raw() -> Iterator[RawPeers]:
    with running_controller(ping_ms=60_000) as running, Peers() as peers:
        yield RawPeers(running, peers)


def random_frames(rng: random.Random) -> list[bytes]:
    """Return random frames, most of them with a delimiter."""
    frames = [rng.randbytes(rng.choice((0, 1, 5, 40, 300))) for _ in range(rng.randint(1, 9))]
    if rng.random() < 0.7:
        frames.insert(rng.randint(0, len(frames)), DELIMITER)
    return frames


def invalid_message(rng: random.Random, codec: Codec) -> list[Any]:
    """Return a correctly signed message with invalid content."""

    def some() -> dict[str, Any]:
        return {rng.choice(WORDS): rng.choice(ODD_VALUES) for _ in range(rng.randint(0, 4))}

    def part() -> bytes:
        return rng.choice((b"", b"[]", b"nul", b'"\\ud800"', b"[" * 5000, b"\xff", json.dumps(some()).encode()))

    kind = rng.choice(KINDS)
    if rng.random() < 0.3:
        return codec.sign_parts([part() for _ in range(4)])
    header = {**codec.header(kind), **(some() if rng.random() < 0.2 else {})}
    return codec.message(kind, some(), header=header, metadata=some(), parent=some())


@pytest.mark.parametrize(("side", "channel"), [
    *(("client", channel) for channel in CLIENT_CHANNELS), *(("engine", channel) for channel in ENGINE_CHANNELS)
])  # fmt: skip
def test_r25_random_messages_change_nothing(raw: RawPeers, side: str, channel: str) -> None:
    rng = random.Random(f"{side} {channel}")
    raw.join()
    kind = SENDERS.get((side, channel), "dealer")
    unregistered = raw.connect(kind, side, channel, "unregistered" if side == "engine" and kind == "dealer" else "")
    for _ in range(MESSAGES):
        message = random_frames(rng) if rng.random() < 0.5 else invalid_message(rng, raw.codec)
        unregistered.send(
            [rng.choice((b"", b"unknown", raw.uuid.encode())), *message] if rng.random() < 0.3 else message
        )
    raw.run_task()
    counted = raw.running.wait_until_idle()
    assert "internal_error" not in counted, counted
    if channel in ("registration", "task"):
        assert counted.get("malformed", 0) + counted.get("unsigned", 0) > MESSAGES // 10, counted
        assert counted.get("wrongly_signed", 0) > 0, counted
    raw.run_task()


def test_r26_repeated_and_stray_messages_are_counted(raw: RawPeers) -> None:
    raw.join()
    raw.registration.send(raw.codec.message("registration_request", {"uuid": raw.uuid}))
    reply = raw.registration.receive(TIMEOUT_S)
    assert reply is not None
    assert split(reply).content["status"] == "error"
    raw.tasks.send(raw.codec.message("apply_request", {}))
    request = raw.engine.receive(TIMEOUT_S)
    assert request is not None
    for _ in range(2):
        answer = raw.codec.message("apply_reply", {"status": "ok"}, parent=request[3], metadata={"status": "ok"})
        raw.engine.send([request[0], *answer])
    never = raw.codec.message("apply_reply", {}, parent={"msg_id": "never"}, metadata={"status": "ok"})
    raw.engine.send([request[0], *never])
    impostor = raw.connect("dealer", "engine", "task", "impostor")
    raw.tasks.send(raw.codec.message("apply_request", {}))
    request = raw.engine.receive(TIMEOUT_S)
    assert request is not None
    answer = raw.codec.message("apply_reply", {"status": "ok"}, parent=request[3], metadata={"status": "ok"})
    impostor.send([request[0], *answer])
    for number in (0, 0, 7, "x", None):
        raw.registration.send(raw.codec.message("unregistration_request", {"id": number}))
    while raw.ask("connection_request", {})["engines"]:
        pass
    counted = raw.running.wait_until_idle()
    assert counted["stray_result"] == 3
    assert counted["engine_joined_twice"] == 1
    assert counted["unknown_engine_left"] == 4
