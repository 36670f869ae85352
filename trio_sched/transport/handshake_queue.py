"""A rate limit on handshakes of peers without a token, shared fairly between their addresses.

The addresses take turns, so a host that floods the port gets no more than its share. Within one address, which all
peers of this machine share, the newest request is granted first. So in a flood a new attempt has the same chance as any
other request, and does not wait for all earlier ones. A request whose peer has closed its connection takes no turn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import trio

from trio_sched.transport.websocket_meter import TokenBucket


class _Request:
    """A handshake that waits for its turn."""

    __slots__ = ("answered", "is_closed", "is_granted")

    def __init__(self, is_closed: Callable[[], bool]) -> None:
        self.is_closed = is_closed
        self.answered = trio.Event()
        self.is_granted = False

    def answer(self, *, is_granted: bool) -> None:
        self.is_granted = is_granted
        self.answered.set()


class HandshakeQueue:
    """Grants handshakes at a rate.

    `burst_s`: unused handshakes of this time can be granted at once. `max_wait_s`: as many requests can wait as are
    granted in this time. A further request displaces the oldest one of the address with the most requests.
    """

    def __init__(self, per_s: float, burst_s: float, max_wait_s: float) -> None:
        self._budget = TokenBucket(per_s, burst_s)
        self._max_waiting = max(1, int(per_s * max_wait_s))
        #: By address, in the order of their turns; the requests of an address from the oldest to the newest.
        self._waiting: OrderedDict[str, dict[_Request, None]] = OrderedDict()
        self._count = 0
        self._arrived = trio.Event()

    async def wait_turn(self, address: str, is_closed: Callable[[], bool] = lambda: False) -> bool:
        """Wait for a turn. Return whether it is granted.

        `is_closed` is called when it is the turn of the request: whether the peer has closed its connection.
        """
        request = _Request(is_closed)
        if self._count >= self._max_waiting:
            largest = max(self._waiting, key=lambda name: len(self._waiting[name]))
            oldest = next(iter(self._waiting[largest]))
            self._remove(largest, oldest)
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
            request = self._take_next()
            if request is None:
                self._budget.take(-1.0, trio.current_time())
                self._arrived = trio.Event()
            else:
                request.answer(is_granted=True)

    def _take_next(self) -> _Request | None:
        """Remove and return the next request; refuse the ones before it whose connection is closed."""
        while self._waiting:
            address = next(iter(self._waiting))
            self._waiting.move_to_end(address)
            request = next(reversed(self._waiting[address]))
            self._remove(address, request)
            if not request.is_closed():
                return request
            request.answer(is_granted=False)
        return None

    def _remove(self, address: str, request: _Request) -> None:
        """Remove a request, if it still waits."""
        requests = self._waiting.get(address, {})
        if request in requests:
            del requests[request]
            self._count -= 1
            if not requests:
                del self._waiting[address]
