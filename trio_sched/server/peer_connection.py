"""Connections of peers: the interface between the fronts and the server.

A connection belongs to one peer, whatever transport carries it; a *session* (sessions.py) outlives its connections. The
server uses peers only through this interface, so that a front (native ZeroMQ, WebSocket, in-memory for tests) stays
small: a front makes a connection for each peer and passes its messages to `Ingress.receive`.

A connection holds immutable facts and its role. Which session uses the connection, and when its last message was
received, is state of the actor, in `Sessions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from trio_sched.transport.connection_info import Role
from trio_sched.wire.native import Frame, FromPeer, Message, decode_from_peer

PeerRole: TypeAlias = Literal["client", "engine", "nanny"]


class PeerConnection:
    """One connection of one peer. A front overrides `send`, and the other methods where it needs them."""

    __slots__ = ("proved_role", "role")

    def __init__(self, proved_role: Role | None = None) -> None:
        #: The role that the connection proves by its CURVE key. None: the token of its Hello is the only proof.
        self.proved_role = proved_role
        #: The role of its first accepted Hello, set once by the actor. It decides which reader gets its messages.
        self.role: PeerRole | None = None

    def send(self, message: Message, frames: Sequence[Frame] = ()) -> int:
        """Pass a message to the transport without waiting.

        Returns the size of the message in bytes, 0 if the peer is not connected.
        """
        raise TypeError("a front's connection must override send")

    def decode(self, data: Frame) -> FromPeer:
        """Decode the first frame of a message.

        :raises WireError: the frame is not a message that a peer may send.
        """
        return decode_from_peer(data)

    def admitted(self) -> None:
        """Called when a session begins to use this connection."""

    def close(self) -> None:
        """Called when no session uses this connection any longer: nothing more is sent over it."""


#: A received message: its connection, and a sequence of the message (encoded, or decoded already) and its frames.
RawMessage: TypeAlias = tuple[PeerConnection, Sequence[Any]]
