"""Free memory is returned to the operating system when a burst of dropped messages is over."""

from __future__ import annotations

import pytest
import trio

from trio_sched.server import memory
from trio_sched.server.memory import BURST_DROPS, BurstTrim
from trio_sched.testing import open_harness, run_virtual


@pytest.fixture
def trims(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets an item for each return of memory."""
    trims: list[int] = []
    monkeypatch.setattr(memory, "return_free_memory", lambda: trims.append(1))
    return trims


@pytest.mark.parametrize(
    ("dropped_in_rounds", "trimmed_in_rounds"),
    [
        ([0, 0, 0], []),
        ([1, 0, 0], [1]),
        ([BURST_DROPS, 0, 0], [1]),
        ([1000, 1000, 1000, 0, 0], [3]),
        ([1000, 3, 3, 0, 0], [1, 3]),
        ([1000, 0, 0, 1000, 0], [1, 4]),
        ([1] * BURST_DROPS, [BURST_DROPS - 1]),
    ],
)
def test_free_memory_is_returned_once_per_burst(
    trims: list[int], dropped_in_rounds: list[int], trimmed_in_rounds: list[int]
) -> None:
    burst_trim = BurstTrim()
    dropped, seen = 0, []
    for number, fresh in enumerate(dropped_in_rounds):
        dropped += fresh
        before = len(trims)
        burst_trim.check(dropped)
        seen += [number] * (len(trims) - before)
    assert seen == trimmed_in_rounds


def test_the_audit_returns_memory_when_a_burst_is_over(trims: list[int]) -> None:
    async def main() -> None:
        async with open_harness() as harness:
            for _ in range(BURST_DROPS):
                harness.server.ingress.note("malformed")
            period_s = harness.server.config.heartbeat_s
            await trio.sleep(1.5 * period_s)
            assert trims == []
            await trio.sleep(3 * period_s)
            assert trims == [1]

    run_virtual(main)
