"""ZeroMQ without an event loop, for the worker and the blocking client's thread. Imports neither trio nor anyio.

One thread owns the dealer: it sends, receives and waits. Other threads only call `wake`. The descriptor is
edge-triggered (see zmq_socket.py). With one owner it is enough to read EVENTS before each wait.

A wake-up costs a system call and a context switch, so `wake` makes the call only while the owner waits. The two sides
write and read `_wake_requested` and `_is_waiting` in opposite orders, so that at least one of them sees the other:

    owner:  waiting = True;  if not requested: poll        other:  requested = True;  if waiting: write to the eventfd

After a `wait` that a `wake` has ended, the owner sees what the other thread stored before that `wake`: `wait` clears
`_wake_requested` only after it has seen it.
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

from trio_sched.transport.connection_info import ConnectionInfo
from trio_sched.transport.endpoint import LINGER_MS, connect_dealer
from trio_sched.transport.multipart import LARGE_BYTES, POLLIN, RECEIVE_LIMIT, SNDMORE, Frame, drain, methods

#: The value written to an eventfd, which needs eight bytes. A socket takes any bytes.
_ONE = (1).to_bytes(8, sys.byteorder)


class BlockingDealer:
    """A DEALER connected to a scheduler, which may start later. All methods but `wake` belong to one thread."""

    def __init__(self, connection: ConnectionInfo, *, max_message_bytes: int = 0) -> None:
        """Connect.

        :raises ConfigError: the address or the keys are not valid, or the address is TCP without keys.
        """
        self._context: zmq.Context[Any] = zmq.Context()
        try:
            self._socket = connect_dealer(self._context, connection, max_message_bytes)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._receive_frame, self._send_frame, self._option = methods(self._socket)
        self._wakeup = _Wakeup()
        self._poll = _poll_function(int(self._socket.get(zmq.FD)), self._wakeup.descriptor)
        self._is_waiting = False
        self._wake_requested = False
        self._closed = False

    # ---- for the owner ----------------------------------------------------------------------------------------------

    def send(self, frames: Sequence[Frame]) -> None:
        """Queue one message; never blocks. Large frames are not copied, so the caller must not change them."""
        send_frame = self._send_frame
        for frame in frames[:-1]:
            send_frame(frame, SNDMORE, len(frame) < LARGE_BYTES, False)
        frame = frames[-1]
        send_frame(frame, 0, len(frame) < LARGE_BYTES, False)

    def drain(self, limit: int = RECEIVE_LIMIT) -> list[list[Frame]]:
        """Take the available messages, at most `limit`. Small frames are bytes, large ones memoryviews of libzmq's
        memory.
        """
        return drain(self._receive_frame, limit, routed=False)

    def receive(self, timeout_s: float | None = None) -> list[Frame] | None:
        """Return the next message; None: none arrived in time, or a thread called `wake`."""
        messages = self.drain(1)
        if not messages and self.wait(timeout_s):
            messages = self.drain(1)
        return messages[0] if messages else None

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until a message is available or `wake` was called. False: the time has passed first."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while True:
                self._is_waiting = True  # in each round: a late `wake` may have reset it
                if self._wake_requested:
                    self._wake_requested = False
                    return True
                if self._option(zmq.EVENTS) & POLLIN:
                    return True
                left_ms = None if until is None else (until - time.monotonic()) * 1e3
                if left_ms is not None and left_ms <= 0.0:
                    return False
                if self._wakeup.descriptor in self._poll(left_ms):
                    self._wakeup.clear()
        finally:
            self._is_waiting = False

    def close(self) -> None:
        """Close the socket after at most `LINGER_MS` for queued messages. A second call has no effect."""
        if self._closed:
            return
        self._closed = True
        self._context.destroy(linger=LINGER_MS)
        self._wakeup.close()

    def __enter__(self) -> BlockingDealer:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ---- for other threads ------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Make the owner's `wait` return now, or its next one at once. From any thread."""
        self._wake_requested = True
        if self._is_waiting:
            self._is_waiting = False  # so that the next `wake` makes no system call
            self._wakeup.set()


def _poll_function(*descriptors: int) -> Callable[[float | None], Collection[int]]:
    """Return a function that waits until one of the descriptors is readable, for a number of milliseconds at most, and
    returns the readable ones.
    """
    if not hasattr(select, "poll"):  # Windows, where the descriptors are sockets

        def select_readable(left_ms: float | None) -> Collection[int]:
            return select.select(descriptors, (), (), None if left_ms is None else left_ms / 1e3)[0]

        return select_readable
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return lambda left_ms: [descriptor for descriptor, _ in poll.poll(left_ms)]


class _Wakeup:
    """A flag that can be polled together with the socket: an eventfd, or a socket pair on systems without one. To set
    it after `close` has no effect.
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
        self._close_lock = threading.RLock()  # reentrant: a signal handler may call `set` while its thread does
        self._closed = False

    def set(self) -> None:
        with self._close_lock:  # after a close, the descriptor number may belong to another file
            if not self._closed:
                with contextlib.suppress(BlockingIOError):  # a full pair is readable already
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
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
            for end in self._pair:
                end.close()
            if not self._pair:
                os.close(self.descriptor)
