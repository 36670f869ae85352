"""Plain connected sockets without an event loop, for programs that pose as peers of somebody else's protocol: the
benchmark and the tests of the ipyparallel side. What we speak ourselves goes through zmq_blocking.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, TypeAlias

import zmq

from trio_sched.transport.multipart import Frame

Kind: TypeAlias = Literal["dealer", "sub", "xsub", "pub"]
_KINDS: dict[Kind, int] = {"dealer": zmq.DEALER, "sub": zmq.SUB, "xsub": zmq.XSUB, "pub": zmq.PUB}


class Peers:
    """Connected sockets on one context, and a way to wait for all of them. Use it from one thread."""

    def __init__(self, most: int = 4096) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._context.max_sockets = most
        self._poller = zmq.Poller()

    def connect(self, kind: Kind, address: str, routing_id: str = "", server_key: str = "") -> Peer:
        """A socket connected to the address. A SUB hears everything. With a server's key: CURVE, with new keys."""
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
        """The sockets (`Peer.socket`) from which something can be received, when there is one, or the time is over."""
        return {socket for socket, _ in self._poller.poll(int(timeout_s * 1e3))}

    def close(self) -> None:
        """Close them all."""
        self._context.destroy(linger=0)

    def __enter__(self) -> Peers:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Peer:
    """One of them."""

    def __init__(self, socket: zmq.Socket[bytes], poller: zmq.Poller) -> None:
        self.socket: Any = socket
        self._poller = poller

    def send(self, frames: Sequence[Frame]) -> None:
        """Send a message."""
        self.socket.send_multipart(frames)

    def receive(self, timeout_s: float) -> list[bytes] | None:
        """The next message; None when there is none in time."""
        return self.socket.recv_multipart() if self.socket.poll(timeout_s * 1e3) else None

    def drain(self) -> list[list[bytes]]:
        """The messages that are there."""
        messages = []
        try:
            while True:
                messages.append(self.socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            return messages

    def close(self) -> None:
        """Close it alone."""
        self._poller.unregister(self.socket)
        self.socket.close(linger=0)
