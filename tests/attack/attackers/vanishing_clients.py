"""Clients that send a Hello and disconnect without a Bye: `vanishing_clients.py CONNECTION_FILE COUNT`.

Prints a line when COUNT clients got a Welcome and have disconnected, continues with more until its standard input ends,
and prints how many got a Welcome in total.
"""

from __future__ import annotations

import resource
import select
import sys

from trio_sched.transport.connection_info import read_connection_file
from trio_sched.transport.zmq_blocking import BlockingDealer
from trio_sched.wire import native

AT_ONCE = 100


def wave(path: str, count: int) -> int:
    """Connect and disconnect `count` clients. Return how many got a Welcome."""
    connection = read_connection_file(path)
    hello = native.encode(native.Hello(role="client", token=connection.token, name="vanishing"))
    dealers = [BlockingDealer(connection) for _ in range(count)]
    welcomed = 0
    for dealer in dealers:
        dealer.send([hello])
    for dealer in dealers:
        answer = dealer.receive(20.0)
        welcomed += answer is not None and isinstance(native.decode_to_client(answer[0]), native.Welcome)
    for dealer in dealers:
        dealer.close()
    return welcomed


def main(path: str, count: int) -> None:
    """Run the attack."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    welcomed = sum(wave(path, AT_ONCE) for _ in range(0, count, AT_ONCE))
    print(f"welcomed {welcomed}", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        welcomed += wave(path, AT_ONCE)
    print(f"welcomed {welcomed}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
