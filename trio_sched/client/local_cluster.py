"""The local cluster of `Client(engines=4)`: a scheduler and engines as processes that end with their client.

The processes are those of `python -m trio_sched up`, with a pipe as standard input. When the client closes the pipe, or
exits for any reason, they read its end and shut down. They have a runtime directory of their own, so that `Client()` in
another process does not find them; `Client()` in one of their tasks does.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time

from trio_sched.errors import ConnectionFileError, NoSchedulerError
from trio_sched.transport.connection_info import (
    ENV_CONNECTION,
    ENV_DIRECTORY,
    ConnectionInfo,
    connection_path,
    read_connection_file,
)
from trio_sched.transport.scratch import ScratchDirectory

#: The scheduler's name.
NAME = "own"
#: The prefix of runtime directories.
PREFIX = "trio_sched-own-"
START_TIMEOUT_S = 30.0
#: Seconds that the processes may take to end before they are killed.
CLOSE_TIMEOUT_S = 10.0
#: Seconds between two attempts to read the connection file.
POLL_S = 0.01


class LocalCluster:
    """The processes of one local cluster."""

    def __init__(self, engines: int, *, hwm: int | None = None, scheme: str | None = None) -> None:
        """Start the processes; `connection()` waits until they can be connected to.

        :raises ValueError: `engines` is not a whole number, or is less than 1.
        """
        if not isinstance(engines, int) or engines < 1:
            raise ValueError(f"engines={engines!r}: must be a whole number, 1 or more")
        self.engines = engines
        self._scratch = ScratchDirectory(PREFIX)
        self._log = tempfile.TemporaryFile(prefix="trio_sched-")  # noqa: SIM115  # open as long as the processes run
        command = [sys.executable, "-m", "trio_sched", "up", "-n", str(engines), "--name", NAME, "--lifeline"]
        for option, value in (("--hwm", hwm), ("--scheme", scheme)):
            command += [] if value is None else [option, str(value)]
        environment = {**os.environ, ENV_DIRECTORY: str(self._scratch.path)}
        environment.pop(ENV_CONNECTION, None)  # it names another scheduler
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[self._scratch.lock] if self._scratch.lock >= 0 else [],  # they may outlive this process
            start_new_session=True,  # Ctrl-C interrupts only the client, which then closes the pipe
        )

    def connection(self, timeout_s: float = START_TIMEOUT_S) -> ConnectionInfo:
        """Wait for the connection file, and return its content.

        :raises NoSchedulerError: the processes ended, or did not write the file within `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        path = connection_path(NAME, "client", self._scratch.path)
        while time.monotonic() < deadline:
            with contextlib.suppress(ConnectionFileError):
                return read_connection_file(path)
            if self.has_ended():
                raise NoSchedulerError(
                    f"the local cluster ended with code {self._process.returncode}:\n{self.output_tail()}"
                )
            time.sleep(POLL_S)
        raise NoSchedulerError(f"the local cluster did not start within {timeout_s} s:\n{self.output_tail()}")

    def output_tail(self, size_bytes: int = 4000) -> str:
        """Return the last `size_bytes` of the processes' output."""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - size_bytes))
        return self._log.read().decode(errors="replace") or "(none)"

    def has_ended(self) -> bool:
        """Return whether the scheduler's process has ended."""
        return self._process.poll() is not None

    def close(self) -> None:
        """End the processes, and wait until they have ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        for end in (self._process.terminate, self._process.kill):
            try:
                self._process.wait(CLOSE_TIMEOUT_S)
                break
            except subprocess.TimeoutExpired:
                end()
        self._process.wait()
        self._log.close()
        self._scratch.remove()

    def release_in_child(self) -> None:
        """Close this end of the pipe in a forked child, which would otherwise keep the processes alive."""
        pipe, self._process.stdin = self._process.stdin, None
        if pipe is not None and not pipe.closed:  # the parent may have closed the client before the fork
            with contextlib.suppress(OSError):
                os.close(pipe.fileno())
        self._scratch.release()
        self._process.returncode = 0  # not a child of this process, which cannot wait for it
