"""Honest peers by the thousand: `crowd.py CLIENT_FILE ENGINE_FILE COUNT`, with fake engines that echo.

Prints a line when COUNT clients and COUNT engines have joined and each client has the results of its first tasks. Then
each client submits a task in each round, until standard input ends. Prints the number of rounds and of lost results.
"""

from __future__ import annotations

import resource
import sys
import time
from functools import partial
from typing import Any

import trio

from trio_sched.testing import FakeClient, FakeEngine
from trio_sched.transport.connection_info import ConnectionInfo, read_connection_file
from trio_sched.transport.endpoint import connect_dealer
from trio_sched.transport.zmq_socket import SharedContext, ZmqSocket

FIRST_TASKS = 5
ROUND_S = 0.5
HELLO_RETRY_S = 3.0


class Crowd:
    """Peers whose sockets share one context."""

    def __init__(self) -> None:
        self.context = SharedContext(max_sockets=8192)

    def connect(self, connection: ConnectionInfo) -> ZmqSocket:
        """Return a new dealer."""
        dealer = connect_dealer(self.context.context, connection)
        return ZmqSocket(self.context, dealer, address=connection.address, routed=False)

    async def join(self, peer: Any) -> None:
        """Send Hellos until a Welcome arrives, as peers do: a message to a refused connection is lost."""
        while not peer.joined:
            with trio.move_on_after(HELLO_RETRY_S):
                await peer.join()


async def serve_all(clients: list[FakeClient], texts: list[str]) -> list[str]:
    """Submit one message of tasks from each client. Return the wrong results."""
    wrong: list[str] = []

    async def one(client: FakeClient) -> None:
        last = await client.submit(*texts)
        for number, text in enumerate(texts):
            end = await client.result_of(last - len(texts) + 1 + number)
            if (end.outcome, bytes(end.body)) != ("ok", text.encode()):
                wrong.append(f"{end.outcome} {bytes(end.body)!r} for {text!r}")

    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(one, client)
    return wrong


async def main(client_file: str, engine_file: str, count: int) -> None:
    """Join, then run tasks until standard input ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd = Crowd()
    for_clients, for_engines = read_connection_file(client_file), read_connection_file(engine_file)
    started = time.monotonic()
    async with trio.open_nursery() as peers:
        clients = [FakeClient(partial(crowd.connect, for_clients), for_clients.token) for _ in range(count)]
        engines = [FakeEngine(partial(crowd.connect, for_engines), for_engines.token, eager=True) for _ in range(count)]
        async with trio.open_nursery() as joining:
            for peer in (*clients, *engines):
                await peers.start(peer.run)
                joining.start_soon(crowd.join, peer)
        joined_s = time.monotonic() - started
        wrong = await serve_all(clients, [str(number) for number in range(FIRST_TASKS)])
        took_s = time.monotonic() - started
        print(
            f"{len(clients)} clients and {len(engines)} engines joined in {joined_s:.1f} s, served in {took_s:.1f} s, "
            f"{len(wrong)} lost",
            flush=True,
        )
        rounds = 0
        stopped = trio.Event()

        async def wait_for_end() -> None:
            await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
            stopped.set()

        peers.start_soon(wait_for_end)
        while not stopped.is_set():
            wrong += await serve_all(clients, [f"round {rounds}"])
            rounds += 1
            with trio.move_on_after(ROUND_S):
                await stopped.wait()
        print(f"{rounds} rounds, {len(wrong)} lost {wrong[:3]}", flush=True)
        peers.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
