"""The relays between raw sockets: frames arrive unchanged at their receiver, and at no other peer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import zmq

from tests.ipyparallel.raw_peers import ANYWHERE, TIMEOUT_MS, Peer, TrioThread
from trio_sched.ipyparallel.relay import OutputRelay, Relay

ENGINE, OTHER = "engine-uuid", "other-uuid"
BIG = bytes(range(256)) * 4096


class Mux:
    """A relay between a client and two engines."""

    def __init__(self, loop: TrioThread, peer: Callable[..., Peer]) -> None:
        self.loop = loop
        self.clients, self.engines = (loop.call(loop.sockets.bind, "router", ANYWHERE) for _ in range(2))
        loop.start(lambda it: Relay("mux", self.clients, self.engines, it.codec, it.note, it.recorder))
        self.client = peer(zmq.DEALER, self.clients)
        self.engine = peer(zmq.ROUTER, self.engines, ENGINE)
        self.other = peer(zmq.ROUTER, self.engines, OTHER)

    def ask(self, name: str = ENGINE, **parts: Any) -> Any:
        return self.client.send("apply_request", name.encode(), content={}, **parts)


def connected(mux: Mux) -> Mux:
    """Wait until both engines are connected: a message for another one is dropped."""
    for name, engine in ((ENGINE, mux.engine), (OTHER, mux.other)):
        while True:
            mux.ask(name)
            if engine.socket.poll(50):
                break
        while engine.socket.poll(50):
            engine.socket.recv_multipart()
    return mux


@pytest.fixture
def mux(loop: TrioThread, peer: Callable[..., Peer]) -> Mux:
    mux = connected(Mux(loop, peer))
    loop.call(loop.recorder.calls.clear)
    return mux


def test_request_reaches_its_engine_and_the_reply_its_client(mux: Mux, peer: Callable[..., Peer]) -> None:
    other_client = peer(zmq.DEALER, mux.clients)
    sent = mux.ask(buffers=[b"small", BIG])
    identities, request = mux.engine.receive()
    assert request["header"]["msg_id"] == sent["header"]["msg_id"]
    assert [bytes(buffer) for buffer in request["buffers"]] == [b"small", BIG]
    reply = mux.engine.send("apply_reply", *identities, content={"status": "ok"}, parent=request, buffers=[BIG])
    sender, answer = mux.client.receive()
    assert sender == [ENGINE.encode()]
    assert answer["header"]["msg_id"] == reply["header"]["msg_id"]
    assert [bytes(buffer) for buffer in answer["buffers"]] == [BIG]
    assert mux.other.receives_nothing()
    assert other_client.receives_nothing()
    expected = [
        ("submitted", "mux", sent["header"]["msg_id"], mux.client.session.session, ENGINE),
        ("finished", "mux", sent["header"]["msg_id"], ENGINE),
    ]
    mux.loop.wait_until(lambda: mux.loop.recorder.calls == (expected if mux.loop.recorder.on else []))
    assert not mux.loop.counters


def test_r25_malformed_message_is_not_relayed(mux: Mux) -> None:
    mux.client.socket.send_multipart([ENGINE.encode(), b"", b"not a message", b"\xff" * 70_000])
    mux.client.socket.send_multipart([ENGINE.encode(), b"<IDS|MSG>", b"", b"{}", b"{}", b"{}", b"{}"])
    mux.ask()
    [relay, client], _ = mux.engine.receive()
    mux.engine.socket.send_multipart([relay, client, b"neither"])
    mux.engine.send("apply_reply", relay, client, content={"status": "ok"})
    assert mux.client.receive()[1]["content"] == {"status": "ok"}
    assert mux.loop.counters == {"malformed": 2, "unsigned": 1}


def test_r25_replayed_message_is_not_relayed(mux: Mux) -> None:
    sent = mux.client.session.serialize(mux.client.session.msg("apply_request"), ENGINE.encode())
    mux.client.socket.send_multipart(sent)
    mux.client.socket.send_multipart(sent)
    mux.engine.receive()
    assert mux.engine.receives_nothing()
    mux.loop.wait_until(lambda: mux.loop.counters == {"replayed": 1})


def test_many_requests_keep_their_order(mux: Mux) -> None:
    count = 2000
    for number in range(count):
        mux.ask(metadata={"number": number})
    for number in range(count):
        identities, request = mux.engine.receive()
        assert request["metadata"] == {"number": number}
        mux.engine.send("apply_reply", *identities, content={"number": number})
    assert [mux.client.receive()[1]["content"]["number"] for _ in range(count)] == list(range(count))


def test_both_directions_work_at_full_speed(mux: Mux) -> None:
    """Two tasks send on a socket that a third waits for. A missed edge of its descriptor would block it for ever."""
    count, under_way = 4_000, 300

    def echo() -> None:
        for _ in range(count):
            identities, request = mux.engine.receive()
            mux.engine.send("apply_reply", *identities, content=request["metadata"])

    engine = threading.Thread(target=echo, daemon=True)
    engine.start()
    sent = 0
    for number in range(count):
        while sent < min(count, number + under_way):
            mux.ask(metadata={"number": sent})
            sent += 1
        assert mux.client.receive()[1]["content"] == {"number": number}
    engine.join(TIMEOUT_MS / 1e3)
    assert not engine.is_alive()


def test_message_for_an_unknown_peer_is_dropped(mux: Mux) -> None:
    mux.ask("nobody")
    mux.client.socket.send(b"a single frame")
    mux.client.socket.send_multipart([b"", b"", b""])
    sent = mux.ask()
    [relay, _], request = mux.engine.receive()
    assert request["header"]["msg_id"] == sent["header"]["msg_id"]
    mux.engine.socket.send_multipart([relay, b"no such client", b"lost"])
    mux.engine.socket.send_multipart([relay, b"a single frame"])
    assert mux.client.receives_nothing()
    mux.loop.wait_until(lambda: mux.loop.counters["malformed"] >= 2)


def test_r25_message_signed_with_another_key_is_not_relayed(mux: Mux, peer: Callable[..., Peer]) -> None:
    wrong_key_peer = peer(zmq.DEALER, mux.clients, key=b"another key")
    wrong_key_peer.send("apply_request", ENGINE.encode(), content={})
    mux.loop.wait_until(lambda: mux.loop.counters == {"wrongly_signed": 1})
    assert mux.engine.receives_nothing()
    assert mux.loop.recorder.calls == []


# ---- output ---------------------------------------------------------------------------------------------------------


class Iopub:
    """The output relay between one engine and one client, whose subscription has arrived."""

    def __init__(self, loop: TrioThread, peer: Callable[..., Peer], kind: int) -> None:
        self.loop = loop
        self.left: list[str] = []
        self.engines = loop.call(loop.sockets.bind, "sub", ANYWHERE)
        self.clients = loop.call(loop.sockets.bind, "pub", ANYWHERE)
        self.client = peer(zmq.SUB, self.clients)
        loop.start(lambda it: OutputRelay(self.engines, self.clients, it.codec, it.note, it.recorder, self.left.append))
        self.engine = peer(kind, self.engines, ENGINE)
        while self.client.receives_nothing():
            self.engine.send("status", b"engine.0.status", content={"execution_state": "starting"})
        while not self.client.receives_nothing():
            self.client.frames()
        loop.call(loop.recorder.calls.clear)


@pytest.fixture(params=[zmq.PUB, zmq.XPUB], ids=["pub", "xpub"])
def iopub(loop: TrioThread, peer: Callable[..., Peer], request: pytest.FixtureRequest) -> Iopub:
    return Iopub(loop, peer, request.param)


def test_output_of_engines_reaches_clients(iopub: Iopub) -> None:
    parent = iopub.engine.session.msg("execute_request")
    sent = iopub.engine.send("stream", b"engine.0.stdout", content={"name": "stdout", "text": "hello"}, parent=parent)
    [topic], message = iopub.client.receive()
    assert topic == b"engine.0.stdout"
    assert message["header"]["msg_id"] == sent["header"]["msg_id"]
    assert message["content"] == {"name": "stdout", "text": "hello"}
    expected = [("output", "stream", parent["header"]["msg_id"])]
    iopub.loop.wait_until(lambda: iopub.loop.recorder.calls == (expected if iopub.loop.recorder.on else []))
    assert iopub.left == []


def test_client_gets_its_topics_only(iopub: Iopub, peer: Callable[..., Peer]) -> None:
    subscriber = peer(zmq.SUB, iopub.clients)
    subscriber.socket.unsubscribe(b"")
    subscriber.socket.subscribe(b"engine.1.")
    while subscriber.receives_nothing():
        iopub.engine.send("status", b"engine.1.status", content={})
    while not subscriber.receives_nothing():
        subscriber.frames()
    iopub.engine.send("stream", b"engine.0.stdout", content={"text": "not for it"})
    iopub.engine.send("stream", b"engine.1.stdout", content={"text": "for it"})
    assert subscriber.receive()[1]["content"] == {"text": "for it"}


def test_engines_get_one_subscription(iopub: Iopub, peer: Callable[..., Peer]) -> None:
    """Engines of ipykernel 7 send a message to each subscriber."""
    if iopub.engine.socket.type != zmq.XPUB:
        pytest.skip("a PUB receives no subscriptions")
    more = [peer(zmq.SUB, iopub.clients) for _ in range(3)]
    for client in more:
        while client.receives_nothing():
            iopub.engine.send("status", b"engine.0.status", content={})
    assert iopub.engine.frames() == [b"\x01"]
    assert iopub.engine.receives_nothing()


def test_engine_leaves_with_its_shutdown_reply(iopub: Iopub) -> None:
    iopub.engine.send("shutdown_reply", b"engine.0.shutdown", content={"status": "ok"})
    iopub.client.receive()
    iopub.engine.send("stream", content={"text": "shutdown_reply is only mentioned here"})
    iopub.client.receive()
    iopub.loop.wait_until(lambda: iopub.left)
    assert iopub.left == [ENGINE]


def test_r25_shutdown_reply_without_the_key_is_dropped(iopub: Iopub, peer: Callable[..., Peer]) -> None:
    wrong_key_peer = peer(zmq.PUB, iopub.engines, ENGINE, key=b"another key")
    while not iopub.loop.counters["wrongly_signed"]:
        wrong_key_peer.send("shutdown_reply", b"engine.0.shutdown", content={"status": "ok"})
    wrong_key_peer.socket.send_multipart([b"x", b"<IDS|MSG>", b"y", b"shutdown_reply"])
    wrong_key_peer.socket.send_multipart([b"<IDS|MSG>", b"y", b"shutdown_reply"])
    wrong_key_peer.socket.send_multipart([b"shutdown_reply"])
    iopub.loop.wait_until(lambda: iopub.loop.counters["malformed"] >= 3)
    assert iopub.client.receives_nothing()
    assert iopub.left == []
