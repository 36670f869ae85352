"""The whole front inside `serve`, in a thread, with real engines as processes and real clients in the test's thread."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio

from trio_sched.ipyparallel.config import IppConfig
from trio_sched.ipyparallel.files import path_of
from trio_sched.ipyparallel.front import IpyparallelFront
from trio_sched.server.serve import Running, serve

PATIENCE_S = 40
T = TypeVar("T")


class Stand:
    """A running controller."""

    def __init__(self, config: IppConfig, **server: Any) -> None:
        self.config = config
        self.front = IpyparallelFront(config)
        self.running: Running
        self._server = self.front.config.for_server(runtime_dir=f"{config.profile_dir}/run", **server)
        self._engines: list[subprocess.Popen[bytes]] = []
        self._token: Any = None
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
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
            self.running = await nursery.start(serve, self._server, [self.front])
            self._ready.set()

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call it in the event loop's thread."""
        return trio.from_thread.run_sync(function, *args, trio_token=self._token)

    @property
    def client_file(self) -> str:
        return str(path_of(self.config, "client"))

    @property
    def engine_file(self) -> str:
        return str(path_of(self.config, "engine"))

    @property
    def counters(self) -> dict[str, int]:
        """What was dropped, by reason; what the core counted, too."""
        return {**self.running.server.hub.counters, **self.running.server.scheduler.counters}

    def start_engines(self, count: int) -> list[subprocess.Popen[bytes]]:
        """Real engines; waiting for them is the client's business."""
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

    def close(self) -> None:
        for engine in self._engines:
            if engine.poll() is None:
                os.killpg(engine.pid, signal.SIGKILL)  # its nanny, too
            engine.wait()
        self._engines.clear()
        if self._thread.is_alive():
            self.call(self.running.stop)
            self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error


@contextmanager
def stand(engines: int = 0, *, server: dict[str, Any] | None = None, **settings: Any) -> Iterator[Stand]:
    """A controller with a profile of its own."""
    profile = tempfile.mkdtemp(prefix="ipp-", dir="/tmp")
    running: Stand | None = None
    try:
        running = Stand(IppConfig(profile_dir=profile, **settings), **(server or {}))
        running.start_engines(engines)
        yield running
    finally:
        if running is not None:
            running.close()
        shutil.rmtree(profile, ignore_errors=True)


@contextmanager
def client(at: Stand | str, engines: int = 0, **options: Any) -> Iterator[Any]:
    """A real client, once so many engines are there."""
    import ipyparallel

    path = at if isinstance(at, str) else at.client_file
    connected = ipyparallel.Client(path, **{"timeout": PATIENCE_S, **options})
    try:
        if engines:
            connected.wait_for_engines(engines, timeout=PATIENCE_S, interactive=False)
        yield connected
    finally:
        connected.close()
