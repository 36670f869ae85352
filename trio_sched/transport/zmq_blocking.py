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
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import zmq

from trio_sched.transport.connection import Connection
from trio_sched.transport.endpoint import LINGER_MS, connect_dealer
from trio_sched.transport.multipart import LARGE_BYTES, POLLIN, RECEIVE_LIMIT, SNDMORE, Frame, drain, methods

_ONE = (1).to_bytes(8, sys.byteorder)
"""What an eventfd takes; a pipe takes anything."""


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
        self._poll = select.poll()
        self._poll.register(int(self._socket.get(zmq.FD)), select.POLLIN)
        self._poll.register(self._alarm.descriptor, select.POLLIN)
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
                for descriptor, _ in self._poll.poll(left_ms):
                    if descriptor == self._alarm.descriptor:
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


class _Alarm:
    """Something to poll beside the socket: an eventfd, or a pipe where there is none. Ringing a closed one does
    nothing.
    """

    def __init__(self) -> None:
        if sys.platform == "linux":
            self.descriptor = self._write_end = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self.descriptor, self._write_end = os.pipe()
            os.set_blocking(self.descriptor, False)
            os.set_blocking(self._write_end, False)
        self._closing = threading.Lock()
        self._closed = False

    def ring(self) -> None:
        with self._closing:  # else the number could be another file's by now
            if not self._closed:
                with contextlib.suppress(BlockingIOError):  # a full pipe rings already
                    os.write(self._write_end, _ONE)

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 4096)

    def close(self) -> None:
        with self._closing:
            self._closed = True
            for descriptor in {self.descriptor, self._write_end}:
                os.close(descriptor)
