"""The receive loop of the asynchronous and the blocking socket: take messages from a ZeroMQ socket without blocking.

Frames of less than `LARGE_BYTES` are copied into `bytes`, which costs less than keeping libzmq's message alive. Larger
frames stay in libzmq's memory and are returned as memoryviews. Frame 0 of a message from a ROUTER is the routing id of
the peer.

Cost: 1.5 us for a message of two frames, half of it in libzmq. `recv_multipart` takes 3.3 us, because it reads RCVMORE
after each frame. Reading the role that a CURVE key proved, or the descriptor of the connection, adds 0.4 us a message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import zmq

from trio_sched.transport.curve import MARKS

Frame: TypeAlias = bytes | bytearray | memoryview
#: Frames of at least this size are not copied. At about this size a copy costs more than the bookkeeping without one.
LARGE_BYTES = 64 * 1024
#: Messages taken at once: enough to spread the cost of a wake-up, few enough that other tasks are not delayed.
RECEIVE_LIMIT = 256
SNDMORE = int(zmq.SNDMORE)
POLLIN = int(zmq.POLLIN)
#: Stands for the descriptor of a message that libzmq made itself, such as the end of a subscription.
NO_SOURCE = -1
_NOBLOCK = int(zmq.NOBLOCK)
_SRCFD = int(zmq.SRCFD)


def methods(socket: zmq.Socket[bytes]) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Return recv, send and get of the socket's base class. The wrappers of `zmq.Socket` would double their cost."""
    base: Any = super(zmq.Socket, socket)  # the stubs declare these methods on the subclass only
    return socket.recv, base.send, base.get


def drain(
    receive: Callable[..., Any],
    limit: int,
    *,
    routed: bool,
    marked: bool = False,
    sources: list[int] | None = None,
) -> list[list[Frame]]:
    """Take the available messages, at most `limit`. Fewer than `limit`: the socket reported zmq.Again.

    `receive` is the first of `methods`. With `routed`, frame 0 is a routing id. With `marked`, the routing id gets a
    prefix: the mark of the role that the key of its connection proved (`curve.MARKS`). A list `sources` gets, for each
    message, the descriptor of the connection that delivered it.
    """
    messages: list[list[Frame]] = []
    add = messages.append
    try:
        for _ in range(limit):
            parts: list[Frame] = [receive(_NOBLOCK)] if routed else []
            frame = receive(_NOBLOCK, False)
            if sources is not None:
                sources.append(_source(frame))
            if marked:
                parts[0] = MARKS[frame.get("User-Id")] + parts[0]
            parts.append(frame.bytes if len(frame) < LARGE_BYTES else frame.buffer)
            while frame.more:
                frame = receive(_NOBLOCK, False)
                parts.append(frame.bytes if len(frame) < LARGE_BYTES else frame.buffer)
            add(parts)
    except zmq.Again:
        pass
    return messages


def _source(frame: zmq.Frame) -> int:
    try:
        return int(frame.get(_SRCFD))
    except zmq.ZMQError:
        return NO_SOURCE
