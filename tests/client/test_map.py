"""`map` of both clients: the references it keeps, how far it submits ahead, and what it cancels."""

from __future__ import annotations

import itertools
import operator
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeAlias

import pytest

from trio_sched import Client, Future, open_client
from trio_sched.client.blocking import Submitter
from trio_sched.transport.connection_info import ConnectionInfo

Run: TypeAlias = Callable[[Callable[[], Awaitable[Any]]], Any]
ROWS = 12
SINGLES = [[number] for number in range(ROWS)]


class CountingIterable:
    """An endless iterable that counts the items read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[int]:
        for number in itertools.count():
            self.read += 1
            yield number


def record_submissions(view: Submitter) -> list[Future[Any]]:
    """Return a list that gets the future of each later submission of this view."""
    submitted: list[Future[Any]] = []
    submit = view._submit

    def record(*call: Any) -> Future[Any]:
        submitted.append(submit(*call))
        return submitted[-1]

    view._submit = record  # type: ignore[method-assign]  # only this view, for the test
    return submitted


def are_freed(values: Iterable[Any]) -> bool:
    """Return whether each value is freed when its consumer drops it, while the iterator is suspended."""
    alive = []
    for one in values:
        reference = weakref.ref(one)
        del one
        alive.append(reference() is not None)
    return len(alive) == ROWS and not any(alive)


@pytest.mark.parametrize("chunksize", [1, 5])
@pytest.mark.parametrize("buffersize", [None, 3])
def test_the_iterator_keeps_no_value_that_it_yielded(client: Client, chunksize: int, buffersize: int | None) -> None:
    assert are_freed(client.map(set, SINGLES, chunksize=chunksize, buffersize=buffersize))


@pytest.mark.parametrize("chunksize", [1, 5])
def test_the_asynchronous_iterator_keeps_no_value_that_it_returned(
    run: Run, scheduler: ConnectionInfo, chunksize: int
) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            seen = 0
            async for one in client.map(set, SINGLES, chunksize=chunksize):
                reference = weakref.ref(one)
                del one
                assert reference() is None
                seen += 1
            assert seen == ROWS

    run(main)


@pytest.mark.parametrize("chunksize", [1, 4])
@pytest.mark.parametrize("buffersize", [1, 3])
def test_buffersize_bounds_what_is_submitted_ahead(client: Client, chunksize: int, buffersize: int) -> None:
    numbers = CountingIterable()
    results = client.map(operator.neg, numbers, chunksize=chunksize, buffersize=buffersize)
    assert numbers.read == buffersize * chunksize
    for taken in range(10):
        assert next(results) == -taken
        assert numbers.read <= (taken // chunksize + 1 + buffersize) * chunksize
    assert list(client.map(pow, range(23), [2] * 23, chunksize=chunksize, buffersize=buffersize)) == [
        n * n for n in range(23)
    ]
    assert list(client.options(priority=1).map(abs, [], buffersize=buffersize)) == []
    assert next(client.map(str, buffersize=buffersize), None) is None


@pytest.mark.parametrize("chunksize", [1, 4])
def test_buffersize_bounds_what_the_asynchronous_client_submits_ahead(
    run: Run, scheduler: ConnectionInfo, chunksize: int
) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            numbers = CountingIterable()
            results = client.map(operator.neg, numbers, chunksize=chunksize, buffersize=2)
            assert numbers.read == 2 * chunksize
            for taken in range(10):
                assert await anext(results) == -taken
                assert numbers.read <= (taken // chunksize + 3) * chunksize
            await results.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(results)
            with pytest.raises(TypeError, match="buffersize must be an integer or None"):
                client.map(abs, [1], buffersize=2.0)  # type: ignore[arg-type]  # the point of the test

    run(main)


@pytest.mark.parametrize("chunksize", [1, 2])
@pytest.mark.parametrize("buffersize", [None, 2])
def test_the_remaining_tasks_are_cancelled(client: Client, chunksize: int, buffersize: int | None) -> None:
    never = client.options(resources={"unobtainium": 1})
    submitted = record_submissions(never)
    results: Any = never.map(abs, range(6), timeout=0.01, chunksize=chunksize, buffersize=buffersize)
    with pytest.raises(TimeoutError):
        next(results)
    assert len(submitted) > 1
    assert all(future.cancelled() for future in submitted)

    blocked = never.submit(abs, 1)
    view = client.options()
    submitted = record_submissions(view)
    rows = [0] * chunksize + [blocked] * 5  # the first task can run, the others wait
    results = view.map(abs, rows, chunksize=chunksize, buffersize=buffersize)
    assert next(results) == 0
    results.close()
    assert len(submitted) > 1
    assert all(future.cancelled() for future in submitted[1:])


def test_an_iterator_that_is_dropped_unused_cancels_no_task(client: Client) -> None:
    """As with the standard pools: the calls may have side effects."""
    view = client.options()
    submitted = record_submissions(view)
    view.map(abs, range(-5, 0))
    assert [future.result(60) for future in submitted] == [5, 4, 3, 2, 1]


def test_an_iterable_that_raises_ends_the_iterator(client: Client) -> None:
    def numbers() -> Iterator[int]:
        yield from range(3)
        raise LookupError("no more")

    results = client.map(abs, numbers(), buffersize=2)
    assert next(results) == 0
    with pytest.raises(LookupError, match="no more"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_an_invalid_buffersize_is_an_error(client: Client) -> None:
    for wrong in ("4", 2.0):
        with pytest.raises(TypeError, match="buffersize must be an integer or None"):
            client.map(abs, [1], buffersize=wrong)  # type: ignore[arg-type]  # the point of the test
    for number in (0, -1):
        with pytest.raises(ValueError, match="buffersize must be None or > 0"):
            client.map(abs, [1], buffersize=number)
    with pytest.raises(ValueError, match="progress=True needs the number of tasks"):
        client.map(abs, [1], buffersize=1, progress=True)
