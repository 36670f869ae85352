"""A real worker process at a scripted scheduler: calls, values, errors, output, places."""

from __future__ import annotations

from .conftest import Line


def test_a_call_returns_its_value(line: Line) -> None:
    got = line.scheduler.run(line.peer, lambda a, *, b: a * b, 6, b=7)
    assert got.value == 42
    assert got.end.outcome == "ok"
    assert got.end.attempt == 1
    assert 0 <= got.end.took_s < 1
    assert (got.end.stdout, got.end.stderr) == ("", "")


def test_a_batch_is_answered_in_order_in_one_message(line: Line) -> None:
    calls = [line.scheduler.call(lambda n: n, n) for n in range(10)]
    tasks = line.scheduler.assign(line.peer, *calls)
    got = line.scheduler.answers(line.peer, *tasks)
    assert [g.value for g in got] == list(range(10))
