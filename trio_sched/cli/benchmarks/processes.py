"""Schedulers and engines that a measurement starts, and the CPU time and memory of processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from trio_sched.errors import NoSchedulerError

START_TIMEOUT_S = 20.0
TRIO_SCHED = (sys.executable, "-m", "trio_sched")


class CpuTimes(NamedTuple):
    """CPU seconds used so far: by this process (the client), by the scheduler, and by the scheduler's children."""

    client: float
    scheduler: float
    engines: float

    def since(self, before: CpuTimes, tasks: int) -> dict[str, float | None]:
        """Return the microseconds a task used since `before`, by process."""
        names = ("client us", "scheduler us", "engines us")
        return {name: 1e6 * (now - then) / tasks for name, now, then in zip(names, self, before, strict=True)}


class MemoryUse(NamedTuple):
    """Resident bytes of this process (the client) and of the scheduler."""

    client: int
    scheduler: int

    def since(self, before: MemoryUse, tasks: int) -> dict[str, float | None]:
        """Return the bytes a task added since `before`, by process."""
        names = ("client B", "scheduler B")
        return {name: (now - then) / tasks for name, now, then in zip(names, self, before, strict=True)}


def memory_use(scheduler_pid: int) -> MemoryUse:
    """Return the resident memory of the client and the scheduler."""
    import psutil

    return MemoryUse(psutil.Process().memory_info().rss, psutil.Process(scheduler_pid).memory_info().rss)


def cpu_times(scheduler_pid: int) -> CpuTimes:
    """Return the CPU times of client, scheduler and engines.

    Engines count only as children of the scheduler. A scheduler on another machine counts as 0.
    """
    import psutil

    try:
        scheduler = psutil.Process(scheduler_pid)
        scheduler_s = sum(scheduler.cpu_times()[:2])
        engines_s = 0.0
        for child in scheduler.children(recursive=True):
            engines_s += sum(child.cpu_times()[:2])
    except psutil.NoSuchProcess:  # the scheduler is on another machine, or a child has just exited
        scheduler_s = engines_s = 0.0
    return CpuTimes(time.process_time(), scheduler_s, engines_s)


@contextmanager
def fresh_scheduler(engines: int, *options: str) -> Iterator[Path]:
    """Run `trio-sched up` with these options within the block; yield the clients' connection file.

    :raises NoSchedulerError: the scheduler exited, or wrote no connection file within 20 s.
    """
    from trio_sched.transport.connection_info import connection_path

    name = f"bench-{os.getpid()}"
    command = [*TRIO_SCHED, "up", "--lifeline", "--log-level", "error", "-n", str(engines), "--name", name, *options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    try:
        path = connection_path(name, "client")
        deadline = time.monotonic() + START_TIMEOUT_S
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoSchedulerError(f"the scheduler to measure did not start: {' '.join(command)}")
            time.sleep(0.01)
        yield path
    finally:
        process.stdin.close()  # the end of the lifeline
        _wait_or_kill(process)


@contextmanager
def fresh_engines(client_file: Path, engines: int) -> Iterator[None]:
    """Run `trio-sched engine` within the block, for the scheduler of this connection file."""
    engine_file = client_file.with_name(client_file.name.replace("-client.json", "-engine.json"))
    command = [*TRIO_SCHED, "engine", "-n", str(engines), "-C", str(engine_file), "--log-level", "error"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        _wait_or_kill(process)


def _wait_or_kill(process: subprocess.Popen[Any]) -> None:
    try:
        process.wait(START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
