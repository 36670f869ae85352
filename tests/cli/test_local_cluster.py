"""A scheduler in the process of a command stops on request, also on a request during its start."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_sched.cli.local_cluster import stop_on_request
from trio_sched.server.serve import Running


class RecordedStops:
    """Stands for a running scheduler; records the reasons with which it is stopped."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def stop(self, reason: str) -> None:
        self.reasons.append(reason)


async def send(number: int) -> None:
    signal.raise_signal(number)
    await wait_all_tasks_blocked()


async def reasons(*, during_start: bool) -> list[str]:
    """Return the reasons of a scheduler that gets SIGTERM during its start or afterwards."""
    scheduler = RecordedStops()

    @asynccontextmanager
    async def cluster() -> AsyncIterator[Running]:
        if during_start:
            await send(signal.SIGTERM)
        yield cast(Any, scheduler)

    async with stop_on_request(cluster()):
        if not during_start:
            await send(signal.SIGTERM)
    return scheduler.reasons


@pytest.mark.parametrize("during_start", [True, False])
def test_a_signal_stops_the_scheduler_once(during_start: bool) -> None:
    async def main() -> list[str]:
        return await reasons(during_start=during_start)

    assert trio.run(main) == ["SIGTERM"]
