"""Connections of peers, as the server sees them.

A connection belongs to one peer, whatever transport carries it; a *session* (sessions.py) outlives its connections. The
server knows peers only through this interface, so that a front (native ZeroMQ, WebSocket, in-memory for tests) stays
small: a front makes a connection for each peer and hands what arrives to `Ingress.receive`.

A connection holds immutable facts only. Which session uses it, and when the peer was last heard from, is state of the
actor and lies in `Sessions`.
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
        """Hand a message to the transport without waiting.

        Returns the size of the message in bytes, 0 if the peer is gone.
        """
        raise TypeError("a front's connection must override send")

    def decode(self, data: Frame) -> FromPeer:
        """Decode the first frame of a message.

        :raises WireError: the frame is not a message that a peer may send.
        """
        return decode_from_peer(data)

    def admitted(self) -> None:
        """Take note that a session uses this connection from now on."""

    def close(self) -> None:
        """Take note that no session uses this connection any more: nothing is sent to it from now on."""


#: What arrived and from where: the connection, then the message (a first frame, or decoded already) and its frames.
RawMessage: TypeAlias = tuple[PeerConnection, Sequence[Any]]
