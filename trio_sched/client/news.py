"""What the session tells a face of the client: how tasks ended, and what a message means for those who wait."""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from msgspec import Struct

from trio_sched.client.functions import Function
from trio_sched.wire import native
from trio_sched.wire.native import Attached, TaskEnd


class Handle(Protocol):
    """What a face keeps for each task: all that the session needs of it."""

    function: Function | None


H = TypeVar("H", bound=Handle)
End: TypeAlias = TaskEnd | Attached
"""How a task ended, with the frames that came along, if any."""


class News(Struct, Generic[H]):
    """What a message means for the face. Empty fields: nothing of the kind.

    `ended`: tasks that ended. `refused`: tasks that the scheduler would not take, and why. `lost`: tasks of a session
    that the scheduler does not know any more. `answers`: (request, data, error). `welcomed`: the session begins or goes
    on. `rejoin`: say hello again on a new connection. `rejected`: the scheduler will not have us. `complaint`: it did
    not understand a message. `closing`: it shuts down, and why. `happened`: what we asked to Watch.
    """

    ended: list[tuple[H, End]] = []
    refused: list[tuple[H, str]] = []
    lost: list[H] = []
    answers: list[tuple[int, Any, str]] = []
    happened: list[native.Happened] = []
    welcomed: bool = False
    rejoin: bool = False
    rejected: str = ""
    complaint: str = ""
    closing: str | None = None
