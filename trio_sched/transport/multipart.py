"""Taking messages out of a ZeroMQ socket without waiting: the loop on which both faces spend their time.

Small frames are copied into bytes, which is cheaper than keeping libzmq's message alive; large ones stay where libzmq
put them and are seen through a memoryview. The first frame from a ROUTER is the peer's routing id. Costs 1.5 us for a
message of two frames, of which libzmq itself takes half; `recv_multipart` takes 3.3 (it asks for RCVMORE after each
frame). Asking which role a CURVE key proved takes 0.4 us more, where there are keys.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeAlias

import zmq

from trio_sched.transport.curve import MARKS

Frame: TypeAlias = bytes | bytearray | memoryview
LARGE_BYTES = 64 * 1024
"""From here on a frame is not copied: about where a copy begins to cost more than the bookkeeping of not making it."""
RECEIVE_LIMIT = 256
"""Messages taken at once: enough to spread the cost of a wake-up, few enough that others get their turn."""
SNDMORE = int(zmq.SNDMORE)
POLLIN = int(zmq.POLLIN)
_NOBLOCK = int(zmq.NOBLOCK)
_SRCFD = int(zmq.SRCFD)


def methods(socket: zmq.Socket[bytes]) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """The socket's recv, send and get as the base class has them: Socket's own wrappers would double their cost."""
    base: Any = super(zmq.Socket, socket)  # typed as having none of them
    return socket.recv, base.send, base.get


def drain_traced(receive: Callable[..., Any], limit: int, routed: bool) -> tuple[list[list[Frame]], list[int]]:
    """As `drain`; second, the descriptor of the connection that each message came from (0.4 us more a message)."""
    messages: list[list[Frame]] = []
    sources: list[int] = []
    try:
        for _ in range(limit):
            parts: list[Frame] = [receive(_NOBLOCK)] if routed else []
            frame = receive(_NOBLOCK, False)
            sources.append(_source(frame))
            parts.append(frame.bytes if len(frame) < LARGE_BYTES else frame.buffer)
            while frame.more:
                frame = receive(_NOBLOCK, False)
                parts.append(frame.bytes if len(frame) < LARGE_BYTES else frame.buffer)
            messages.append(parts)
    except zmq.Again:
        pass
    return messages, sources


def _source(frame: zmq.Frame) -> int:
    try:
        return int(frame.get(_SRCFD))
    except zmq.ZMQError:  # libzmq made the message itself: a subscription ends with its connection
        return -1


def drain(
    receive: Callable[..., Any],
    limit: int,
    routed: bool,
    proved: bool = False,
    heard: Callable[[int], None] | None = None,
) -> list[list[Frame]]:
    """At most `limit` messages that are there; `receive` is the socket's own recv. Fewer: it ended with zmq.Again.

    `proved`: each routing id gets the mark of the role that the key of its connection proved (`curve.MARKS`) in front.
    `heard` is called with the descriptor of the connection through which each message came (0.3 us).
    """
    messages: list[list[Frame]] = []
    add = messages.append
    try:
        for _ in range(limit):
            parts: list[Frame] = [receive(_NOBLOCK)] if routed else []
            frame = receive(_NOBLOCK, False)
            if heard is not None:
                with contextlib.suppress(zmq.ZMQError):  # a message from this process has none
                    heard(frame.get(zmq.SRCFD))
            if proved:
                parts[0] = MARKS[frame.get("User-Id")] + parts[0]
            parts.append(frame.bytes if len(frame) < LARGE_BYTES else frame.buffer)
            while frame.more:
                frame = receive(_NOBLOCK, False)
                parts.append(frame.bytes if len(frame) < LARGE_BYTES else frame.buffer)
            add(parts)
    except zmq.Again:
        pass
    return messages
