"""Clients and their turns (R15)."""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

from trio_sched.core.ids import ClientId


class Client:
    """A session, and its turn (R15)."""

    __slots__ = ("active", "gone", "id", "number", "pause_reason", "paused", "ready", "step", "unfinished", "vtime")

    def __init__(self, client_id: ClientId, number: int, weight: float) -> None:
        self.id = client_id
        self.number = number
        self.vtime = 0.0
        self.step = 1.0 / weight
        self.unfinished = 0
        """Its accepted tasks that have not ended."""
        self.ready = 0
        """Its ready tasks; it is active while there are any and it is not paused."""
        self.active = False
        """Whether it stands in the heap of active clients."""
        self.gone = False
        self.paused = False
        """Whether its tasks stay here (R34)."""
        self.pause_reason = ""


class Turns:
    """The active clients by virtual time: from where one that becomes active starts."""

    __slots__ = ("_heap", "floor")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Client]] = []
        self.floor = 0.0
        """The largest virtual time at which a task was ever sent."""

    def activate(self, client: Client) -> None:
        """A client without ready tasks is about to have one."""
        if client.active and len(self._heap) == 1:  # it stands there alone: a common case, and no comparison is needed
            client.vtime = max(client.vtime, self.floor)
            return
        start = self._current()
        if client.vtime < start:
            client.vtime = start
        if not client.active:
            client.active = True
            heappush(self._heap, (client.vtime, client.number, client))

    def restore(self, active: list[Client]) -> None:
        """These clients, and no others, are active."""
        self._heap = [(client.vtime, client.number, client) for client in active]
        heapify(self._heap)
        for client in active:
            client.active = True

    def _current(self) -> float:
        heap = self._heap
        while heap:
            vtime, number, client = heap[0]
            if not client.ready or client.paused:
                heappop(heap)
                client.active = False
            elif vtime != client.vtime:
                heapreplace(heap, (client.vtime, number, client))
            else:
                return vtime
        return self.floor
