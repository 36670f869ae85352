"""The stream below a WebSocket: limits on what one connection makes the scheduler read, and detection of a peer that
does not read.

Frames are parsed in Python at about 25 us a frame, and a peer sends an empty frame in 6 bytes. So `FrameMeter`, below
the parser, scans the headers of frames first, at a tenth of that cost, and passes a few frames at a time:

* During the handshake `HANDSHAKE_BYTES` are read. Nothing is parsed before the request is complete, and frames that
  follow the request in the same packet are not parsed with it.
* Until the peer is authenticated, one message is read, of at most `hello_bytes` in at most `HELLO_FRAMES` frames. The
  bytes behind it stay in the buffers of the kernel.
* Then at most `FRAMES_AT_ONCE` frames are passed between two checkpoints, at most `frames_per_s` and `bytes_per_s`. A
  peer that sends faster is read more slowly, until its own buffers are full; its connection stays open.
"""

from __future__ import annotations

import math
import re
import select
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio
from msgspec import Struct

HANDSHAKE_BYTES = 16 * 1024
HELLO_FRAMES = 16
#: Reads in which the handshake and the hello must arrive. Each read wakes the scheduler.
EARLY_READS = 256
FRAMES_AT_ONCE = 32
#: For this time an idle connection may send at any rate.
BURST_S = 0.1
#: This much of an unfinished message is read without a reservation.
SMALL_BYTES = 64 * 1024
#: Reserved for one read.
RESERVED_BYTES = 64 * 1024
#: A connection stalls if it sends less than this of its message within the stall time.
PROGRESS_BYTES = 64 * 1024
#: Sent at once.
PIECE_BYTES = 64 * 1024
#: How often a connection that waits for a reservation looks for stalled connections.
_CHECK_PERIOD_S = 1.0
_SMALL_READ = 4096
_LARGE_READ = 64 * 1024
_END_OF_REQUEST = re.compile(rb"\n\r?\n")
_FIRST_BYTE = re.compile(rb"[A-Z]")
#: Bytes of the longest end of a request, without its last byte.
_END_OVERLAP = 2

Receive: TypeAlias = Callable[[int | None], Awaitable[bytes | bytearray]]
OnViolation: TypeAlias = Callable[[bool, str], None]
OnActivity: TypeAlias = Callable[[], None]


class ReceiveLimits(Struct, frozen=True):
    """Limits on what a connection may send."""

    message_bytes: int
    hello_bytes: int = 16 << 10
    frames_per_s: float = 5_000.0
    bytes_per_s: float = 32 << 20


class TokenBucket:
    """A token bucket: `per_s` tokens a second, of which unused ones are kept for `burst_s` seconds."""

    __slots__ = ("_capacity", "_per_s", "_tokens", "_updated_at")

    def __init__(self, per_s: float, burst_s: float = BURST_S) -> None:
        self._per_s = per_s
        self._capacity = per_s * burst_s
        self._tokens = self._capacity
        self._updated_at = 0.0

    def take(self, amount: float, now: float) -> float:
        """Take tokens, also if there are too few. Return the seconds to wait until there would be enough."""
        elapsed_s = max(0.0, now - self._updated_at)
        self._tokens = min(self._capacity, self._tokens + self._per_s * elapsed_s) - amount
        self._updated_at = now
        return max(0.0, -self._tokens / self._per_s)


