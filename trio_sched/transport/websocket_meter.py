"""What one WebSocket connection may make the scheduler read: in bytes, in frames, and before its peer is known.

Frames are parsed in Python, at some 25 us a frame, and an empty one takes 6 bytes of a sender. So the stream below the
parser looks at the headers of frames first, at a tenth of that cost, and hands on few frames at a time:

* during the handshake `HANDSHAKE_BYTES` are read, nothing is parsed before the request is complete, and what follows
  the request in the same packet is not parsed with it;
* until the peer is admitted one message is read, of at most `hello_bytes` in at most `HELLO_FRAMES` frames. What
  follows it stays in the system's buffers;
* then at most `FRAMES_AT_ONCE` frames between two checkpoints, at most `frames_per_s` and `bytes_per_s`. A peer that
  sends faster is read more slowly, until its own side notices; nothing is closed for that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio
from msgspec import Struct

HANDSHAKE_BYTES = 16 * 1024
HELLO_FRAMES = 16
EARLY_READS = 256
"""Pieces in which the handshake and the hello may arrive, each of which wakes the scheduler up."""
FRAMES_AT_ONCE = 32
BURST_S = 0.1
"""A connection that was idle may send for so long at any speed."""
SMALL_BYTES = 64 * 1024
"""Of an unfinished message are read without asking for room."""
RESERVED_BYTES = 64 * 1024
"""Room for the bytes of one read."""
PROGRESS_BYTES = 64 * 1024
"""A connection that sends so much of its message in the time of a stall makes progress."""
_CHECK_S = 1.0
"""How often one that waits for room looks for connections that stall."""
_SMALL_READ = 4096
_LARGE_READ = 64 * 1024
_END_OF_REQUEST = re.compile(rb"\n\r?\n")
_FIRST_BYTE = re.compile(rb"[A-Z]")
_LONGEST_END = 2
"""Bytes before the last one of the end of a request."""

Receive: TypeAlias = Callable[[int | None], Awaitable[bytes | bytearray]]


class Rates(Struct, frozen=True):
    """What a connection may send."""

    message_bytes: int
    hello_bytes: int = 16 << 10
    frames_per_s: float = 5_000.0
    bytes_per_s: float = 32 << 20


class Budget:
    """A token bucket: an amount per second, and what was not used of it for `burst` seconds."""

    __slots__ = ("_at", "_left", "_most", "_per_s")

    def __init__(self, per_s: float, burst_s: float = BURST_S) -> None:
        self._per_s = per_s
        self._most = per_s * burst_s
        self._left = self._most
        self._at = 0.0

    def take(self, amount: float, now: float) -> float:
        """Take an amount, there or not; returns for how many seconds to wait until it would have been there."""
        self._left = min(self._most, self._left + self._per_s * max(0.0, now - self._at)) - amount
        self._at = now
        return max(0.0, -self._left / self._per_s)


class Unfinished:
    """The memory that messages take of which a part has arrived, on all connections.

    A connection asks for room before it reads more of such a message. While there is no room, only the connection whose
    message began first is read; the others wait, the oldest message first. So each message ends, however many there
    are, and memory exceeds the limit by one message at most, and by `SMALL_BYTES` for each connection.

    A connection that waits is not closed. While others wait, those are closed that keep the scheduler waiting:
    `stall_s` in all for the last `PROGRESS_BYTES`.
    """

    def __init__(self, most_bytes: int, stall_s: float = 10.0) -> None:
        self._most_bytes = most_bytes
        self._stall_s = stall_s
        self._held: dict[FrameMeter, int] = {}
        """Bytes by connection, the oldest message first."""
        self._bytes = 0
        self._waiting: dict[FrameMeter, trio.Event] = {}

    def hold(self, meter: FrameMeter, size: int) -> None:
        """Count `size` bytes of an unfinished message for this connection; 0: it has no unfinished message."""
        before = self._held.get(meter, 0)
        self._bytes += size - before
        if size:
            self._held[meter] = size
        elif before:
            del self._held[meter]
        if size < before and self._waiting:
            self._grant()

    async def reserve(self, meter: FrameMeter) -> None:
        """Wait until there is room for `RESERVED_BYTES` more of this connection's message, and count them as held."""
        if self._has_room(meter):
            self._hold_more(meter)
            return
        self._waiting[meter] = granted = trio.Event()
        try:
            self._close_stalled()
            while not granted.is_set():
                with trio.move_on_after(_CHECK_S):
                    await granted.wait()
                    return
                meter.heard()  # it may be sending: nobody looks
                self._close_stalled()
        finally:
            self._waiting.pop(meter, None)

    def _has_room(self, meter: FrameMeter) -> bool:
        return self._bytes + RESERVED_BYTES <= self._most_bytes or next(iter(self._held)) is meter

    def _hold_more(self, meter: FrameMeter) -> None:
        self._held[meter] += RESERVED_BYTES
        self._bytes += RESERVED_BYTES

    def _grant(self) -> None:
        """Wake those for which there is room now."""
        for meter in [meter for meter in self._held if meter in self._waiting]:
            if not self._has_room(meter):
                return
            self._hold_more(meter)
            self._waiting.pop(meter).set()

    def _close_stalled(self) -> None:
        """Close connections that keep the scheduler waiting, the oldest message first, until somebody has room."""
        now = trio.current_time()
        for meter in [meter for meter in self._held if meter not in self._waiting]:
            if meter.stalled_s(now) < self._stall_s:
                continue
            meter.give_up(
                f"{self._most_bytes} bytes of unfinished messages are held, and you sent less than {PROGRESS_BYTES} "
                f"bytes of yours in {self._stall_s:g} s"
            )
            waiting = len(self._waiting)
            self.hold(meter, 0)
            if len(self._waiting) < waiting:
                return


