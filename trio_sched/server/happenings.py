"""What the server adds to the core's events and effects: peers that come, go and ask. The core knows nothing of
links.

Events go to the actor in the same batches as the core's; `Actor.turn` answers them from a table. Effects go to the
outbox.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from trio_sched.core.effects import Effect as CoreEffect
from trio_sched.core.events import Event as CoreEvent
from trio_sched.core.events import TaskId
from trio_sched.server.links import Link
from trio_sched.server.sessions import ClientSession, EngineSession, Session
from trio_sched.wire.native import Frame, Hello, Message

# ---- events ---------------------------------------------------------------------------------------------------------


class Greeted(Struct, frozen=True, gc=False):
    """A peer said Hello and proved its role."""

    link: Link
    hello: Hello


class LinkLost(Struct, frozen=True, gc=False):
    """A link is gone: its transport says so, or nothing was heard from it for too long. The session stays."""

    link: Link
    reason: str


class Left(Struct, frozen=True, gc=False):
    """A session ended for good: a Bye, or nobody came back for its results. `cancel`: so do its unfinished tasks.
    `away_since`: it ends only if it is still away since then; None: in any case."""

    session: Session
    reason: str
    cancel: bool = False
    away_since: float | None = None


class WorkerDied(Struct, frozen=True, gc=False):
    """A nanny saw its worker die (R20)."""

    engine: EngineSession
    reason: str
    running: tuple[int, ...] | None


class Rejected(Struct, frozen=True, gc=False):
    """A submission that intake cannot even put into words for the core; it is refused in its turn, for it counts."""

    client: int
    task: int
    reason: str


class Pinged(Struct, frozen=True, gc=False):
    """A heartbeat."""

    session: Session


class Asked(Struct, frozen=True, gc=False):
    """A client asked for a view."""

    client: ClientSession
    request: int
    what: str
    task: TaskId


class Watched(Struct, frozen=True, gc=False):
    """A client began, or ended, to listen (R28)."""

    client: ClientSession
    on: bool


class ShutdownBegan(Struct, frozen=True, gc=False):
    """The scheduler takes nothing more (R29)."""

    reason: str


ServerEvent: TypeAlias = Greeted | LinkLost | Left | WorkerDied | Rejected | Pinged | Asked | Watched | ShutdownBegan
Event: TypeAlias = CoreEvent | ServerEvent

# ---- effects --------------------------------------------------------------------------------------------------------


class Welcomed(Struct, frozen=True, gc=False):
    """Answer the Hello on this link; on a resumed session, send again what is behind `received`. `renewed`: the session
    was forgotten and began again."""

    session: Session
    link: Link
    resumed: bool
    received: int = 0
    renewed: bool = False


class Decline(Struct, frozen=True, gc=False):
    """Answer the Hello on this link with an error: the peer gets no session."""

    link: Link
    kind: str
    message: str


class Tell(Struct, frozen=True, gc=False):
    """Send a message to a peer, if it is there."""

    session: Session
    message: Message
    frames: tuple[Frame, ...] = ()


class TellEngines(Struct, frozen=True, gc=False):
    """Tell the clients which engines are here now."""


ServerEffect: TypeAlias = Welcomed | Decline | Tell | TellEngines
Effect: TypeAlias = CoreEffect | ServerEffect
