"""A real scheduler with two engines, started once for all of these tests, and clients of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest

from trio_sched import Client
from trio_sched.client.own import OwnScheduler
from trio_sched.transport.connection import Connection

LIMIT_S = 60.0
"""Generous: these tests run beside others on slow machines."""


@pytest.fixture(scope="session")
def scheduler() -> Iterator[Connection]:
    """The connection of a scheduler with two engines."""
    own = OwnScheduler(2)
    try:
        connection = own.connection(LIMIT_S)
        with Client(connection, connect_timeout=LIMIT_S) as client:
            client.submit(int).result(LIMIT_S)
        yield connection
    finally:
        own.close()


@pytest.fixture
def client(scheduler: Connection) -> Iterator[Client]:
    """A blocking client; what a failed test leaves unfinished is cancelled."""
    client = Client(scheduler, connect_timeout=LIMIT_S)
    yield client
    client.shutdown(cancel_futures=True)


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[Any]]], Any]:
    """`run(main)` under each event loop in turn, with a time limit."""

    def run_it(main: Callable[[], Awaitable[Any]]) -> Any:
        async def limited() -> Any:
            with anyio.fail_after(LIMIT_S):
                return await main()

        return anyio.run(limited, backend=request.param)

    return run_it
