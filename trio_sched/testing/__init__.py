"""Helpers for tests, of users and of this project: a scheduler without sockets, in virtual time.

    async def test() -> None:
        async with open_world() as world:
            client, engine = await world.client(), await world.engine()
            task = await client.submit("hello")
            await engine.finish(await engine.next_call(), "world")
            assert (await client.end_of(task)).outcome == "ok"

    run_virtual(test)        # takes milliseconds of real time

* `memory`: an in-memory transport with the interface of `ZmqSocket`, whose connections can be broken.
* `peers`: clients, engines and nannies that do what a test tells them, over that transport or a real socket.
* `world`: a whole server with such peers.
* `simulator`: the same server without Trio, under random load and random faults, all drawn from one seed.
"""

from __future__ import annotations

from trio_sched.testing.memory import MemoryDealer, MemoryNetwork, MemoryRouter
from trio_sched.testing.peers import FakeClient, FakeEngine, FakeNanny
from trio_sched.testing.simulator import Simulator
from trio_sched.testing.world import World, open_world, run_virtual

__all__ = [
    "FakeClient",
    "FakeEngine",
    "FakeNanny",
    "MemoryDealer",
    "MemoryNetwork",
    "MemoryRouter",
    "Simulator",
    "World",
    "open_world",
    "run_virtual",
]
