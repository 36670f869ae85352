"""A bounded rate of handshakes for peers that have not shown a token, shared fairly between their addresses.

Addresses take turns, so a host that floods the port uses up no more than its share. Within one address, which all
peers of this machine share, the newest request goes first: under a flood a peer that tries again has as good a chance
as any other request at once, and not after all that came before. A request whose peer has closed takes no turn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import trio

from trio_sched.transport.websocket_meter import Budget


class _Request:
    """A handshake that waits."""

    __slots__ = ("answered", "has_closed", "is_granted")

    def __init__(self, has_closed: Callable[[], bool]) -> None:
        self.has_closed = has_closed
        self.answered = trio.Event()
        self.is_granted = False

    def answer(self, *, is_granted: bool) -> None:
        self.is_granted = is_granted
        self.answered.set()


class HandshakeQueue:
    """Grants handshakes at a rate.

    `burst_s`: handshakes that were not made for that time can be made at once. `max_wait_s`: as many requests wait as
    are granted in that time; beyond that the oldest one of the address with the most is refused for a newcomer.
    """

    def __init__(self, per_s: float, burst_s: float, max_wait_s: float) -> None:
        self._budget = Budget(per_s, burst_s)
        self._max_waiting = max(1, int(per_s * max_wait_s))
        self._waiting: OrderedDict[str, dict[_Request, None]] = OrderedDict()
        """By address, in the order of their turns; each from the oldest to the newest."""
        self._count = 0
        self._arrived = trio.Event()

    async def wait_turn(self, address: str, has_closed: Callable[[], bool] = lambda: False) -> bool:
        """Wait for a turn; whether it is granted. `has_closed`: whether the peer is gone, asked when its turn comes."""
        request = _Request(has_closed)
        if self._count >= self._max_waiting:
            crowded = max(self._waiting, key=lambda name: len(self._waiting[name]))
            oldest = next(iter(self._waiting[crowded]))
            self._remove(crowded, oldest)
            oldest.answer(is_granted=False)
        self._waiting.setdefault(address, {})[request] = None
        self._count += 1
        self._arrived.set()
        try:
            await request.answered.wait()
        finally:
            self._remove(address, request)
        return request.is_granted

    async def run(self) -> None:
        """Grant turns until cancelled."""
        while True:
            await self._arrived.wait()
            await trio.sleep(self._budget.take(1.0, trio.current_time()))
            request = self._next()
            if request is None:
                self._budget.take(-1.0, trio.current_time())
                self._arrived = trio.Event()
            else:
                request.answer(is_granted=True)

    def _next(self) -> _Request | None:
        """The request whose turn it is; those whose peer has closed are refused on the way."""
        while self._waiting:
            address = next(iter(self._waiting))
            self._waiting.move_to_end(address)
            request = next(reversed(self._waiting[address]))
            self._remove(address, request)
            if not request.has_closed():
                return request
            request.answer(is_granted=False)
        return None

    def _remove(self, address: str, request: _Request) -> None:
        """Twice does no harm."""
        requests = self._waiting.get(address, {})
        if request in requests:
            del requests[request]
            self._count -= 1
            if not requests:
                del self._waiting[address]
