"""A harness for tests: a whole server on the in-memory transport, with fake peers, in virtual time.

`run_virtual` gives a test a clock that jumps to the next deadline whenever every task waits, so that an hour of virtual
time takes milliseconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio
import trio.testing

from trio_sched.core.invariants import check
from trio_sched.server.config import Config
from trio_sched.server.native import NativeFront
from trio_sched.server.serve import Running, Server, serve
from trio_sched.testing.memory import MemoryNetwork
from trio_sched.testing.peers import FakeClient, FakeEngine, FakeNanny, FakePeer
from trio_sched.testing.state_guard import guarded_state, writes_allowed

P = TypeVar("P", bound=FakePeer)


def run_virtual(main: Callable[[], Awaitable[Any]], timeout_s: float = 1e6) -> None:
    """Run `main` with virtual time.

    :raises trio.TooSlowError: `main` took longer than `timeout_s` of virtual time.
    """

    async def limited() -> None:
        with trio.fail_after(timeout_s):
            await main()

    trio.run(limited, clock=trio.testing.MockClock(autojump_threshold=0), strict_exception_groups=True)


class ServerHarness:
    """A running server and its fake peers."""

    def __init__(self, running: Running, network: MemoryNetwork, nursery: trio.Nursery) -> None:
        self.running = running
        self.network = network
        #: The nursery of the peers.
        self.nursery = nursery

    @property
    def server(self) -> Server:
        """The parts of the server."""
        return self.running.server

    async def client(self, **hello: Any) -> FakeClient:
        """Return a client that has joined; `hello` are fields of `native.Hello`."""
        return await self._joined(FakeClient(self.connect, self.running.connection.token, **hello))

    async def engine(self, *, eager: bool = False, **hello: Any) -> FakeEngine:
        """Return an engine that has joined."""
        token = self.running.engine_connection.token
        return await self._joined(FakeEngine(self.connect, token, eager=eager, **hello))

    async def nanny(self) -> FakeNanny:
        """Return a nanny that has joined."""
        return await self._joined(FakeNanny(self.connect, self.running.engine_connection.token))

    async def newcomer(self, token: str = "") -> FakeClient:
        """Return a connected peer that has not sent a Hello."""
        peer = FakeClient(self.connect, token)
        await self.nursery.start(peer.run)
        return peer

    async def _joined(self, peer: P) -> P:
        await self.nursery.start(peer.run)
        await peer.join()
        return peer

    def connect(self) -> Any:
        """Return a new connection to the server."""
        return self.network.connect(self.running.addresses["native"])

    async def settle(self) -> None:
        """Wait until every task waits for time to pass, and check the core's invariants."""
        await trio.testing.wait_all_tasks_blocked()
        with writes_allowed():
            check(self.server.scheduler)


@asynccontextmanager
async def open_harness(config: Config | None = None, **settings: Any) -> AsyncIterator[ServerHarness]:
    """Run a server with these settings for the time of the block, in its own runtime directory.

    :raises StateGuardError: the state of the server was changed outside of the actor's step.
    """
    network = MemoryNetwork()
    with guarded_state(), tempfile.TemporaryDirectory(prefix="ts-") as directory:
        Path(directory).chmod(0o700)  # noqa: ASYNC240  # a moment, before anything runs
        config = config or Config(runtime_dir=directory, **settings)
        async with trio.open_nursery() as nursery:
            front = NativeFront(config, network.open_router)
            running = await nursery.start(serve, config, [front])
            async with trio.open_nursery() as peers:
                harness = ServerHarness(running, network, peers)
                yield harness
                await harness.settle()
                peers.cancel_scope.cancel()
            nursery.cancel_scope.cancel()
