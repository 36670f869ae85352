"""The broadcast relay between raw sockets, whose messages jupyter_client's Session writes and verifies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import zmq

from tests.ipyparallel.raw_peers import ANYWHERE, Peer, TrioThread
from trio_sched.ipyparallel.broadcast import BroadcastRelay

#: Not in alphabetical order, so that tests notice if the order of the targets is not kept.
NAMES = ["uuid-c", "uuid-a", "uuid-b"]
BIG = bytes(range(256)) * 4096


class View:
    """A client, three engines, and the broadcast relay between them."""

    def __init__(self, loop: TrioThread, peer: Callable[..., Peer]) -> None:
        self.loop = loop
        self.clients, self.sockets = (loop.call(loop.sockets.bind, "router", ANYWHERE) for _ in range(2))
        self.gone: set[str] = set()
        self.relay = loop.start(
            lambda it: BroadcastRelay(
                self.clients, self.sockets, it.codec, it.note, it.recorder, lambda uuid: uuid not in self.gone
            )
        )
        self.client = peer(zmq.DEALER, self.clients)
        self.engines = {name: peer(zmq.ROUTER, self.sockets, name) for name in NAMES}
        for name, engine in self.engines.items():
            while engine.receives_nothing():
                self.ask([name])
            while not engine.receives_nothing():
                engine.frames()
        loop.call(loop.recorder.calls.clear)

    def ask(self, names: list[str] = NAMES, coalescing: bool = False, **parts: Any) -> str:
        """Send a request. Returns its msg_id."""
        metadata = {
            "targets": [[name, number] for number, name in enumerate(names)],
            "is_broadcast": True,
            "is_coalescing": coalescing,
        }
        sent = self.client.send("apply_request", content={}, metadata=metadata, **parts)
        return str(sent["header"]["msg_id"])

    def answer(self, name: str, status: str = "ok", buffers: list[bytes] | None = None) -> dict[str, Any]:
        """Receive the request of one engine and reply to it. Returns the request."""
        identities, request = self.engines[name].receive()
        self.reply(name, identities, request, status, buffers)
        return request

    def reply(
        self, name: str, identities: list[bytes], request: Any, status: str = "ok", buffers: list[bytes] | None = None
    ) -> None:
        metadata = {
            "engine": name,
            "status": status,
            **{key: request["metadata"][key] for key in ("is_broadcast", "is_coalescing", "original_msg_id")},
        }
        content = {"status": status} if status == "ok" else {"status": status, "ename": f"{status} of {name}"}
        self.engines[name].send(
            "apply_reply", *identities, content=content, metadata=metadata, parent=request, buffers=buffers or []
        )


@pytest.fixture
def view(loop: TrioThread, peer: Callable[..., Peer]) -> View:
    return View(loop, peer)


def expected_calls(view: View, msg_id: str, what: str, names: list[str] = NAMES) -> list[tuple[Any, ...]]:
    if not view.loop.recorder.on:
        return []
    client = (view.client.session.session,) if what == "submitted" else ()
    return [(what, "broadcast", f"{msg_id}_{name}", *client, name) for name in names]


def test_each_target_gets_its_own_signed_message(view: View) -> None:
    msg_id = view.ask(buffers=[b"code", BIG])
    for name in NAMES:
        _, request = view.engines[name].receive()  # its signature is verified
        assert request["header"]["msg_id"] == f"{msg_id}_{name}"
        assert request["header"]["session"] == view.client.session.session
        assert request["metadata"]["original_msg_id"] == msg_id
        assert request["metadata"]["is_broadcast"] is True
        assert [bytes(buffer) for buffer in request["buffers"]] == [b"code", BIG]
    view.loop.wait_until(lambda: view.loop.recorder.calls == expected_calls(view, msg_id, "submitted"))
    assert view.loop.recorder.buffers == 0  # not stored once for each target


def test_plain_replies_are_relayed_one_by_one(view: View) -> None:
    msg_id = view.ask()
    for name in reversed(NAMES):
        view.answer(name, buffers=[name.encode(), BIG])
    replies = {}
    for _ in NAMES:
        identities, reply = view.client.receive()
        assert identities == []  # the engine's frame is removed
        assert reply["metadata"]["original_msg_id"] == msg_id
        replies[reply["parent_header"]["msg_id"]] = bytes(reply["buffers"][0])
    assert replies == {f"{msg_id}_{name}": name.encode() for name in NAMES}
    assert view.client.receives_nothing()


def test_coalesced_reply_has_buffers_in_target_order(view: View) -> None:
    msg_id = view.ask(coalescing=True)
    for name in sorted(NAMES):
        view.answer(name, buffers=[name.encode(), BIG])
    identities, reply = view.client.receive()  # its signature is verified
    assert identities == []
    assert reply["header"]["msg_type"] == "apply_reply"
    assert reply["parent_header"]["msg_id"] == msg_id
    assert reply["content"] == {"status": "ok"}
    assert reply["metadata"]["original_msg_id"] == msg_id
    assert reply["metadata"]["is_coalescing"] is True
    assert reply["metadata"]["broadcast_targets"] == [[name, number] for number, name in enumerate(NAMES)]
    assert [bytes(buffer) for buffer in reply["buffers"]] == [
        buffer for name in NAMES for buffer in (name.encode(), BIG)
    ]
    assert view.client.receives_nothing()
    finished = [entry for entry in view.loop.recorder.calls if entry[0] == "finished"]
    assert sorted(finished) == sorted(expected_calls(view, msg_id, "finished"))


@pytest.mark.parametrize(
    ("statuses", "winner"),
    [
        (("error", "ok", "ok"), "error of uuid-c"),
        (("ok", "error", "error"), "error of uuid-a"),
        (("aborted", "ok", "ok"), "aborted of uuid-c"),
        (("aborted", "ok", "error"), "error of uuid-b"),
    ],
)
def test_error_of_one_engine_decides_the_coalesced_reply(view: View, statuses: tuple[str, ...], winner: str) -> None:
    view.ask(coalescing=True)
    for name, status in zip(NAMES, statuses, strict=True):
        view.answer(name, status, buffers=[b"result"] if status == "ok" else [])
    _, reply = view.client.receive()
    assert reply["content"]["ename"] == winner
    assert reply["content"]["status"] == reply["metadata"]["status"] == winner.split()[0]
    assert reply["buffers"] == []
    assert len(reply["metadata"]["broadcast_targets"]) == len(NAMES)


def test_coalescing_and_plain_requests_do_not_interfere(view: View) -> None:
    coalescing = view.ask(coalescing=True)
    plain = view.ask()
    first = {name: view.engines[name].receive() for name in NAMES}
    for name in NAMES:
        view.answer(name, buffers=[b"plain"])
    for _ in NAMES:
        assert view.client.receive()[1]["parent_header"]["msg_id"].startswith(plain)
    for name in NAMES:
        view.reply(name, *first[name], buffers=[name.encode()])
    _, reply = view.client.receive()
    assert reply["parent_header"]["msg_id"] == coalescing
    assert [bytes(buffer) for buffer in reply["buffers"]] == [name.encode() for name in NAMES]
    assert not view.relay._awaited


# ---- engines that are not registered --------------------------------------------------------------------------------
# -------------------------------------------------------------------------------------


def test_target_that_leaves_voids_the_coalesced_reply(view: View) -> None:
    """Clients raise the EngineError themselves; a reply in addition would be a second answer."""
    view.ask(coalescing=True)
    view.answer(NAMES[0])
    late = view.engines[NAMES[1]].receive()
    view.loop.call(view.relay.engine_removed, NAMES[2])
    view.reply(NAMES[1], *late)
    assert view.client.receives_nothing()
    assert not view.relay._awaited
    view.ask([NAMES[0], NAMES[1]], coalescing=True)
    for name in (NAMES[0], NAMES[1]):
        view.answer(name, buffers=[b"x"])
    assert len(view.client.receive()[1]["buffers"]) == 2


def test_unregistered_target_voids_the_coalesced_reply(view: View) -> None:
    view.gone.add(NAMES[2])
    view.ask(coalescing=True)
    for name in NAMES[:2]:
        view.answer(name)
    assert view.engines[NAMES[2]].receives_nothing()
    assert view.client.receives_nothing()
    assert not view.relay._awaited
    assert view.loop.counters["unknown_target"] == 1


# ---- bad input (R25, R26) -------------------------------------------------------------------------------------------


def test_r26_reply_counts_once_and_only_from_the_asked_engine(view: View) -> None:
    view.ask(coalescing=True)
    asked = {name: view.engines[name].receive() for name in NAMES}
    view.reply(NAMES[0], asked[NAMES[0]][0], asked[NAMES[1]][1], buffers=[b"forged"])
    for name in NAMES:
        view.reply(name, *asked[name], buffers=[name.encode()])
    _, reply = view.client.receive()
    assert [bytes(buffer) for buffer in reply["buffers"]] == [name.encode() for name in NAMES]
    assert view.loop.counters["reply_from_another_engine"] == 1


def test_r25_unsigned_replayed_and_malformed_requests_change_nothing(view: View, peer: Callable[..., Peer]) -> None:
    wrong_key_peer = peer(zmq.DEALER, view.clients, key=b"another key")
    metadata = {"targets": [[NAMES[0], 0]], "is_broadcast": True, "is_coalescing": True}
    wrong_key_peer.send("apply_request", content={}, metadata=metadata)
    frames = view.client.session.serialize(view.client.session.msg("apply_request", content={}, metadata=metadata))
    for _ in range(2):
        view.client.socket.send_multipart(frames)
    view.client.socket.send_multipart([b"garbage"])
    view.client.socket.send_multipart([b"<IDS|MSG>", b"too", b"short"])
    view.answer(NAMES[0], buffers=[b"x"])
    assert view.client.receive()[1]["metadata"]["broadcast_targets"] == [[NAMES[0], 0]]
    assert wrong_key_peer.receives_nothing()
    assert all(engine.receives_nothing() for engine in view.engines.values())
    assert view.loop.counters == {"wrongly_signed": 1, "replayed": 1, "malformed": 2}


@pytest.mark.parametrize("targets", [None, [], "all", [["a"]], [[1, 2]], [NAMES], {"a": 1}])
def test_r25_signed_request_without_targets_gets_an_error(view: View, targets: Any) -> None:
    sent = view.client.send("apply_request", content={}, metadata={"targets": targets, "is_broadcast": True})
    _, reply = view.client.receive()
    assert reply["header"]["msg_type"] == "apply_reply"
    assert reply["parent_header"]["msg_id"] == sent["header"]["msg_id"]
    assert reply["content"]["status"] == "error"
    assert "targets" in reply["content"]["evalue"]


def test_r25_malformed_replies_change_nothing(view: View) -> None:
    view.ask(coalescing=True)
    identities, request = view.engines[NAMES[0]].receive()
    relay = identities[0]
    socket = view.engines[NAMES[0]].socket
    for frames in ([b""], [b"", b"<IDS|MSG>"], [b"x", b"<IDS|MSG>", b"", b"", b"\xff", b"", b""], [b"x"] * 7):
        socket.send_multipart([relay, *frames])
    view.reply(NAMES[0], identities, request, buffers=[b"c"])
    for name in NAMES[1:]:
        view.answer(name, buffers=[b"x"])
    _, reply = view.client.receive()
    assert len(reply["buffers"]) == len(NAMES)
