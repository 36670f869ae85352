"""Schedulers to measure, and what their processes cost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from trio_sched.errors import NoSchedulerError

START_TIMEOUT_S = 20.0


class Cost(NamedTuple):
    """CPU seconds so far: of this process (the client), the scheduler, and its engines with their nanny's workers."""

    client: float
    scheduler: float
    engines: float

    def since(self, before: Cost, tasks: int) -> dict[str, float | None]:
        """Microseconds a task since `before`, by process."""
        names = ("client us", "scheduler us", "engines us")
        return {name: 1e6 * (now - then) / tasks for name, now, then in zip(names, self, before, strict=True)}


class Memory(NamedTuple):
    """Resident bytes of this process (the client) and of the scheduler."""

    client: int
    scheduler: int

    def since(self, before: Memory, tasks: int) -> dict[str, float | None]:
        """Bytes a task more than `before`, by process."""
        names = ("client B", "scheduler B")
        return {name: (now - then) / tasks for name, now, then in zip(names, self, before, strict=True)}


def memory_of(scheduler_pid: int) -> Memory:
    """What the processes hold now."""
    import psutil

    return Memory(psutil.Process().memory_info().rss, psutil.Process(scheduler_pid).memory_info().rss)


def cost_of(scheduler_pid: int) -> Cost:
    """What the processes have cost so far. The engines are the scheduler's children; elsewhere they cannot be seen."""
    import psutil

    try:
        scheduler = psutil.Process(scheduler_pid)
        own = sum(scheduler.cpu_times()[:2])
        engines = 0.0
        for child in scheduler.children(recursive=True):
            engines += sum(child.cpu_times()[:2])
    except psutil.NoSuchProcess:  # on another machine, or a child that ended meanwhile
        own = engines = 0.0
    return Cost(time.process_time(), own, engines)


class Fresh:
    """A scheduler of our own with engines, as `trio-sched up` runs it; gone at the end of the block."""

    def __init__(self, engines: int, *arguments: str) -> None:
        self._command = [
            *(sys.executable, "-m", "trio_sched", "up", "--lifeline", "--log-level", "error"),
            *("-n", str(engines), "--name", f"bench-{os.getpid()}", *arguments),
        ]
        self._process: subprocess.Popen[Any] | None = None

    def __enter__(self) -> Path:
        """The connection file of its clients."""
        from trio_sched.transport.connection import connection_path

        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        path = connection_path(f"bench-{os.getpid()}", "client")
        until = time.monotonic() + START_TIMEOUT_S
        while not path.exists():
            if self._process.poll() is not None or time.monotonic() > until:
                raise NoSchedulerError(f"the scheduler to measure did not come up: {' '.join(self._command)}")
            time.sleep(0.01)
        return path

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Engines:
    """Engines for a scheduler that has none yet, as `trio-sched engine` runs them."""

    def __init__(self, scheduler: Path, engines: int) -> None:
        connection = scheduler.with_name(scheduler.name.replace("-client.json", "-engine.json"))
        self._command = [sys.executable, "-m", "trio_sched", "engine", "-n", str(engines), "-C", str(connection)]

    def __enter__(self) -> int:
        """The nanny's process id."""
        self._process = subprocess.Popen([*self._command, "--log-level", "error"], stdout=subprocess.DEVNULL)
        return self._process.pid

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
