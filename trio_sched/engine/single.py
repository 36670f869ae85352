"""The loop of a worker with one slot: tasks run in the main thread, where signals and graphics expect to be handled.

Between tasks the main thread also does the I/O. While a task runs for long, a second thread, the I/O thread, takes
over: it sends the results that wait behind the task, answers recalls of the calls queued behind it, and sends
heartbeats. The thread that holds `_io_lock` does the I/O: the main thread holds the lock except while a task runs. With
short tasks the I/O thread only checks every LONG_TASK_S whether the task is still the same; without tasks it sleeps.
"""

from __future__ import annotations

import threading
from time import monotonic, perf_counter

from trio_sched.engine.capture import Capture
from trio_sched.engine.loop import BATCH_DELAY_S, WorkerLoop
from trio_sched.engine.runner import CallRunner
from trio_sched.engine.scheduler_connection import SchedulerConnection
from trio_sched.engine.worker_status import WorkerStatus

#: The I/O thread takes over while a task runs for longer than this.
LONG_TASK_S = 0.020
#: After this many checks without a running task the I/O thread sleeps until the next task.
_IDLE_CHECKS = 5


class SingleLoop(WorkerLoop):
    """Runs the calls of the connection one after the other in the main thread."""

    def __init__(
        self, connection: SchedulerConnection, runner: CallRunner, capture: Capture, status: WorkerStatus
    ) -> None:
        super().__init__(connection)
        self._runner = runner
        self._output = capture.outputs[0]
        self._status = status
        self._io_lock = threading.Lock()
        self._busy = False
        #: Count of tasks that have begun, by which the I/O thread distinguishes one task from the next.
        self._begun_count = 0
        self._io_thread_sleeps = False
        self._io_thread_wake = threading.Event()

    def run(self) -> None:
        """Run calls until the connection has a `leave_reason`."""
        connection = self._connection
        self._io_lock.acquire()
        connection.send_hello()
        threading.Thread(target=self._run_io_thread, name="trio_sched I/O", daemon=True).start()
        checked_at = perf_counter()
        while not connection.leave_reason:
            if not connection.queue:
                self._idle()
                continue
            self._run_next()
            now = perf_counter()
            if not connection.queue or now - connection.unsent_since >= BATCH_DELAY_S:
                connection.flush()
            if now - checked_at >= BATCH_DELAY_S:
                checked_at = now
                self._do_io()

    def _run_next(self) -> None:
        connection, output = self._connection, self._output
        call, frames = connection.queue.popleft()
        generation = connection.generation
        connection.running.add(call.id)
        self._begun_count += 1
        self._status.begin_task(0, call.id)
        output.begin()
        self._busy = True
        if self._io_thread_sleeps:
            self._io_thread_sleeps = False
            self._io_thread_wake.set()
        self._io_lock.release()
        result = self._runner.run(call, frames)
        self._busy = False
        if not self._io_lock.acquire(blocking=False):  # the I/O thread has it
            connection.wake()
            self._io_lock.acquire()
        output.end(result[0])
        connection.add_result(result, generation, perf_counter())

    def _do_io(self) -> None:
        self._connection.receive()
        if monotonic() >= self._connection.next_tick_at:
            self._connection.tick()

    def _idle(self) -> None:
        """Send the unsent results, and wait for calls."""
        connection = self._connection
        self._do_io()
        connection.flush()
        if connection.is_flushed:
            self._status.clear_slot(0)
        if connection.queue or connection.leave_reason:
            return
        self._wait()
        connection.receive()

    def _must_not_wait(self) -> bool:
        return bool(self._connection.leave_reason)

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt if the task's own code runs."""
        if self._runner.in_call:
            raise KeyboardInterrupt

    def abandon(self, reason: str, timeout_s: float) -> None:
        """Close the connection even if a task runs."""
        self._busy = False  # so that the I/O thread releases the lock
        self._connection.leave_at_once(reason)
        if self._io_lock.acquire(timeout=timeout_s):  # otherwise the main thread has it, and closes the connection
            self._connection.close(0.0)

    # ---- the I/O thread ---------------------------------------------------------------------------------------------

    def _run_io_thread(self) -> None:
        checks = 0
        never = threading.Event()
        while True:
            seen = self._begun_count
            never.wait(LONG_TASK_S)
            if self._begun_count != seen:
                checks = 0
            elif self._busy:
                checks = 0
                self._do_io_during(seen)
            else:
                checks += 1
                if checks >= _IDLE_CHECKS:
                    self._sleep_io_thread(seen)

    def _do_io_during(self, task: int) -> None:
        """Do the I/O while this task runs, numbered as in `_begun_count`."""
        connection = self._connection
        with self._io_lock:
            while self._busy and self._begun_count == task:
                connection.flush()
                self._do_io()
                if self._busy:
                    connection.wait()

    def _sleep_io_thread(self, seen: int) -> None:
        self._io_thread_sleeps = True
        if self._begun_count == seen and not self._busy:  # otherwise a task began before the flag was set
            self._io_thread_wake.wait()
        self._io_thread_sleeps = False
        self._io_thread_wake.clear()
