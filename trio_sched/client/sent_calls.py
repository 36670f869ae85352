"""Calls that are on their way to the scheduler, which has not accepted them all."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from trio_sched.wire import native
from trio_sched.wire.native import TASK_BYTES, Attached, Call, Frame


class SentCalls(Struct):
    """One Submit: the numbers (from 1) of the first and last of its calls in the order sent."""

    first: int
    last: int
    message: native.Submit
    frames: list[Frame]
    size: int
    """What it takes of the credit in bytes."""

    def without(self, accepted: int) -> SentCalls:
        """The same without those of its calls that are among the first `accepted` sent."""
        done = max(0, accepted - self.first + 1)
        if not done:
            return self
        skipped = sum(call.frames for call in self.message.tasks[:done])
        message = replace(self.message, tasks=self.message.tasks[done:])
        frames = self.frames[skipped:]
        size = sum([TASK_BYTES + call_bytes(call) for call in message.tasks]) + sum(map(len, frames))
        return SentCalls(self.first + done, self.last, message, frames, size)

    def calls(self) -> list[Call | Attached]:
        """Its calls as they were queued, each with its frames."""
        return native.attach(self.message.tasks, self.frames)  # type: ignore[return-value]  # calls in, calls out


def call_bytes(call: Call) -> int:
    """What a call counts for in `credit_bytes`, without its frames and `TASK_BYTES`."""
    return len(call.body) if call.options is None else len(call.body) + native.options_bytes(call.options)


def counter_of(entry: Call | Attached) -> int:
    """The counter of a call that is queued."""
    call: Any = entry.record if type(entry) is Attached else entry
    counter: int = call.id
    return counter
