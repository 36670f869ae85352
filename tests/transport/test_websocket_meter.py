"""The limits on what one WebSocket connection makes the scheduler read."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import trio
import trio.testing

from trio_sched.transport.websocket_meter import (
    EARLY_READS,
    FRAMES_AT_ONCE,
    HANDSHAKE_BYTES,
    HELLO_FRAMES,
    SMALL_BYTES,
    FrameMeter,
    FrameScanner,
    PartialMessages,
    ReceiveLimits,
    TokenBucket,
)

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
FRAGMENT = b"\x00\x80\x00\x00\x00\x00"


def run_virtual(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def frame(size: int, opcode: int = 1, *, is_last: bool = True) -> bytes:
    head = bytes([(0x80 if is_last else 0) | opcode])
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    return head + length + bytes(4) + bytes(size)


class Peer:
    """The bytes that a peer sends, and a meter that reads them."""

    def __init__(self, *pieces: bytes, partial_messages: PartialMessages | None = None, **rates: Any) -> None:
        self.pieces = list(pieces)
        self.refused: list[tuple[bool, str]] = []
        self.asked: list[int | None] = []
        #: The times of activity.
        self.active_at: list[float] = []
        self.meter = FrameMeter(
            self._receive,
            ReceiveLimits(**{"message_bytes": 1 << 20, **rates}),
            partial_messages or PartialMessages(1 << 30),
            on_violation=lambda too_large, reason: self.refused.append((too_large, reason)),
            on_activity=lambda: self.active_at.append(trio.current_time()),
        )

    async def _receive(self, max_bytes: int | None) -> bytes:
        await trio.lowlevel.checkpoint()
        self.asked.append(max_bytes)
        return self.pieces.pop(0) if self.pieces else b""

    async def read_all(self) -> list[bytes]:
        parts = []
        while part := await self.meter.read(1 << 16):
            parts.append(bytes(part))
        return parts

    async def is_stuck(self) -> bool:
        """Whether nothing more is read within a long time."""
        with trio.move_on_after(1000) as scope:
            await self.meter.read(1 << 16)
        return scope.cancelled_caught


# ---- scanning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_frames_and_messages_are_found_in_pieces_of_any_size(seed: int) -> None:
    rng = random.Random(seed)
    data, frames, messages, unfinished, is_open = b"", 0, 0, 0, False
    for _ in range(rng.randint(1, 30)):
        size = rng.choice([0, 1, 125, 126, 127, 1000, 70_000])
        if rng.random() < 0.2:
            data += frame(min(size, 125), 9)
        else:
            is_last = rng.random() < 0.6
            data += frame(size, 0 if is_open else 1, is_last=is_last)
            unfinished = 0 if is_last else unfinished + size
            messages += is_last
            is_open = not is_last
        frames += 1
    scanner, at = FrameScanner(), 0
    while at < len(data):
        piece = data[at : at + rng.choice([1, 2, 3, 7, 100, 5000])]
        assert scanner.scan(piece, 0, 1 << 30) == len(piece)
        at += len(piece)
    assert (scanner.frames, scanner.messages, scanner.unfinished_bytes) == (frames, messages, unfinished)


def test_scanning_stops_at_the_frame_limit_or_after_a_message() -> None:
    data = frame(10) + frame(3, 9) + frame(4)
    assert FrameScanner().scan(data, 0, 2) == len(frame(10) + frame(3, 9))
    assert FrameScanner().scan(data, 0, 9, one_message=True) == len(frame(10))
    scanner = FrameScanner()
    assert scanner.scan(data[:-1], 0, 9) == len(data) - 1
    assert (scanner.messages, scanner.unfinished_bytes) == (1, 3)


def test_a_token_bucket_permits_a_burst_and_then_a_rate() -> None:
    budget = TokenBucket(100.0, burst_s=0.5)
    assert budget.take(50.0, 10.0) == 0.0
    assert budget.take(100.0, 10.0) == pytest.approx(1.0)
    assert budget.take(100.0, 11.0) == pytest.approx(1.0)
    assert budget.take(50.0, 100.0) == 0.0


# ---- before authentication ------------------------------------------------------------------------------------------


def test_bytes_behind_the_request_are_not_passed_with_it() -> None:
    async def main() -> None:
        hello = frame(20)
        for cut in range(len(REQUEST) - 5, len(REQUEST) + 4):
            peer = Peer((REQUEST + hello)[:cut], (REQUEST + hello)[cut:])
            read = b""
            while len(read) < len(REQUEST):
                read += await peer.meter.read(1 << 16)
            assert read == REQUEST

    run_virtual(main)


def test_one_message_is_read_before_authentication_and_the_others_wait() -> None:
    async def main() -> None:
        peer = Peer(REQUEST, frame(20) + frame(30) + frame(40), b"")
        assert await peer.meter.read(1 << 16) == REQUEST
        assert await peer.meter.read(1 << 16) == frame(20)
        assert await peer.is_stuck()
        peer.meter.mark_authenticated()
        assert b"".join(await peer.read_all()) == frame(30) + frame(40)
        assert not peer.refused
        assert max(size or 0 for size in peer.asked[:2]) <= 4096

    run_virtual(main)


@pytest.mark.parametrize(
    ("pieces", "too_large"),
    [
        ([frame(1 << 20)[:100]], True),
        ([b"\x01\x80" + bytes(4) + FRAGMENT * 1000], False),
        ([b"\x89\x80" + bytes(4)] * (HELLO_FRAMES + 1), False),
        ([bytes([byte]) for byte in frame(1000)], False),
    ],
    ids=["bytes", "fragments", "pings", "pieces"],
)
def test_an_unauthenticated_peer_that_sends_too_much_is_refused_and_not_read(
    pieces: list[bytes], too_large: bool
) -> None:
    async def main() -> None:
        peer = Peer(REQUEST, *pieces)
        with trio.move_on_after(1000) as scope:
            await peer.read_all()
        assert scope.cancelled_caught
        assert [refused for refused, _ in peer.refused] == [too_large]
        assert await peer.is_stuck()
        assert len(peer.asked) <= EARLY_READS + 1

    run_virtual(main)


def test_an_endless_request_is_refused() -> None:
    async def main() -> None:
        for piece in (b"X" * 1000, b"X"):
            peer = Peer(*[piece] * 100_000)
            with pytest.raises(trio.BrokenResourceError):
                await peer.read_all()
            assert len(piece) * len(peer.asked) <= HANDSHAKE_BYTES + 4096

    run_virtual(main)


# ---- after authentication -------------------------------------------------------------------------------------------


async def authenticated(*pieces: bytes, **options: Any) -> Peer:
    peer = Peer(REQUEST, *pieces, **options)
    await peer.meter.read(1 << 16)
    peer.meter.mark_authenticated()
    return peer


def test_frames_are_passed_a_few_at_a_time_at_a_rate() -> None:
    async def main() -> None:
        peer = await authenticated(FRAGMENT * 10_000, frames_per_s=1000.0)
        started = trio.current_time()
        parts = await peer.read_all()
        assert max(map(len, parts)) == FRAMES_AT_ONCE * len(FRAGMENT)
        assert b"".join(parts) == FRAGMENT * 10_000
        assert trio.current_time() - started == pytest.approx(10.0 - 0.1)

    run_virtual(main)


def test_bytes_are_read_at_a_rate() -> None:
    async def main() -> None:
        peer = await authenticated(*[frame(50_000)] * 100, bytes_per_s=1e6)
        started = trio.current_time()
        await peer.read_all()
        assert trio.current_time() - started == pytest.approx(4.9, abs=0.1)
        assert not peer.refused

    run_virtual(main)


def test_a_message_that_is_too_large_is_refused_at_its_header_and_discarded() -> None:
    async def main() -> None:
        peer = await authenticated(frame(10), frame(2 << 20)[:1000], *[bytes(60_000)] * 30)
        assert await peer.read_all() == [frame(10)]
        assert peer.refused == [(True, f"a message has at most {1 << 20} bytes")]
        assert not peer.pieces, "the peer must be able to finish its message, so that it reads the close frame"

    run_virtual(main)


def pieces_of(data: bytes, size: int = 60_000) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("pause_s", [0.0, 0.5])
def test_many_large_messages_wait_for_each_other_and_all_are_completed(pause_s: float) -> None:
    async def main() -> None:
        limit, size, count = 2_000_000, 900_000, 20
        partial_messages = PartialMessages(limit, stall_s=10.0)
        peak = 0
        completed: list[Peer] = []

        async def upload(peer: Peer) -> None:
            nonlocal peak
            while await peer.meter.read(1 << 16):
                peak = max(peak, partial_messages._bytes)
                await trio.sleep(pause_s)
            completed.append(peer)

        peers = [await authenticated(*pieces_of(frame(size)), partial_messages=partial_messages) for _ in range(count)]
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(upload, peer)
        assert len(completed) == count
        assert [peer.refused for peer in peers] == [[]] * count
        assert limit / 2 < peak <= limit + size + count * SMALL_BYTES
        assert not partial_messages._bytes
        assert not partial_messages._held

    run_virtual(main)


class StallingPeer(Peer):
    """A peer that sends its pieces and then nothing more."""

    async def _receive(self, max_bytes: int | None) -> bytes:
        if not self.pieces:
            await trio.sleep_forever()
        return await super()._receive(max_bytes)


async def stalling(partial_messages: PartialMessages, size: int) -> StallingPeer:
    """Return an authenticated peer that sends `size` bytes of a message."""
    peer = StallingPeer(REQUEST, *pieces_of(frame(1 << 20)[:size]), partial_messages=partial_messages)
    await peer.meter.read(1 << 16)
    peer.meter.mark_authenticated()
    return peer


def test_stalled_connections_are_closed_only_while_others_wait_and_only_as_many_as_needed() -> None:
    async def main() -> None:
        partial_messages = PartialMessages(2_000_000, stall_s=10.0)
        stalled = [await stalling(partial_messages, 600_000) for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for peer in stalled:
                nursery.start_soon(peer.read_all)
            await trio.sleep(1000)
            assert not any(peer.refused for peer in stalled), "no other connection waits"
            honest = await authenticated(*pieces_of(frame(300_000)), partial_messages=partial_messages)
            started = trio.current_time()
            assert sum(map(len, await honest.read_all())) == len(frame(300_000))
            assert trio.current_time() - started < 2
            assert sorted(len(peer.refused) for peer in stalled) == [0, 0, 1]
            assert "grew by less than 65536 bytes in 10 s" in next(
                peer.refused[0][1] for peer in stalled if peer.refused
            )
            nursery.cancel_scope.cancel()

    run_virtual(main)


def test_a_connection_that_waits_for_a_reservation_is_active() -> None:
    async def main() -> None:
        partial_messages = PartialMessages(500_000, stall_s=100.0)
        stalled = await stalling(partial_messages, 480_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stalled.read_all)
            await trio.testing.wait_all_tasks_blocked()
            waiting = await authenticated(*pieces_of(frame(300_000)), partial_messages=partial_messages)
            nursery.start_soon(waiting.read_all)
            await trio.sleep(50)
            assert waiting.pieces
            assert 40 < len(waiting.active_at) < 60
            stalled.meter.release()
            await trio.sleep(1)
            assert not waiting.pieces
            nursery.cancel_scope.cancel()

    run_virtual(main)


def test_a_stopped_connection_holds_no_memory_when_more_bytes_arrive() -> None:
    async def main() -> None:
        partial_messages = PartialMessages(1_000_000)
        peer = await authenticated(*pieces_of(frame(1 << 20)), partial_messages=partial_messages)
        await peer.meter.read(1 << 16)
        await peer.meter.read(1 << 16)
        peer.meter.stop("enough")
        partial_messages.hold(peer.meter, 0)
        assert await peer.meter.read(1 << 16) == b""
        assert partial_messages._bytes == 0
        assert not peer.pieces, "the peer must be able to finish its message, so that it reads the close frame"

    run_virtual(main)
