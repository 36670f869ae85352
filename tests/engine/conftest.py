"""A scripted scheduler and a worker that tests share unless they need their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from trio_sched.engine.control_messages import StartWorker

from .scripted_scheduler import Gate, Peer, ScriptedScheduler, Worker, address_in


@dataclass
class ConnectedWorker:
    """A worker that has joined a scripted scheduler."""

    scheduler: ScriptedScheduler
    worker: Worker
    peer: Peer


@pytest.fixture(scope="session", autouse=True)
def stop_workers() -> Iterator[None]:
    """Stop the workers of tests that failed."""
    yield
    for worker in Worker.started:
        worker.stop()


@pytest.fixture(scope="session")
def short_dir() -> Path:
    return Path(os.environ["TRIO_SCHED_RUNTIME_DIR"])


@pytest.fixture
def scheduler(short_dir: Path) -> Iterator[ScriptedScheduler]:
    scheduler = ScriptedScheduler(address_in(short_dir))
    yield scheduler
    scheduler.close()


@pytest.fixture
def gate(short_dir: Path) -> Gate:
    return Gate(short_dir)


@pytest.fixture(scope="package")
def shared(short_dir: Path) -> Iterator[ConnectedWorker]:
    scheduler = ScriptedScheduler(address_in(short_dir), heartbeat_s=2.0)
    worker = Worker(StartWorker(scheduler.connection, name="shared"))
    yield ConnectedWorker(scheduler, worker, scheduler.engine())
    stderr = worker.stop()
    scheduler.close()
    assert stderr == ""


@pytest.fixture
def own(scheduler: ScriptedScheduler) -> Iterator[ConnectedWorker]:
    """A worker of this test, which the test may end."""
    worker = Worker(StartWorker(scheduler.connection, name="own"))
    yield ConnectedWorker(scheduler, worker, scheduler.engine())
    worker.stop()


@pytest.fixture
def connected(shared: ConnectedWorker) -> Iterator[ConnectedWorker]:
    """The shared worker; the test must leave no message unread."""
    yield shared
    assert shared.scheduler.has_no_messages()
