"""Client intake: turns the messages of clients into events. Most of them are submissions: their loop is fast.

A message is rejected here (R25) if the message alone shows that it is malformed or exceeds a limit. Checks that need
the client's session (its credit, its functions, its options) are part of the turn (client_messages.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trio_sched.core.ids import MAX_COUNTER
from trio_sched.errors import WireError
from trio_sched.server.config import Config
from trio_sched.server.events import (
    CancelReceived,
    HeartbeatReceived,
    QueryReceived,
    StopReceived,
    SubmissionsReceived,
    WatchChanged,
)
from trio_sched.server.ingress import CLIENTS, Ingress
from trio_sched.server.peer_connection import PeerConnection
from trio_sched.server.reader import Reader, Validator, read_bye
from trio_sched.wire.native import (
    FUNCTION_DIGEST_BYTES,
    TASK_BYTES,
    Bye,
    Call,
    Cancel,
    Frame,
    FramedRecord,
    Hello,
    Ping,
    Query,
    Stop,
    Submit,
    Watch,
    attach,
    encode,
    options_bytes,
)
from trio_sched.wire.payload import digest as digest_of
from trio_sched.wire.ranges import RANGES, check_length

#: Plain arguments must be encodable inside this many more levels: the scheduler sends them inside other messages.
SPARE_LEVELS = 100


class Intake(Reader):
    """Reads what clients sent."""

    who = "a client"

    def __init__(self, ingress: Ingress, config: Config, read_hello: Validator) -> None:
        super().__init__(
            ingress,
            CLIENTS,
            {
                Submit: self._read_submit,
                Ping: _read_ping,
                Cancel: _read_cancel,
                Query: _read_query,
                Watch: _read_watch,
                Stop: _read_stop,
                Bye: read_bye,
                Hello: read_hello,
            },
        )
        self._max_tasks = config.max_tasks_per_message

    def _read_submit(
        self, connection: PeerConnection, now: float, message: Submit, frames: Sequence[Frame]
    ) -> SubmissionsReceived:
        calls = message.tasks
        if len(calls) > self._max_tasks:
            raise WireError(
                f"{len(calls)} tasks in one message; max_tasks_per_message is {self._max_tasks}", "too_large"
            )
        sizes = _check_calls(calls)
        payloads = attach(calls, frames)
        if frames:
            for payload in payloads:
                if type(payload) is FramedRecord:
                    task = payload.record.id
                    sizes[task] = sizes.get(task, 0) + sum([len(frame) for frame in payload.frames])
        functions = message.functions
        if functions:
            functions = self._intact_functions(functions)
        return SubmissionsReceived(connection, now, calls, payloads, sizes, functions, message.drop, message.received)

    def _intact_functions(self, functions: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """Return the functions whose digest is right. In the turn, a call that names another function is refused."""
        checked = {digest: body for digest, body in functions.items() if digest_of(body) == digest}
        for _ in range(len(functions) - len(checked)):
            self._ingress.note("bad_digest")
        return checked


def _check_calls(calls: Sequence[Call]) -> dict[int, int]:
    """Check each call of a message. Returns the sizes in bytes, by id, of calls with a large body or with options.

    :raises WireError: a call has a field that is not valid, so that the whole message is rejected.
    """
    sizes: dict[int, int] = {}
    for call in calls:
        if not 0 < call.id <= MAX_COUNTER:
            raise WireError(f"a task has the id {call.id}; ids count from 1 to {MAX_COUNTER}")
        if call.fn and len(call.fn) != FUNCTION_DIGEST_BYTES:
            raise WireError(f"fn of task {call.id} has {len(call.fn):,} bytes; a digest has {FUNCTION_DIGEST_BYTES}")
        if call.inputs is not None or call.resources is not None or call.attached is not None:
            raise WireError(f"task {call.id} has inputs, resources or attached, which only the scheduler sets")
        size = len(call.body)
        if call.call:
            _check_name(call)
        if call.args is not None or call.kwargs is not None:
            size = _check_depth(call)
        if size <= TASK_BYTES:
            size = 0
        if call.options is not None:
            size += options_bytes(call.options)
        if size:
            sizes[call.id] = size
    return sizes


def _check_depth(call: Call) -> int:
    """Return the size of a call with plain arguments.

    Arguments at the deepest level that can be decoded could not be encoded again, so this encodes them `SPARE_LEVELS`
    deeper.

    :raises WireError: the arguments cannot be encoded for an engine.
    """
    nested: Any = call
    for _ in range(SPARE_LEVELS):
        nested = [nested]
    try:
        return len(encode(nested))
    except (RecursionError, TypeError, ValueError, OverflowError) as error:
        raise WireError(f"the arguments of task {call.id} cannot be sent on: {error}") from None


def _check_name(call: Call) -> None:
    try:
        check_length("call", call.call, f"call of task {call.id} has")
    except ValueError as error:
        raise WireError(str(error)) from None


def _check_ids(what: str, tasks: Sequence[int]) -> None:
    for task in tasks:
        if task not in RANGES["id"]:
            raise WireError(f"{what} names the task {task}; an id is {RANGES['id']}")


def _read_ping(connection: PeerConnection, now: float, message: Ping, _frames: Sequence[Frame]) -> HeartbeatReceived:
    return HeartbeatReceived(connection, now, message.received)


def _read_cancel(connection: PeerConnection, now: float, message: Cancel, _frames: Sequence[Frame]) -> CancelReceived:
    _check_ids("cancel", message.tasks)
    return CancelReceived(connection, now, message.tasks)


def _read_query(connection: PeerConnection, now: float, message: Query, _frames: Sequence[Frame]) -> QueryReceived:
    if isinstance(message.task, int) and message.task:
        _check_ids("query", (message.task,))
    return QueryReceived(connection, now, message.request, message.what, message.task)


def _read_watch(connection: PeerConnection, now: float, message: Watch, _frames: Sequence[Frame]) -> WatchChanged:
    return WatchChanged(connection, now, message.on)


def _read_stop(connection: PeerConnection, now: float, message: Stop, _frames: Sequence[Frame]) -> StopReceived:
    return StopReceived(connection, now, message.reason)
