"""The harness of the attack tests: a server process, an attacker process, and an honest client that is measured.

    with Server("-n", "2", "--websocket-port", "0") as server, HonestClient(server) as honest:
        outcome = honest.during(Attacker("empty_fragments.py", server.connection.websocket))
    outcome.check(slowdown=5)

The server runs as `trio-sched up` in its own process, with resource limits if required. An attacker is a script of
`tests/attack/attackers/`, also in its own process, which prints one line when its attack has begun and stops when its
standard input ends. The honest client runs one task after the other, each with a known result.
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
from trio_sched.transport.connection_info import ENV_DIRECTORY, ConnectionInfo, connection_path, read_connection_file

ATTACKERS = Path(__file__).parent / "attackers"
START_TIMEOUT_S = 60.0
RESULT_TIMEOUT_S = 60.0
MEASURE_S = 3.0
#: How long a server may take to release memory.
SETTLE_TIMEOUT_S = 30.0
MEMORY_SLACK = 1.2
POLL_S = 0.02
NAME = "attacked"


def poll(condition: Callable[[], Any], what: str, timeout_s: float = START_TIMEOUT_S) -> Any:
    """Return the first true value of `condition()`.

    :raises TimeoutError: there was none within `timeout_s`; the message begins with `what`.
    """
    until = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(POLL_S)
    return value


def wait_or_kill(process: subprocess.Popen[Any], timeout_s: float) -> None:
    """Wait for the end of a process, and kill it after `timeout_s`."""
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Server:
    """`trio-sched up` (or another command) in its own process and runtime directory.

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
                preexec_fn=self._set_limits if self._limits else None,  # safe: no other thread runs yet
            )
        try:
            self.connection: ConnectionInfo = poll(self._read_connection, f"start of {self._command}")
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

    def _read_connection(self) -> ConnectionInfo | None:
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
        """The output of the server."""
        return self.log_path.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The process id of the scheduler."""
        return self.connection.pid

    @property
    def is_running(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def rss_bytes(self) -> int:
        """Return the resident memory of the scheduler's process."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def descriptor_count(self) -> int:
        """Return the number of open file descriptors of the scheduler's process."""
        return int(psutil.Process(self.pid).num_fds())

    def client(self, **options: Any) -> Client:
        """Connect a client to this server."""
        return Client(self.client_file, **options)


class Attacker:
    """A script of `tests/attack/attackers/` in its own process."""

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
    """The effect of an attack on an honest client and on the memory of the server."""

    idle_p50_s: float
    attacked_p50_s: float
    round_trips: int
    #: Tasks without the right result, each with what the client got instead.
    lost: list[str] = field(default_factory=list)
    rss_before: int = 0
    rss_peak: int = 0
    rss_after: int = 0

    @property
    def slowdown(self) -> float:
        """The round trip under attack, relative to the idle one."""
        return self.attacked_p50_s / self.idle_p50_s

    def __str__(self) -> str:
        return (
            f"p50 {1e3 * self.idle_p50_s:.2f} -> {1e3 * self.attacked_p50_s:.2f} ms ({self.slowdown:.1f}x), "
            f"{self.round_trips} round trips, {len(self.lost)} lost, RSS {self.rss_before / 1e6:.0f} -> "
            f"{self.rss_peak / 1e6:.0f} -> {self.rss_after / 1e6:.0f} MB"
        )

    def check(self, slowdown: float = 5.0) -> None:
        """Check that no result was lost, that the slowdown is below `slowdown`, and that memory is within 20% again."""
        print(self)
        assert not self.lost, self.lost[:5]
        assert self.slowdown < slowdown, str(self)
        assert self.rss_after <= MEMORY_SLACK * self.rss_before, str(self)


class HonestClient:
    """A client that runs one task after the other."""

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
        """Run tasks for some seconds, at least 5. Return the seconds of each one."""
        round_trips: list[float] = []
        until = time.monotonic() + seconds
        while len(round_trips) < 5 or time.monotonic() < until:
            self._count += 1
            started = time.perf_counter()
            try:
                answer: object = self.client.submit(pow, self._count, 3, 1_000_003).result(RESULT_TIMEOUT_S)
            except (TrioSchedError, TimeoutError) as error:
                answer = error
            round_trips.append(time.perf_counter() - started)
            if answer != pow(self._count, 3, 1_000_003):
                self.lost.append(f"task {self._count}: {answer!r}")
                if len(self.lost) > 3:
                    break
        return round_trips

    def during(self, *attackers: Attacker, seconds: float = MEASURE_S) -> Outcome:
        """Measure without and with the attackers, then wait until the server has released memory."""
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
