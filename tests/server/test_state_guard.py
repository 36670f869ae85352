"""The actor owns the state: nothing changes it outside of a step, and the guard that shows this finds every write."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from trio_sched.core.invariants import check
from trio_sched.core.scheduler import Scheduler
from trio_sched.server.intake import Intake
from trio_sched.server.reader import Reader
from trio_sched.testing import ServerHarness, Simulator, open_harness, run_virtual, simulator
from trio_sched.testing.state_guard import StateGuardError, guarded_state, writes_allowed
from trio_sched.wire import native


def set_first_slot(record: object) -> None:
    """Set an attribute of a record of the core to its own value."""
    name = type(record).__slots__[0]  # type: ignore[attr-defined]
    setattr(record, name, getattr(record, name))


WRITES: list[Callable[[ServerHarness], object]] = [
    lambda harness: setattr(next(iter(harness.server.sessions)), "last_received_at", 1.0),
    lambda harness: setattr(next(iter(harness.server.sessions.clients.values())), "submission_count", 1),
    lambda harness: next(iter(harness.server.sessions.clients.values())).functions.update({b"f": b"f"}),
    lambda harness: next(iter(harness.server.sessions.clients.values())).unacked.clear(),
    lambda harness: next(iter(harness.server.sessions.engines.values())).queued_calls.append((native.Call(1), ())),
    lambda harness: next(iter(harness.server.sessions.engines.values())).known_functions.add(b"f"),
    lambda harness: setattr(next(iter(harness.server.sessions)).connection, "role", "nanny"),
    lambda harness: harness.server.sessions.clients.clear(),
    lambda harness: setattr(harness.server.sessions, "expected_engines", 1),
    lambda harness: setattr(harness.server.budget, "held_bytes", 1),
    lambda harness: harness.server.outbox.watchers.clear(),
    lambda harness: setattr(harness.server.shutdown, "closing", native.Closing()),
    lambda harness: setattr(harness.server.scheduler, "monitored", True),
    lambda harness: harness.server.scheduler.tasks.clear(),
    lambda harness: setattr(next(iter(harness.server.scheduler.tasks.values())), "attempt", 5),
    lambda harness: set_first_slot(next(iter(harness.server.scheduler.engines.values()))),
    lambda harness: set_first_slot(next(iter(harness.server.scheduler.clients.values()))),
]


@pytest.mark.parametrize("write", WRITES)
def test_a_write_outside_of_a_step_raises(write: Callable[[ServerHarness], object]) -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            await client.submit("x")
            assert (await engine.next_call()).body == b"x"
            with pytest.raises(StateGuardError):
                write(harness)

    with pytest.raises(StateGuardError, match="outside of the actor's step"):
        run_virtual(main)


def test_a_write_in_a_reader_fails_the_test_although_the_server_survives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    validate = Reader.validate

    def meddle(self: Reader, connection: object, *others: object) -> object:
        for session in sessions:
            session.last_received_at = 1.0  # type: ignore[attr-defined]
        return validate(self, connection, *others)  # type: ignore[arg-type]

    sessions: list[object] = []
    monkeypatch.setattr(Intake, "validate", meddle)

    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client()
            sessions.extend(harness.server.sessions)
            client.send(native.Ping())
            await client.expect(native.Error)
            assert harness.server.ingress.counters["internal_error"] == 1

    with pytest.raises(StateGuardError, match=r"ClientSession\.last_received_at"):
        run_virtual(main)


@pytest.mark.parametrize("seed", range(3))
def test_a_simulated_run_with_faults_writes_only_in_steps(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def check_state(scheduler: Scheduler) -> None:
        with writes_allowed():
            check(scheduler)

    monkeypatch.setattr(simulator, "check", check_state)
    logging.getLogger("trio_sched").setLevel(logging.CRITICAL)
    try:
        with guarded_state():
            Simulator(seed, steps=400).run()
    finally:
        logging.getLogger("trio_sched").setLevel(logging.NOTSET)
