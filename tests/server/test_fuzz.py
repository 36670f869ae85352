"""R25 by brute force: messages with bytes changed, swapped or cut, from every kind of peer. The server goes on as
before."""

from __future__ import annotations

import random
from typing import Any

import pytest

from trio_sched.testing import open_harness, run_virtual
from trio_sched.wire import native


def samples(rng: random.Random) -> list[bytes]:
    """Return one message of each type that a peer may send, with extreme values."""
    odd: Any = rng.choice((0, 1, -1, 2**31, 2**32, 2**63 - 1, -(2**63), 2**64 - 1))
    call = native.Call(1, b"x", b"body", odd % 3, options=native.Options(after=[odd], priority=odd, timeout_s=1e308))
    messages: list[Any] = [
        native.Hello("client", session=odd, secret="s", received=odd, weight=1e-320),
        native.Hello("engine", slots=1, hwm=0, resources={"": 0.0}, holding=[odd], nanny=odd),
        native.Ping(odd),
        native.Submit([call], {b"": b""}, [b""], odd),
        native.Submit([native.Call(2, call="os:getpid", args=[[[]]] * 3, kwargs={"": None})]),
        native.Cancel([odd, odd]),
        native.Query(odd, rng.choice(("status", "explain", "story", "engines", "")), odd),
        native.Watch(),
        native.Finished(
            [native.TaskResult(odd, attempt=odd), native.TaskResult(odd, rng.choice(("lost", "unmet", "error")))]
        ),
        native.Recalled([odd], [odd, odd]),
        native.WorkerDied(odd, running=[odd]),
        native.Bye(),
    ]
    return [native.encode(message) for message in messages]


def garbled(data: bytes, rng: random.Random) -> bytes:
    """Return the message with some bytes changed, or none."""
    changed = bytearray(data)
    for _ in range(rng.choice((0, 0, 1, 2, 5))):
        at = rng.randrange(len(changed))
        changed[at : at + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
    return bytes(changed[: rng.randint(1, len(changed))]) if rng.random() < 0.1 and changed else bytes(changed)


@pytest.mark.parametrize("seed", range(10))
def test_r25_the_server_survives_every_mutated_message(seed: int) -> None:
    rng = random.Random(seed)

    async def main() -> None:
        async with open_harness(max_clients=10**6, max_engines=10**6) as harness:
            for _ in range(15):
                nanny = await harness.nanny()
                peers = [
                    await harness.client(),
                    await harness.engine(nanny=nanny.number),
                    nanny,
                    await harness.newcomer(),
                ]
                for _ in range(20):
                    for peer in peers:
                        peer.send_frames(
                            [garbled(rng.choice(samples(rng)), rng), *[b"frame"] * rng.choice((0, 0, 0, 1))]
                        )
                await harness.settle()
            client = await harness.client()
            engine = await harness.engine(eager=True)  # the engines above answer nothing
            assert (await client.result_of(await client.submit("x", targets=[engine.number]))).outcome == "ok"

    run_virtual(main)


def test_r25_arguments_that_cannot_be_encoded_are_rejected() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine(eager=True)
            assert engine.number
            data = b"\x82\xa4type\xa6submit\xa5tasks\x91\x83\xa2id\x01\xa4call\xa3m:f\xa4args\x91"
            for depth in (*range(700, 1000, 7), 100_000):
                client.send_frames([data + b"\x91" * depth + b"\x90"])
            await harness.settle()
            assert {error.kind for error in client.take_unread(native.Error)} == {"malformed"}
            client._counter = 1
            assert (await client.result_of(await client.submit("x"))).outcome == "ok"

    run_virtual(main)
