"""Results of calls: shared buffers, size limits, errors."""

from __future__ import annotations

import numpy as np

from trio_sched.engine.results import TEXT_LIMIT, is_unshared, result_of_error, result_of_value
from trio_sched.errors import ResultError
from trio_sched.wire import payload
from trio_sched.wire.native import Call


def frames_of(value: object) -> list[memoryview]:
    return [frame for frame in payload.dumps(value)[1] if isinstance(frame, memoryview)]


def test_a_buffer_without_other_references_is_unshared() -> None:
    kept = np.zeros(10)
    holder = {"in": kept}
    for fresh in (
        lambda: np.zeros(10),
        lambda: np.zeros(20)[5:15],
        lambda: np.zeros((5, 4)).T,
        lambda: {"a": [np.zeros(3)]},
        lambda: bytearray(5) and np.frombuffer(bytearray(5), dtype="u1"),
    ):
        (frame,) = frames_of(fresh())
        assert is_unshared(frame)
    for shared in (lambda: kept, lambda: kept[2:4], lambda: kept.reshape(2, 5).T, lambda: holder, lambda: [kept[1:]]):
        (frame,) = frames_of(shared())
        assert not is_unshared(frame)


def test_an_unshared_result_is_sent_without_a_copy_and_a_shared_one_is_copied() -> None:
    kept = np.zeros(10)
    call = Call(1)
    assert isinstance(result_of_value(call, np.zeros(10), 0.1, 0)[1][0], memoryview)
    assert isinstance(result_of_value(call, kept, 0.1, 0)[1][0], bytes)


def test_a_result_above_the_size_limit_of_the_scheduler_is_an_error() -> None:
    result, frames = result_of_value(Call(1, attempt=2), np.zeros(1000), 0.1, 5000)
    assert frames == ()
    assert (result.outcome, result.attempt, result.frames) == ("error", 2, 0)
    error = payload.loads(result.body)
    assert isinstance(error, ResultError)
    assert "of type ndarray, takes 81" in str(error)
    assert "at most 5000" in str(error)


def test_a_long_error_message_is_cut() -> None:
    result, _ = result_of_error(Call(1), ValueError("x" * 3_000_000), 0.0, 100_000)
    assert result.body == b""  # larger than the scheduler accepts
    assert result.error is not None
    assert len(result.error.message) < TEXT_LIMIT + 100
    assert "2000000 characters cut" in result.error.message
