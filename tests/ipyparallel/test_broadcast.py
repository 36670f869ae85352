"""The broadcast view between bare sockets, whose messages jupyter_client's Session writes and verifies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import zmq

from tests.ipyparallel.raw_peers import ANYWHERE, Loop, Peer
from trio_sched.ipyparallel.broadcast import Broadcast

NAMES = ["uuid-c", "uuid-a", "uuid-b"]
"""Not in alphabetical order, so that the order of targets is seen to be kept."""
BIG = bytes(range(256)) * 4096


class View:
    """A client, three engines, and the broadcast relay between them."""

    def __init__(self, loop: Loop, peer: Callable[..., Peer]) -> None:
        self.loop = loop
        self.clients, self.sockets = (loop.call(loop.sockets.bind, "router", ANYWHERE) for _ in range(2))
        self.gone: set[str] = set()
        self.relay = loop.start(
            lambda it: Broadcast(
                self.clients, self.sockets, it.codec, it.note, it.recorder, lambda uuid: uuid not in self.gone
            )
        )
        self.client = peer(zmq.DEALER, self.clients)
        self.engines = {name: peer(zmq.ROUTER, self.sockets, name) for name in NAMES}
        for name, engine in self.engines.items():
            while engine.hears_nothing():
                self.ask([name])
            while not engine.hears_nothing():
                engine.frames()
        loop.call(loop.recorder.told.clear)

    def ask(self, names: list[str] = NAMES, coalescing: bool = False, **parts: Any) -> str:
        """Send a request; returns its msg_id."""
        metadata = {
            "targets": [[name, number] for number, name in enumerate(names)],
            "is_broadcast": True,
            "is_coalescing": coalescing,
        }
        sent = self.client.send("apply_request", content={}, metadata=metadata, **parts)
        return str(sent["header"]["msg_id"])

    def answer(self, name: str, status: str = "ok", buffers: list[bytes] | None = None) -> dict[str, Any]:
        """Let one engine receive its request and reply as an engine does. Returns the request."""
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
def view(loop: Loop, peer: Callable[..., Peer]) -> View:
    return View(loop, peer)


def told(view: View, msg_id: str, what: str, names: list[str] = NAMES) -> list[tuple[Any, ...]]:
    if not view.loop.recorder.on:
        return []
    client = (view.client.session.session,) if what == "submitted" else ()
    return [(what, "broadcast", f"{msg_id}_{name}", *client, name) for name in names]


def test_each_target_gets_a_message_of_its_own(view: View) -> None:
    msg_id = view.ask(buffers=[b"code", BIG])
    for name in NAMES:
        _, request = view.engines[name].receive()  # its signature is verified
        assert request["header"]["msg_id"] == f"{msg_id}_{name}"
        assert request["header"]["session"] == view.client.session.session
        assert request["metadata"]["original_msg_id"] == msg_id
        assert request["metadata"]["is_broadcast"] is True
        assert [bytes(buffer) for buffer in request["buffers"]] == [b"code", BIG]
    view.loop.until(lambda: view.loop.recorder.told == told(view, msg_id, "submitted"))
    assert view.loop.recorder.buffers == 0  # they are not stored once for each target


def test_plain_replies_go_on_one_by_one(view: View) -> None:
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
    assert view.client.hears_nothing()


def test_coalescing_replies_are_one_with_the_buffers_in_the_order_of_the_targets(view: View) -> None:
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
    assert view.client.hears_nothing()
    heard = [entry for entry in view.loop.recorder.told if entry[0] == "finished"]
    assert sorted(heard) == sorted(told(view, msg_id, "finished"))


@pytest.mark.parametrize(
    ("statuses", "winner"),
    [
        (("error", "ok", "ok"), "error of uuid-c"),
        (("ok", "error", "error"), "error of uuid-a"),
        (("aborted", "ok", "ok"), "aborted of uuid-c"),
        (("aborted", "ok", "error"), "error of uuid-b"),
    ],
)
def test_an_error_of_any_wins(view: View, statuses: tuple[str, ...], winner: str) -> None:
    view.ask(coalescing=True)
    for name, status in zip(NAMES, statuses, strict=True):
        view.answer(name, status, buffers=[b"result"] if status == "ok" else [])
    _, reply = view.client.receive()
    assert reply["content"]["ename"] == winner
    assert reply["content"]["status"] == reply["metadata"]["status"] == winner.split()[0]
    assert reply["buffers"] == []
    assert len(reply["metadata"]["broadcast_targets"]) == len(NAMES)


def test_coalescing_and_plain_requests_at_the_same_time(view: View) -> None:
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


# ---- engines that are not there -------------------------------------------------------------------------------------


def test_a_target_that_leaves_voids_the_coalesced_reply(view: View) -> None:
    """Clients make the EngineError themselves; a reply on top would be one too many."""
    view.ask(coalescing=True)
    view.answer(NAMES[0])
    late = view.engines[NAMES[1]].receive()
    view.loop.call(view.relay.engine_removed, NAMES[2])
    view.reply(NAMES[1], *late)
    assert view.client.hears_nothing()
    assert not view.relay._awaited
    view.ask([NAMES[0], NAMES[1]], coalescing=True)
    for name in (NAMES[0], NAMES[1]):
        view.answer(name, buffers=[b"x"])
    assert len(view.client.receive()[1]["buffers"]) == 2


def test_a_target_that_is_gone_gets_nothing(view: View) -> None:
    view.gone.add(NAMES[2])
    view.ask(coalescing=True)
    for name in NAMES[:2]:
        view.answer(name)
    assert view.engines[NAMES[2]].hears_nothing()
    assert view.client.hears_nothing()
    assert not view.relay._awaited
    assert view.loop.counters["unknown_target"] == 1


# ---- bad input (R25, R26) -------------------------------------------------------------------------------------------


def test_r26_a_reply_counts_once_and_only_from_the_engine_that_was_asked(view: View) -> None:
    view.ask(coalescing=True)
    asked = {name: view.engines[name].receive() for name in NAMES}
    view.reply(NAMES[0], asked[NAMES[0]][0], asked[NAMES[1]][1], buffers=[b"forged"])
    for name in NAMES:
        view.reply(name, *asked[name], buffers=[name.encode()])
    _, reply = view.client.receive()
    assert [bytes(buffer) for buffer in reply["buffers"]] == [name.encode() for name in NAMES]
    assert view.loop.counters["reply_from_another_engine"] == 1


def test_r25_what_is_not_genuine_changes_nothing(view: View, peer: Callable[..., Peer]) -> None:
    liar = peer(zmq.DEALER, view.clients, key=b"another key")
    metadata = {"targets": [[NAMES[0], 0]], "is_broadcast": True, "is_coalescing": True}
    liar.send("apply_request", content={}, metadata=metadata)
    frames = view.client.session.serialize(view.client.session.msg("apply_request", content={}, metadata=metadata))
    for _ in range(2):
        view.client.socket.send_multipart(frames)
    view.client.socket.send_multipart([b"garbage"])
    view.client.socket.send_multipart([b"<IDS|MSG>", b"too", b"short"])
    view.answer(NAMES[0], buffers=[b"x"])
    assert view.client.receive()[1]["metadata"]["broadcast_targets"] == [[NAMES[0], 0]]
    assert liar.hears_nothing()
    assert all(engine.hears_nothing() for engine in view.engines.values())
    assert view.loop.counters == {"wrongly_signed": 1, "replayed": 1, "malformed": 2}


@pytest.mark.parametrize("targets", [None, [], "all", [["a"]], [[1, 2]], [NAMES], {"a": 1}])
def test_r25_a_genuine_request_without_targets_is_answered_with_an_error(view: View, targets: Any) -> None:
    sent = view.client.send("apply_request", content={}, metadata={"targets": targets, "is_broadcast": True})
    _, reply = view.client.receive()
    assert reply["header"]["msg_type"] == "apply_reply"
    assert reply["parent_header"]["msg_id"] == sent["header"]["msg_id"]
    assert reply["content"]["status"] == "error"
    assert "targets" in reply["content"]["evalue"]


def test_r25_engines_that_speak_nonsense(view: View) -> None:
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
