"""Putting ends and calls into messages: pure functions of the outbox."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from trio_sched.core.effects import DeliverResult
from trio_sched.wire.native import Attached, Call, Frame, RemoteError, TaskEnd, Value

ENDS_PER_MESSAGE = 256
"""With bodies of at most 16 KB inside, a message is at most 4 MB and its frames."""
FRAME_BYTES_PER_MESSAGE = 4 << 20


def end_of(effect: DeliverResult) -> TaskEnd | Attached:
    """The end of a task as its client is told."""
    result: TaskEnd | Attached | None = effect.result
    engine = -1 if effect.engine is None else effect.engine
    if result is None:
        error = RemoteError(effect.error, effect.reason) if effect.error else None
        return TaskEnd(effect.task, effect.outcome, error=error, reason=effect.reason, engine=engine)  # type: ignore[arg-type]
        # ids are ints on this front
    record = result.record if type(result) is Attached else result
    if record.outcome == effect.outcome:  # type: ignore[union-attr]  # an end's record is a TaskEnd
        return result
    return _overruled(effect, result)


def _overruled(effect: DeliverResult, result: TaskEnd | Attached) -> TaskEnd | Attached:
    """The engine said one thing, the scheduler decided another (a cancelled task that ended ok)."""
    record: Any = result.record if type(result) is Attached else result
    error = RemoteError(effect.error, effect.reason) if effect.error else record.error
    record = replace(record, outcome=effect.outcome, error=error, reason=effect.reason or record.reason)
    return Attached(record, result.frames) if type(result) is Attached else record


def with_inputs(
    call: Call, frames: tuple[Frame, ...], inputs: Sequence[TaskEnd | Attached]
) -> tuple[Call, tuple[Frame, ...]]:
    """The call with its inputs (R9). A copy: the core's stays small, and may be assigned again."""
    values: list[Value] = []
    for end in inputs:
        attached: tuple[Frame, ...] = ()
        record: Any = end
        if type(end) is Attached:
            record, attached = end.record, end.frames
        values.append(Value(record.body, len(attached), record.codec))
        frames += attached
    return replace(call, inputs=values, frames=len(frames)), frames


def chunks(
    ends: list[TaskEnd | Attached], most: int = ENDS_PER_MESSAGE, most_bytes: int | None = FRAME_BYTES_PER_MESSAGE
) -> Iterator[tuple[list[TaskEnd | Attached], list[TaskEnd], tuple[Frame, ...]]]:
    """Messages' worth of ends: (the ends, their records, their frames in order). Closed at `most` ends or
    `most_bytes` of frames."""
    at = 0
    while at < len(ends):
        chunk = ends[at : at + most]
        frames: list[Frame] = []
        records: list[Any] = chunk
        if any(type(end) is Attached for end in chunk):
            records, size = [], 0
            for end in chunk:
                if type(end) is Attached:
                    frames += end.frames
                    size += sum([len(frame) for frame in end.frames])
                    end = end.record  # type: ignore[assignment]
                records.append(end)
                if most_bytes is not None and size > most_bytes:
                    break
            chunk = chunk[: len(records)]
        at += len(chunk)
        yield chunk, records, tuple(frames)
