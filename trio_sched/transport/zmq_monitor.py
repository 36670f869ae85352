"""Enforcement of the connection limits on a bound ZeroMQ socket: count its connections, and close the ones that
`ConnectionLimits` selects.

libzmq accepts every connection before a message can be read or a key be checked. The monitor of a socket reports each
accepted connection with the number of its descriptor. Descriptor numbers are reused, so a connection is identified by
the inode as well. It is closed by a shutdown, after which libzmq ends the session and closes the descriptor.

A thread reads the monitor, because the event loop may be busy for longer than a thousand connections take. The monitor
holds a limited number of events (`MONITOR_HWM` and libzmq's own 1,000). If the thread falls behind, libzmq's I/O thread
waits for it and accepts no connection meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket as sockets
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import zmq

from trio_sched.transport.connection_limits import ConnectionLimits, TrackedConnection, address_group

MONITOR_HWM = 1
_EVENT = struct.Struct("=Hi")
_ACCEPTED, _DISCONNECTED = int(zmq.EVENT_ACCEPTED), int(zmq.EVENT_DISCONNECTED)
_STOPPED = int(zmq.EVENT_MONITOR_STOPPED)
#: Up to this descriptor limit the monitor can hold more events than the reserve, so the open descriptors are counted.
_FEW_DESCRIPTORS = 8_192
_DESCRIPTOR_CHECK_S = 0.005
#: Shortest time for which a gate is closed.
_GATE_S = 0.1
#: How long `join` waits. A socket that closes first sends its queued messages.
_STOP_TIMEOUT_S = 2.0
#: Length of the accept queue of a closed gate.
_GATE_BACKLOG = 16


class ConnectionMonitor:
    """The connections of one socket, counted and closed as `limits` decides.

    Create it before the socket is bound, and `start` it afterwards. It ends when the socket is closed; `join` it before
    the context is terminated.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        socket: zmq.Socket[bytes],
        limits: ConnectionLimits,
        *,
        records_events: bool = False,
    ) -> None:
        """Attach to the socket, and set the time limit of its handshakes. `records_events`: for `take_events`."""
        #: Whether some connections have not delivered a message yet, so that `mark_active` must be called.
        self.has_silent_connections = False
        self._limits = limits
        #: By descriptor.
        self._connections: dict[int, DescriptorConnection] = {}
        self._silent: set[int] = set()
        #: Descriptors that delivered a message before the event of their acceptance was read.
        self._active_early: set[int] = set()
        self._lock = threading.Lock()
        self._gate: AcceptGate | None = None
        self._gate_until = 0.0
        self._next_descriptor_check = 0.0
        address = f"inproc://monitor-{id(self):x}"
        socket.backlog = min(int(socket.backlog), limits.bounds.burst)
        socket.handshake_ivl = max(int(limits.bounds.handshake_s * 1e3), 1)
        socket.monitor(address, _ACCEPTED | _DISCONNECTED | _STOPPED)
        self._events: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self._events.rcvhwm = MONITOR_HWM
        self._events.linger = 0
        self._events.connect(address)
        self._records_events = records_events
        self._recorded: deque[tuple[bool, int]] = deque()
        self._is_waiting = False
        self._poller, self._loop_poller = select.poll(), select.poll()  # one for each thread
        for poller in (self._poller, self._loop_poller):
            poller.register(int(self._events.get(zmq.FD)), select.POLLIN)
        self._thread = threading.Thread(target=self._run, name="trio_sched connections", daemon=True)

    def start(self, address: str) -> None:
        """Start to count the connections to this address, including those that were accepted since the bind."""
        if address.startswith("ipc://"):
            self._gate = AcceptGate(address.removeprefix("ipc://"))
        self._thread.start()

    def take_events(self) -> Iterator[tuple[bool, int]]:
        """Yield (whether accepted, else ended; descriptor) for each recorded event since the last call, in order."""
        while self._recorded:
            yield self._recorded.popleft()

    def is_caught_up(self) -> bool:
        """Whether all events that libzmq has emitted were read. For the thread of the event loop."""
        return self._is_waiting and not self._loop_poller.poll(0)

    def join(self) -> None:
        """Wait until libzmq has closed the socket and the thread has ended."""
        self._thread.join(_STOP_TIMEOUT_S)

    def discard(self) -> None:
        """Release the monitor of a socket that was closed before `start`."""
        self._events.close()

    def mark_active(self, descriptor: int) -> None:
        """Mark a connection as established, because a message was received through this descriptor."""
        if descriptor in self._connections and descriptor not in self._silent:
            return
        with self._lock:
            connection = self._connections.get(descriptor)
            if connection is None:
                self._active_early.add(descriptor)
            elif descriptor in self._silent:
                self._silent.remove(descriptor)
                self.has_silent_connections = bool(self._silent)
                self._limits.establish(connection)

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                timeout_s = None
                if self._gate is not None and self._gate.is_closed:
                    self._tend_gate(self._gate)
                    timeout_s = _GATE_S
                event = self._next_event(timeout_s)
                if event is None:
                    continue
                number, descriptor = _EVENT.unpack(event)
                if number == _STOPPED:
                    break
                if self._records_events:
                    self._recorded.append((number == _ACCEPTED, descriptor))
                self._count(number == _ACCEPTED, descriptor)
                if self._gate is not None and self._limits.bounds.descriptors <= _FEW_DESCRIPTORS:
                    self._check_descriptors()
        except zmq.ContextTerminated:
            pass
        finally:
            self._events.close()
            if self._gate is not None:
                self._gate.discard()
            for connection in self._connections.values():
                self._limits.remove(connection)

    def _next_event(self, timeout_s: float | None) -> bytes | None:
        """Return the next event; None: possibly none arrived within the time."""
        try:
            return self._events.recv_multipart(zmq.NOBLOCK)[0]
        except zmq.Again:
            self._is_waiting = True
            self._poller.poll(None if timeout_s is None else timeout_s * 1e3)
            self._is_waiting = False  # before the receive, after which the descriptor may no longer be readable
            return None

    def _count(self, accepted: bool, descriptor: int) -> None:
        """Count a connection that was accepted or has ended."""
        former = self._connections.pop(descriptor, None)
        if former is not None:
            self._limits.remove(former)
        connection = DescriptorConnection.of(descriptor) if accepted else None
        if connection is not None and not self._limits.add(connection):
            connection = None
            self._close_gate()
        with self._lock:
            self._silent.discard(descriptor)
            if connection is not None:
                self._connections[descriptor] = connection
                if descriptor in self._active_early:
                    self._limits.establish(connection)
                else:
                    self._silent.add(descriptor)
            self._active_early.discard(descriptor)
            self.has_silent_connections = bool(self._silent)

    def _check_descriptors(self) -> None:
        """Close the gate if descriptors of the reserve are used up faster than connections are counted."""
        now = time.monotonic()
        if self._next_descriptor_check > now:
            return
        self._next_descriptor_check = now + _DESCRIPTOR_CHECK_S
        try:
            is_short = self._limits.bounds.is_short(len(os.listdir("/dev/fd")))
        except OSError:  # the listing itself needs a descriptor
            is_short = True
        if is_short:
            self._close_gate()

    def _close_gate(self) -> None:
        if self._gate is not None:
            self._gate.close()
            self._gate_until = time.monotonic() + _GATE_S

    def _tend_gate(self, gate: AcceptGate) -> None:
        if time.monotonic() >= self._gate_until:
            gate.refuse_pending()
            if self._limits.admits_new_connections:
                gate.open()
            else:
                self._gate_until = time.monotonic() + _GATE_S