class FrameScanner:
    """Finds where frames and messages end in a stream of bytes, without looking at what they hold."""

    __slots__ = ("_header", "_is_last", "_is_open", "_payload_left", "frames", "message_bytes", "messages")

    def __init__(self) -> None:
        self._header = bytearray()
        """Of the frame that begins, as far as it has arrived."""
        self._payload_left = 0
        self._is_last = False
        """Whether the frame ends a message."""
        self._is_open = False
        """Whether a message has begun and not ended."""
        self.frames = 0
        """Headers that were complete."""
        self.messages = 0
        """Messages that ended."""
        self.message_bytes = 0
        """Payload, by its headers, of the message that has not ended; else of the one that ended last."""

    @property
    def unfinished_bytes(self) -> int:
        """Payload that has arrived of a message that has not ended."""
        return self.message_bytes - self._payload_left if self._is_open else 0

    def scan(self, data: bytes | bytearray, at: int, most_frames: int, *, one_message: bool = False) -> int:
        """Go on from `data[at]`; returns where it stopped: at the end, behind `most_frames` headers and what follows
        the last of them, or with `one_message` behind the end of a message."""
        size = len(data)
        header = self._header
        most = self.frames + most_frames
        while at < size:
            if self._payload_left:
                step = min(self._payload_left, size - at)
                at += step
                self._payload_left -= step
                if self._payload_left:
                    break
            else:
                if not header and self.frames == most:
                    break
                end = at + _header_size(header) - len(header)
                header += data[at:end]
                at = min(end, size)
                if len(header) < _header_size(header):
                    continue
                self._begin(header)
                header.clear()
                if self._payload_left:
                    continue
            if self._is_last:
                self._is_last = self._is_open = False
                self.messages += 1
                if one_message:
                    break
        return at

    def _begin(self, header: bytearray) -> None:
        """The header is complete."""
        length = header[1] & 0x7F
        if length > 125:
            length = int.from_bytes(header[2 : 4 if length == 126 else 10], "big")
        self.frames += 1
        self._payload_left = length
        opcode = header[0] & 0x0F
        if opcode < 8:  # control frames may come between those of a message
            self.message_bytes = length if opcode else self.message_bytes + length
            self._is_last = header[0] >= 0x80
            self._is_open = True


def _header_size(header: bytearray) -> int:
    """Of the frame whose header begins like this."""
    if len(header) < 2:
        return 2
    length = header[1] & 0x7F
    return 2 + (4 if header[1] & 0x80 else 0) + (0 if length < 126 else 2 if length == 126 else 8)


