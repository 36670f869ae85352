"""Plain connected ZeroMQ sockets without an event loop, for programs that act as peers of another protocol: the
benchmark and the tests of the ipyparallel front. Peers of the native protocol use zmq_blocking.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, TypeAlias

import zmq

from trio_sched.transport.multipart import Frame

PeerKind: TypeAlias = Literal["dealer", "sub", "xsub", "pub"]
_KINDS: dict[PeerKind, int] = {"dealer": zmq.DEALER, "sub": zmq.SUB, "xsub": zmq.XSUB, "pub": zmq.PUB}


class Peers:
    """Connected sockets on one context, and a poller for all of them. For one thread."""

    def __init__(self, max_sockets: int = 4096) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._context.max_sockets = max_sockets
        self._poller = zmq.Poller()

    def connect(self, kind: PeerKind, address: str, routing_id: str = "", server_key: str = "") -> Peer:
        """Create a connected socket. A SUB receives all topics. With a server key: CURVE with new keys."""
        socket: zmq.Socket[bytes] = self._context.socket(_KINDS[kind])
        socket.sndhwm = socket.rcvhwm = 0
        socket.linger = 0
        if routing_id:
            socket.routing_id = routing_id.encode()
        if server_key:
            socket.curve_serverkey = server_key.encode()
            socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        if kind == "sub":
            socket.subscribe(b"")
        socket.connect(address)
        self._poller.register(socket, zmq.POLLIN)
        return Peer(socket, self._poller)

    def wait(self, timeout_s: float) -> set[Any]:
        """Wait until a socket is readable or the time has passed. Return the readable ones, each as `Peer.socket`."""
        return {socket for socket, _ in self._poller.poll(int(timeout_s * 1e3))}

    def close(self) -> None:
        """Close all sockets."""
        self._context.destroy(linger=0)

    def __enter__(self) -> Peers:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Peer:
    """One connected socket."""

    def __init__(self, socket: zmq.Socket[bytes], poller: zmq.Poller) -> None:
        self.socket: Any = socket
        self._poller = poller

    def send(self, frames: Sequence[Frame]) -> None:
        """Send a message."""
        self.socket.send_multipart(frames)

    def receive(self, timeout_s: float) -> list[bytes] | None:
        """Return the next message; None: none arrived in time."""
        return self.socket.recv_multipart() if self.socket.poll(timeout_s * 1e3) else None

    def drain(self) -> list[list[bytes]]:
        """Return the available messages."""
        messages = []
        try:
            while True:
                messages.append(self.socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            return messages

    def close(self) -> None:
        """Close this socket only."""
        self._poller.unregister(self.socket)
        self.socket.close(linger=0)
