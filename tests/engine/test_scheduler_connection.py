"""How a worker splits its results into messages; test_reconnect.py and test_worker.py test the connection itself."""

from __future__ import annotations

from trio_sched.engine.results import FramedResult
from trio_sched.engine.scheduler_connection import split_results
from trio_sched.wire.native import TaskResult


def test_results_are_split_into_messages_of_a_bounded_size() -> None:
    def result_of_size(size: int) -> FramedResult:
        return TaskResult(1, body=b"x" * size), ()

    def sizes(batch: list[FramedResult]) -> list[int]:
        return [len(part) for part in split_results(batch)]

    assert sizes([result_of_size(1)] * 3) == [3]
    assert sizes([result_of_size(1)] * 600) == [256, 256, 88]
    assert sizes([result_of_size(600_000)] * 3) == [1, 1, 1]
    assert sizes([result_of_size(3_000_000), result_of_size(1), result_of_size(1)]) == [1, 2]
