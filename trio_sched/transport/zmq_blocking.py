"""ZeroMQ without an event loop, for the worker and the blocking client's thread. Imports neither trio nor anyio.

One thread owns the dealer: it sends, receives and waits. Other threads only `wake` it. The descriptor is edge-triggered
(see zmq_socket.py); with one owner it is enough to look at EVENTS before each sleep.

Waking costs a system call and a context switch, so it is done only when the owner sleeps. `_woken` and `_asleep` are
written and read in opposite orders by the two sides, so that one of them always sees the other:

    owner:  asleep = True;  if not woken: sleep        other:  woken = True;  if asleep: write to the eventfd

What the other thread put somewhere before `wake` is seen by the owner after the `wait` that this ended: `_woken` is
cleared inside, and only when it was seen.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Any

import zmq

from trio_sched.transport.connection import Connection
from trio_sched.transport.endpoint import LINGER_MS, connect_dealer
from trio_sched.transport.multipart import LARGE_BYTES, POLLIN, RECEIVE_LIMIT, SNDMORE, Frame, drain, methods

_ONE = (1).to_bytes(8, sys.byteorder)
"""What an eventfd takes; a socket takes anything."""


class BlockingDealer:
    """A DEALER connected to a scheduler (which need not be there yet). Everything but `wake` belongs to one thread."""

    def __init__(self, connection: Connection, *, max_message_bytes: int = 0) -> None:
        """:raises ConfigError: the address or the keys are wrong, or TCP has no keys."""
        self._context: zmq.Context[Any] = zmq.Context()
        try:
            self._socket = connect_dealer(self._context, connection, max_message_bytes)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._receive_frame, self._send_frame, self._option = methods(self._socket)
        self._alarm = _Alarm()
        self._sleep = _sleeper(int(self._socket.get(zmq.FD)), self._alarm.descriptor)
        self._asleep = False
        self._woken = False
        self._closed = False

    # ---- the owner's side -------------------------------------------------------------------------------------------

    def send(self, frames: Sequence[Frame]) -> None:
        """Queue one message; never blocks. Large frames are not copied: leave them unchanged after this."""
        send_frame = self._send_frame
        for frame in frames[:-1]:
            send_frame(frame, SNDMORE, len(frame) < LARGE_BYTES, False)
        frame = frames[-1]
        send_frame(frame, 0, len(frame) < LARGE_BYTES, False)

    def drain(self, limit: int = RECEIVE_LIMIT) -> list[list[Frame]]:
        """The messages that are there, at most `limit`. Small frames are bytes, large ones memoryviews of libzmq's own
        memory.
        """
        return drain(self._receive_frame, limit, False)

    def receive(self, timeout_s: float | None = None) -> list[Frame] | None:
        """The next message, or None when there was none in time, or somebody called `wake`."""
        messages = drain(self._receive_frame, 1, False)
        if not messages and self.wait(timeout_s):
            messages = drain(self._receive_frame, 1, False)
        return messages[0] if messages else None

    def wait(self, timeout_s: float | None = None) -> bool:
        """Sleep until something can be received or `wake` was called. False: neither happened in time."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while True:
                self._asleep = True  # each time round: a late `wake` may have taken it back
                if self._woken:
                    self._woken = False
                    return True
                if self._option(zmq.EVENTS) & POLLIN:
                    return True
                left_ms = None if until is None else (until - time.monotonic()) * 1e3
                if left_ms is not None and left_ms <= 0.0:
                    return False
                if self._alarm.descriptor in self._sleep(left_ms):
                    self._alarm.clear()
        finally:
            self._asleep = False

    def close(self) -> None:
        """Close, trying for a moment to get rid of what was sent. Twice does no harm."""
        if self._closed:
            return
        self._closed = True
        self._context.destroy(linger=LINGER_MS)
        self._alarm.close()

    def __enter__(self) -> BlockingDealer:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ---- the other side ---------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """From any thread: let the owner's `wait` return now, or its next one at once."""
        self._woken = True
        if self._asleep:
            self._asleep = False  # the next one need not ring again
            self._alarm.ring()


def _sleeper(*descriptors: int) -> Callable[[float | None], Collection[int]]:
    """A function that sleeps until one of the descriptors is readable, or for so many milliseconds; returns those that
    are.
    """
    if not hasattr(select, "poll"):  # Windows, where they are sockets

        def sleep(left_ms: float | None) -> Collection[int]:
            return select.select(descriptors, (), (), None if left_ms is None else left_ms / 1e3)[0]

        return sleep
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return lambda left_ms: [descriptor for descriptor, _ in poll.poll(left_ms)]


class _Alarm:
    """Something to poll beside the socket: an eventfd, or a socket pair where there is none. Ringing a closed one does
    nothing.
    """

    def __init__(self) -> None:
        self._pair: tuple[socket.socket, ...] = ()
        if sys.platform == "linux":
            self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._pair = socket.socketpair()
            for end in self._pair:
                end.setblocking(False)
            self.descriptor = self._pair[0].fileno()
        self._closing = threading.RLock()  # a signal handler may ring while its thread does
        self._closed = False

    def ring(self) -> None:
        with self._closing:  # else the number could be another file's by now
            if not self._closed:
                with contextlib.suppress(BlockingIOError):  # a full pair rings already
                    if self._pair:
                        self._pair[1].send(_ONE)
                    else:
                        os.write(self.descriptor, _ONE)

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if self._pair:
                self._pair[0].recv(4096)
            else:
                os.read(self.descriptor, 8)

    def close(self) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed = True
            for end in self._pair:
                end.close()
            if not self._pair:
                os.close(self.descriptor)
