"""Act as a client with the key of an engine and the token of a client: `wrong_role.py ENGINE_FILE CLIENT_FILE`.

Each connection sends a query before and after its Hello, under routing ids like those of former peers. Prints a line
after the first connection; at the end of its standard input, the number of refused Hellos, of Welcomes, and of answered
queries.
"""

from __future__ import annotations

import sys
import threading

import zmq

from trio_sched.transport import curve
from trio_sched.transport.connection_info import ConnectionInfo, read_connection_file
from trio_sched.wire import native

ANSWER_MS = 1000


def attempt(connection: ConnectionInfo, token: str, number: int) -> list[object]:
    """Open one connection, and return the messages that it received."""
    messages: list[object] = []
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        if number % 2:
            socket.routing_id = b"\0" + number.to_bytes(4, "big")
        curve.set_client_options(socket, connection)
        socket.connect(connection.address)
        for message in (native.Query(1, "status"), native.Hello(role="client", token=token), native.Query(2, "status")):
            socket.send(native.encode(message))
        while len(messages) < 3 and socket.poll(ANSWER_MS):
            messages.append(native.decode_to_client(socket.recv()))
    return messages


def main(engine_file: str, client_file: str) -> None:
    """Run the attack."""
    connection, token = read_connection_file(engine_file), read_connection_file(client_file).token
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    received = attempt(connection, token, 0)
    print("started", flush=True)
    number = 0
    while not ended.is_set():
        number += 1
        received += attempt(connection, token, number)
    refused = sum(isinstance(message, native.Error) and message.kind == "unauthenticated" for message in received)
    welcomed = sum(isinstance(message, native.Welcome) for message in received)
    answered = sum(isinstance(message, native.Reply) for message in received)
    print(f"refused {refused} welcomed {welcomed} answered {answered}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
