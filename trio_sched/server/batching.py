"""Putting results and calls into messages: pure functions of the outbox."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from trio_sched.core.effects import DeliverResult
from trio_sched.core.ids import is_native
from trio_sched.wire.native import Call, Frame, FramedRecord, RemoteError, TaskResult, Value

#: With bodies of at most 16 KB inside, a message has at most 4 MB, and its frames.
RESULTS_PER_MESSAGE = 256
FRAME_BYTES_PER_MESSAGE = 4 << 20


def result_of(effect: DeliverResult) -> TaskResult | FramedRecord:
    """Return the record of a task's end for the `Results` message of its client."""
    result: TaskResult | FramedRecord | None = effect.result
    if result is None:
        error = RemoteError(effect.error, effect.reason) if effect.error else None
        engine = -1 if effect.engine is None else native_number(effect.engine)
        return TaskResult(native_number(effect.task), effect.outcome, error=error, reason=effect.reason, engine=engine)
    record: Any = result.record if type(result) is FramedRecord else result
    if record.outcome == effect.outcome:
        return result
    # The scheduler's outcome differs from the engine's: for example, a cancelled call returned a value.
    error = RemoteError(effect.error, effect.reason) if effect.error else record.error
    record = replace(record, outcome=effect.outcome, error=error, reason=effect.reason or record.reason)
    return FramedRecord(record, result.frames) if type(result) is FramedRecord else record


def native_number(any_id: int | str) -> int:
    """Return a native id as the number that it is.

    :raises TypeError: the id is foreign, so that no native message can have it.
    """
    if not is_native(any_id):
        raise TypeError(f"{any_id!r} is not the id of a native task, client or engine")
    return any_id


def with_inputs(
    call: Call, frames: tuple[Frame, ...], inputs: Sequence[TaskResult | FramedRecord]
) -> tuple[Call, tuple[Frame, ...]]:
    """Return the call with its inputs (R9), and their frames behind its own.

    The call is copied: the record of the core stays small, and may be assigned again.
    """
    values: list[Value] = []
    for result in inputs:
        attached: tuple[Frame, ...] = ()
        record: Any = result
        if type(result) is FramedRecord:
            record, attached = result.record, result.frames
        values.append(Value(record.body, len(attached), record.codec))
        frames += attached
    return replace(call, inputs=values, frames=len(frames)), frames


def chunks(
    results: list[TaskResult | FramedRecord],
    max_count: int = RESULTS_PER_MESSAGE,
    max_bytes: int | None = FRAME_BYTES_PER_MESSAGE,
) -> Iterator[tuple[list[TaskResult | FramedRecord], list[TaskResult], tuple[Frame, ...]]]:
    """Divide results into messages: (the results, their records, their frames in order).

    A message is closed at `max_count` results or `max_bytes` of frames.
    """
    at = 0
    while at < len(results):
        chunk = results[at : at + max_count]
        frames: list[Frame] = []
        records: list[Any] = chunk
        if any(type(result) is FramedRecord for result in chunk):
            records, size = [], 0
            for result in chunk:
                if type(result) is FramedRecord:
                    frames += result.frames
                    size += sum([len(frame) for frame in result.frames])
                    records.append(result.record)
                else:
                    records.append(result)
                if max_bytes is not None and size > max_bytes:
                    break
            chunk = chunk[: len(records)]
        at += len(chunk)
        yield chunk, records, tuple(frames)
