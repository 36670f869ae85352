"""The loop of a worker with several slots: tasks run in threads, and the main thread does the I/O.

A task starts when a slot is free and its resources fit into those that the running tasks do not use (R16); among the
tasks that fit, the one that has waited longest starts first. The thread of a slot that ends a task takes the next one
itself, and wakes the main thread only when no task is left to start or when results have waited for BATCH_DELAY_S.
`_lock` guards everything except the socket, which belongs to the main thread.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from time import monotonic, perf_counter
from typing import TypeAlias

from trio_sched.engine.capture import Capture
from trio_sched.engine.loop import BATCH_DELAY_S, WorkerLoop
from trio_sched.engine.runner import CallRunner
from trio_sched.engine.scheduler_connection import SchedulerConnection
from trio_sched.engine.worker_status import WorkerStatus
from trio_sched.wire.native import Call, Frame

#: A call, its frames, and the connection's generation in which it begins.
_Job: TypeAlias = tuple[Call, Sequence[Frame], int]
#: Tolerance of a comparison: amounts such as 0.1 do not add up exactly.
_ROUNDING = 1e-9


class PoolLoop(WorkerLoop):
    """Runs the calls of the connection in one thread for each slot."""

    def __init__(
        self,
        connection: SchedulerConnection,
        runner: CallRunner,
        capture: Capture,
        status: WorkerStatus,
        resources: Mapping[str, float],
    ) -> None:
        super().__init__(connection)
        self._runner = runner
        self._capture = capture
        self._status = status
        self._free_resources = dict(resources)
        self._lock = threading.Lock()
        self._jobs: list[SimpleQueue[_Job]] = [SimpleQueue() for _ in capture.outputs]
        self._idle_slots = list(range(len(capture.outputs)))
        #: By slot.
        self._running: dict[int, _Job] = {}
        self._abandoned = threading.Event()

    def run(self) -> None:
        """Do the I/O until the connection has a `leave_reason` and no task runs."""
        connection = self._connection
        connection.send_hello()
        for slot in range(len(self._jobs)):
            threading.Thread(target=self._run_slot, args=(slot,), name=f"trio_sched slot {slot}", daemon=True).start()
        while not connection.leave_reason or (self._running and not self._abandoned.is_set()):
            self._do_io()
            self._wait()

    def _do_io(self) -> None:
        connection = self._connection
        with self._lock:
            connection.receive()
            if monotonic() >= connection.next_tick_at:
                connection.tick()
            self._start_tasks()
            connection.flush()
            if connection.is_flushed:
                for slot in self._idle_slots:
                    self._status.clear_slot(slot)

    def _must_not_wait(self) -> bool:
        return self._abandoned.is_set()

    def interrupt(self) -> None:
        """Do nothing: no task runs in the main thread."""

    def abandon(self, reason: str, timeout_s: float) -> None:
        """Have the main thread close the connection even if tasks run."""
        self._abandoned.set()
        self._connection.leave_at_once(reason)
        threading.Event().wait(timeout_s)

    # ---- starting tasks (under the lock) ----------------------------------------------------------------------------

    def _start_tasks(self) -> None:
        while self._idle_slots and (job := self._take_job()) is not None:
            slot = self._idle_slots.pop()
            self._begin_job(slot, job)
            self._jobs[slot].put(job)

    def _take_job(self) -> _Job | None:
        """Take the call that has waited longest among those that fit; while nothing runs, every call fits."""
        connection = self._connection
        if connection.leave_reason:
            return None  # the scheduler recalls the queue
        for index, (call, frames) in enumerate(connection.queue):
            if not self._running or fits(call.resources, self._free_resources):
                del connection.queue[index]
                return call, frames, connection.generation
        return None

    def _begin_job(self, slot: int, job: _Job) -> None:
        call = job[0]
        self._running[slot] = job
        self._connection.running.add(call.id)
        self._status.begin_task(slot, call.id)
        for name, amount in (call.resources or {}).items():
            self._free_resources[name] = self._free_resources.get(name, 0.0) - amount

    def _end_job(self, slot: int) -> None:
        call = self._running.pop(slot)[0]
        for name, amount in (call.resources or {}).items():
            self._free_resources[name] += amount

    # ---- the threads of the slots -----------------------------------------------------------------------------------

    def _run_slot(self, slot: int) -> None:
        self._capture.bind_thread(slot)
        jobs = self._jobs[slot]
        while True:
            job: _Job | None = jobs.get()
            while job is not None:
                job = self._run_job(slot, job)

    def _run_job(self, slot: int, job: _Job) -> _Job | None:
        """Run the job; returns the next one for this thread, or None: the slot is idle."""
        call, frames, generation = job
        output = self._capture.outputs[slot]
        output.begin()
        result = self._runner.run(call, frames)
        output.end(result[0])
        with self._lock:
            connection = self._connection
            self._end_job(slot)
            now = perf_counter()
            connection.add_result(result, generation, now)
            following = self._take_job()
            if following is None:
                self._idle_slots.append(slot)
            else:
                self._begin_job(slot, following)
                self._start_tasks()  # the resources that this job held may be enough for several
            must_wake = following is None or now - connection.unsent_since >= BATCH_DELAY_S
        if must_wake:
            connection.wake()
        return following


def fits(requested: Mapping[str, float] | None, free: Mapping[str, float]) -> bool:
    """Whether the requested amounts are free."""
    return not requested or all(amount <= free.get(name, 0.0) + _ROUNDING for name, amount in requested.items())
