"""What one WebSocket connection may make the scheduler read: in bytes, in frames, and before its peer is known.

Frames are parsed in Python, at some 25 us a frame, and an empty one takes 6 bytes of a sender. So the stream below the
parser looks at the headers of frames first, at a tenth of that cost, and hands on few frames at a time:

* during the handshake `HANDSHAKE_BYTES` are read, and what follows the request in the same packet is not parsed with
  it;
* until the peer is admitted one message is read, of at most `hello_bytes` in at most `HELLO_FRAMES` frames. What
  follows it stays in the system's buffers;
* then at most `FRAMES_AT_ONCE` frames between two checkpoints, at most `frames_per_s` and `bytes_per_s`. A peer that
  sends faster is read more slowly, until its own side notices; nothing is closed for that.
"""

from __future__ import annotations

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
_SMALL_READ = 4096
_LARGE_READ = 64 * 1024
_END_OF_REQUEST = re.compile(rb"\n\r?\n")
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
    """The messages of all connections of which a part has arrived. The oldest gives way when they are too large."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: dict[FrameMeter, int] = {}
        self._bytes = 0

    def hold(self, meter: FrameMeter, size: int) -> None:
        """So many bytes of a message have arrived on this connection; 0: it has no unfinished one."""
        before = self._held.get(meter, 0)
        self._bytes += size - before
        if size:
            self._held[meter] = size
        elif before:
            del self._held[meter]
        while self._bytes > self._most_bytes:
            oldest = next(iter(self._held))
            self._bytes -= self._held.pop(oldest)
            oldest.give_up(f"{self._most_bytes} bytes of unfinished messages are held, and this is the oldest")


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
        self._tail = b""
        """The last bytes of the request so far."""
        self._is_upgraded = False
        self._early_bytes = 0
        self._early_reads = 0
        self._admitted = trio.Event()

    def admit(self) -> None:
        """The peer has proved who it is."""
        self._admitted.set()

    async def read(self, max_bytes: int) -> bytes | bytearray:
        """Some bytes for the parser; none at the end of the stream."""
        if self._is_refused:
            return await self._ignore()
        if self._at < len(self._data):
            await trio.lowlevel.checkpoint()
        elif not await self._fill(max_bytes):
            return b""
        if not self._is_upgraded:
            return self._request()
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
        is_early = not self._admitted.is_set()
        self._data = await self._receive(min(max_bytes, _SMALL_READ) if is_early else max_bytes)
        self._at = 0
        if is_early:
            self._early_reads += 1
            self._early_bytes += len(self._data)
        return bool(self._data)

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

    def _request(self) -> bytes | bytearray:
        """What arrived of the request of the handshake, and nothing that follows it."""
        seen = self._tail + self._data
        end = _END_OF_REQUEST.search(seen)
        if end is None:
            self._tail = seen[-_LONGEST_END:]
            self._at = len(self._data)
            if self._early_bytes > HANDSHAKE_BYTES or self._early_reads > EARLY_READS:
                raise trio.BrokenResourceError("the request is too long")
            return self._data
        self._is_upgraded = True
        self._at = end.end() - len(self._tail)
        return self._data[: self._at]

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
        if self._is_refused:
            return await self._ignore()
        now = trio.current_time()
        wait_s = max(
            self._frames.take(scanner.frames - before, now),
            self._bytes.take(self._at - begin, now),
        )
        if wait_s:
            await trio.sleep(wait_s)
        return self._data[begin : self._at]
