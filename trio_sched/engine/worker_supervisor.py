"""Supervision of one worker: the process is started, watched, and replaced when it exits, until the nanny stops.

An exit is noticed at once, because the supervisor waits for the process, and is reported with its reason and with the
tasks that ran (R20). Each worker leads a process group of its own: processes that its tasks have started are ended with
the worker, and a Ctrl-C in the terminal does not reach it. A worker that had worked is replaced at once; workers that
exit before they ever joined are replaced with growing delays.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from trio_sched.engine import control_messages
from trio_sched.engine.control_messages import ControlMessage, NannyJoined, SchedulerMoved, StartWorker
from trio_sched.engine.exit_reason import ExitInfo, exit_reason
from trio_sched.engine.host import oom_kills, rss_bytes
from trio_sched.engine.worker_status import LEAVING, STARTING, WorkerStatus
from trio_sched.logs import get_logger

_COMMAND = (sys.executable, "-m", "trio_sched.engine.worker")
#: A worker that was registered as an engine for more seconds than this counts as having worked, even without a task.
_WORKED_S = 5.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.25, 30.0
#: The delay after an exit on request: the scheduler that requested it may be about to close, which stops the nanny.
_LEFT_DELAY_S = 1.0
_log = get_logger("trio_sched.engine")


@dataclass(frozen=True)
class WorkerExit:
    """How a worker process ended."""

    pid: int
    reason: str
    status: WorkerStatus
    #: Whether the worker had begun tasks or been an engine for some time, so that a new one probably works as well.
    had_worked: bool
    #: Whether the worker ended on request.
    requested: bool


def delay_before_restart_s(last: WorkerExit, failures: int) -> float:
    """Seconds to wait before the next worker starts.

    :param failures: exits in a row of workers that had not worked.
    """
    if last.requested:
        return _LEFT_DELAY_S
    if last.had_worked:
        return 0.0
    return float(min(_FIRST_DELAY_S * 2 ** (failures - 1), _LONGEST_DELAY_S))


class WorkerSupervisor:
    """Keeps one worker process running. `on_exit` is called for each that exits."""

    def __init__(self, start: StartWorker, directory: Path, index: int, on_exit: Callable[[WorkerExit], None]) -> None:
        """Make the status file in `directory`. `index` numbers the nanny's workers."""
        self._faults = directory / f"{index}.faults"
        status_path = directory / f"{index}.status"
        self.status = WorkerStatus(status_path, start.slots, create=True)
        self._start = msgspec.structs.replace(
            start, name=f"{start.name}.{index}", status_path=str(status_path), faults=str(self._faults), nanny=True
        )
        self._on_exit = on_exit
        self._nanny_joined: NannyJoined | None = None
        self._process: trio.Process | None = None
        # measurements for the case that the worker is killed; see `ExitInfo`
        self._oom_kills = (0, 0)
        self._rss_bytes = 0
        self._memory_used = 0.0
        #: Count of workers that have exited.
        self.deaths = 0

    @property
    def pid(self) -> int:
        """The process id of the current worker; 0: none runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def run(self, grace_s: float) -> None:
        """Keep a worker running until cancelled; then terminate it, and kill it after `grace_s`."""
        failures = 0
        while True:
            try:
                last = await self._run_worker(grace_s)
            except OSError as error:  # no process can be started: too many, or no memory
                reason = f"the process cannot be started: {error}"
                last = WorkerExit(0, reason, self.status, had_worked=False, requested=False)
            failures = 0 if last.had_worked else failures + 1
            delay_s = delay_before_restart_s(last, failures)
            if delay_s:
                log = _log.debug if last.requested else _log.warning  # at a shutdown all exit on request
                log("worker exited early", pid=last.pid, reason=last.reason, next_in_s=delay_s)
                await trio.sleep(delay_s)

    async def _run_worker(self, grace_s: float) -> WorkerExit:
        self.status.reset()
        self._faults.write_bytes(b"")
        self._rss_bytes = 0
        began_at = trio.current_time()
        process = self._process = await trio.lowlevel.open_process(
            _COMMAND, stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            self._write(self._start)
            if self._nanny_joined is not None:
                self._write(self._nanny_joined)
            await process.wait()
        finally:
            stopped = process.returncode is None
            await self._end_process_group(process, grace_s)
            last = self._describe_exit(process, trio.current_time() - began_at, grace_s if stopped else None)
            self._on_exit(last)
        self.deaths += 1
        return last

    async def _end_process_group(self, process: trio.Process, grace_s: float) -> None:
        """End the worker if it runs, and everything that its tasks have started in its process group."""
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.terminate()
                with trio.move_on_after(grace_s):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            with contextlib.suppress(ProcessLookupError, PermissionError):  # an empty group; only a zombie (macOS)
                os.killpg(process.pid, signal.SIGKILL)
            if process.stdin is not None:
                await process.stdin.aclose()

    def _describe_exit(self, process: trio.Process, lived_s: float, grace_s: float | None) -> WorkerExit:
        """Describe how the process ended.

        :param grace_s: the grace period, if this supervisor ended the process; else None.
        """
        code = process.returncode or 0
        state = self.status.state
        had_worked = self.status.has_begun_a_task or (state != STARTING and lived_s > _WORKED_S)
        kills = oom_kills() if code == -signal.SIGKILL else self._oom_kills
        info = ExitInfo(
            returncode=code,
            oom_kills=(kills[0] - self._oom_kills[0], kills[1] - self._oom_kills[1]),
            rss_bytes=self._rss_bytes,
            memory_used=self._memory_used,
            fault=self._faults.read_text(errors="replace"),
        )
        requested = state == LEAVING and code == 0
        reason = exit_reason(info)
        if grace_s is not None:
            requested = requested or state == STARTING
            if code == -signal.SIGKILL:
                reason = f"it was stopped, and its tasks did not end within {grace_s:g} s"
        return WorkerExit(process.pid, reason, self.status, had_worked, requested)

    def sample(self, kills: tuple[int, int], memory_used: float) -> None:
        """Record measurements that explain the exit if the worker is killed later.

        :param kills: as `host.oom_kills` returns them.
        :param memory_used: as `host.memory_used` returns it.
        """
        self._oom_kills = kills
        self._memory_used = memory_used
        self._rss_bytes = rss_bytes(self.pid) if self.pid else 0

    def send(self, message: NannyJoined | SchedulerMoved) -> None:
        """Send a control message to the worker, and to each later one when it starts."""
        if isinstance(message, SchedulerMoved):
            self._start = msgspec.structs.replace(self._start, connection=message.connection)
        else:
            self._nanny_joined = message
        self._write(message)

    def _write(self, message: ControlMessage) -> None:
        """Write a line to the worker's pipe, which has room for hundreds; do nothing when the worker has exited."""
        process = self._process
        if process is None or process.stdin is None or process.returncode is not None:
            return
        assert isinstance(process.stdin, trio.lowlevel.FdStream)
        with contextlib.suppress(BrokenPipeError, BlockingIOError):  # the worker exited; or was stopped for very long
            os.write(process.stdin.fileno(), control_messages.encode(message))
