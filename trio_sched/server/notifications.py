"""Notifications: turns the messages of nannies, and of connections without a role, into events: peers join and leave.

A Hello is accepted only with the token of its role (R25), which is in the connection file, readable by its owner alone.
Other messages of a connection without a role are kept for the turn, in case that a Hello was sent before them.
Malformed messages of unauthenticated peers are counted and not answered.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from typing import Any

from trio_sched.errors import WireError
from trio_sched.server.events import DeathReported, Event, HelloReceived, MessageBeforeHello, MessageRejected
from trio_sched.server.ingress import NOTIFICATIONS, Ingress
from trio_sched.server.peer_connection import PeerConnection
from trio_sched.server.reader import Reader, read_bye, read_ping
from trio_sched.server.task_specs import amounts
from trio_sched.transport.connection_info import Role
from trio_sched.wire.native import VERSION, Bye, Frame, Hello, Ping, WorkerDied
from trio_sched.wire.ranges import MAX_PATH_CHARACTERS, check, check_length


class Notifications(Reader):
    """Reads what nannies and peers without a session sent."""

    who = "a nanny"

    def __init__(self, ingress: Ingress, tokens: Mapping[Role, str]) -> None:
        self._tokens = tokens
        super().__init__(
            ingress, NOTIFICATIONS, {WorkerDied: _read_died, Ping: read_ping, Bye: read_bye, Hello: self.read_hello}
        )

    def validate(self, connection: PeerConnection, now: float, message: Any, frames: Sequence[Frame]) -> Event:
        """See `Reader.validate`. The session of a connection without a role is looked up in the turn."""
        if connection.role is not None:
            return super().validate(connection, now, message, frames)
        if type(message) is Hello:
            return self.read_hello(connection, now, message, frames)
        return MessageBeforeHello(connection, now, message, frames)

    def read_hello(self, connection: PeerConnection, now: float, hello: Hello, _frames: Sequence[Frame]) -> Event:
        """Read a Hello, which a peer of any role may send over any connection."""
        try:
            self._check_role(connection, hello)
            _check_ranges(hello)
        except WireError as error:
            return MessageRejected(connection, now, error.kind, str(error), is_hello=True)
        except ValueError as error:
            return MessageRejected(connection, now, "malformed", str(error), is_hello=True)
        return HelloReceived(connection, now, hello)

    def _check_role(self, connection: PeerConnection, hello: Hello) -> None:
        if hello.version != VERSION:
            raise WireError(
                f"you speak version {hello.version}, this scheduler version {VERSION}; "
                "install the same trio_sched on both sides",
                "unknown_version",
            )
        role: Role = "client" if hello.role == "client" else "engine"
        if connection.proved_role not in (None, role):
            raise WireError(
                f"the key of your connection is that of the role {connection.proved_role!r}, but your hello says "
                f"{hello.role!r}; use the connection file of the role {role!r}, keys and token",
                "unauthenticated",
            )
        token = self._tokens[role]
        if not hmac.compare_digest(hello.token.encode(), token.encode()):
            raise WireError(
                f"the token is not that of a {hello.role}; read the connection file again", "unauthenticated"
            )


def _check_ranges(hello: Hello) -> None:
    """Check the ranges of all fields.

    :raises ValueError: a number or a text is out of its range.
    """
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
    if characters > MAX_PATH_CHARACTERS:
        raise ValueError(f"path has {characters:,} characters in all; the limit is {MAX_PATH_CHARACTERS:,}")


def _read_died(connection: PeerConnection, now: float, message: WorkerDied, _frames: Sequence[Frame]) -> DeathReported:
    running = None if message.running is None else tuple(message.running)
    return DeathReported(
        connection, now, message.engine, message.pid, message.reason or "its nanny reported its exit", running
    )
