"""A real scheduler with two engines, started once for all tests of the client, and its clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest

from trio_sched import Client
from trio_sched.client.local_cluster import LocalCluster
from trio_sched.transport.connection_info import ConnectionInfo

#: A generous limit: the tests run at the same time as others, on slow machines.
LIMIT_S = 60.0


@pytest.fixture(scope="session")
def scheduler() -> Iterator[ConnectionInfo]:
    """The connection of a scheduler with two engines."""
    cluster = LocalCluster(2)
    try:
        connection = cluster.connection(LIMIT_S)
        with Client(connection, connect_timeout=LIMIT_S) as client:
            client.submit(int).result(LIMIT_S)
        yield connection
    finally:
        cluster.close()


@pytest.fixture
def client(scheduler: ConnectionInfo) -> Iterator[Client]:
    """A blocking client; tasks that a failed test leaves unfinished are cancelled."""
    client = Client(scheduler, connect_timeout=LIMIT_S)
    yield client
    client.shutdown(cancel_futures=True)


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[Any]]], Any]:
    """`run(main)` runs a coroutine function under each event loop in turn, with a time limit."""

    def run_it(main: Callable[[], Awaitable[Any]]) -> Any:
        async def limited() -> Any:
            with anyio.fail_after(LIMIT_S):
                return await main()

        return anyio.run(limited, backend=request.param)

    return run_it
