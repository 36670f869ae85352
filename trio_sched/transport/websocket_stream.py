"""The stream below a WebSocket: it reads what its meter lets through, and notices a peer that takes nothing."""

from __future__ import annotations

import select
from collections.abc import Callable

import trio

from trio_sched.transport.websocket_meter import FrameMeter

PIECE_BYTES = 64 * 1024
"""Read or sent at once."""


class MeteredStream(trio.abc.Stream):
    """A stream that notices whether the other side takes what it is sent.

    That the system takes bytes proves nothing, unless it had (nearly) no room before: then the other side took some.
    """

    def __init__(
        self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream], stall_s: float, meter: FrameMeter
    ) -> None:
        self.meter = meter
        self.progress: Callable[[], None] = lambda: None
        self.broken_because = ""
        self._stream = stream
        self._stall_s = stall_s
        self._socket = (stream.transport_stream if isinstance(stream, trio.SSLStream) else stream).socket

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS is below the WebSocket."""
        return isinstance(self._stream, trio.SSLStream)

    @property
    def has_hung_up(self) -> bool:
        """Whether the other side has closed the connection; False where the system does not tell."""
        return _has_hung_up(self._socket.fileno())

    async def wait_until_heard(self) -> None:
        """Wait for the first bytes, or the end of the connection, below TLS."""
        await trio.lowlevel.wait_readable(self._socket)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """In pieces, each of which must be taken in `stall_s`."""
        view = memoryview(data)
        was_full = False
        for at in range(0, len(view), PIECE_BYTES):
            with trio.move_on_after(self._stall_s) as patience:
                await self._stream.send_all(view[at : at + PIECE_BYTES])
            if patience.cancelled_caught:
                self.broken_because = f"you read too slowly: nothing in {self._stall_s:g} s"
                raise trio.BrokenResourceError(self.broken_because)
            if was_full:
                self.progress()
            was_full = at + PIECE_BYTES < len(view) and not _takes_more(self._socket.fileno())

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """What the meter lets through."""
        return await self.meter.read(max_bytes or PIECE_BYTES)

    async def wait_send_all_might_not_block(self) -> None:
        """As the stream's own."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """As the stream's own."""
        await self._stream.aclose()


def _takes_more(descriptor: int) -> bool:
    """Whether the system has room for more to send."""
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select((), (descriptor,), (), 0)[1])
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


def _has_hung_up(descriptor: int) -> bool:
    """Whether the other side will send no more, whatever it sent before."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(descriptor, getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(0))
