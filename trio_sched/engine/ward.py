"""One worker's place: a process is started in it, watched, and followed by another when it dies, until the nanny stops.

A death is noticed when it happens (the kernel tells), reported with its cause and with the tasks that ran (R20),
and what the worker's tasks had started dies with it: a worker leads a process group of its own, which also keeps a
Ctrl-C in the terminal from it. A worker that dies before it ever joined is started again ever more slowly, one that
died at work at once.
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

from trio_sched.engine import board as boards
from trio_sched.engine import orders
from trio_sched.engine.board import Board
from trio_sched.engine.cause import Evidence, cause
from trio_sched.engine.machine import oom_kills, rss_bytes
from trio_sched.engine.orders import Moved, News, Order, Start
from trio_sched.logs import get_logger

_COMMAND = (sys.executable, "-m", "trio_sched.engine.worker")
_A_WHILE_S = 5.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.25, 30.0
_LEFT_DELAY_S = 1.0
"""A worker that left in good order was told to, perhaps by a scheduler that is about to tell us as well."""
_log = get_logger("trio_sched.engine")


@dataclass(frozen=True)
class Death:
    """How a worker's process ended. `at_work`: it had begun tasks, or been an engine for a while, so that another may
    do better; `orderly`: it ended because it was told to."""

    pid: int
    reason: str
    board: Board
    at_work: bool
    orderly: bool


def delay_before_next_s(death: Death, failures: int) -> float:
    """How long the place stays empty, after so many deaths in a row that were not at work."""
    if death.orderly:
        return _LEFT_DELAY_S
    if death.at_work:
        return 0.0
    return float(min(_FIRST_DELAY_S * 2 ** (failures - 1), _LONGEST_DELAY_S))


class Ward:
    """The place of one worker. `live` keeps it filled; `on_death` is told of each death."""

    def __init__(self, start: Start, directory: Path, index: int, on_death: Callable[[Death], None]) -> None:
        self._faults = directory / f"{index}.faults"
        board = directory / f"{index}.board"
        self.board = Board(board, start.slots, create=True)
        self._start = msgspec.structs.replace(
            start, name=f"{start.name}.{index}", board=str(board), faults=str(self._faults), nanny=True
        )
        self._on_death = on_death
        self._news: News | None = None
        self._process: trio.Process | None = None
        self._kills = (0, 0)
        self._rss_bytes = 0
        self._memory_used = 0.0
        self.deaths = 0

    @property
    def pid(self) -> int:
        """Of the worker that lives here now; 0: none at the moment."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def live(self, grace_s: float) -> None:
        """Keep a worker here until cancelled; then ask it to end, and after `grace_s` make it."""
        failures = 0
        while True:
            try:
                death = await self._one_life(grace_s)
            except OSError as error:  # no process to be had: too many, or no memory
                death = Death(0, f"it could not be started: {error}", self.board, at_work=False, orderly=False)
            failures = 0 if death.at_work else failures + 1
            delay_s = delay_before_next_s(death, failures)
            if delay_s:
                say = _log.debug if death.orderly else _log.warning  # told to end, as all are at a shutdown
                say("worker ended before its time", pid=death.pid, reason=death.reason, next_in_s=delay_s)
                await trio.sleep(delay_s)

    async def _one_life(self, grace_s: float) -> Death:
        self.board.clear()
        self._faults.write_bytes(b"")
        self._rss_bytes = 0
        began_at = trio.current_time()
        process = self._process = await trio.lowlevel.open_process(
            _COMMAND, stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            self._tell(self._start)
            if self._news is not None:
                self._tell(self._news)
            await process.wait()
        finally:
            stopped = process.returncode is None
            await self._make_sure(process, grace_s)
            death = self._death(process, trio.current_time() - began_at, grace_s if stopped else None)
            self._on_death(death)
        self.deaths += 1
        return death

    async def _make_sure(self, process: trio.Process, grace_s: float) -> None:
        """Leave nothing behind: neither the worker nor what its tasks started in its group."""
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.terminate()
                with trio.move_on_after(grace_s):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody left; only a zombie (macOS)
                os.killpg(process.pid, signal.SIGKILL)
            if process.stdin is not None:
                await process.stdin.aclose()

    def _death(self, process: trio.Process, lived_s: float, grace_s: float | None) -> Death:
        """How it ended; `grace_s`: we stopped it, and gave it so long."""
        code = process.returncode or 0
        state = self.board.state
        at_work = self.board.worked or (state != boards.STARTING and lived_s > _A_WHILE_S)
        kills = oom_kills() if code == -signal.SIGKILL else self._kills
        evidence = Evidence(
            returncode=code,
            oom_kills=(kills[0] - self._kills[0], kills[1] - self._kills[1]),
            rss_bytes=self._rss_bytes,
            memory_used=self._memory_used,
            fault=self._faults.read_text(errors="replace"),
        )
        orderly = state == boards.LEAVING and code == 0
        reason = cause(evidence)
        if grace_s is not None:
            orderly = orderly or state == boards.STARTING
            if code == -signal.SIGKILL:
                reason = f"it was stopped, and its tasks did not end within {grace_s:g} s"
        return Death(process.pid, reason, self.board, at_work, orderly)

    def look(self, kills: tuple[int, int], memory_used: float) -> None:
        """Now and then: note what would be evidence, should the worker be killed."""
        self._kills = kills
        self._memory_used = memory_used
        self._rss_bytes = rss_bytes(self.pid) if self.pid else 0

    def tell(self, order: News | Moved) -> None:
        """The nanny has a (new) session, or the scheduler moved: tell the worker, and those that follow it."""
        if isinstance(order, Moved):
            self._start = msgspec.structs.replace(self._start, connection=order.connection)
        else:
            self._news = order
        self._tell(order)

    def _tell(self, order: Order) -> None:
        """A line into the worker's pipe, which has room for hundreds; a worker that died meanwhile needs no news."""
        process = self._process
        if process is None or process.stdin is None or process.returncode is not None:
            return
        with contextlib.suppress(BrokenPipeError, BlockingIOError):  # it died; or it was stopped for ages
            os.write(process.stdin.fileno(), orders.encode(order))  # type: ignore[attr-defined]  # on POSIX an FdStream
