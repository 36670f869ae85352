"""The actor owns the state: nothing changes it outside of a step, and the guard that shows this finds every write."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from trio_sched.core.invariants import check
from trio_sched.core.scheduler import Scheduler
from trio_sched.server.intake import Intake
from trio_sched.server.reader import Reader
from trio_sched.testing import Simulator, World, open_world, run_virtual, simulator
from trio_sched.testing.state_guard import StateGuardError, guarded_state, writes_allowed
from trio_sched.wire import native


def set_first_slot(record: object) -> None:
    """Set an attribute of a record of the core to its own value."""
    name = type(record).__slots__[0]  # type: ignore[attr-defined]
    setattr(record, name, getattr(record, name))


WRITES: list[Callable[[World], object]] = [
    lambda world: setattr(next(iter(world.server.sessions)), "heard_at", 1.0),
    lambda world: setattr(next(iter(world.server.sessions.clients.values())), "received", 1),
    lambda world: next(iter(world.server.sessions.clients.values())).functions.update({b"f": b"f"}),
    lambda world: next(iter(world.server.sessions.clients.values())).unacked.clear(),
    lambda world: next(iter(world.server.sessions.engines.values())).queued_calls.append((native.Call(1), ())),
    lambda world: next(iter(world.server.sessions.engines.values())).known_functions.add(b"f"),
    lambda world: setattr(next(iter(world.server.sessions)).connection, "role", "nanny"),
    lambda world: world.server.sessions.clients.clear(),
    lambda world: setattr(world.server.sessions, "expected_engines", 1),
    lambda world: setattr(world.server.budget, "held_bytes", 1),
    lambda world: world.server.outbox.watchers.clear(),
    lambda world: setattr(world.server.shutdown, "closing", native.Closing()),
    lambda world: setattr(world.server.scheduler, "monitored", True),
    lambda world: world.server.scheduler.tasks.clear(),
    lambda world: setattr(next(iter(world.server.scheduler.tasks.values())), "attempt", 5),
    lambda world: set_first_slot(next(iter(world.server.scheduler.engines.values()))),
    lambda world: set_first_slot(next(iter(world.server.scheduler.clients.values()))),
]


@pytest.mark.parametrize("write", WRITES)
def test_a_write_outside_of_a_step_raises(write: Callable[[World], object]) -> None:
    async def main() -> None:
        async with open_world() as world:
            client, engine = await world.client(), await world.engine()
            await client.submit("x")
            assert (await engine.next_call()).body == b"x"
            with pytest.raises(StateGuardError):
                write(world)

    with pytest.raises(StateGuardError, match="outside of the actor's step"):
        run_virtual(main)


def test_a_write_in_a_reader_fails_the_test_although_the_server_survives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    validate = Reader.validate

    def meddle(self: Reader, connection: object, *others: object) -> object:
        for session in sessions:
            session.heard_at = 1.0  # type: ignore[attr-defined]
        return validate(self, connection, *others)  # type: ignore[arg-type]

    sessions: list[object] = []
    monkeypatch.setattr(Intake, "validate", meddle)

    async def main() -> None:
        async with open_world() as world:
            client = await world.client()
            sessions.extend(world.server.sessions)
            client.say(native.Ping())
            await client.hear(native.Error)
            assert world.server.hub.counters["internal_error"] == 1

    with pytest.raises(StateGuardError, match=r"ClientSession\.heard_at"):
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
