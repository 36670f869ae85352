"""The rate limit on handshakes, shared fairly between addresses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from trio_sched.transport.handshake_queue import HandshakeQueue


class Peers:
    """Peers that wait for their turns, and their answers in order."""

    def __init__(self, queue: HandshakeQueue, nursery: trio.Nursery) -> None:
        self.queue = queue
        self.answers: list[tuple[str, bool]] = []
        self.closed: set[str] = set()
        self._nursery = nursery

    async def add(self, *names: str) -> None:
        """Start requests one after the other. A name is an address, a colon, and a number."""
        for name in names:
            self._nursery.start_soon(self._request, name)
            await trio.testing.wait_all_tasks_blocked()

    async def _request(self, name: str) -> None:
        is_granted = await self.queue.wait_turn(name.partition(":")[0], lambda: name in self.closed)
        self.answers.append((name, is_granted))

    @property
    def granted(self) -> list[str]:
        return [name for name, is_granted in self.answers if is_granted]

    @property
    def refused(self) -> list[str]:
        return [name for name, is_granted in self.answers if not is_granted]


def run_with_peers(test: Callable[[Peers], Awaitable[None]], *, max_wait_s: float = 5.0) -> None:
    """Run a test with a queue that grants one handshake a second, after one at once."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            queue = HandshakeQueue(1.0, 1.0, max_wait_s)
            nursery.start_soon(queue.run)
            peers = Peers(queue, nursery)
            await peers.add("first")
            assert peers.granted == ["first"]
            peers.answers.clear()
            await test(peers)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock())


def jump(seconds: float) -> None:
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    clock.jump(seconds)


async def advance_by(seconds: float) -> None:
    for _ in range(round(seconds * 2)):
        jump(0.5)
        await trio.testing.wait_all_tasks_blocked()


def test_turns_are_granted_at_a_rate_to_the_newest_request_of_an_address() -> None:
    async def test(peers: Peers) -> None:
        await peers.add("a:1", "a:2", "a:3")
        assert peers.answers == []
        await advance_by(1.0)
        assert peers.granted == ["a:3"]
        await advance_by(2.0)
        assert peers.granted == ["a:3", "a:2", "a:1"]

    run_with_peers(test)


def test_addresses_take_turns() -> None:
    async def test(peers: Peers) -> None:
        await peers.add("a:1", "a:2", "b:1", "a:3")
        await advance_by(2.0)
        assert peers.granted == ["a:3", "b:1"]

    run_with_peers(test)


def test_requests_of_closed_connections_take_no_turn() -> None:
    async def test(peers: Peers) -> None:
        await peers.add("a:1", "a:2", "a:3")
        peers.closed = {"a:2", "a:3"}
        await advance_by(1.0)
        assert peers.granted == ["a:1"]
        assert sorted(peers.refused) == ["a:2", "a:3"]
        peers.closed.add("a:4")
        await peers.add("a:4")
        await advance_by(1.0)
        await peers.add("a:5")
        assert peers.granted == ["a:1", "a:5"], "an unused turn is kept for the next request"

    run_with_peers(test)


@pytest.mark.parametrize("flooding", ["a", "b"])
def test_in_a_full_queue_the_oldest_request_of_the_largest_address_is_refused(flooding: str) -> None:
    async def test(peers: Peers) -> None:
        await peers.add("c:1", *[f"{flooding}:{number}" for number in range(6)])
        assert peers.refused == [f"{flooding}:0", f"{flooding}:1"]

    run_with_peers(test)


def test_a_cancelled_request_is_removed() -> None:
    async def test(peers: Peers) -> None:
        for _ in range(10):
            with trio.move_on_after(0) as scope:
                await peers.queue.wait_turn("a")
            assert scope.cancelled_caught
        await peers.add(*[f"b:{number}" for number in range(5)])
        assert peers.refused == []

    run_with_peers(test)
