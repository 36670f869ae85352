"""Helpers for tests, of users and of this project: a scheduler without sockets, in virtual time.

    async def test() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            task = await client.submit("hello")
            await engine.finish(await engine.next_call(), "world")
            assert (await client.result_of(task)).outcome == "ok"

    run_virtual(test)        # takes milliseconds of real time

* `memory`: an in-memory transport with the interface of `ZmqSocket`, whose connections can be broken.
* `peers`: clients, engines and nannies that a test controls, over that transport or a real socket.
* `server_harness`: a whole server with such peers.
* `simulator`: the same server without Trio, under random load and random faults, all drawn from one seed.
"""

from __future__ import annotations

from trio_sched.testing.memory import MemoryDealer, MemoryNetwork, MemoryRouter
from trio_sched.testing.peers import FakeClient, FakeEngine, FakeNanny
from trio_sched.testing.server_harness import ServerHarness, open_harness, run_virtual
from trio_sched.testing.simulator import Simulator

__all__ = [
    "FakeClient",
    "FakeEngine",
    "FakeNanny",
    "MemoryDealer",
    "MemoryNetwork",
    "MemoryRouter",
    "ServerHarness",
    "Simulator",
    "open_harness",
    "run_virtual",
]
