"""The loop of a worker with one slot: tasks run in the main thread, where signals and graphics expect to be.

Between tasks the main thread also does the talking. While a task takes long, a second thread stands in for it: it
sends the results that wait behind the task, answers recalls of the tasks queued behind it, and keeps in touch. `_io`
says whose turn it is: the main thread holds it always but while a task runs. For short tasks the stand-in costs one
look every LONG_TASK_S, and when nothing runs it sleeps.
"""

from __future__ import annotations

import threading
from time import monotonic, perf_counter

from trio_sched.engine.board import Board
from trio_sched.engine.capture import Capture
from trio_sched.engine.link import Link
from trio_sched.engine.runner import Runner

LONG_TASK_S = 0.020
"""A task that runs longer has the stand-in talk meanwhile."""
GATHER_S = 0.001
"""Results wait at most this long for others, and recalls to be seen, while short tasks run."""
_QUIET_LOOKS = 5
"""Looks without any task before the stand-in goes to sleep."""


class Leave(BaseException):
    """Raised by a signal handler to end a wait."""


class SingleLoop:
    """Runs the tasks of `link`, one after the other, until `link.leaving`."""

    def __init__(self, link: Link, runner: Runner, capture: Capture, board: Board) -> None:
        self._link = link
        self._runner = runner
        self._output = capture.outputs[0]
        self._board = board
        self._io = threading.Lock()
        self._waiting = False
        self._busy = False
        self._begun = 0
        """Tasks begun, so that the stand-in can tell one task from the next."""
        self._generation = 0
        self._asleep = False
        self._rise = threading.Event()
        link.running = self._running

    def run(self) -> None:
        """The main thread's."""
        link = self._link
        self._io.acquire()
        link.hello()
        threading.Thread(target=self._stand_in, name="trio_sched stand-in", daemon=True).start()
        looked_at = perf_counter()
        while not link.leaving:
            if not link.queue:
                self._idle()
                continue
            self._run_next()
            now = perf_counter()
            if not link.queue or now - link.unsent_since >= GATHER_S:
                link.flush()
            if now - looked_at >= GATHER_S:
                looked_at = now
                self._look()

    def _run_next(self) -> None:
        call, frames = self._link.queue.popleft()
        output = self._output
        self._generation = self._link.generation
        self._begun += 1
        self._board.begin(0, call.id)
        output.open = True
        self._busy = True
        if self._asleep:
            self._asleep = False
            self._rise.set()
        self._io.release()
        ended = self._runner.run(call, frames)
        self._busy = False
        if not self._io.acquire(blocking=False):  # the stand-in is at it
            self._link.wake()
            self._io.acquire()
        output.open = False
        if output.dirty:
            ended[0].stdout, ended[0].stderr = output.take()
        self._link.keep(ended, self._generation, perf_counter())

    def _look(self) -> None:
        self._link.receive()
        if monotonic() >= self._link.next_tick_at:
            self._link.tick()

    def _idle(self) -> None:
        """Nothing to do: wait for something. A signal that asks us to leave ends the wait."""
        link = self._link
        self._look()
        link.flush()
        if link.told:
            self._board.running[0] = 0
        if link.queue or link.leaving:
            return
        try:
            self._waiting = True
            if not link.leaving:  # asked between the look and the wait
                link.wait()
            self._waiting = False
        except Leave:
            pass
        link.receive()

    def leave(self, reason: str) -> None:
        """From a signal handler in the main thread: end after the task that runs."""
        self._link.leave(reason)
        if self._waiting:
            self._waiting = False
            raise Leave
        self._link.wake()  # the stand-in, which tells the scheduler

    def interrupt(self) -> None:
        """From a signal handler in the main thread: KeyboardInterrupt in the task, nothing between tasks."""
        if self._runner.in_call:
            raise KeyboardInterrupt

    def abandon(self, reason: str, timeout_s: float) -> None:
        """From another thread: say good-bye now, even if a task runs; then the process is to end."""
        self._link.leaving = reason
        self._busy = False  # for the stand-in
        self._link.wake()
        if self._io.acquire(timeout=timeout_s):  # else the main thread has it, and says good-bye itself
            self._link.bye(0.0)

    def _running(self) -> list[int]:
        return self._board.tasks() if self._busy and self._generation == self._link.generation else []

    # ---- the stand-in -----------------------------------------------------------------------------------------------

    def _stand_in(self) -> None:
        looks = 0
        never = threading.Event()
        while True:
            seen = self._begun
            never.wait(LONG_TASK_S)
            if self._begun != seen:
                looks = 0
            elif self._busy:
                looks = 0
                self._talk_during(seen)
            else:
                looks += 1
                if looks >= _QUIET_LOOKS:
                    self._sleep(seen)

    def _talk_during(self, task: int) -> None:
        link = self._link
        with self._io:
            while self._busy and self._begun == task:
                link.flush()
                link.receive()
                if monotonic() >= link.next_tick_at:
                    link.tick()
                if self._busy:
                    link.wait()

    def _sleep(self, seen: int) -> None:
        self._asleep = True
        if self._begun == seen and not self._busy:  # else a task began before it could see us sleeping
            self._rise.wait()
        self._asleep = False
        self._rise.clear()
