"""Fair share between clients (R15): virtual times, and the one at which a client that becomes active starts.

Rules:

- Each client has a virtual time. A task that is sent to an engine adds 1/weight to the virtual time of its client.
- At equal priority the client with the smallest virtual time goes first; among equals, the one that joined first.
- A client is active while it has ready tasks and is not paused (R34). A client that becomes active starts at the
  smallest virtual time of the active clients or at its own, whichever is larger. So a client gains nothing from idling.

Virtual times only grow. The heap of active clients therefore holds entries that may be outdated; an entry is corrected
when it reaches the top, which costs O(log n) for each task sent.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

from trio_sched.core.ids import MAX_COUNTER, ClientId, is_native, make_task_id


class ClientState:
    """The record of a client session."""

    __slots__ = (
        "has_left",
        "highest_task",
        "id",
        "in_heap",
        "last_task",
        "number",
        "pause_reason",
        "paused",
        "ready_count",
        "unfinished_count",
        "virtual_step",
        "virtual_time",
    )

    def __init__(self, client_id: ClientId, number: int, weight: float, highest_task: int) -> None:
        self.id = client_id
        #: The highest native task id seen, the bound below which ids are not new (R1).
        self.highest_task = highest_task
        #: The largest native task id of the session; 0 for a foreign one.
        self.last_task = make_task_id(client_id, MAX_COUNTER) if is_native(client_id) else 0
        #: Counts clients in the order in which they joined.
        self.number = number
        self.virtual_time = 0.0
        #: The amount that each assignment adds to the virtual time.
        self.virtual_step = 1.0 / weight
        #: Accepted tasks of the client that have not ended.
        self.unfinished_count = 0
        #: Ready tasks of the client, whether it is paused or not.
        self.ready_count = 0
        #: Whether the heap of active clients has an entry for it, perhaps an outdated one.
        self.in_heap = False
        #: Whether the session ended for good (R27).
        self.has_left = False
        #: Whether none of its tasks is sent to engines (R34).
        self.paused = False
        #: The reason of the pause, for explanations.
        self.pause_reason = ""


class FairShare:
    """The active clients, by virtual time."""

    __slots__ = ("_heap", "floor")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, ClientState]] = []
        #: The largest virtual time that a client had when a task of it was sent.
        self.floor = 0.0

    def activate(self, client: ClientState) -> None:
        """Make a client active that is about to get its first ready task."""
        if client.in_heap and len(self._heap) == 1:  # a common case: it is compared with itself only
            client.virtual_time = max(client.virtual_time, self.floor)
            return
        start = self._current()
        if client.virtual_time < start:
            client.virtual_time = start
        if not client.in_heap:
            client.in_heap = True
            heappush(self._heap, (client.virtual_time, client.number, client))

    def restore(self, active: list[ClientState]) -> None:
        """Replace the active clients by these."""
        self._heap = [(client.virtual_time, client.number, client) for client in active]
        heapify(self._heap)
        for client in active:
            client.in_heap = True

    def _current(self) -> float:
        """The smallest virtual time of the active clients; without active clients, `floor`."""
        heap = self._heap
        while heap:
            virtual_time, number, client = heap[0]
            if not client.ready_count or client.paused:
                heappop(heap)
                client.in_heap = False
            elif virtual_time != client.virtual_time:
                heapreplace(heap, (client.virtual_time, number, client))
            else:
                return virtual_time
        return self.floor