class PartialMessages:
    """The memory of all messages of which only a part has arrived, limited to `max_bytes` over all connections.

    A connection reserves memory before it reads more of such a message. Without free memory, only the connection whose
    message began first is read; the others wait, the oldest message first. So every message can be completed, and the
    memory exceeds the limit by at most one message and `SMALL_BYTES` for each connection.

    A connection that waits is not closed. While some wait, connections that stall are closed: those that needed more
    than `stall_s` for the last `PROGRESS_BYTES`.
    """

    def __init__(self, max_bytes: int, stall_s: float = 10.0) -> None:
        self._max_bytes = max_bytes
        self._stall_s = stall_s
        #: Bytes by connection, the oldest message first.
        self._held: dict[FrameMeter, int] = {}
        self._bytes = 0
        self._waiting: dict[FrameMeter, trio.Event] = {}

    def hold(self, meter: FrameMeter, size: int) -> None:
        """Set the size of the unfinished message of this connection; 0: it has no unfinished message."""
        before = self._held.get(meter, 0)
        self._bytes += size - before
        if size:
            self._held[meter] = size
        elif before:
            del self._held[meter]
        if size < before and self._waiting:
            self._grant()

    async def reserve(self, meter: FrameMeter) -> None:
        """Wait until `RESERVED_BYTES` more of this connection's message fit, and count them as held."""
        if self._fits(meter):
            self._hold_reserved(meter)
            return
        self._waiting[meter] = granted = trio.Event()
        try:
            self._close_stalled()
            while not granted.is_set():
                with trio.move_on_after(_CHECK_PERIOD_S):
                    await granted.wait()
                    return
                meter.on_activity()  # the peer may be sending: its connection is not read meanwhile
                self._close_stalled()
        finally:
            self._waiting.pop(meter, None)

    def _fits(self, meter: FrameMeter) -> bool:
        return self._bytes + RESERVED_BYTES <= self._max_bytes or next(iter(self._held)) is meter

    def _hold_reserved(self, meter: FrameMeter) -> None:
        self._held[meter] += RESERVED_BYTES
        self._bytes += RESERVED_BYTES

    def _grant(self) -> None:
        """Wake the connections whose reservation fits now."""
        for meter in [meter for meter in self._held if meter in self._waiting]:
            if not self._fits(meter):
                return
            self._hold_reserved(meter)
            self._waiting.pop(meter).set()

    def _close_stalled(self) -> None:
        """Close stalled connections, the oldest message first, until a reservation of another one fits."""
        now = trio.current_time()
        for meter in [meter for meter in self._held if meter not in self._waiting]:
            if meter.stalled_s(now) < self._stall_s:
                continue
            meter.stop(
                f"{self._max_bytes} bytes of unfinished messages are held, and this one grew by less than "
                f"{PROGRESS_BYTES} bytes in {self._stall_s:g} s"
            )
            waiting = len(self._waiting)
            self.hold(meter, 0)
            if len(self._waiting) < waiting:
                return


class FrameScanner:
    """Finds the ends of frames and messages in a stream of bytes, without decoding their payload."""

    __slots__ = ("_header", "_is_last", "_is_open", "_payload_left", "frames", "message_bytes", "messages")

    def __init__(self) -> None:
        #: The part of the current header that has arrived.
        self._header = bytearray()
        self._payload_left = 0
        #: Whether the frame ends a message.
        self._is_last = False
        #: Whether a message has begun and not ended.
        self._is_open = False
        #: Number of complete headers.
        self.frames = 0
        #: Number of complete messages.
        self.messages = 0
        #: Payload, according to its headers, of the unfinished message, else of the last one.
        self.message_bytes = 0

    @property
    def unfinished_bytes(self) -> int:
        """The payload of the unfinished message that has arrived."""
        return self.message_bytes - self._payload_left if self._is_open else 0

    def scan(self, data: bytes | bytearray, at: int, max_frames: int, *, one_message: bool = False) -> int:
        """Continue at `data[at]`. Return the position of the stop: the end of the data, the end of frame `max_frames`,
        or with `one_message` the end of a message.
        """
        size = len(data)
        header = self._header
        limit = self.frames + max_frames
        while at < size:
            if self._payload_left:
                step = min(self._payload_left, size - at)
                at += step
                self._payload_left -= step
                if self._payload_left:
                    break
            else:
                if not header and self.frames == limit:
                    break
                end = at + _header_size(header) - len(header)
                header += data[at:end]
                at = min(end, size)
                if len(header) < _header_size(header):
                    continue
                self._begin_frame(header)
                header.clear()
                if self._payload_left:
                    continue
            if self._is_last:
                self._is_last = self._is_open = False
                self.messages += 1
                if one_message:
                    break
        return at

    def _begin_frame(self, header: bytearray) -> None:
        """Read a complete header."""
        length = header[1] & 0x7F
        if length > 125:
            length = int.from_bytes(header[2 : 4 if length == 126 else 10], "big")
        self.frames += 1
        self._payload_left = length
        opcode = header[0] & 0x0F
        if opcode < 8:  # control frames may stand between those of a message
            self.message_bytes = length if opcode else self.message_bytes + length
            self._is_last = header[0] >= 0x80
            self._is_open = True


def _header_size(header: bytearray) -> int:
    """Return the size of a header, as far as its first bytes determine it."""
    if len(header) < 2:
        return 2
    length = header[1] & 0x7F
    return 2 + (4 if header[1] & 0x80 else 0) + (0 if length < 126 else 2 if length == 126 else 8)


