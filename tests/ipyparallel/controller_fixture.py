"""The controller inside `serve`, in a thread; real engines are processes, real clients run in the test's thread."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio
import trio.testing

from tests.zmq_peers import Peer, Peers
from trio_sched.ipyparallel.config import IppConfig
from trio_sched.ipyparallel.connection_files import path_of
from trio_sched.ipyparallel.front import IpyparallelFront
from trio_sched.server.native import NativeFront
from trio_sched.server.serve import Running, serve
from trio_sched.transport.zmq_admission import AcceptedConnection
from trio_sched.wire.jupyter import DELIMITER, Codec, split

TIMEOUT_S = 40
QUIET_S = 0.05
T = TypeVar("T")


class RunningController:
    """A running controller."""

    def __init__(self, config: IppConfig, native: bool = False, **server: Any) -> None:
        self.config = config
        self._native = native
        self.front = IpyparallelFront(config)
        self.running: Running
        self._server = self.front.config.for_server(runtime_dir=f"{config.profile_dir}/run", **server)
        self._engines: list[subprocess.Popen[bytes]] = []
        self._token: Any = None
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(TIMEOUT_S)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            fronts = [self.front, NativeFront(self._server)] if self._native else [self.front]
            self.running = await nursery.start(serve, self._server, fronts)
            self._ready.set()

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in the thread of the event loop."""
        return trio.from_thread.run_sync(function, *args, trio_token=self._token)

    @property
    def client_file(self) -> str:
        return str(path_of(self.config, "client"))

    @property
    def engine_file(self) -> str:
        return str(path_of(self.config, "engine"))

    @property
    def counters(self) -> dict[str, int]:
        """Counts of dropped messages by reason, and the counters of the core."""
        return {**self.running.server.ingress.counters, **self.running.server.scheduler.counters}

    def wait_until_idle(self) -> dict[str, int]:
        """Wait until all tasks of the event loop are idle. Returns the counters."""
        trio.from_thread.run(trio.testing.wait_all_tasks_blocked, QUIET_S, trio_token=self._token)
        return self.counters

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition is true; it is evaluated in the thread of the event loop."""
        limit = time.monotonic() + TIMEOUT_S
        while not self.call(condition):
            assert time.monotonic() < limit
            self.wait_until_idle()

    def subscribers(self, channel: str) -> set[AcceptedConnection]:
        """Return the accepted connections with a subscription. Call it in the thread of the event loop."""
        assert self.front.context is not None
        [watched] = [one for one in self.front.context.admission.watched if one.name == f"client {channel}"]
        return {accepted for accepted in watched.accepted.values() if accepted.subscriptions and not accepted.refused}

    def wait_until_disconnected(self, *sockets: str) -> None:
        """Wait until the controller has seen the end of every connection to these sockets ("engine task").

        A real engine that connects again has closed its former connection; a closed socket of a test may linger.
        """
        assert self.front.context is not None
        admission = self.front.context.admission
        watched = [one for one in admission.watched if one.name in sockets]
        assert len(watched) == len(sockets)

        def have_ended() -> bool:
            for one in watched:
                admission._take_events(one)
            return not any(one.accepted for one in watched)

        self.wait_until(have_ended)

    def start_engines(self, count: int) -> list[subprocess.Popen[bytes]]:
        """Start real engines. `wait_for_engines` waits until they have joined."""
        environment = {**os.environ, "IPYTHONDIR": str(Path(self.config.profile_dir, "ipython"))}
        command = [sys.executable, "-W", "ignore", "-m", "ipyparallel.engine", f"--file={self.engine_file}"]
        started = [
            subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            for _ in range(count)
        ]
        self._engines += started
        return started

    def wait_for_engines(self, count: int) -> None:
        """Wait until this many engines have joined."""
        until = time.monotonic() + TIMEOUT_S
        while self.front.context is None or len(self.front.context.registry.joined()) < count:
            assert time.monotonic() < until
            self.wait_until_idle()

    def close(self) -> None:
        for engine in self._engines:
            if engine.poll() is None:
                os.killpg(engine.pid, signal.SIGKILL)  # also its nanny
            engine.wait()
        self._engines.clear()
        if self._thread.is_alive():
            self.call(self.running.stop)
            self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error


@contextmanager
def running_controller(
    engines: int = 0, *, native: bool = False, server: dict[str, Any] | None = None, **settings: Any
) -> Iterator[RunningController]:
    """Run a controller with a profile of its own."""
    profile = tempfile.mkdtemp(prefix="ipp-", dir="/tmp")
    running: RunningController | None = None
    try:
        running = RunningController(IppConfig(profile_dir=profile, **settings), native, **(server or {}))
        running.start_engines(engines)
        yield running
    finally:
        if running is not None:
            running.close()
        shutil.rmtree(profile, ignore_errors=True)


@contextmanager
def client(at: RunningController | str, engines: int = 0, **options: Any) -> Iterator[Any]:
    """Connect a real client after this many engines have joined, and wait for its subscriptions.

    An earlier client would see later engines as a change, which ends its load-balanced views with scheme `pure`. The
    protocol does not answer a subscription: a client may miss what is published right after it has connected.
    """
    import ipyparallel

    controller = at if isinstance(at, RunningController) else None
    former: dict[str, set[AcceptedConnection]] = {}
    if controller is not None:
        controller.wait_for_engines(engines)
        former = {channel: controller.call(controller.subscribers, channel) for channel in ("iopub", "notification")}
    path = at.client_file if isinstance(at, RunningController) else at
    connected = ipyparallel.Client(path, **{"timeout": TIMEOUT_S, **options})
    try:
        for channel, known in former.items():
            assert controller is not None
            controller.wait_until(partial(_has_new, controller, channel, known))
        if engines:
            connected.wait_for_engines(engines, timeout=TIMEOUT_S, interactive=False)
        yield connected
    finally:
        connected.close()


def _has_new(controller: RunningController, channel: str, known: set[AcceptedConnection]) -> bool:
    return bool(controller.subscribers(channel) - known)


class RawPeers:
    """An engine and a client on raw sockets, and further sockets on request."""

    def __init__(self, running: RunningController, peers: Peers) -> None:
        self.running = running
        self.peers = peers
        self.client_file = json.loads(Path(running.client_file).read_text())
        self.engine_file = json.loads(Path(running.engine_file).read_text())
        self.codec = Codec(self.client_file["key"].encode())
        self.uuid = str(uuid.uuid4())
        self.tasks = self.connect("dealer", "client", "task")
        self.registration = self.connect("dealer", "client", "registration")

    def connect(self, kind: Any, side: str, channel: str, routing_id: str = "") -> Peer:
        inside = self.client_file if side == "client" else self.engine_file
        port = inside[channel][0] if isinstance(inside[channel], list) else inside[channel]
        return self.peers.connect(kind, f"{inside['interface']}:{port}", routing_id)

    def ask(self, kind: str, content: dict[str, Any]) -> dict[str, Any]:
        self.registration.send(self.codec.message(kind, content))
        while True:
            reply = self.registration.receive(TIMEOUT_S)
            assert reply is not None
            if split(reply).head.msg_type == kind.replace("_request", "_reply"):
                return split(reply).content

    def join(self) -> None:
        """Register, and send one pong."""
        assert self.ask("registration_request", {"uuid": self.uuid})["status"] == "ok"
        self.engine = self.connect("dealer", "engine", "task", self.uuid)
        self.ping = self.connect("sub", "engine", "hb_ping")
        self.pong = self.connect("dealer", "engine", "hb_pong", self.uuid)
        ping = self.ping.receive(TIMEOUT_S)
        assert ping is not None
        self.pong.send(ping)
        while self.uuid not in self.ask("connection_request", {})["engines"].values():
            pass

    def run_task(self) -> None:
        """Run a task: from the client through the core to the engine, and back."""
        header = self.codec.header("apply_request")
        self.tasks.send(self.codec.message("apply_request", {}, header=header, buffers=[b"argument"]))
        while True:
            request = self.engine.receive(TIMEOUT_S)
            assert request is not None
            at = request.index(DELIMITER)
            metadata = {"status": "ok", "engine": self.uuid}
            reply = self.codec.message("apply_reply", {"status": "ok"}, parent=request[at + 2], metadata=metadata)
            self.engine.send([*request[:at], *reply])
            if split(request).head.msg_id == header["msg_id"]:
                break
        while True:
            answer = self.tasks.receive(TIMEOUT_S)
            assert answer is not None
            if split(answer).parent.msg_id == header["msg_id"]:
                assert split(answer).content == {"status": "ok"}
                return
