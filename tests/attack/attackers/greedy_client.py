"""A client that takes memory: `greedy_client.py CONNECTION_FILE WHAT COUNT BYTES`.

WHAT is done COUNT times with BYTES bytes: "calls" submits calls that no engine can run, and waits where `submit` waits.
"overdraft" sends such calls without regard to the credit. "results" submits calls with large results and reads no
result. Prints a line when the attack has begun, and keeps the memory in use until its standard input ends.
"""

from __future__ import annotations

import contextlib
import select
import sys
import threading
import time

from trio_sched import Client
from trio_sched.cli.admin_client import AdminClient
from trio_sched.transport.connection_info import read_connection_file
from trio_sched.transport.zmq_blocking import BlockingDealer
from trio_sched.wire import native

UNSATISFIABLE = native.Options(resources={"no engine has this": 1.0})
#: The amount that is submitted within this time is measured.
GRACE_S = 3.0


def calls(path: str, count: int, size: int) -> None:
    """Submit like an honest client, in a thread that may wait forever."""
    client = Client(path, name="greedy", cancel_on_leave=True)
    submitted = 0

    def submit() -> None:
        nonlocal submitted
        view = client.options(resources=UNSATISFIABLE.resources)
        with contextlib.suppress(RuntimeError):  # the client is closed during the wait
            for number in range(count):
                view.submit(len, bytes(size) + str(number).encode())
                submitted += 1

    threading.Thread(target=submit, daemon=True).start()
    time.sleep(GRACE_S)
    print(f"submitted {submitted}", flush=True)
    sys.stdin.read()
    client.shutdown(wait=True, cancel_futures=True)


def is_paused(path: str) -> bool:
    """Whether the scheduler has paused this client."""
    with AdminClient(path) as scheduler:
        return any(row.get("name") == "greedy" and row["paused"] for row in scheduler.query("status")["clients"])


def raw(path: str, made: list[native.Call], frames: list[bytes], *, until_paused: bool = False) -> None:
    """Send calls one by one, read only the first answer, and send no Bye."""
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
    """Run the attack."""
    if what == "calls":
        calls(path, count, size)
    elif what == "overdraft":
        made = [
            native.Call(n, call="builtins:len", args=[], frames=1, options=UNSATISFIABLE) for n in range(1, count + 1)
        ]
        raw(path, made, [bytes(size)])
    else:
        made = [native.Call(n, call="operator:mul", args=["x", size]) for n in range(1, count + 1)]
        raw(path, made, [], until_paused=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
