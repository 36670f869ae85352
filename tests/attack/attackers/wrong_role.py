"""Pose as a client with the key of an engine and the token of a client: `wrong_role.py ENGINE_FILE CLIENT_FILE`.

Each connection says Hello and asks a question without one, under routing ids such as peers have that came before.
Prints a line when the first connection was answered; at the end of its standard input, how often it was refused, how
often it was let in, and how many of its questions were answered.
"""

from __future__ import annotations

import sys
import threading

import zmq

from trio_sched.transport import curve
from trio_sched.transport.connection import Connection, read_connection_file
from trio_sched.wire import native

ANSWER_MS = 1000


def attempt(connection: Connection, token: str, number: int) -> list[object]:
    """What one connection was told."""
    messages: list[object] = []
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        if number % 2:
            socket.routing_id = b"\0" + number.to_bytes(4, "big")
        curve.be_client(socket, connection)
        socket.connect(connection.address)
        for message in (native.Query(1, "status"), native.Hello(role="client", token=token), native.Query(2, "status")):
            socket.send(native.encode(message))
        while len(messages) < 3 and socket.poll(ANSWER_MS):
            messages.append(native.decode_to_client(socket.recv()))
    return messages


def main(engine_file: str, client_file: str) -> None:
    """Attack."""
    connection, token = read_connection_file(engine_file), read_connection_file(client_file).token
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    told = attempt(connection, token, 0)
    print("under way", flush=True)
    number = 0
    while not ended.is_set():
        number += 1
        told += attempt(connection, token, number)
    refused = sum(isinstance(message, native.Error) and message.kind == "unauthenticated" for message in told)
    welcomed = sum(isinstance(message, native.Welcome) for message in told)
    answered = sum(isinstance(message, native.Reply) for message in told)
    print(f"refused {refused} welcomed {welcomed} answered {answered}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
