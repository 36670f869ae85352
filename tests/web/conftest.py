"""Fixtures: a scheduler with both fronts over real sockets, and a WebSocket client that acts as a page."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url
from wsproto.utilities import LocalProtocolError

from trio_sched.server.config import Config
from trio_sched.server.native import NativeFront
from trio_sched.server.serve import Running, serve
from trio_sched.testing import FakeEngine
from trio_sched.transport.zmq_socket import ZmqSocket
from trio_sched.web.front import WebSocketFront

WAIT_S = 30.0


class Page:
    """A client that sends JSON messages and sorts the received ones by type."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self.connection = connection
        self.received: list[dict[str, Any]] = []
        self.welcome: dict[str, Any] = {}

    async def send(self, type_: str, **fields: Any) -> None:
        await self.connection.send_message(json.dumps({"type": type_, **fields}))

    async def receive(self, type_: str) -> dict[str, Any]:
        """Return the next message of that type; keep the others."""
        while True:
            for at, message in enumerate(self.received):
                if message["type"] == type_:
                    return self.received.pop(at)
            self.received.append(json.loads(await self.connection.get_message()))

    async def join(self, **hello: Any) -> dict[str, Any]:
        await self.send("hello", role="client", **hello)
        self.welcome = await self.receive("welcome")
        return self.welcome

    async def submit(self, *calls: dict[str, Any], **more: Any) -> None:
        await self.send("submit", tasks=list(calls), **more)

    async def results(self, count: int) -> list[dict[str, Any]]:
        """Receive at least `count` results, and acknowledge each message of results."""
        ends: list[dict[str, Any]] = []
        while len(ends) < count:
            message = await self.receive("results")
            ends += message["results"]
            await self.send("ping", received=message["seq"])
        return ends

    async def closed(self) -> tuple[int, str]:
        """Read until the scheduler closes the connection. Return the code and the reason."""
        try:
            while True:
                self.received.append(json.loads(await self.connection.get_message()))
        except ConnectionClosed as closed:
            reason = closed.reason
        assert reason is not None
        return reason.code, reason.reason or ""


class Lab:
    """A running scheduler with both fronts."""

    def __init__(self, running: Running, nursery: trio.Nursery) -> None:
        self.running = running
        self.nursery = nursery
        self.url = running.connection.websocket
        self.token = running.connection.token

    def connect(
        self, query: str = "", headers: dict[str, str] | None = None, **options: Any
    ) -> AbstractAsyncContextManager[Page]:
        """Connect a page. Its token must be in the arguments, or in its Hello."""
        extra = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        return self._connect(self.url + query, extra_headers=extra, **options)

    def bearer(self, **options: Any) -> AbstractAsyncContextManager[Page]:
        """Connect a page with the token in its request."""
        return self.connect(headers={"Authorization": f"Bearer {self.token}"}, **options)

    @asynccontextmanager
    async def _connect(self, url: str, **options: Any) -> AsyncIterator[Page]:
        options.setdefault("max_message_size", 1 << 30)
        with suppress(LocalProtocolError):  # its library answers a ping that arrives during the close
            async with open_websocket_url(url, **options) as connection:
                try:
                    yield Page(connection)
                finally:
                    with trio.move_on_after(WAIT_S):
                        await connection.aclose()
                    await trio.aclose_forcefully(connection._stream)  # left open when the server closes first

    async def engine(self, **options: Any) -> FakeEngine:
        """Start an engine over ZeroMQ."""
        connection = self.running.engine_connection
        engine = FakeEngine(lambda: ZmqSocket.dealer(connection), connection.token, **options)
        await self.nursery.start(engine.run)
        await engine.join()
        return engine

    async def counted(self, name: str) -> int:
        """Wait until a counter is not 0, and return it."""
        counters = self.running.server.ingress.counters
        await self.until(lambda: counters[name] > 0)
        return counters[name]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for a condition that no event reports."""
        while not holds():
            await trio.lowlevel.checkpoint()


@pytest.fixture
def lab(runtime_dir: Path) -> Callable[..., AbstractAsyncContextManager[Lab]]:
    """`async with lab(**settings) as it` runs a scheduler that listens for WebSockets."""

    @asynccontextmanager
    async def made(**settings: Any) -> AsyncIterator[Lab]:
        config = Config(**{"websocket_port": 0, "shutdown_grace_s": 0.0, **settings})
        with trio.fail_after(WAIT_S):
            async with trio.open_nursery() as nursery:
                running = await nursery.start(serve, config, [NativeFront(config), WebSocketFront(config)])
                async with trio.open_nursery() as peers:
                    yield Lab(running, peers)
                    peers.cancel_scope.cancel()
                running.stop("the test is over")

    return made


@pytest.fixture
def run() -> Callable[[Callable[[], Awaitable[None]]], None]:
    """A function `run(main)` that runs under Trio."""
    return trio.run