class FrameMeter:
    """The reading side of a connection: limits the bytes that the parser gets, and their rate."""

    def __init__(
        self,
        receive: Receive,
        rates: ReceiveLimits,
        partial_messages: PartialMessages,
        *,
        on_violation: OnViolation,
        on_activity: OnActivity,
    ) -> None:
        """Read with `receive`.

        `on_violation(too_large, reason)` is called once, when the peer exceeds a limit, and must close the connection;
        nothing is parsed afterwards. `on_activity` is called when an authenticated peer has sent bytes, and while its
        connection waits for a reservation.
        """
        self.on_activity = on_activity
        self._on_violation = on_violation
        self._receive = receive
        self._rates = rates
        self._partial_messages = partial_messages
        self._is_refused = False
        self._frames = TokenBucket(rates.frames_per_s)
        self._bytes = TokenBucket(rates.bytes_per_s)
        self._scanner = FrameScanner()
        self._data: bytes | bytearray = b""
        #: Number of bytes of `_data` that the parser got.
        self._at = 0
        #: The part of the request that has arrived.
        self._request = bytearray()
        #: How long the connection has waited for the bytes since the last `PROGRESS_BYTES` of a message.
        self._stalled_s = 0.0
        self._stalled_bytes = 0
        self._receiving_since = math.inf
        self._has_request = False
        self._is_upgraded = False
        self._early_bytes = 0
        self._early_reads = 0
        self._authenticated = trio.Event()

    def mark_authenticated(self) -> None:
        """Lift the limits of unauthenticated peers."""
        self._authenticated.set()

    async def request(self) -> bytes:
        """Read the request of the handshake, which `read` returns first. Empty: the peer closed the connection before.

        :raises trio.BrokenResourceError: the request is too long, or is not HTTP.
        """
        request = self._request
        while not self._has_request:
            if not await self._fill(_SMALL_READ):
                return b""
            searched = max(0, len(request) - _END_OVERLAP)
            before = len(request)
            request += self._data
            if not _FIRST_BYTE.match(request):
                raise trio.BrokenResourceError("the request is not HTTP")
            end = _END_OF_REQUEST.search(request, searched)
            if end is not None:
                self._has_request = True
                self._at = end.end() - before
                del request[end.end() :]
            elif self._early_bytes > HANDSHAKE_BYTES or self._early_reads > EARLY_READS:
                raise trio.BrokenResourceError("the request is too long")
        return bytes(request)

    async def read(self, max_bytes: int) -> bytes | bytearray:
        """Return some bytes for the parser; none at the end of the stream."""
        if self._is_refused:
            return await self._discard_rest()
        if not self._is_upgraded:
            request = await self.request()
            self._is_upgraded = True
            return request
        if self._at < len(self._data):
            await trio.lowlevel.checkpoint()
        elif not await self._fill(max_bytes):
            return b""
        if self._is_refused:
            return await self._discard_rest()
        if self._authenticated.is_set():
            return await self._next_frames()
        if self._early_reads > EARLY_READS:
            return await self._refuse(False, f"the hello arrived in more than {EARLY_READS} pieces")
        return await self._next_of_hello()

    async def discard(self) -> None:
        """Read to the end of the stream, at the permitted rate."""
        while await self._fill(_LARGE_READ):  # noqa: ASYNC110  # limits a rate, does not poll a condition
            await trio.sleep(self._bytes.take(len(self._data), trio.current_time()))

    async def _fill(self, max_bytes: int) -> bool:
        if not self._authenticated.is_set():
            self._data = await self._receive(min(max_bytes, _SMALL_READ))
            self._early_reads += 1
            self._early_bytes += len(self._data)
        elif self._scanner.unfinished_bytes:
            await self._receive_more(max_bytes)
        else:
            self._data = await self._receive(max_bytes)
            self._stalled_s, self._stalled_bytes = 0.0, 0
        self._at = 0
        if self._data and self._authenticated.is_set():
            self.on_activity()
        return bool(self._data)

    async def _receive_more(self, max_bytes: int) -> None:
        """Read more of an unfinished message, after a reservation."""
        if self._scanner.unfinished_bytes > SMALL_BYTES and not self._is_refused:
            await self._partial_messages.reserve(self)
        self._receiving_since = trio.current_time()
        self._data = await self._receive(min(max_bytes, RESERVED_BYTES))
        self._stalled_s = self.stalled_s(trio.current_time())
        self._receiving_since = math.inf
        self._stalled_bytes += len(self._data)
        if self._stalled_bytes >= PROGRESS_BYTES:
            self._stalled_s, self._stalled_bytes = 0.0, 0

    def stalled_s(self, now: float) -> float:
        """Return how long the connection has waited for the last `PROGRESS_BYTES` of its message, in seconds."""
        return self._stalled_s + max(0.0, now - self._receiving_since)

    def stop(self, reason: str) -> None:
        """Parse nothing more of this connection, and report the violation."""
        self._is_refused = True
        self._on_violation(True, reason)

    def release(self) -> None:
        """Release the reservation of a connection that has ended."""
        self._partial_messages.hold(self, 0)

    async def _refuse(self, too_large: bool, reason: str) -> bytes:
        self._is_refused = True
        self._on_violation(too_large, reason)
        return await self._discard_rest()

    async def _discard_rest(self) -> bytes:
        """Discard what an authenticated peer still sends, so that it reads the close frame. Do not read from others."""
        if not self._authenticated.is_set():
            await trio.sleep_forever()
        await self.discard()
        return b""

    async def _next_of_hello(self) -> bytes | bytearray:
        """Return the arrived part of the first message, and nothing behind it before the peer is authenticated."""
        scanner, limit = self._scanner, self._rates.hello_bytes
        if scanner.messages:
            await self._authenticated.wait()
            return await self._next_frames()
        begin = self._at
        self._at = scanner.scan(self._data, begin, HELLO_FRAMES, one_message=True)
        if scanner.message_bytes > limit:
            return await self._refuse(True, f"a hello has at most {limit} bytes")
        if scanner.frames > HELLO_FRAMES or self._at == begin:
            return await self._refuse(False, f"a hello has at most {HELLO_FRAMES} frames")
        return self._data[begin : self._at]

    async def _next_frames(self) -> bytes | bytearray:
        """Return a few frames, after the time that their rate needs."""
        scanner, begin, before = self._scanner, self._at, self._scanner.frames
        self._at = scanner.scan(self._data, begin, FRAMES_AT_ONCE)
        if scanner.message_bytes > self._rates.message_bytes:
            return await self._refuse(True, f"a message has at most {self._rates.message_bytes} bytes")
        self._partial_messages.hold(self, scanner.unfinished_bytes)
        now = trio.current_time()
        wait_s = max(
            self._frames.take(scanner.frames - before, now),
            self._bytes.take(self._at - begin, now),
        )
        if wait_s:
            await trio.sleep(wait_s)
        return self._data[begin : self._at]


