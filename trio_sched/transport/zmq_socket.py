"""ZeroMQ under Trio and asyncio: the only way in which asynchronous code uses a ZeroMQ socket.

The descriptor of a ZeroMQ socket is edge-triggered. That it is readable only means "check EVENTS", and *every* send,
receive or option read on the socket can consume the edge. A reader that waits for the descriptor, while another task
sends on the same socket, would then wait forever. Hence the rules of this module:

* All access to a socket goes through its `ZmqSocket`.
* The reader receives until zmq.Again before each wait, including the first one.
* After a burst of sends, `flush()` reads EVENTS and cancels the reader's wait if a message is available.
* A drain takes a limited number of messages and then passes a checkpoint, so that a flood does not starve other tasks.

Between the last zmq.Again and the wait, every use of the socket must be visible to the reader. `_wait_scope` is set
before the first checkpoint, so a flush in between cancels the wait before it begins, which has the same effect. A drain
that ended with zmq.Again need not be repeated before that wait unless a message was sent in between; `_is_drained`
records this and saves 5 us a wake-up.

Under Trio the sockets use Trio's primitives, because anyio's wrappers cost 15 us more a wake-up.

Each native socket has its own context: a context has one ZAP handler, which authenticates TCP peers, and several
schedulers may run in one process. `SocketSet` creates sockets of other kinds, which share a context.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
import zmq

from trio_sched.transport import curve
from trio_sched.transport.connection_info import ConnectionInfo, Role
from trio_sched.transport.connection_limits import ConnectionLimits
from trio_sched.transport.endpoint import LINGER_MS, bind_socket, connect_dealer, new_router
from trio_sched.transport.multipart import LARGE_BYTES, POLLIN, RECEIVE_LIMIT, SNDMORE, Frame, drain, methods
from trio_sched.transport.zmq_monitor import ConnectionMonitor

DEFAULT_MAX_MESSAGE_BYTES = 1 << 30
#: Batches for which sources are recorded after a rejected message.
_TRACED_BATCHES = 64
#: Messages taken at once while messages are rejected, so that other tasks are delayed less.
_REJECTING_LIMIT = 32
_NO_SOURCES: list[int] = []


class SharedContext:
    """A libzmq context that is terminated when the last of its sockets is closed."""

    def __init__(self, max_sockets: int | None = None) -> None:
        """`max_sockets`: None is libzmq's default."""
        self.context: zmq.Context[Any] = zmq.Context()
        if max_sockets is not None:
            self.context.max_sockets = max_sockets
        self._open_count = 0
        self._monitors: list[ConnectionMonitor] = []

    def add(self, monitor: ConnectionMonitor | None) -> None:
        """Count a socket of this context, and keep its monitor."""
        self._open_count += 1
        if monitor is not None:
            self._monitors.append(monitor)

    def release(self) -> None:
        """Count that a socket was closed. After the last one, wait for the monitors and terminate the context."""
        self._open_count -= 1
        if self._open_count == 0:
            for monitor in self._monitors:
                monitor.join()
            self.context.term()

    def destroy(self) -> None:
        """Close all sockets of the context at once, without a `ZmqSocket` around them, and terminate it."""
        self.context.destroy(linger=0)


OnReject: TypeAlias = "Callable[[ZmqSocket, int], None]"


