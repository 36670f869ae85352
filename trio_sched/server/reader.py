"""What the three readers (intake, results, notifications) have in common: a batch of messages in, a batch of events
out.

A message that cannot be read, or that its sender may not send, is counted by reason and answered where the sender is
known, and changes nothing (R25): a reader raises `WireError` before it has changed anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio
from msgspec import Struct

from trio_sched.errors import WireError
from trio_sched.server.happenings import Event, Greeted
from trio_sched.server.hub import INTERNAL_ERROR, Hub
from trio_sched.server.links import Link, Raw
from trio_sched.wire.native import Error, Frame

Handler = Callable[[Any, Any, Sequence[Frame]], None]
"""(session, message, frames): adds events."""

MOST_WORDS = 300
"""Characters of an explanation: it may quote what was sent."""


class Reader:
    """Reads one lane of the hub."""

    handlers: Mapping[type, Handler]
    """What senders of this lane may send."""
    who = "a peer"

    def __init__(self, hub: Hub, lane: int, add: Callable[[list[Event]], None]) -> None:
        self.hub = hub
        self._lane = hub.lanes[lane]
        self._add = add
        self.events: list[Event] = []

    async def run(self) -> None:
        """The task."""
        async for batch in self._lane:
            self.take(batch)

    def take_nowait(self) -> None:
        """Take what is there, for those who drive the server without Trio."""
        while True:
            try:
                batch = self._lane.receive_nowait()
            except trio.WouldBlock:
                return
            self.take(batch)

    def take(self, batch: Sequence[Raw]) -> None:
        """One batch of messages: its events go to the actor, in order."""
        self.events = []
        for link, frames in batch:
            mark = len(self.events)
            try:
                if not frames:
                    raise WireError("an empty message")
                first = frames[0]
                self.handle(link, first if isinstance(first, Struct) else link.decode(first), frames[1:])
            except WireError as error:
                self.complain(link, error)
            except Exception as error:
                del self.events[mark:]
                self.hub.failed(self.who, error)
                self.complain(link, WireError("the scheduler failed while it read this", INTERNAL_ERROR))
        if self.events:
            self._add(self.events)

    def handle(self, link: Link, message: Any, frames: Sequence[Frame]) -> None:
        """One message. A peer that was given up, because it could not be sent to or was silent, and has not come back
        otherwise, is heard, for this may have been sent before; and told, in case that it is there after all."""
        if type(message) is Greeted:  # forwarded, so that it comes behind what the peer said before
            self.events.append(message)
            return
        session = link.session or link.former
        if link.session is None:
            if session is None:
                self.hub.note("unknown_peer")
            self.answer(link, "unknown_peer", "say Hello first")
        if session is None:
            return
        handler = self.handlers.get(type(message))
        if handler is None:
            raise WireError(f"{self.who} cannot send {type(message).__name__}", "unexpected")
        handler(session, message, frames)

    def complain(self, link: Link, error: WireError) -> None:
        """Count a message that is dropped, and tell its sender if it is known."""
        session = link.session
        why = str(error)[:MOST_WORDS]
        self.hub.note(error.kind, session=session.number if session else None, why=why)
        if session is not None:
            self.answer(link, error.kind, why)

    def answer(self, link: Link, kind: str, message: str) -> None:
        """Tell a peer that its message was not taken."""
        link.send(Error(kind, message))
        self.hub.flush()