class MeteredStream(trio.abc.Stream):
    """The stream below a WebSocket: reads through a meter, and detects a peer that does not read.

    That the kernel takes bytes does not show that the peer reads, unless the send buffer was (nearly) full before: then
    the peer has read some.
    """

    def __init__(
        self,
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream],
        meter: FrameMeter,
        stall_s: float,
        *,
        on_progress: OnActivity,
    ) -> None:
        """Wrap a stream. `on_progress` is called when the peer has read bytes."""
        #: Why the stream is broken; empty: it is not.
        self.broken_because = ""
        self._stream = stream
        self._meter = meter
        self._stall_s = stall_s
        self._on_progress = on_progress
        self._socket = (stream.transport_stream if isinstance(stream, trio.SSLStream) else stream).socket

    @property
    def is_encrypted(self) -> bool:
        """Whether the stream uses TLS."""
        return isinstance(self._stream, trio.SSLStream)

    @property
    def is_closed_by_peer(self) -> bool:
        """Whether the peer has closed the connection; False on systems that do not report it."""
        return _is_closed_by_peer(self._socket.fileno())

    async def wait_readable(self) -> None:
        """Wait for the first bytes, or the end of the connection, below TLS."""
        await trio.lowlevel.wait_readable(self._socket)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send in pieces, each within `stall_s`.

        :raises trio.BrokenResourceError: the peer did not read within `stall_s`.
        """
        view = memoryview(data)
        was_full = False
        for at in range(0, len(view), PIECE_BYTES):
            with trio.move_on_after(self._stall_s) as timeout:
                await self._stream.send_all(view[at : at + PIECE_BYTES])
            if timeout.cancelled_caught:
                self.broken_because = f"the peer reads too slowly: nothing in {self._stall_s:g} s"
                raise trio.BrokenResourceError(self.broken_because)
            if was_full:
                self._on_progress()
            was_full = at + PIECE_BYTES < len(view) and not _has_send_space(self._socket.fileno())

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return bytes that the meter permits."""
        return await self._meter.read(max_bytes or PIECE_BYTES)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait as the wrapped stream does."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the wrapped stream."""
        await self._stream.aclose()


def _has_send_space(descriptor: int) -> bool:
    """Whether the send buffer of the kernel has space."""
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select((), (descriptor,), (), 0)[1])
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


def _is_closed_by_peer(descriptor: int) -> bool:
    """Whether the peer has shut down its sending side, also while bytes from it are unread."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(descriptor, getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(0))
