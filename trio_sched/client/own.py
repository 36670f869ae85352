"""A scheduler and engines of one's own, for `Client(engines=4)`: processes that live as long as their client.

They are `python -m trio_sched up`, with a pipe for standard input: at its end, which comes when the client closes it or
dies in whatever way, they shut down. They have a runtime directory of their own, so that a bare `Client()` elsewhere
does not find them; one inside their tasks does.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time

from trio_sched.errors import ConnectionFileError, NoSchedulerError
from trio_sched.transport.connection import (
    ENV_CONNECTION,
    ENV_DIRECTORY,
    Connection,
    connection_path,
    read_connection_file,
)
from trio_sched.transport.scratch import ScratchDirectory

NAME = "own"
PREFIX = "trio_sched-own-"
START_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 10.0
"""How long the processes may take to end before they are killed."""
LOOK_S = 0.01


class OwnScheduler:
    """The processes, as one."""

    def __init__(self, engines: int, *, hwm: int | None = None, scheme: str | None = None) -> None:
        """Start them; `connection()` waits until they answer."""
        if not isinstance(engines, int) or engines < 1:
            raise ValueError(f"engines={engines!r}: must be a whole number, 1 or more")
        self.engines = engines
        self._scratch = ScratchDirectory(PREFIX)
        self._log = tempfile.TemporaryFile(prefix="trio_sched-")  # noqa: SIM115  # lives as long as the processes
        command = [sys.executable, "-m", "trio_sched", "up", "-n", str(engines), "--name", NAME, "--lifeline"]
        for option, value in (("--hwm", hwm), ("--scheme", scheme)):
            command += [] if value is None else [option, str(value)]
        environment = {**os.environ, ENV_DIRECTORY: str(self._scratch.path)}
        environment.pop(ENV_CONNECTION, None)  # it names somebody else's
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[self._scratch.lock] if self._scratch.lock >= 0 else [],  # so that it outlives us as they may
            start_new_session=True,  # Ctrl-C is for the client, which then closes the pipe
        )

    @classmethod
    def if_asked(
        cls, where: object, engines: int | None, *, hwm: int | None, scheme: str | None
    ) -> OwnScheduler | None:
        """One, if a client's arguments ask for it.

        :raises TypeError: they contradict each other.
        """
        if engines is None:
            if hwm is not None or scheme is not None:
                raise TypeError("hwm and scheme are for a scheduler of one's own: Client(engines=N, ...)")
            return None
        if where is not None:
            raise TypeError("Client(where, engines=N): either a scheduler that runs, or one of its own")
        return cls(engines, hwm=hwm, scheme=scheme)

    def connection(self, timeout_s: float = START_TIMEOUT_S) -> Connection:
        """Wait for the connection file.

        :raises NoSchedulerError: the processes ended, or took too long.
        """
        until = time.monotonic() + timeout_s
        path = connection_path(NAME, "client", self._scratch.path)
        while time.monotonic() < until:
            with contextlib.suppress(ConnectionFileError):
                return read_connection_file(path)
            if self.is_gone():
                raise NoSchedulerError(
                    f"the scheduler of our own ended with code {self._process.returncode}:\n{self.last_words()}"
                )
            time.sleep(LOOK_S)
        raise NoSchedulerError(f"the scheduler of our own did not start within {timeout_s} s:\n{self.last_words()}")

    def last_words(self, size_bytes: int = 4000) -> str:
        """The end of what the processes wrote."""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - size_bytes))
        return self._log.read().decode(errors="replace") or "(none)"

    def is_gone(self) -> bool:
        """Whether they have ended."""
        return self._process.poll() is not None

    def close(self) -> None:
        """End them, and wait until they have ended."""
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

    def let_go(self) -> None:
        """In a forked child: not to keep them alive by holding the other end of their pipe."""
        pipe, self._process.stdin = self._process.stdin, None
        if pipe is not None and not pipe.closed:  # it is closed when the client is
            with contextlib.suppress(OSError):
                os.close(pipe.fileno())
        self._scratch.release()
        self._process.returncode = 0  # not our child: nothing to wait for
