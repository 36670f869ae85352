"""Code as users write it, with the types that it has. Checked by mypy (test_types.py), never run."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Generator
from typing import assert_type

import trio_sched
from trio_sched import AsyncFuture, Client, Future, depend, require


def fit(rows: list[int], *, depth: int = 1) -> float:
    return sum(rows) / depth


def power(base: int, exponent: int) -> int:
    return int(base**exponent)


def blocking(client: Client) -> None:
    future = client.submit(fit, [1], depth=3)
    assert_type(future, Future[float])
    assert_type(future.result(), float)
    assert_type(future.result(timeout=1), float)
    assert_type(future.exception(), BaseException | None)
    assert_type(future.task_id, str)
    assert_type(future.engine, int | None)
    assert_type(client.map(fit, [[1], [2]], chunksize=2, progress=True), Generator[float, None, None])
    assert_type(client.options(retries=2, timeout=60, after=[future]).submit(fit, [1]), Future[float])
    assert_type(client.options(priority=1).map(fit, [[1]]), Generator[float, None, None])
    with client as same:
        assert_type(same, Client)
    executor: concurrent.futures.Executor = client
    standard: concurrent.futures.Future[float] = future
    print(executor, standard)


def waiting(client: Client, standard: concurrent.futures.Future[float]) -> None:
    futures = [client.submit(fit, [1]), client.submit(fit, [2])]
    for future in trio_sched.as_completed(futures, timeout=1):
        assert_type(future, Future[float])
        assert_type(future.engine, int | None)
    waited = trio_sched.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED)
    assert_type(waited.done, set[Future[float]])
    done, not_done = trio_sched.wait(futures, timeout=1)
    assert_type(not_done, set[Future[float]])
    for other in trio_sched.as_completed([standard]):
        assert_type(other, concurrent.futures.Future[float])
    for one in concurrent.futures.as_completed(futures):
        assert_type(one.result(), float)
    assert_type(concurrent.futures.wait(futures).done.pop().result(), float)
    assert_type(next(client.map(fit, [[1]], buffersize=3)), float)
    print(done)


def parameters() -> None:
    assert_type(Client("lab", name="notebook", weight=2, reconnect="same-name"), Client)
    assert_type(Client(engines=2, hwm=1, connect_timeout=60), Client)


def results_as_arguments(client: Client, rows: Future[list[int]], depth: Future[int]) -> None:
    assert_type(client.submit(fit, rows), Future[float])
    assert_type(client.submit(fit, [depth, depth]), Future[float])
    assert_type(client.submit(power, 7, depth), Future[int])


def wrong(client: Client) -> None:
    client.submit(fit, "text")  # type: ignore[arg-type]
    client.submit(fit, [1], deep=3)  # type: ignore[call-arg]
    client.submit(fit)  # type: ignore[call-overload]
    client.options(retires=3)  # type: ignore[call-arg]
    client.options(retries="3")  # type: ignore[arg-type]
    Client(enginez=2)  # type: ignore[call-arg]
    Client(engines="2")  # type: ignore[arg-type]
    trio_sched.open_client("lab", 2)  # type: ignore[call-arg]
    trio_sched.open_client(reconnect="always")  # type: ignore[arg-type]


@depend(callable, len)
def picky(x: int) -> str:
    return str(x)


@require("numpy")
def numeric(x: int) -> str:
    return str(x)


def decorated(client: Client) -> None:
    assert_type(picky(1), str)
    assert_type(client.submit(numeric, 1), Future[str])
    picky("text")  # type: ignore[arg-type]


async def asynchronous() -> None:
    async with trio_sched.open_client(engines=2) as client:
        future = client.submit(fit, [1], depth=3)
        assert_type(future, AsyncFuture[float])
        assert_type(await future, float)
        async with client.open_task_group() as group:
            one = group.submit(fit, [1])
            two = group.submit(round, one)
            assert_type(one, AsyncFuture[float])
        assert_type(one.value, float)
        print(two.value)
        async for value in client.map(fit, [[1], [2]]):
            assert_type(value, float)
        assert_type(await client.gather(one, one), list[float])
        client.submit(fit, "text")  # type: ignore[arg-type]
