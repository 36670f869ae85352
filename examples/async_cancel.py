"""Cancel a task group half way: its tasks end on the engines, too.

A task group runs forty searches; the first one that succeeds cancels the group's scope. Waiting searches never start,
and the end of the block waits until the running ones have ended on their engines.

    trio-sched run examples/async_cancel.py
"""

from __future__ import annotations

import sys
import time

import trio

import trio_sched

SEARCHES = 40
LUCKY = 7


def search(place: int) -> int | None:
    """Search one place, which takes a while."""
    time.sleep(0.05)
    return place if place == LUCKY else None


async def main() -> int:
    ended: dict[int, int | None] = {}
    async with trio_sched.open_client() as client:
        with trio.CancelScope() as scope:
            async with client.open_task_group() as group, trio.open_nursery() as nursery:

                async def watch(place: int, task: trio_sched.AsyncFuture[int | None]) -> None:
                    ended[place] = await task
                    if ended[place] is not None:
                        scope.cancel()

                for place in range(SEARCHES):
                    nursery.start_soon(watch, place, group.submit(search, place))
        status = await client.status()

    found = [place for place in ended.values() if place is not None]
    print(f"found in place {found}, after {len(ended)} of {SEARCHES} searches; the others were cancelled")
    left = {state: count for state, count in status["tasks"].items() if state in ("waiting", "ready")}
    print(f"still waiting in the scheduler: {sum(left.values())}")
    if found != [LUCKY] or len(ended) == SEARCHES or any(left.values()):
        print("WRONG")
        return 1
    print("OK: the cancelled searches never ran")
    return 0


if __name__ == "__main__":
    sys.exit(trio.run(main))