class ZmqSocket:
    """A ROUTER (bound) or a DEALER (connected). Use `router` and `dealer` to create one; closed by its `with` block.

    One task receives; any task may send. All of them must run in the same event loop.
    """

    def __init__(
        self,
        context: SharedContext,
        socket: zmq.Socket[bytes],
        *,
        address: str,
        routed: bool,
        roles: Mapping[bytes, Role] | None = None,
        authenticator: ZmqSocket | None = None,
        monitor: ConnectionMonitor | None = None,
        records_sources: bool = False,
        on_reject: OnReject | None = None,
    ) -> None:
        """Wrap a socket that is bound or connected to `address`.

        `roles`: the role of each public key; empty: peers prove no role. `authenticator`: the ZAP handler's socket.
        `monitor` limits the connections; it is started here. `records_sources`: record the sources of every batch.
        `on_reject` is called with this socket and the descriptor of the connection of each rejected message.
        """
        #: The address that the socket is bound or connected to, with the real port.
        self.address = address
        #: Handshakes refused because the key belongs to no role (R25).
        self.refused_key_count = 0
        self._records_sources = records_sources
        #: For each message of the last batch the descriptor of its connection; empty: not recorded.
        self.sources: list[int] = []
        self._context = context
        self._socket = socket
        self._routed = routed
        self._roles = roles or {}
        self._authenticator = authenticator
        self._monitor = monitor
        self._on_reject = on_reject
        #: Descriptors of connections whose messages are dropped.
        self._blocked: set[int] = set()
        self._descriptor = int(socket.get(zmq.FD))
        self._receive_frame, self._send_frame, self._option = methods(socket)
        #: The cancel scope of the reader that waits.
        self._wait_scope: Any = None
        #: No message was available, and the socket has not been used since.
        self._is_drained = False
        #: Number of batches whose sources are recorded because a message was rejected.
        self._batches_to_trace = 0
        self._loop: Any = None
        self._closing = False
        context.add(monitor)
        if monitor is not None:
            monitor.start(address)

    # ---- creating ---------------------------------------------------------------------------------------------------

    @classmethod
    def router(
        cls,
        address: str,
        *,
        keys: curve.ServerKeys | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        limits: ConnectionLimits | None = None,
    ) -> ZmqSocket:
        """Create a ROUTER bound to "ipc:///path" (in a private directory) or "tcp://host:port" (needs `keys`).

        Port 0 is any free port. With keys, `authenticate` must run, or all handshakes time out. `limits` limits the
        connections.

        :raises AddressInUseError: another process listens there.
        :raises ConfigError: the address has another form, is TCP without keys, or its directory is open to others.
        """
        context = SharedContext()
        try:
            authenticator = bind_zap_socket(context) if keys else None  # before the router accepts
            socket = new_router(context.context, address, keys, max_message_bytes)
            monitor = ConnectionMonitor(context.context, socket, limits) if limits is not None else None
            address = bind_socket(socket, address)
        except BaseException:
            context.destroy()
            raise
        return cls(
            context,
            socket,
            address=address,
            routed=True,
            roles=curve.roles_by_key(keys) if keys else None,
            authenticator=authenticator,
            monitor=monitor,
        )

    @classmethod
    def dealer(cls, connection: ConnectionInfo, *, max_message_bytes: int = 0) -> ZmqSocket:
        """Create a DEALER that connects to a scheduler, which may start later.

        :raises ConfigError: the address or the keys are not valid, or the address is TCP without keys.
        """
        context = SharedContext()
        try:
            socket = connect_dealer(context.context, connection, max_message_bytes)
        except BaseException:
            context.destroy()
            raise
        return cls(context, socket, address=connection.address, routed=False)

    def bind_also(self, address: str) -> str:
        """Bind to one more address, before a task receives. Return it with the real port. Raises as `bind_socket`."""
        return bind_socket(self._socket, address)

    # ---- receiving --------------------------------------------------------------------------------------------------

    async def receive(self, limit: int = RECEIVE_LIMIT) -> list[list[Frame]]:
        """Wait for a message, and take at most `limit`. From a ROUTER, frame 0 is the routing id of the peer; where
        there are keys, with the mark of the proved role as a prefix (see `proved_role`).

        Small frames are bytes, large ones memoryviews of libzmq's memory. Always a checkpoint. No message is lost when
        the call is cancelled.

        :raises anyio.ClosedResourceError: the socket is closed, or was closed during the wait.
        :raises anyio.BusyResourceError: another task receives.
        """
        if self._wait_scope is not None:
            raise anyio.BusyResourceError("receiving from")
        loop = self._loop or self._find_loop()
        await loop.checkpoint_if_cancelled()
        waited = False
        while not self._closing:
            if not self._is_drained:
                if self._batches_to_trace:
                    limit = _REJECTING_LIMIT
                messages = self._drain(limit)
                if messages:
                    if not waited:
                        await loop.cancel_shielded_checkpoint()
                    return messages
            waited = True
            if self._is_drained:
                await self._wait_for_edge(loop)
            else:  # all messages of the batch came from blocked connections
                await loop.cancel_shielded_checkpoint()
                await loop.checkpoint_if_cancelled()
        raise anyio.ClosedResourceError

    def _drain(self, limit: int) -> list[list[Frame]]:
        monitor = self._monitor if self._monitor is not None and self._monitor.has_silent_connections else None
        is_traced = self._records_sources or self._batches_to_trace or self._blocked
        if not (is_traced or monitor is not None):
            self.sources = _NO_SOURCES
            messages = drain(self._receive_frame, limit, routed=self._routed, marked=bool(self._roles))
            self._is_drained = len(messages) < limit
            return messages
        sources: list[int] = []
        messages = drain(self._receive_frame, limit, routed=self._routed, marked=bool(self._roles), sources=sources)
        self._is_drained = len(messages) < limit
        if self._batches_to_trace:
            self._batches_to_trace -= 1
        if monitor is not None:
            for source in sources:
                monitor.mark_active(source)
        if not self._blocked.isdisjoint(sources):
            kept = [index for index, source in enumerate(sources) if source not in self._blocked]
            messages, sources = [messages[index] for index in kept], [sources[index] for index in kept]
        self.sources = sources
        return messages

    def is_idle(self) -> bool:
        """Whether a task waits in `receive` and no message is available. libzmq does its pending work first."""
        scope = self._wait_scope
        if scope is None:
            return False
        if self._option(zmq.EVENTS) & POLLIN:
            scope.cancel()
            return False
        return True

    def reject(self, index: int) -> None:
        """Report that message `index` of the last batch is not acceptable, to be counted against its connection.

        The sources of the next batches are recorded; those of this batch may be unknown, and then it is not counted.
        """
        if self._on_reject is not None:
            self._batches_to_trace = _TRACED_BATCHES
            if index < len(self.sources):
                self._on_reject(self, self.sources[index])

    def block(self, descriptor: int) -> None:
        """Drop the messages of the connection with this descriptor from now on."""
        self._blocked.add(descriptor)

    def unblock(self, descriptors: Iterable[int]) -> None:
        """Receive the messages of the connections with these descriptors again."""
        self._blocked.difference_update(descriptors)

    def _find_loop(self) -> Any:
        """Select the primitives of the event loop that runs this task."""
        trio = sys.modules.get("trio")
        self._loop = _TrioPrimitives(trio) if trio is not None and trio.lowlevel.in_trio_task() else _ANYIO_PRIMITIVES
        return self._loop

    async def _wait_for_edge(self, loop: Any) -> None:
        with loop.CancelScope() as scope:
            self._wait_scope = scope
            try:
                await loop.wait_readable(self._descriptor)
            finally:
                self._wait_scope = None
                self._is_drained = False
                if self._closing:
                    self._close_now()

    # ---- sending ----------------------------------------------------------------------------------------------------

    def send(self, frames: Sequence[Frame]) -> bool:
        """Queue one message; never blocks. False: the peer is not connected. Call `flush` after the last of a burst.

        To a ROUTER, frame 0 is the peer as returned by `receive`. Large frames are not copied, so the caller must not
        change them afterwards.
        """
        send_frame = self._send_frame
        self._is_drained = False
        if self._roles:
            frames = [frames[0][1:], *frames[1:]]  # without the mark, which libzmq does not know
        try:
            for frame in frames[:-1]:
                send_frame(frame, SNDMORE, len(frame) < LARGE_BYTES, False)
            frame = frames[-1]
            send_frame(frame, 0, len(frame) < LARGE_BYTES, False)
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return False
            if self._closing:
                raise anyio.ClosedResourceError from None
            raise
        return True

    def send_many(self, messages: Iterable[Sequence[Frame]]) -> list[Sequence[Frame]]:
        """Send each message, then flush. Return the messages whose peer is not connected."""
        unreachable = [frames for frames in messages if not self.send(frames)]
        self.flush()
        return unreachable

    def flush(self) -> None:
        """Wake the reader if a send may have consumed the edge that it waits for. Call it after a burst of sends."""
        scope = self._wait_scope
        if scope is not None and self._option(zmq.EVENTS) & POLLIN:
            scope.cancel()

    # ---- authenticating ---------------------------------------------------------------------------------------------

    async def authenticate(self) -> None:
        """Answer the ZAP requests of a router until it is closed: admit the keys of the roles, refuse all others.

        Returns at once when the router has no keys.
        """
        if self._authenticator is None:
            return
        while True:
            try:
                requests = await self._authenticator.receive()
            except anyio.ClosedResourceError:
                return
            for peer, delimiter, *request in requests:
                reply = curve.zap_reply([bytes(part) for part in request], self._roles)
                self.refused_key_count += reply[2] != curve.ZAP_OK
                self._authenticator.send([peer, delimiter, *reply])
            self._authenticator.flush()

    def proved_role(self, peer: bytes) -> Role | None:
        """Return the role that the key of this peer's connection proves; None without keys.

        `peer` is the routing id as returned by `receive`.
        """
        return curve.role_of(peer) if self._roles else None

    # ---- closing ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the socket after at most `LINGER_MS` for queued messages. A waiting `receive` raises
        ClosedResourceError.
        """
        if self._closing:
            return
        self._closing = True
        if self._authenticator is not None:
            self._authenticator.close()
        if self._wait_scope is not None:
            self._wait_scope.cancel()  # the reader closes the socket: the event loop still watches the descriptor
        else:
            self._close_now()

    def _close_now(self) -> None:
        self._socket.close(linger=LINGER_MS)
        self._context.release()

    def __enter__(self) -> ZmqSocket:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _TrioPrimitives:
    """The primitives of Trio."""

    def __init__(self, trio: Any) -> None:
        self.CancelScope = trio.CancelScope
        self.wait_readable = trio.lowlevel.wait_readable
        self.checkpoint_if_cancelled = trio.lowlevel.checkpoint_if_cancelled
        self.cancel_shielded_checkpoint = trio.lowlevel.cancel_shielded_checkpoint


class _AnyioPrimitives:
    """The primitives of any other event loop."""

    CancelScope = anyio.CancelScope
    wait_readable = staticmethod(anyio.wait_readable)
    checkpoint_if_cancelled = staticmethod(anyio.lowlevel.checkpoint_if_cancelled)
    cancel_shielded_checkpoint = staticmethod(anyio.lowlevel.cancel_shielded_checkpoint)


_ANYIO_PRIMITIVES = _AnyioPrimitives()


def bind_zap_socket(context: SharedContext) -> ZmqSocket:
    """Create the socket of the ZAP handler of a context, to which libzmq sends its ZAP requests."""
    socket: zmq.Socket[bytes] = context.context.socket(zmq.ROUTER)
    socket.rcvhwm = socket.sndhwm = 0
    socket.bind(curve.ZAP_ADDRESS)
    return ZmqSocket(context, socket, address=curve.ZAP_ADDRESS, routed=True)