class DescriptorConnection(TrackedConnection):
    """A connection that libzmq owns, identified by its descriptor and inode."""

    __slots__ = ("_descriptor", "_inode")

    handshake_is_timed = True

    def __init__(self, descriptor: int, inode: int, address: str) -> None:
        super().__init__(address)
        self._descriptor = descriptor
        self._inode = inode

    @classmethod
    def of(cls, descriptor: int) -> DescriptorConnection | None:
        """Return the connection of a descriptor; None: the descriptor is closed or not a connection."""
        try:
            inode = os.fstat(descriptor).st_ino
            socket = sockets.socket(fileno=descriptor)
        except OSError:
            return None
        try:
            local = socket.family not in (sockets.AF_INET, sockets.AF_INET6)
            address = "" if local else address_group(socket.getpeername()[0])
        except OSError:
            return None
        finally:
            socket.detach()
        return cls(descriptor, inode, address)

    def is_open(self) -> bool:
        """Whether the descriptor still belongs to this connection."""
        try:
            return os.fstat(self._descriptor).st_ino == self._inode
        except OSError:
            return False

    def close(self) -> None:
        """Shut the connection down; libzmq then closes the descriptor."""
        if not self.is_open():
            return
        try:
            socket = sockets.socket(fileno=self._descriptor)
        except OSError:
            return
        try:
            socket.shutdown(sockets.SHUT_RDWR)
        except OSError:
            pass  # the peer has closed it already
        finally:
            socket.detach()


class AcceptGate:
    """Stops new connections to an ipc path, which libzmq itself cannot. For one thread.

    libzmq accepts every connection to its socket, and aborts the process when no descriptor is left for one. While the
    gate is closed, a listening decoy socket is at the path instead. New connections wait in its accept queue, or fail
    when the queue is full, until `refuse_pending` closes them. Accepted connections are not affected. The peers of this
    package connect again by themselves.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        #: The path of libzmq's socket while the gate is closed.
        self._moved_path = f"{path}~"
        self._decoy: sockets.socket | None = None

    @property
    def is_closed(self) -> bool:
        """Whether new connections are refused."""
        return self._decoy is not None

    def close(self) -> None:
        """Refuse new connections. Has no effect where the path cannot be replaced."""
        if self._decoy is not None or sys.platform == "win32":
            return
        new = f"{self._path}^"
        decoy = sockets.socket(sockets.AF_UNIX)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
            decoy.bind(new)
            decoy.setblocking(False)
            decoy.listen(_GATE_BACKLOG)
            os.rename(self._path, self._moved_path)
            os.rename(new, self._path)
        except OSError:
            decoy.close()
            with contextlib.suppress(OSError):
                os.unlink(new)
            return
        self._decoy = decoy

    def refuse_pending(self) -> None:
        """Close the connections in the accept queue of the decoy."""
        if self._decoy is None:
            return
        with contextlib.suppress(OSError):  # the queue is empty
            for _ in range(_GATE_BACKLOG):
                self._decoy.accept()[0].close()

    def open(self) -> None:
        """Accept new connections again."""
        if self._decoy is None:
            return
        with contextlib.suppress(OSError):
            os.rename(self._moved_path, self._path)
        self._decoy.close()
        self._decoy = None

    def discard(self) -> None:
        """Remove the decoy after libzmq's socket was closed. The file at the path belongs to the code that bound it."""
        if self._decoy is not None:
            self._decoy.close()
            self._decoy = None
            with contextlib.suppress(OSError):
                os.unlink(self._moved_path)
