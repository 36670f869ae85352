"""One scripted scheduler and one worker for all tests that need no process of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from trio_sched.engine.orders import StartWorker

from .scripted import Gate, Peer, Scripted, Worker, address_in


@dataclass
class Line:
    """A worker at its scheduler's."""

    scheduler: Scripted
    worker: Worker
    peer: Peer


@pytest.fixture(scope="session", autouse=True)
def no_worker_is_left() -> Iterator[None]:
    """Of tests that failed in the middle."""
    yield
    for worker in Worker.started:
        worker.stop()


@pytest.fixture(scope="session")
def short_dir() -> Path:
    return Path(os.environ["TRIO_SCHED_RUNTIME_DIR"])


@pytest.fixture
def scheduler(short_dir: Path) -> Iterator[Scripted]:
    scheduler = Scripted(address_in(short_dir))
    yield scheduler
    scheduler.close()


@pytest.fixture
def gate(short_dir: Path) -> Gate:
    return Gate(short_dir)


@pytest.fixture(scope="package")
def shared(short_dir: Path) -> Iterator[Line]:
    scheduler = Scripted(address_in(short_dir), heartbeat_s=2.0)
    worker = Worker(StartWorker(scheduler.connection, name="shared"))
    yield Line(scheduler, worker, scheduler.engine())
    said = worker.stop()
    scheduler.close()
    assert said == ""


@pytest.fixture
def own(scheduler: Scripted) -> Iterator[Line]:
    """A worker of the test's own, which it may end."""
    worker = Worker(StartWorker(scheduler.connection, name="own"))
    yield Line(scheduler, worker, scheduler.engine())
    worker.stop()


@pytest.fixture
def line(shared: Line) -> Iterator[Line]:
    """The shared one, which must be left with nothing pending."""
    yield shared
    assert shared.scheduler.nothing_came()
