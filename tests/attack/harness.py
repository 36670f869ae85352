"""An attack on a real server process, with an honest client beside it.

    with Server("-n", "2", "--websocket-port", "0") as server, HonestClient(server) as honest:
        outcome = honest.during(Attacker("empty_fragments.py", server.connection.websocket))
    outcome.check(slowdown=5)

The server runs as `trio-sched up` in a process of its own, with resource limits when asked for. An attacker is a script
of `tests/attack/attackers/`, also in a process of its own, which prints one line when its attack is under way and stops
when its standard input ends. The honest client does one task after the other, each with an answer that is known
beforehand.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from trio_sched import Client
from trio_sched.errors import ConnectionFileError, TrioSchedError
from trio_sched.transport.connection import ENV_DIRECTORY, Connection, connection_path, read_connection_file

ATTACKERS = Path(__file__).parent / "attackers"
START_TIMEOUT_S = 60.0
RESULT_TIMEOUT_S = 60.0
MEASURE_S = 3.0
SETTLE_TIMEOUT_S = 30.0
"""How long a server may take to give memory back."""
MEMORY_SLACK = 1.2
POLL_S = 0.02
NAME = "attacked"


def poll(condition: Callable[[], Any], what: str, timeout_s: float = START_TIMEOUT_S) -> Any:
    """The first true value of `condition()`.

    :raises TimeoutError: there was none within `timeout_s`; the message names `what` was waited for.
    """
    until = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(POLL_S)
    return value


def wait_or_kill(process: subprocess.Popen[Any], timeout_s: float) -> None:
    """Wait for the end of a process that was told to end; kill it when that takes longer than `timeout_s`."""
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Server:
    """`trio-sched up` (or another command) in a process and a runtime directory of its own.

    `limits`: (soft, hard) by resource, such as `{resource.RLIMIT_NOFILE: (1024, 1024)}`.
    """

    def __init__(
        self, *arguments: str, command: str = "up", limits: Mapping[int, tuple[int, int]] | None = None, **env: str
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ts-", dir="/tmp" if os.path.isdir("/tmp") else None))
        self._command = [sys.executable, "-m", "trio_sched", command, "--name", NAME, *arguments]
        self._limits = dict(limits or {})
        self._environment = {**os.environ, **env, ENV_DIRECTORY: str(self.directory)}
        self._environment.pop("TRIO_SCHED_CONNECTION", None)

    def __enter__(self) -> Server:
        self.log_path = self.directory / "log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                preexec_fn=self._set_limits if self._limits else None,  # nothing else runs yet
            )
        try:
            self.connection: Connection = poll(self._read_connection, f"start of {self._command}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            wait_or_kill(self.process, 20)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _set_limits(self) -> None:
        for number, limit in self._limits.items():
            resource.setrlimit(number, limit)

    def _read_connection(self) -> Connection | None:
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended with code {self.process.returncode}:\n{self.log}")
        with contextlib.suppress(ConnectionFileError):
            return read_connection_file(self.client_file)
        return None

    @property
    def client_file(self) -> Path:
        """The connection file of clients."""
        return connection_path(NAME, "client", self.directory)

    @property
    def engine_file(self) -> Path:
        """The connection file of engines."""
        return connection_path(NAME, "engine", self.directory)

    @property
    def log(self) -> str:
        """What the server printed."""
        return self.log_path.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The scheduler's process."""
        return self.connection.pid

    @property
    def is_running(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def rss_bytes(self) -> int:
        """Resident memory of the scheduler's process."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def descriptor_count(self) -> int:
        """Open file descriptors of the scheduler's process."""
        return int(psutil.Process(self.pid).num_fds())

    def client(self, **options: Any) -> Client:
        """A client of this server."""
        return Client(self.client_file, **options)


class Attacker:
    """A script of `tests/attack/attackers/` in a process of its own."""

    def __init__(self, script: str, *arguments: object) -> None:
        self._command = [sys.executable, str(ATTACKERS / script), *map(str, arguments)]

    def __enter__(self) -> Attacker:
        self.process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline().strip()
        if not self.first_line:
            self.process.wait()
            raise AssertionError(f"the attack did not begin: {self._command}")
        return self

    def __exit__(self, *exc: object) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        wait_or_kill(self.process, 10)
        assert self.process.stdout is not None
        self.output = self.process.stdout.read()
        self.process.stdout.close()


@dataclass
class Outcome:
    """What an attack did to an honest client, and to the memory of the server."""

    idle_p50_s: float
    attacked_p50_s: float
    round_trips: int
    lost: list[str] = field(default_factory=list)
    """Tasks without their right answer, with what came instead."""
    rss_before: int = 0
    rss_peak: int = 0
    rss_after: int = 0

    @property
    def slowdown(self) -> float:
        """Round trip under attack, in idle round trips."""
        return self.attacked_p50_s / self.idle_p50_s

    def __str__(self) -> str:
        return (
            f"p50 {1e3 * self.idle_p50_s:.2f} -> {1e3 * self.attacked_p50_s:.2f} ms ({self.slowdown:.1f}x), "
            f"{self.round_trips} round trips, {len(self.lost)} lost, RSS {self.rss_before / 1e6:.0f} -> "
            f"{self.rss_peak / 1e6:.0f} -> {self.rss_after / 1e6:.0f} MB"
        )

    def check(self, slowdown: float = 5.0) -> None:
        """No result was lost, round trips stayed below `slowdown` idle ones, and memory is back within 20%."""
        print(self)
        assert not self.lost, self.lost[:5]
        assert self.slowdown < slowdown, str(self)
        assert self.rss_after <= MEMORY_SLACK * self.rss_before, str(self)


class HonestClient:
    """One client that does one task after the other."""

    def __init__(self, server: Server, **options: Any) -> None:
        self.server = server
        self._options = options
        self._count = 0
        self.lost: list[str] = []

    def __enter__(self) -> HonestClient:
        self.client = self.server.client(**self._options)
        self.round_trips(0.5)  # imports and the first calls are over
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.shutdown(cancel_futures=True)

    def round_trips(self, seconds: float = MEASURE_S) -> list[float]:
        """Do tasks for so long, at least 5; seconds that each one took."""
        taken: list[float] = []
        until = time.monotonic() + seconds
        while len(taken) < 5 or time.monotonic() < until:
            self._count += 1
            began = time.perf_counter()
            try:
                answer: object = self.client.submit(pow, self._count, 3, 1_000_003).result(RESULT_TIMEOUT_S)
            except (TrioSchedError, TimeoutError) as error:
                answer = error
            taken.append(time.perf_counter() - began)
            if answer != pow(self._count, 3, 1_000_003):
                self.lost.append(f"task {self._count}: {answer!r}")
                if len(self.lost) > 3:
                    break
        return taken

    def during(self, *attackers: Attacker, seconds: float = MEASURE_S) -> Outcome:
        """Measure idle, then while the attackers are at work, then wait for the server's memory to come back."""
        rss_before = self.server.rss_bytes()
        idle = self.round_trips(seconds)
        with contextlib.ExitStack() as stack:
            for attacker in attackers:
                stack.enter_context(attacker)
            attacked = self.round_trips(seconds)
            rss_peak = self.server.rss_bytes()
        assert self.server.is_running, self.server.log
        with contextlib.suppress(TimeoutError):
            poll(lambda: self.server.rss_bytes() <= MEMORY_SLACK * rss_before, "memory", SETTLE_TIMEOUT_S)
        after = self.round_trips(0.5)
        return Outcome(
            statistics.median(idle),
            statistics.median(attacked),
            len(idle) + len(attacked) + len(after),
            list(self.lost),
            rss_before,
            rss_peak,
            self.server.rss_bytes(),
        )
