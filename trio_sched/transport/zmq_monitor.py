"""Counting the connections of a bound ZeroMQ socket, and closing one.

libzmq accepts whoever connects, before a message can be read or a key checked. Its monitor tells of each accepted
connection with the number of its descriptor. A descriptor is identified by its inode as well, since numbers are used
again; it is closed by shutting its connection down, after which libzmq ends the session and closes the descriptor.

A thread reads the monitor, because the event loop may be busy for longer than a thousand connections take. The monitor
holds a bounded number of events (`MONITOR_HWM` and libzmq's own 1,000): when even the thread is late, libzmq's I/O
thread waits for it and accepts nobody meanwhile.
"""

from __future__ import annotations

import os
import select
import socket as sockets
import struct
import threading
import time
from collections import deque
from typing import Any

import zmq

from trio_sched.transport.connection_limits import ConnectionLimits, TrackedConnection, address_group
from trio_sched.transport.local_gate import LocalGate

MONITOR_HWM = 1
_EVENT = struct.Struct("=Hi")
_ACCEPTED, _DISCONNECTED = int(zmq.EVENT_ACCEPTED), int(zmq.EVENT_DISCONNECTED)
_STOPPED = int(zmq.EVENT_MONITOR_STOPPED)
_FEW_DESCRIPTORS = 8_192
"""Up to here the events that the monitor holds can be more than the reserve, so the table itself is looked at."""
_LOOK_S = 0.005
_GATE_S = 0.1
"""How long a gate stays closed at least."""
_STOP_TIMEOUT_S = 2.0
"""How long the end of a closed socket's monitor is waited for; a socket first gets rid of what it holds."""


class ConnectionMonitor:
    """Counts the connections of one socket, and closes those that `limits` says.

    Make it before the socket is bound; `start` it afterwards. It ends by itself when the socket is closed: `join` it
    before the context ends.
    """

    def __init__(self, context: zmq.Context[Any], socket: zmq.Socket[bytes], limits: ConnectionLimits) -> None:
        """Sets the time that a handshake may take."""
        self.some_are_silent = False
        """Whether `heard` is of use: there are connections through which nothing has come."""
        self._limits = limits
        self._connections: dict[int, DescriptorConnection] = {}
        """By descriptor."""
        self._silent: set[int] = set()
        self._heard_early: set[int] = set()
        """Descriptors through which a message came before it was known that they were accepted."""
        self._lock = threading.Lock()
        self._gate: LocalGate | None = None
        self._gate_until = 0.0
        self._look_at = 0.0
        address = f"inproc://monitor-{id(self):x}"
        socket.backlog = min(int(socket.backlog), limits.bounds.burst)
        socket.handshake_ivl = max(int(limits.bounds.handshake_s * 1e3), 1)
        socket.monitor(address, _ACCEPTED | _DISCONNECTED | _STOPPED)
        self._events: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self._events.rcvhwm = MONITOR_HWM
        self._events.linger = 0
        self._events.connect(address)
        self.seen: deque[tuple[bool, int]] | None = None
        """If set: gets (accepted or ended, descriptor) of each event."""
        self._is_waiting = False
        self._poller, self._others_poller = select.poll(), select.poll()  # one for each thread
        for poller in (self._poller, self._others_poller):
            poller.register(int(self._events.get(zmq.FD)), select.POLLIN)
        self._thread = threading.Thread(target=self._run, name="trio_sched connections", daemon=True)

    def start(self, address: str) -> None:
        """Count the connections to this address from now on; what was accepted meanwhile, too."""
        if address.startswith("ipc://"):
            self._gate = LocalGate(address.removeprefix("ipc://"))
        self._thread.start()

    def is_caught_up(self) -> bool:
        """Whether every event that libzmq has told so far was taken. For the event loop's thread."""
        return self._is_waiting and not self._others_poller.poll(0)

    def join(self) -> None:
        """Wait until libzmq has closed the socket: nothing reads the monitor any more."""
        self._thread.join(_STOP_TIMEOUT_S)

    def discard(self) -> None:
        """The socket was closed before `start`."""
        self._events.close()

    def heard(self, descriptor: int) -> None:
        """A message was received through this descriptor: its peer takes part."""
        if descriptor in self._connections and descriptor not in self._silent:
            return
        with self._lock:
            connection = self._connections.get(descriptor)
            if connection is None:
                self._heard_early.add(descriptor)
            elif descriptor in self._silent:
                self._silent.remove(descriptor)
                self.some_are_silent = bool(self._silent)
                self._limits.establish(connection)

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                timeout_s = None
                if self._gate is not None and self._gate.is_closed:
                    self._tend_gate(self._gate)
                    timeout_s = _GATE_S
                event = self._next(timeout_s)
                if event is None:
                    continue
                number, descriptor = _EVENT.unpack(event)
                if number == _STOPPED:
                    break
                if self.seen is not None:
                    self.seen.append((number == _ACCEPTED, descriptor))
                self._take(number == _ACCEPTED, descriptor)
                if self._gate is not None and self._limits.bounds.descriptors <= _FEW_DESCRIPTORS:
                    self._look_at_descriptors()
        except zmq.ContextTerminated:
            pass
        finally:
            self._events.close()
            if self._gate is not None:
                self._gate.remove()
            for connection in self._connections.values():
                self._limits.remove(connection)

    def _next(self, timeout_s: float | None) -> bytes | None:
        """The next event; None: there may be none within the time."""
        try:
            return self._events.recv_multipart(zmq.NOBLOCK)[0]
        except zmq.Again:
            self._is_waiting = True
            self._poller.poll(None if timeout_s is None else timeout_s * 1e3)
            self._is_waiting = False  # only now may the descriptor stop being readable
            return None

    def _take(self, accepted: bool, descriptor: int) -> None:
        """A connection was accepted, or has ended."""
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
                if descriptor in self._heard_early:
                    self._limits.establish(connection)
                else:
                    self._silent.add(descriptor)
            self._heard_early.discard(descriptor)
            self.some_are_silent = bool(self._silent)

    def _look_at_descriptors(self) -> None:
        """Close the gate when the reserve is being used up, faster than we can count."""
        now = time.monotonic()
        if self._look_at > now:
            return
        self._look_at = now + _LOOK_S
        try:
            is_short = self._limits.bounds.is_short(len(os.listdir("/dev/fd")))
        except OSError:  # not one is left to list them
            is_short = True
        if is_short:
            self._close_gate()

    def _close_gate(self) -> None:
        if self._gate is not None:
            self._gate.close()
            self._gate_until = time.monotonic() + _GATE_S

    def _tend_gate(self, gate: LocalGate) -> None:
        if time.monotonic() >= self._gate_until:
            gate.turn_away()
            if self._limits.admits_newcomers:
                gate.open()
            else:
                self._gate_until = time.monotonic() + _GATE_S


class DescriptorConnection(TrackedConnection):
    """A connection of which we know the descriptor, which libzmq owns."""

    __slots__ = ("_descriptor", "_inode")

    handshake_is_timed = True

    def __init__(self, descriptor: int, inode: int, address: str) -> None:
        super().__init__(address)
        self._descriptor = descriptor
        self._inode = inode

    @classmethod
    def of(cls, descriptor: int) -> DescriptorConnection | None:
        """The connection of a descriptor; None: it is none any more."""
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
        """Whether the descriptor still is that connection."""
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
            pass  # the peer was faster
        finally:
            socket.detach()
