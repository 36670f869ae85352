"""ZeroMQ under trio and asyncio: the one way in which asynchronous code touches a ZeroMQ socket.

A ZeroMQ descriptor is edge-triggered: readable means only "look again", and *any* send, receive or option read on the
socket can swallow the edge. A reader that waits on the descriptor while another task sends on the same socket would
then sleep for ever. Hence the rules of this file:

* all access to a socket goes through its `ZmqSocket`;
* the reader drains until zmq.Again before each wait, the first included;
* after a burst of sends `flush()` looks at EVENTS, and cancels the reader's wait if there is something to read;
* a drain takes a bounded number of messages and then passes a checkpoint, so that a flood does not starve other tasks.

Between the last zmq.Again and the wait nothing may touch the socket unseen: `_wait_scope` is set before the first
checkpoint, so a flush in between cancels a wait that has not begun yet, which is as good. A drain that ended with
zmq.Again need not be repeated before that wait unless something was sent meanwhile: `_drained` (5 us a wake-up).

Under trio its own primitives are used, because anyio's wrappers would cost 15 us more at each wake-up.

Each native socket has a context of its own: ZAP, which authenticates TCP peers, is one handler for each context, and
several schedulers may live in one process. Sockets of other kinds, which share a context, are made by zmq_bound.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

import anyio
import anyio.lowlevel
import zmq

from trio_sched.transport import curve
from trio_sched.transport.connection import Connection, Role
from trio_sched.transport.connection_limits import ConnectionLimits
from trio_sched.transport.endpoint import LINGER_MS, bind_router, connect_dealer, real_address
from trio_sched.transport.multipart import (
    LARGE_BYTES,
    POLLIN,
    RECEIVE_LIMIT,
    SNDMORE,
    Frame,
    drain,
    drain_traced,
    methods,
)
from trio_sched.transport.zmq_monitor import ConnectionMonitor

DEFAULT_MAX_MESSAGE_BYTES = 1 << 30
_TRACED_BATCHES = 64
_REJECTING_LIMIT = 32
"""Messages taken at once while some are rejected, so that other tasks wait less for them."""
_UNTRACED: list[int] = []


class ZmqSocket:
    """A ROUTER (bound) or a DEALER (connected). Made by `router` and `dealer`; a context manager that closes it.

    One task receives; any task may send. Use it from one event loop only.
    """

    def __init__(self, context: zmq.Context[Any], socket: zmq.Socket[bytes], *, address: str, routed: bool) -> None:
        self.address = address
        """What the socket is bound or connected to, with the real port."""
        self.unauthenticated = 0
        """Handshakes refused because the key is no role's (R25)."""
        self.traced = False
        """Whether `sources` is to be filled."""
        self.sources: list[int] = []
        """The descriptor of the connection of each message of the last batch; empty when it was not traced."""
        self.refused: set[int] = set()
        """Descriptors of connections whose messages are dropped unread."""
        self.on_reject: Callable[[int], None] | None = None
        """Called with the descriptor of each rejected message; set when the socket is made."""
        self._context = context
        self._socket = socket
        self._routed = routed
        self._descriptor = int(socket.get(zmq.FD))
        self._receive_frame, self._send_frame, self._option = methods(socket)
        self._wait_scope: Any = None
        """The cancel scope of the reader that waits."""
        self._drained = False
        """Nothing was there to receive, and the socket was not touched since."""
        self._traced_batches = 0
        """So many more batches are traced, because messages were rejected."""
        self._loop: Any = None
        self._closing = False
        self._authenticator: ZmqSocket | None = None
        self._roles: dict[bytes, Role] = {}
        """By public key; empty: peers prove nothing."""
        self._monitor: ConnectionMonitor | None = None
        self._sharing: Sequence[ZmqSocket] = (self,)

    # ---- making one -------------------------------------------------------------------------------------------------

    @classmethod
    def router(
        cls,
        address: str,
        *,
        keys: curve.ServerKeys | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        limits: ConnectionLimits | None = None,
    ) -> ZmqSocket:
        """A ROUTER bound to "ipc:///path" (in a private directory) or "tcp://host:port" (port 0: any; needs `keys`).

        With keys, `authenticate` must run beside it, or nobody gets in. `limits` bounds its connections.

        :raises AddressInUseError: somebody else listens there.
        :raises ConfigError: the address is not one of those, or TCP has no keys, or the directory is open to others.
        """
        context: zmq.Context[Any] = zmq.Context()
        monitors: list[ConnectionMonitor] = []

        def watch(socket: zmq.Socket[bytes]) -> None:
            if limits is not None:
                monitors.append(ConnectionMonitor(context, socket, limits))

        try:
            authenticator = _bound_zap(context) if keys else None
            socket = bind_router(context, address, keys, max_message_bytes, watch)
        except BaseException:
            context.destroy(linger=0)
            raise
        router = cls(context, socket, address=real_address(socket), routed=True)
        for monitor in monitors:
            router.watch_connections(monitor)
        if keys and authenticator:
            router._roles = curve.roles_by_key(keys)
            router._authenticator = cls(context, authenticator, address=curve.ZAP_ADDRESS, routed=True)
            router._sharing = router._authenticator._sharing = (router, router._authenticator)
        return router

    @classmethod
    def dealer(cls, connection: Connection, *, max_message_bytes: int = 0) -> ZmqSocket:
        """A DEALER connected to a scheduler (which need not be there yet).

        :raises ConfigError: the address or the keys are wrong, or TCP has no keys.
        """
        context: zmq.Context[Any] = zmq.Context()
        try:
            socket = connect_dealer(context, connection, max_message_bytes)
        except BaseException:
            context.destroy(linger=0)
            raise
        return cls(context, socket, address=connection.address, routed=False)

    def share(self, users: Sequence[ZmqSocket]) -> None:
        """These, this one among them, use one context: the last to close ends it."""
        self._sharing = users

    def watch_connections(self, monitor: ConnectionMonitor) -> None:
        """Bound the connections of this socket, whose monitor this is, until it is closed."""
        self._monitor = monitor
        monitor.start(self.address)

    def with_socket(self, use: Callable[[zmq.Socket[bytes]], str]) -> str:
        """What `use` makes of the bare socket: for the other files of this package, before anyone receives."""
        return use(self._socket)

    # ---- receiving --------------------------------------------------------------------------------------------------

    async def receive(self, limit: int = RECEIVE_LIMIT) -> list[list[Frame]]:
        """Wait until there is a message, and take at most `limit`. From a ROUTER, frame 0 is the peer's routing id;
        where there are keys, with the mark of the role that it proved in front (see `proved_role`).

        Small frames are bytes, large ones memoryviews of libzmq's own memory. Always a checkpoint; loses nothing when
        cancelled.

        :raises anyio.ClosedResourceError: the socket is, or was meanwhile, closed.
        :raises anyio.BusyResourceError: another task is receiving.
        """
        if self._wait_scope is not None:
            raise anyio.BusyResourceError("receiving from")
        loop = self._loop or self._find_loop()
        await loop.checkpoint_if_cancelled()
        waited = False
        while not self._closing:
            if not self._drained:
                if self._traced_batches:
                    limit = _REJECTING_LIMIT
                messages = self._drain(limit)
                if messages:
                    if not waited:
                        await loop.cancel_shielded_checkpoint()
                    return messages
            waited = True
            if self._drained:
                await self._wait_for_edge(loop)
            else:  # all that was taken came from refused connections
                await loop.cancel_shielded_checkpoint()
                await loop.checkpoint_if_cancelled()
        raise anyio.ClosedResourceError

    def _drain(self, limit: int) -> list[list[Frame]]:
        monitor = self._monitor
        heard = monitor.heard if monitor is not None and monitor.some_are_silent else None
        if not (self.traced or self._traced_batches or self.refused):
            self.sources = _UNTRACED
            messages = drain(self._receive_frame, limit, self._routed, bool(self._roles), heard)
            self._drained = len(messages) < limit
            return messages
        if self._traced_batches:
            self._traced_batches -= 1
        messages, sources = drain_traced(self._receive_frame, limit, self._routed)
        self._drained = len(messages) < limit
        if heard is not None:
            for source in sources:
                heard(source)
        if self.refused and not self.refused.isdisjoint(sources):
            kept = [index for index, source in enumerate(sources) if source not in self.refused]
            messages, sources = [messages[index] for index in kept], [sources[index] for index in kept]
        self.sources = sources
        return messages

    def is_idle(self) -> bool:
        """Whether a task waits in `receive` and there is nothing for it. libzmq does its own pending work first."""
        scope = self._wait_scope
        if scope is None:
            return False
        if self._option(zmq.EVENTS) & POLLIN:
            scope.cancel()
            return False
        return True

    def reject(self, index: int) -> None:
        """Message `index` of the last batch is not acceptable: count it against its connection. Messages of the next
        batches are traced for it, those of this one may not be."""
        if self.on_reject is not None:
            self._traced_batches = _TRACED_BATCHES
            if index < len(self.sources):
                self.on_reject(self.sources[index])

    def _find_loop(self) -> Any:
        """The primitives of the event loop that we run in."""
        trio = sys.modules.get("trio")
        self._loop = _OnTrio(trio) if trio is not None and trio.lowlevel.in_trio_task() else _ON_ANYIO
        return self._loop

    async def _wait_for_edge(self, loop: Any) -> None:
        with loop.CancelScope() as scope:
            self._wait_scope = scope
            try:
                await loop.wait_readable(self._descriptor)
            finally:
                self._wait_scope = None
                self._drained = False
                if self._closing:
                    self._close_now()

    # ---- sending ----------------------------------------------------------------------------------------------------

    def send(self, frames: Sequence[Frame]) -> bool:
        """Queue one message; never blocks. False: there is no such peer (any more). Call `flush` after the last of a
        burst.

        To a ROUTER, frame 0 is the peer as `receive` named it. Large frames are not copied: leave them unchanged after
        this.
        """
        send_frame = self._send_frame
        self._drained = False
        if self._roles:
            frames = [frames[0][1:], *frames[1:]]  # libzmq does not know the mark
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
        """Send each message, then flush. Returns those whose peer is not there."""
        unreachable = [frames for frames in messages if not self.send(frames)]
        self.flush()
        return unreachable

    def flush(self) -> None:
        """After a burst of sends: wake the reader if the edge it waits for may have been swallowed."""
        scope = self._wait_scope
        if scope is not None and self._option(zmq.EVENTS) & POLLIN:
            scope.cancel()

    # ---- authenticating ---------------------------------------------------------------------------------------------

    async def authenticate(self) -> None:
        """Run beside a router: admit those who have a role's key, until it is closed. Returns at once without keys."""
        if self._authenticator is None:
            return
        while True:
            try:
                requests = await self._authenticator.receive()
            except anyio.ClosedResourceError:
                return
            for peer, delimiter, *request in requests:
                reply = curve.zap_reply([bytes(part) for part in request], self._roles)
                self.unauthenticated += reply[2] != curve.ZAP_OK
                self._authenticator.send([peer, delimiter, *reply])
            self._authenticator.flush()

    def proved_role(self, peer: bytes) -> Role | None:
        """The role that the key of this peer's connection proves; None without keys. `peer`: as `receive` named it."""
        return curve.role_of(peer) if self._roles else None

    # ---- closing ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close, trying for a moment to get rid of what was sent. Whoever receives gets ClosedResourceError."""
        if self._closing:
            return
        self._closing = True
        if self._authenticator is not None:
            self._authenticator.close()
        if self._wait_scope is not None:
            self._wait_scope.cancel()  # the reader closes: its event loop still watches the descriptor
        else:
            self._close_now()

    def _close_now(self) -> None:
        self._socket.close(linger=LINGER_MS)
        if all(user._socket.closed for user in self._sharing):
            for user in self._sharing:
                if user._monitor is not None:
                    user._monitor.join()
            self._context.term()

    def __enter__(self) -> ZmqSocket:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _OnTrio:
    """Trio's own."""

    def __init__(self, trio: Any) -> None:
        self.CancelScope = trio.CancelScope
        self.wait_readable = trio.lowlevel.wait_readable
        self.checkpoint_if_cancelled = trio.lowlevel.checkpoint_if_cancelled
        self.cancel_shielded_checkpoint = trio.lowlevel.cancel_shielded_checkpoint


class _OnAnyio:
    """Any other loop's."""

    CancelScope = anyio.CancelScope
    wait_readable = staticmethod(anyio.wait_readable)
    checkpoint_if_cancelled = staticmethod(anyio.lowlevel.checkpoint_if_cancelled)
    cancel_shielded_checkpoint = staticmethod(anyio.lowlevel.cancel_shielded_checkpoint)


_ON_ANYIO = _OnAnyio()


def _bound_zap(context: zmq.Context[Any]) -> zmq.Socket[bytes]:
    """The socket to which libzmq sends its ZAP requests; bound before the router, so that nobody slips in."""
    socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    socket.bind(curve.ZAP_ADDRESS)
    return socket
