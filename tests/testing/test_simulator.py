"""The whole server under random faults drawn from one seed, and that the simulator notices errors."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from trio_sched.errors import InvariantError
from trio_sched.server.outbox import Outbox
from trio_sched.testing import Simulator


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Log nothing: the faults would fill the log."""
    logging.getLogger("trio_sched").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("trio_sched").setLevel(logging.NOTSET)


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_lost_under_faults(seed: int) -> None:
    server = Simulator(seed, steps=600).run()
    assert server.scheduler.outcome_counts["ok"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
def test_nothing_is_lost_in_long_runs_under_faults(seed: int) -> None:
    server = Simulator(seed, steps=3000, clients=5, engines=6).run()
    assert server.scheduler.outcome_counts["ok"] > 200


def test_nothing_is_lost_with_small_windows_and_slices() -> None:
    server = Simulator(1, steps=600, window_bytes=1024, submissions_per_turn=2).run()
    assert server.scheduler.outcome_counts["ok"] > 20


def test_the_same_seed_repeats_the_same_run() -> None:
    one, two = Simulator(5, steps=300), Simulator(5, steps=300)
    one.run()
    two.run()
    assert [client.deliveries for client in one.clients] == [client.deliveries for client in two.clients]


def test_the_simulator_notices_a_server_that_does_not_send_results_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Outbox, "_send_again", lambda *_arguments: None)

    def search() -> None:
        for seed in range(20):
            Simulator(seed, steps=600).run()

    with pytest.raises(InvariantError) as found:
        search()
    assert "Simulator(seed=" in "".join(found.value.__notes__)
