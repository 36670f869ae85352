"""Open connections and send nothing: `silent_connections.py ADDRESS COUNT`, a Unix path or HOST:PORT.

Prints how many connections were opened and refused, keeps them until its standard input ends, and prints how many of
them the server has closed.
"""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import sys


def connect(address: str) -> socket.socket:
    """Open a connection.

    :raises OSError: the connection was refused.
    """
    if "/" in address:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(2)
        try:
            connection.connect(address)
        except BaseException:
            connection.close()
            raise
        return connection
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), 2)


def main(address: str, count: int) -> None:
    """Run the attack."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    connections: list[socket.socket] = []
    refused = 0
    for _ in range(count):
        with contextlib.suppress(OSError):
            connections.append(connect(address))
            continue
        refused += 1
    print(f"opened {len(connections)} refused {refused}", flush=True)
    sys.stdin.read()
    poll = select.poll()
    for connection in connections:
        poll.register(connection, select.POLLIN)
    print(f"closed {len(poll.poll(0))}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
