"""The simulator with the sessions of real clients in place of fake clients, so that both sides run under faults."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from trio_sched.client.functions import Function, FunctionRegistry
from trio_sched.client.session import SchedulerSession
from trio_sched.testing import FakeClient, Simulator
from trio_sched.wire import native
from trio_sched.wire.native import Frame
from trio_sched.wire.payload import digest


class Handle:
    """The handle of a task in a client session."""

    def __init__(self, function: Function | None) -> None:
        self.function = function


class RealClient(FakeClient):
    """A driver of `client.session.SchedulerSession` with the interface of a fake client."""

    def __init__(self, connect: Callable[[], Any], token: str, now: Callable[[], float]) -> None:
        self.functions = FunctionRegistry()
        self.session: SchedulerSession[Handle] = SchedulerSession(
            native.Hello(role="client", token=token), self.functions
        )
        self._now = now
        super().__init__(connect, token)

    @property
    def number(self) -> int:
        return self.session.number

    @property
    def accepted(self) -> int:
        return self.session._accepted

    @accepted.setter
    def accepted(self, _value: int) -> None: ...

    def hello(self) -> Any:
        self.session.connection_opened(self._now())

    def ping(self) -> Any:
        return None

    def send(self, message: Any, frames: Sequence[Frame] = ()) -> None:
        if isinstance(message, native.Bye):
            self.send_frames([native.encode(message)])
            self.rejoins = False
            return
        if isinstance(message, native.Cancel):
            self.session.cancel(message.tasks)
        elif message is not None:
            self.session.send(message)
        self._flush()

    def _flush(self) -> None:
        if self.rejoins:
            for message, frames in self.session.outgoing(self._now()):
                self.send_frames([native.encode(message), *frames])

    def submit_nowait(self, *bodies: str | bytes, fn: bytes = b"", **options: Any) -> int:
        function = None
        if fn:
            function = self.functions.by_digest.get(digest(fn)) or Function(digest(fn), fn)
        for body in bodies:
            call = native.Call(0, digest(fn) if fn else b"", str(body).encode())
            call.options = native.Options(**options) if options else None
            assert self.session.submit(Handle(function), call, (), options.get("inputs", ())) is not None
            self.sent.append(call)
        self._flush()
        return self.task_id(self.sent[-1].id)

    def on_messages(self, batch: Sequence[Sequence[Frame]]) -> None:
        for frames in batch:
            self.received_messages.append(native.decode_to_client(frames[0]))
            update = self.session.receive(frames, self._now())
            for _, result in update.ended:
                end: Any = result.record if isinstance(result, native.FramedRecord) else result
                self.results[end.id] = end
                self.deliveries.append(end.id)
            assert not update.lost
            if update.rejoin:
                self.reconnect()
                self.session.connection_opened(self._now())
        self._flush()


class RealClients(Simulator):
    """The simulator with real clients."""

    def _make_client(self, token: str) -> FakeClient:
        return RealClient(self._connect, token, lambda: self.now)

    def _options(self, client: FakeClient) -> dict[str, Any]:
        assert isinstance(client, RealClient)
        options = super()._options(client)
        if "inputs" in options:  # the value of a future that is done is sent instead
            options["inputs"] = [task for task in options["inputs"] if task in client.session.tasks]
        return options


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.getLogger("trio_sched").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("trio_sched").setLevel(logging.NOTSET)


@pytest.mark.parametrize("seed", range(10))
def test_real_clients_lose_nothing_under_faults(seed: int) -> None:
    server = RealClients(seed, steps=600).run()
    assert server.scheduler.outcome_counts["ok"] > 20
