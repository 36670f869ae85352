"""Notifications: who comes and who goes. Hellos of strangers, and all that nannies say.

Nobody is listened to before a Hello with the token of its role (R25): the token is in the connection file, which only
the owner can read. Garbage from strangers is counted and not answered; a message that we would understand from a peer
that we do not know is answered, because that peer may be one of ours from before a reconnection, and must say Hello
again.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trio_sched.errors import WireError
from trio_sched.server.config import Config
from trio_sched.server.happenings import Greeted, Pinged
from trio_sched.server.hub import Hub
from trio_sched.server.intake import amounts
from trio_sched.server.links import ENGINES, STRANGERS, Link
from trio_sched.server.reader import Reader
from trio_sched.server.sessions import LANES, NannySession, Sessions
from trio_sched.transport.connection import Role
from trio_sched.wire.native import VERSION, Bye, Died, Frame, Hello, Ping
from trio_sched.wire.ranges import MOST_PATH_CHARACTERS, check, check_length


class Notifications(Reader):
    """Reads what strangers and nannies sent."""

    who = "a nanny"

    def __init__(
        self, hub: Hub, config: Config, sessions: Sessions, tokens: Mapping[Role, str], closing: Callable[[], bool]
    ) -> None:
        super().__init__(hub, STRANGERS, hub.inbox.add_notifications)
        self._config = config
        self._sessions = sessions
        self._tokens = tokens
        self._closing = closing
        self.handlers = {Ping: self._ping}

    def handle(self, link: Link, message: Any, frames: Sequence[Frame]) -> None:
        """See Reader."""
        session = link.session or link.former
        if type(message) is Hello:
            self._hello(link, message)
        elif type(message) in (Died, Bye) and isinstance(session, NannySession):
            self.hub.forward(ENGINES, link, message, frames)  # behind all that engines have sent so far (R31)
        elif session is not None and LANES[session.role] != STRANGERS:
            # sorted before its Hello was answered, or after it was given up
            self.hub.forward(LANES[session.role], link, message, frames)
        else:
            super().handle(link, message, frames)

    def _ping(self, nanny: NannySession, _message: Ping, _frames: Sequence[Frame]) -> None:
        self.events.append(Pinged(nanny))

    # ---- Hello ------------------------------------------------------------------------------------------------------

    def _hello(self, link: Link, hello: Hello) -> None:
        try:
            self._admit(link, hello)
        except WireError as error:
            self.hub.note(error.kind, why=str(error))
            self.answer(link, error.kind, str(error))
            return
        greeted = Greeted(link, hello)
        session = link.session or link.former
        if session is not None and LANES[session.role] != STRANGERS:
            self.hub.forward(LANES[session.role], link, greeted, ())  # behind what it said before
        else:
            self.events.append(greeted)

    def _admit(self, link: Link, hello: Hello) -> None:
        """Raises WireError where it must not come in."""
        if hello.version != VERSION:
            raise WireError(
                f"you speak version {hello.version}, this scheduler version {VERSION}; "
                "install the same trio_sched on both sides",
                "unknown_version",
            )
        role: Role = "client" if hello.role == "client" else "engine"
        if link.proved_role not in (None, role):
            raise WireError(
                f"the key of your connection is that of the role {link.proved_role!r}, but your hello says "
                f"{hello.role!r}; use the connection file of the role {role!r}, keys and token",
                "unauthenticated",
            )
        token = self._tokens[role]
        if not hmac.compare_digest(hello.token.encode(), token.encode()):
            raise WireError(
                f"the token is not that of a {hello.role}; read the connection file again", "unauthenticated"
            )
        if self._closing() and self._sessions.find(hello) is None:  # others may come back for results, or with them
            raise WireError("the scheduler is shutting down", "closing")
        try:
            _check(hello)
        except ValueError as error:
            raise WireError(str(error)) from None
        if link.session is None and hello.role != "client" and self._sessions.find(hello) is None:
            self._check_room()  # clients are counted by the actor, which can make room for one

    def _check_room(self) -> None:
        count, limit = max(len(self._sessions.engines), len(self._sessions.nannies)), self._config.max_engines
        if count >= limit:
            raise WireError(f"there are {count} of your kind already; max_engines is {limit}", "too_many")


def _check(hello: Hello) -> None:
    """Raises ValueError that says which number or text in it is out of its range."""
    check("weight", hello.weight)
    check("slots", hello.slots)
    check("received", hello.received)
    if hello.accepted != -1:
        check("received", hello.accepted, "accepted is")
    if hello.hwm is not None:
        check("hwm", hello.hwm)
    amounts(hello.resources)
    for name in ("name", "host", "python", "cwd", "path", "secret", "scheduler"):
        check_length(name, getattr(hello, name))
    characters = sum(map(len, hello.path))
    if characters > MOST_PATH_CHARACTERS:
        raise ValueError(f"path has {characters:,} characters in all; the most is {MOST_PATH_CHARACTERS:,}")
