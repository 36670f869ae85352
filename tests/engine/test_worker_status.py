"""`WorkerStatus`: shared memory between a worker and its nanny."""

from __future__ import annotations

from pathlib import Path

from trio_sched.engine.worker_status import JOINED, LEAVING, STARTING, WorkerStatus


def test_r20_the_nanny_reads_what_the_worker_recorded(tmp_path: Path) -> None:
    nanny = WorkerStatus(tmp_path / "status", 2, create=True)
    worker = WorkerStatus(tmp_path / "status", 2)
    assert (nanny.state, nanny.running_tasks(), nanny.session_with("one")) == (STARTING, [], 0)
    worker.mark_joined("one", 7)
    assert not nanny.has_begun_a_task
    worker.begin_task(1, 2**63 + 5)
    assert nanny.has_begun_a_task
    assert (nanny.state, nanny.running_tasks(), nanny.session_with("one")) == (JOINED, [2**63 + 5], 7)
    assert nanny.session_with("another") == 0
    worker.mark_leaving()
    worker.mark_joined("one", 7)
    assert nanny.state == LEAVING
    nanny.reset()
    assert (worker.state, worker.running_tasks(), worker.session_with("")) == (STARTING, [], 0)
    nanny.close()
    worker.close()
