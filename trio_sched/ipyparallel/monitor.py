"""What the parts tell of messages that pass: the records of tasks (records/base.py) listen to it."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

from trio_sched.wire.jupyter import Parsed

Queue: TypeAlias = Literal["task", "mux", "broadcast", "control"]


class Monitor(Protocol):
    """Who listens. While `on` is false nobody does, and nobody need parse or call anything for it."""

    on: bool

    def submitted(self, queue: str, message: Parsed, client: str, engine: str | None, /) -> None:
        """A request came in from the client (its session); `engine` where it goes, if that is known."""

    def commit(self) -> None:
        """The requests that were submitted are about to be sent on or answered: write them first."""

    def arrived(self, engine: str, msg_id: str, /) -> None:
        """A request was sent to an engine."""

    def finished(self, queue: str, reply: Parsed, engine: str | None, /) -> None:
        """A reply goes back to the client; without an engine it is the scheduler's own."""

    def output(self, message: Parsed, /) -> None:
        """An engine published something."""
