"""A *link* is one connection of one peer, whatever carries it; a *session* (sessions.py) outlives its links.

The server knows peers only through this interface, so that a front (native ZeroMQ, WebSocket, an in-memory one for
tests) is a few lines: it makes a link for each peer, hands what arrives to `Hub.receive`, and says `Hub.gone` when it
knows that a peer is no longer there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from trio_sched.transport.connection import Role
from trio_sched.wire.native import Frame, FromPeer, Message, decode_from_peer

if TYPE_CHECKING:
    import trio

    from trio_sched.core.effects import Accept, AssignTask, DeliverResult, RecallTask, Refuse
    from trio_sched.server.hub import Hub
    from trio_sched.server.sessions import Session

Raw: TypeAlias = "tuple[Link, Sequence[Any]]"
"""What arrived, and from whom: the message (a first frame, or decoded already) and the frames behind it."""


class Link:
    """One connection of one peer. Fronts override `send`, and what else they need."""

    __slots__ = ("former", "heard_at", "lane", "proved_role", "session")

    def __init__(self, proved_role: Role | None = None) -> None:
        self.proved_role = proved_role
        """The role that the connection proves by its CURVE key; None: the token of its Hello is the only proof."""
        self.session: Session | None = None
        """None until its Hello was accepted, and again when it is cut off."""
        self.lane = STRANGERS
        """Where the hub sorts what it says."""
        self.former: Session | None = None
        """The session that it had when it was given up, if that is still without a link: what was sent before may still
        be on its way, and counts."""
        self.heard_at = 0.0
        """When anything last arrived from it: the time of receipt, not of handling."""

    def send(self, message: Message, frames: Sequence[Frame] = ()) -> int:
        """Hand a message to the transport without waiting. Returns its size in bytes, 0 if the peer is gone."""
        raise TypeError("a front's link must override send")

    def decode(self, data: Frame) -> FromPeer:
        """The message in a first frame. Raises WireError."""
        return decode_from_peer(data)

    def admitted(self) -> None:
        """Its Hello was accepted: it is worth remembering."""

    def close(self) -> None:
        """It is cut off: nothing more is sent to it."""


CLIENTS, ENGINES, STRANGERS = range(3)
"""The lanes into which the hub sorts: client intake, engine results, and everything else."""


class Front(Protocol):
    """A way in: listens, makes links and feeds the hub until cancelled."""

    async def run(self, hub: Hub, *, task_status: trio.TaskStatus[dict[str, str]]) -> Any:
        """Listen. `task_status.started` gets the addresses by name: "native" and "websocket" go into the connection
        files."""


class Outlet(Protocol):
    """A front whose peers have no sessions here: it makes events of the core itself, puts them into the inbox, and is
    given the effects for ids that are no session's. Its ids are strings, which no session has."""

    def take(self, effect: Accept | Refuse | AssignTask | DeliverResult | RecallTask) -> bool:
        """Do this, without waiting. False: the id is not one of its own. A flush (`Hub.on_flush`) follows."""
        ...


Flush: TypeAlias = Callable[[], None]
