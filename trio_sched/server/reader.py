"""What the three readers (intake, results, notifications) have in common: bytes in, immutable events out.

A reader decodes each message and runs the checks that need no session. It reads and changes no state: a message that is
malformed or not allowed becomes a `MessageRejected` (R25), and everything else is decided in the actor's turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import trio
from msgspec import Struct

from trio_sched.errors import WireError
from trio_sched.server.events import Event, HeartbeatReceived, MessageRejected, SessionClosed
from trio_sched.server.ingress import INTERNAL_ERROR, Burst, Ingress
from trio_sched.server.peer_connection import PeerConnection
from trio_sched.wire.native import Bye, Frame, Ping

#: (connection, time of receipt, message, frames) -> event. Raises WireError for a message that is not allowed.
Validator: TypeAlias = Callable[[PeerConnection, float, Any, Sequence[Frame]], Event]
#: The reason for a Bye without a reason.
NO_REASON = "it left without giving a reason"
#: The most characters of a reason, which may quote the message.
MAX_REASON_CHARACTERS = 300


class Reader:
    """Reads the messages of one channel of the ingress."""

    #: The senders, as the reasons of rejections name them.
    who = "a peer"

    def __init__(self, ingress: Ingress, channel: int, validators: Mapping[type, Validator]) -> None:
        self._ingress = ingress
        self._channel = channel
        self._receive = ingress.channels[channel]
        #: By the type of the message, for every type that these senders may send.
        self.validators = validators

    async def run(self) -> None:
        """Read bursts until cancelled."""
        async for burst in self._receive:
            self.read(burst)

    def read_nowait(self) -> None:
        """Read what has arrived, for a caller that drives the server without Trio."""
        while True:
            try:
                burst = self._receive.receive_nowait()
            except trio.WouldBlock:
                return
            self.read(burst)

    def read(self, burst: Burst) -> None:
        """Turn the messages of a burst into events, one for each message, in order."""
        events: list[Event] = []
        now = burst.received_at
        for connection, frames in burst.messages[self._channel]:
            try:
                if not frames:
                    raise WireError("an empty message")
                first = frames[0]
                message = first if isinstance(first, Struct) else connection.decode(first)
                events.append(self.validate(connection, now, message, frames[1:]))
            except WireError as error:
                events.append(rejected(connection, now, error))
            except Exception as error:
                self._ingress.report_error(self.who, error)
                why = "the scheduler failed while it read this message"
                events.append(MessageRejected(connection, now, INTERNAL_ERROR, why))
        self._ingress.inbox.deliver(burst, self._channel, events)

    def validate(self, connection: PeerConnection, now: float, message: Any, frames: Sequence[Frame]) -> Event:
        """Return the event for a decoded message.

        :raises WireError: the message is not allowed.
        """
        validator = self.validators.get(type(message))
        if validator is None:
            raise WireError(f"{self.who} cannot send {type(message).__name__}", "unexpected")
        return validator(connection, now, message, frames)


def rejected(connection: PeerConnection, now: float, error: WireError) -> MessageRejected:
    """Return the event for a message that is not allowed."""
    return MessageRejected(connection, now, error.kind, str(error)[:MAX_REASON_CHARACTERS])


def read_ping(connection: PeerConnection, now: float, _message: Ping, _frames: Sequence[Frame]) -> HeartbeatReceived:
    """Read the heartbeat of an engine or a nanny."""
    return HeartbeatReceived(connection, now)


def read_bye(connection: PeerConnection, now: float, message: Bye, _frames: Sequence[Frame]) -> SessionClosed:
    """Read the Bye of a peer that leaves for good."""
    return SessionClosed(connection, now, message.reason or NO_REASON, message.cancel)
