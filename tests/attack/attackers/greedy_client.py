"""A client that takes memory: `greedy_client.py CONNECTION_FILE WHAT COUNT BYTES`.

WHAT it does COUNT times with so many BYTES: "calls" submits calls that no engine can run, and waits where `submit`
waits; "overdraft" sends such calls whatever the scheduler says; "results" submits calls with large results and reads
none. Prints a line when it is at it, and holds what it has until its standard input ends.
"""

from __future__ import annotations

import contextlib
import select
import sys
import threading
import time

from trio_sched import Client
from trio_sched.cli.asking import Conversation
from trio_sched.transport.connection import read_connection_file
from trio_sched.transport.zmq_blocking import BlockingDealer
from trio_sched.wire import native

NOBODY_S = native.Options(resources={"nobody has this": 1.0})
GRACE_S = 3.0
"""What it takes in this time is what it gets."""


def calls(path: str, count: int, size: int) -> None:
    """Submit like an honest client, in a thread that may wait for ever."""
    client = Client(path, name="greedy", cancel_on_leave=True)
    submitted = 0

    def submit() -> None:
        nonlocal submitted
        view = client.options(resources=NOBODY_S.resources)
        with contextlib.suppress(RuntimeError):  # the client is shut down while it waits
            for number in range(count):
                view.submit(len, bytes(size) + str(number).encode())
                submitted += 1

    threading.Thread(target=submit, daemon=True).start()
    time.sleep(GRACE_S)
    print(f"submitted {submitted}", flush=True)
    sys.stdin.read()
    client.shutdown(wait=True, cancel_futures=True)


def is_paused(path: str) -> bool:
    """Whether the scheduler sends nothing more of this client to engines."""
    with Conversation(path) as scheduler:
        return any(row.get("name") == "greedy" and row["paused"] for row in scheduler.query("status")["clients"])


def raw(path: str, made: list[native.Call], frames: list[bytes], *, until_paused: bool = False) -> None:
    """Send these calls one by one and read no answers but the first, nor leave properly."""
    connection = read_connection_file(path)
    with BlockingDealer(connection) as dealer:
        hello = native.Hello(role="client", token=connection.token, name="greedy", cancel_on_leave=True)
        dealer.send([native.encode(hello)])
        assert dealer.receive(20.0) is not None
        for call in made:
            dealer.send([native.encode(native.Submit([call])), *frames])
        time.sleep(GRACE_S)
        while until_paused and not is_paused(path):
            dealer.send([native.encode(native.Ping())])
            time.sleep(0.1)
        print(f"sent {len(made)}", flush=True)
        while not select.select([sys.stdin], [], [], 1.0)[0]:
            dealer.send([native.encode(native.Ping())])


def main(path: str, what: str, count: int, size: int) -> None:
    """Attack."""
    if what == "calls":
        calls(path, count, size)
    elif what == "overdraft":
        made = [native.Call(n, call="builtins:len", args=[], frames=1, options=NOBODY_S) for n in range(1, count + 1)]
        raw(path, made, [bytes(size)])
    else:
        made = [native.Call(n, call="operator:mul", args=["x", size]) for n in range(1, count + 1)]
        raw(path, made, [], until_paused=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
