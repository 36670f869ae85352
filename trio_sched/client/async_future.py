"""The future of asynchronous code: awaitable under trio and asyncio, and an argument like any other (R9)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol, TypeVar

import anyio
import anyio.lowlevel

from trio_sched.client.ends import UNDECODED, BaseFuture, Ended, Origin
from trio_sched.client.functions import Function
from trio_sched.errors import TaskCancelled

T = TypeVar("T")


class Owner(Protocol):
    """Whoever raises the error of a task at the end of a block."""

    def note_end(self, future: AsyncFuture[Any]) -> None:
        """The task has ended."""

    def note_seen(self, future: AsyncFuture[Any]) -> None:
        """Somebody has looked at its error, or does not want to."""


class AsyncFuture(BaseFuture[T]):
    """The future of a task submitted by asynchronous code. `await` it for its result, from as many tasks as you like.

    Whoever awaits and is cancelled merely stops waiting; the task is cancelled by `cancel()`, or with its task group.
    Made by `submit`. Belongs to one event loop, and is not thread-safe.
    """

    __slots__ = ("_event", "owner")

    def __init__(self, origin: Origin, function: Function | None = None, owner: Owner | None = None) -> None:
        self._origin = origin
        self.function = function
        self.number = 0
        self._value = UNDECODED
        self._error = None
        self._end = None
        self._event: anyio.Event | None = None
        self.owner = owner

    def done(self) -> bool:
        """Whether the task ended or was cancelled."""
        return self._end is not None

    def cancelled(self) -> bool:
        """Whether the task ended because somebody cancelled it."""
        record = self._record
        return isinstance(self._end, TaskCancelled) if record is None else record.outcome == "cancelled"

    @property
    def value(self) -> T:
        """The result of a task that has ended, or its exception raised.

        :raises RuntimeError: it has not ended; `await` it instead.
        """
        if self._end is None:
            raise RuntimeError(f"task {self.task_id} has not ended; await it, or leave its task group first")
        if (error := self.error) is not None:
            raise error
        return self._value

    @property
    def error(self) -> BaseException | None:
        """The exception of a task that has failed; None if it has not, or not yet."""
        if self._end is None:
            return None
        self._decode()
        if self._error is not None:
            self.see()
        return self._error

    def see(self) -> None:
        """Leaving the client's block is not to raise the error of this task, if it fails or has failed."""
        if self.owner is not None:
            self.owner.note_seen(self)

    async def wait(self) -> None:
        """Wait until the task has ended, however."""
        if self._end is None:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()
        else:
            await anyio.lowlevel.checkpoint()

    async def result(self) -> T:
        """The same as `await future`: wait for the end; its value, or its exception raised."""
        await self.wait()
        return self.value

    def __await__(self) -> Generator[Any, Any, T]:
        return self.result().__await__()

    def cancel(self) -> bool:
        """Cancel the task: False if it has ended. Else its future ends now, with TaskCancelled, and the scheduler is
        told."""
        if self._end is not None:
            return False
        self._origin.canceller(self.number)
        self.finish(TaskCancelled(f"task {self.task_id} was cancelled by its client"))
        return True

    def finish(self, end: Ended) -> None:
        """The task's end has come."""
        if self._end is None:
            self._end = end
            if self._event is not None:
                self._event.set()
            if self.owner is not None:
                self.owner.note_end(self)

    def __repr__(self) -> str:
        record = self._record
        state = record.outcome if record is not None else "pending" if self._end is None else type(self._end).__name__
        return f"<{type(self).__name__} {self.task_id} {state}>"
