"""Fixtures: real sockets under both event loops, with a time limit, so that a stall fails and does not hang."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from trio_sched.transport import curve
from trio_sched.transport.connection_info import ConnectionInfo, ipc_address
from trio_sched.transport.zmq_socket import ZmqSocket

#: Large, because the tests run in parallel with others on slow machines.
LIMIT_S = 30.0


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[Any]]], Any]:
    """A function `run(main)` that runs under each event loop in turn, with a time limit."""

    def run_it(main: Callable[[], Awaitable[Any]]) -> Any:
        async def limited() -> Any:
            with anyio.fail_after(LIMIT_S):
                return await main()

        return anyio.run(limited, backend=request.param)

    return run_it


class Endpoint:
    """An address for a router, with the keys of each role."""

    def __init__(self, address: str, keys: curve.Keys | None) -> None:
        self.address = address
        self.keys = keys

    def router(self, **options: Any) -> ZmqSocket:
        """Create the router."""
        return ZmqSocket.router(self.address, keys=self.keys.for_server() if self.keys else None, **options)

    def connection(self, router: ZmqSocket, role: Any = "client") -> ConnectionInfo:
        """Return the connection of a role to the router."""
        if self.keys is None:
            return ConnectionInfo("test", role, router.address, "token")
        pair = self.keys.roles[role]
        return ConnectionInfo(
            "test",
            role,
            router.address,
            "token",
            server_key=self.keys.server.public,
            public_key=pair.public,
            secret_key=pair.secret,
        )


@pytest.fixture
def local(runtime_dir: Path) -> Endpoint:
    """An ipc endpoint in a private directory."""
    return Endpoint(ipc_address("test"), None)


@pytest.fixture(params=["ipc", "tcp"])
def endpoint(request: pytest.FixtureRequest, runtime_dir: Path) -> Iterator[Endpoint]:
    """An ipc endpoint, and a TCP one with keys."""
    if request.param == "ipc":
        yield Endpoint(ipc_address("test"), None)
    else:
        yield Endpoint("tcp://127.0.0.1:0", curve.new_keys())


@pytest.fixture
def secured() -> Endpoint:
    """A TCP endpoint with keys, on any port."""
    return Endpoint("tcp://127.0.0.1:0", curve.new_keys())
