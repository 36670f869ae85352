"""A process with raw engines for ipyparallel's controllers.

    python -m tests.benchmarks.raw_engines ipcontroller-engine.json COUNT

An engine registers, echoes pings, and answers every task at once.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.zmq_peers import Peer, Peers
from trio_sched.wire.jupyter import DELIMITER, Codec


class RawEngine:
    """One engine: its sockets for registration, tasks and heartbeats."""

    def __init__(self, peers: Peers, connection: dict[str, Any], codec: Codec) -> None:
        self.uuid = str(uuid.uuid4())
        self._codec = codec
        self._connection = connection
        self._peers = peers
        self._registrar = self._connect("dealer", "registration")
        self._registrar.send(codec.message("registration_request", {"uuid": self.uuid}))
        self._metadata = {"status": "ok", "engine": self.uuid, "dependencies_met": True, "is_broadcast": False}

    def _connect(self, kind: Any, channel: str, routing_id: str = "") -> Peer:
        info = self._connection
        return self._peers.connect(
            kind, f"{info['interface']}:{info[channel]}", routing_id, info.get("curve_serverkey") or ""
        )

    def start(self, handlers: dict[Any, Callable[[], None]]) -> None:
        """Wait for the answer to the registration, then connect the other sockets."""
        if self._registrar.receive(60.0) is None:
            raise SystemExit("the controller did not answer the registration")
        self._tasks = self._connect("dealer", "task", self.uuid)
        self._pong = self._connect("dealer", "hb_pong", self.uuid)
        self._ping = self._connect("sub", "hb_ping")
        handlers[self._tasks.socket] = self.answer_tasks
        handlers[self._ping.socket] = self.echo_pings

    def answer_tasks(self) -> None:
        """Answer all tasks that have arrived."""
        for frames in self._tasks.drain():
            at = frames.index(DELIMITER)
            reply = self._codec.message(
                "apply_reply", {"status": "ok"}, parent=frames[at + 2], metadata=self._metadata, buffers=[b"N."]
            )
            self._tasks.send([*frames[:at], *reply])

    def echo_pings(self) -> None:
        """Echo all pings that have arrived."""
        for ping in self._ping.drain():
            self._pong.send(ping)


def main(path: str, count: int) -> None:
    """Run until the parent process exits, or this one is killed."""
    connection = json.loads(Path(path).read_text(encoding="utf-8"))
    codec = Codec(connection["key"].encode(), connection["signature_scheme"])
    handlers: dict[Any, Callable[[], None]] = {}
    parent = os.getppid()
    with Peers() as peers:
        engines = [RawEngine(peers, connection, codec) for _ in range(count)]
        for engine in engines:
            engine.start(handlers)
        while os.getppid() == parent:
            for socket in peers.wait(1.0):
                if socket in handlers:
                    handlers[socket]()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
