"""The loop of a worker with several slots: tasks run in threads, the main thread does the talking.

A task starts when a slot is free and its resources fit what the running ones leave (R16): the longest waiting that
fits goes first. A thread that ends a task takes the next one itself and wakes the main thread only when there is
something to tell: nothing is left to start, or results have waited GATHER_S. `_lock` guards everything but the socket,
which is the main thread's alone.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from time import monotonic, perf_counter
from typing import TypeAlias

from trio_sched.engine.board import Board
from trio_sched.engine.capture import Capture
from trio_sched.engine.link import Link
from trio_sched.engine.runner import Runner
from trio_sched.engine.single import GATHER_S, Leave
from trio_sched.wire.native import Call, Frame

Job: TypeAlias = tuple[Call, Sequence[Frame], int]
"""A call, its frames, and the generation of the link to which it belongs."""
_ROUNDING = 1e-9
"""Amounts such as 0.1 do not add up exactly."""


class PoolLoop:
    """Runs the tasks of `link` in `slots` threads until `link.leaving`."""

    def __init__(
        self, link: Link, runner: Runner, capture: Capture, board: Board, resources: Mapping[str, float]
    ) -> None:
        self._link = link
        self._runner = runner
        self._capture = capture
        self._board = board
        self._free = dict(resources)
        self._lock = threading.Lock()
        self._jobs: list[SimpleQueue[Job]] = [SimpleQueue() for _ in capture.outputs]
        self._idle = list(range(len(capture.outputs)))
        self._running: dict[int, Job] = {}
        self._waiting = False
        self._abandoned = threading.Event()
        link.running = self._ids_running

    def run(self) -> None:
        """The main thread's."""
        link = self._link
        link.hello()
        for slot in range(len(self._jobs)):
            threading.Thread(target=self._work, args=(slot,), name=f"trio_sched slot {slot}", daemon=True).start()
        while not link.leaving:
            self._turn()
            self._wait()
        while self._running and not self._abandoned.is_set():
            self._turn()
            self._wait()

    def _turn(self) -> None:
        link = self._link
        with self._lock:
            link.receive()
            if monotonic() >= link.next_tick_at:
                link.tick()
            self._hand_out()
            link.flush()
            if link.told:
                for slot in self._idle:
                    self._board.running[slot] = 0

    def _wait(self) -> None:
        try:
            self._waiting = True
            if not self._abandoned.is_set():
                self._link.wait()
            self._waiting = False
        except Leave:
            pass

    def leave(self, reason: str) -> None:
        """From a signal handler in the main thread: end after the tasks that run."""
        self._link.leave(reason)
        if self._waiting:
            self._waiting = False
            raise Leave

    def interrupt(self) -> None:
        """From a signal handler in the main thread: no task runs there."""

    def abandon(self, reason: str, timeout_s: float) -> None:
        """From another thread: the main thread is to say good-bye now, whatever runs."""
        self._link.leaving = reason
        self._abandoned.set()
        self._link.wake()
        threading.Event().wait(timeout_s)

    def _ids_running(self) -> list[int]:
        return [call.id for call, _, generation in self._running.values() if generation == self._link.generation]

    # ---- starting tasks (with the lock) -----------------------------------------------------------------------------

    def _hand_out(self) -> None:
        while self._idle and (job := self._take()) is not None:
            slot = self._idle.pop()
            self._begin(slot, job)
            self._jobs[slot].put(job)

    def _take(self) -> Job | None:
        """The longest waiting task that fits. Where nothing runs any fits: waiting would not help it."""
        if self._link.leaving:
            return None  # what is left is being recalled
        queue = self._link.queue
        for index, (call, frames) in enumerate(queue):
            if not self._running or fits(call.resources, self._free):
                del queue[index]
                return call, frames, self._link.generation
        return None

    def _begin(self, slot: int, job: Job) -> None:
        call = job[0]
        self._running[slot] = job
        self._board.begin(slot, call.id)
        for name, amount in (call.resources or {}).items():
            self._free[name] = self._free.get(name, 0.0) - amount

    def _end(self, slot: int) -> None:
        call = self._running.pop(slot)[0]
        for name, amount in (call.resources or {}).items():
            self._free[name] += amount

    # ---- the threads ------------------------------------------------------------------------------------------------

    def _work(self, slot: int) -> None:
        self._capture.claim(slot)
        jobs = self._jobs[slot]
        while True:
            job: Job | None = jobs.get()
            while job is not None:
                job = self._work_on(slot, job)

    def _work_on(self, slot: int, job: Job) -> Job | None:
        """Run the job; the next one for this thread, or None: it joined the idle ones."""
        call, frames, generation = job
        output = self._capture.outputs[slot]
        output.open = True
        ended = self._runner.run(call, frames)
        output.open = False
        if output.dirty:
            ended[0].stdout, ended[0].stderr = output.take()
        with self._lock:
            link = self._link
            self._end(slot)
            now = perf_counter()
            link.keep(ended, generation, now)
            following = self._take()
            if following is None:
                self._idle.append(slot)
            else:
                self._begin(slot, following)
                self._hand_out()  # what this one held may do for several
            tell = following is None or now - link.unsent_since >= GATHER_S
        if tell:
            link.wake()
        return following


def fits(asked: Mapping[str, float] | None, free: Mapping[str, float]) -> bool:
    """Whether the amounts asked for are free."""
    return not asked or all(amount <= free.get(name, 0.0) + _ROUNDING for name, amount in asked.items())
