"""Many clients that ignore their credit: `overdrafts.py CONNECTION_FILE CLIENTS COUNT BYTES`.

Each client in turn sends COUNT calls with BYTES bytes that no engine can run. Prints a line when all are sent, and
stays connected until its standard input ends.
"""

from __future__ import annotations

import contextlib
import select
import sys

from trio_sched.transport.connection_info import read_connection_file
from trio_sched.transport.zmq_blocking import BlockingDealer
from trio_sched.wire import native

UNSATISFIABLE = native.Options(resources={"no engine has this": 1.0})


def main(path: str, clients: int, count: int, size: int) -> None:
    """Run the attack."""
    connection = read_connection_file(path)
    with contextlib.ExitStack() as stack:
        dealers = [stack.enter_context(BlockingDealer(connection)) for _ in range(clients)]
        for dealer in dealers:
            hello = native.Hello(role="client", token=connection.token, name="greedy", cancel_on_leave=True)
            dealer.send([native.encode(hello)])
            assert dealer.receive(20.0) is not None
            for number in range(1, count + 1):
                call = native.Call(number, call="builtins:len", args=[], frames=1, options=UNSATISFIABLE)
                dealer.send([native.encode(native.Submit([call])), bytes(size)])
        print(f"sent {clients * count}", flush=True)
        while not select.select([sys.stdin], [], [], 1.0)[0]:
            for dealer in dealers:
                dealer.send([native.encode(native.Ping())])
        for dealer in dealers:
            dealer.send([native.encode(native.Bye())])
            dealer.receive(0.1)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