class FrameMeter:
    """The reading side of a connection's stream: what the parser is given, and when."""

    def __init__(self, receive: Receive, rates: Rates, unfinished: Unfinished) -> None:
        self.refuse: Callable[[bool, str], None] = lambda _too_large, _reason: None
        """Closes the connection: (whether it said too much at once, why). Nothing is read from it afterwards."""
        self.heard: Callable[[], None] = lambda: None
        """Called when the admitted peer has sent bytes, and while it is not read because others are."""
        self._receive = receive
        self._rates = rates
        self._unfinished = unfinished
        self._is_refused = False
        self._frames = Budget(rates.frames_per_s)
        self._bytes = Budget(rates.bytes_per_s)
        self._scanner = FrameScanner()
        self._data: bytes | bytearray = b""
        self._at = 0
        """How much of `_data` was handed on."""
        self._request = bytearray()
        """As far as it has arrived."""
        self._stalled_s = 0.0
        """How long the bytes since the last `PROGRESS_BYTES` of a message were waited for."""
        self._stalled_bytes = 0
        self._receiving_since = math.inf
        self._has_request = False
        self._is_upgraded = False
        self._early_bytes = 0
        self._early_reads = 0
        self._admitted = trio.Event()

    def admit(self) -> None:
        """The peer has proved who it is."""
        self._admitted.set()

    async def request(self) -> bytes:
        """The request of the handshake, once it is complete; `read` hands it on first. Empty: the peer closed before.

        :raises trio.BrokenResourceError: it is too long, or not HTTP.
        """
        request = self._request
        while not self._has_request:
            if not await self._fill(_SMALL_READ):
                return b""
            searched = max(0, len(request) - _LONGEST_END)
            before = len(request)
            request += self._data
            if not _FIRST_BYTE.match(request):
                raise trio.BrokenResourceError("this is not HTTP")
            end = _END_OF_REQUEST.search(request, searched)
            if end is not None:
                self._has_request = True
                self._at = end.end() - before
                del request[end.end() :]
            elif self._early_bytes > HANDSHAKE_BYTES or self._early_reads > EARLY_READS:
                raise trio.BrokenResourceError("the request is too long")
        return bytes(request)

    async def read(self, max_bytes: int) -> bytes | bytearray:
        """Some bytes for the parser; none at the end of the stream."""
        if self._is_refused:
            return await self._ignore()
        if not self._is_upgraded:
            request = await self.request()
            self._is_upgraded = True
            return request
        if self._at < len(self._data):
            await trio.lowlevel.checkpoint()
        elif not await self._fill(max_bytes):
            return b""
        if self._is_refused:
            return await self._ignore()
        if self._admitted.is_set():
            return await self._frames_at_a_rate()
        if self._early_reads > EARLY_READS:
            return await self._refuse(False, f"more than {EARLY_READS} pieces before the hello")
        return await self._hello()

    async def discard(self) -> None:
        """Read to the end of the stream, at the usual rate."""
        while await self._fill(_LARGE_READ):  # noqa: ASYNC110  # a rate, and no condition
            await trio.sleep(self._bytes.take(len(self._data), trio.current_time()))

    async def _fill(self, max_bytes: int) -> bool:
        if not self._admitted.is_set():
            self._data = await self._receive(min(max_bytes, _SMALL_READ))
            self._early_reads += 1
            self._early_bytes += len(self._data)
        elif self._scanner.unfinished_bytes:
            await self._receive_more(max_bytes)
        else:
            self._data = await self._receive(max_bytes)
            self._stalled_s, self._stalled_bytes = 0.0, 0
        self._at = 0
        if self._data and self._admitted.is_set():
            self.heard()
        return bool(self._data)

    async def _receive_more(self, max_bytes: int) -> None:
        """More of an unfinished message, once there is room for it."""
        if self._scanner.unfinished_bytes > SMALL_BYTES and not self._is_refused:
            await self._unfinished.reserve(self)
        self._receiving_since = trio.current_time()
        self._data = await self._receive(min(max_bytes, RESERVED_BYTES))
        self._stalled_s = self.stalled_s(trio.current_time())
        self._receiving_since = math.inf
        self._stalled_bytes += len(self._data)
        if self._stalled_bytes >= PROGRESS_BYTES:
            self._stalled_s, self._stalled_bytes = 0.0, 0

    def stalled_s(self, now: float) -> float:
        """Seconds that the peer's last bytes of a message were waited for, up to `PROGRESS_BYTES` of them."""
        return self._stalled_s + max(0.0, now - self._receiving_since)

    def give_up(self, reason: str) -> None:
        """Read this connection no further; it ends with the reason."""
        self._is_refused = True
        self.refuse(True, reason)

    def end(self) -> None:
        """The connection has ended."""
        self._unfinished.hold(self, 0)

    async def _refuse(self, too_large: bool, reason: str) -> bytes:
        self._is_refused = True
        self.refuse(too_large, reason)
        return await self._ignore()

    async def _ignore(self) -> bytes:
        """Let a peer that was admitted finish what it sends, or it would not read why; a stranger has to wait."""
        if not self._admitted.is_set():
            await trio.sleep_forever()
        await self.discard()
        return b""

    async def _hello(self) -> bytes | bytearray:
        """What arrived of the first message; nothing behind it before the peer is admitted."""
        scanner, limit = self._scanner, self._rates.hello_bytes
        if scanner.messages:
            await self._admitted.wait()
            return await self._frames_at_a_rate()
        begin = self._at
        self._at = scanner.scan(self._data, begin, HELLO_FRAMES, one_message=True)
        if scanner.message_bytes > limit:
            return await self._refuse(True, f"a hello has at most {limit} bytes")
        if scanner.frames > HELLO_FRAMES or self._at == begin:
            return await self._refuse(False, f"a hello has at most {HELLO_FRAMES} frames")
        return self._data[begin : self._at]

    async def _frames_at_a_rate(self) -> bytes | bytearray:
        """A few frames, once the connection may send as many."""
        scanner, begin, before = self._scanner, self._at, self._scanner.frames
        self._at = scanner.scan(self._data, begin, FRAMES_AT_ONCE)
        if scanner.message_bytes > self._rates.message_bytes:
            return await self._refuse(True, f"a message has at most {self._rates.message_bytes} bytes")
        self._unfinished.hold(self, scanner.unfinished_bytes)
        now = trio.current_time()
        wait_s = max(
            self._frames.take(scanner.frames - before, now),
            self._bytes.take(self._at - begin, now),
        )
        if wait_s:
            await trio.sleep(wait_s)
        return self._data[begin : self._at]
