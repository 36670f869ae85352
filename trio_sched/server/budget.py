"""How much memory clients may take: the bytes of calls and results that the scheduler holds for them, and who waits.

Two limits, `client_bytes` for each client and `total_bytes` for all. What a client may have held at the moment is the
smaller of its own limit and what is free of the total (so that one that takes all it can leaves as much for others, and
n of them a part of n + 1), and never less than a minimum share.

* A client is told its credit: how many bytes it may have under way beyond the submissions that were accepted. It
  shrinks to nothing as what is held for the client nears its limit, and comes back as its tasks end. Submissions of a
  client that ignores it are refused.
* A client that leaves more results unread than the limit is paused (R34) until it has read half of that.

Only payloads larger than `TASK_BYTES` are counted one by one; every task counts for so much besides.
"""

from __future__ import annotations

from collections.abc import Mapping

from trio_sched.core.events import ClientPaused, ClientResumed
from trio_sched.core.ids import TaskId
from trio_sched.server.config import Config
from trio_sched.server.memory import memory_bytes, return_free_memory
from trio_sched.server.sessions import ClientSession, Sessions
from trio_sched.wire.native import TASK_BYTES, Attached, TaskEnd

LEAST_WINDOW_BYTES = 1 << 20
"""What a client may always have under way where it may hold so much: a message of its."""
OVERDRAFT_BYTES = 32 << 20
"""What is taken from a client beyond its promise, at least, while the clients together do not exceed the total."""
CREDIT_STEPS = 8
"""Credit is told again when it has changed by an eighth."""
MEMORY_SHARE = 4
"""Without `total_bytes` clients may take a quarter of the memory."""
MINIMUM_SHARE = 4
"""A quarter of the total, dealt out evenly, is each client's whatever others take,"""
FEWEST_SHARES = 16
"""in at least so many shares."""
PLACE = b"place"
"""The key of a departed client's place among its payloads; digests are longer."""
TRIM_BYTES = 32 << 20
"""When so much was released, and half of what there was, free memory goes back to the operating system."""


class ByteBudget:
    """The bytes held for each client, and what follows from them."""

    def __init__(self, config: Config, sessions: Sessions) -> None:
        self._config = config
        self._sessions = sessions
        self._window_bytes = max(config.window_bytes, LEAST_WINDOW_BYTES)
        self.total_bytes = config.total_bytes or memory_bytes() // MEMORY_SHARE
        self.held_bytes = 0
        """Payloads and unread results of all clients, and what is left of those that are gone."""
        self.task_bytes = 0
        """What tasks count besides, as of the last `recount`."""
        self.released_bytes = 0
        """What was released in all: to find out whether anything was since."""
        self.departed_bytes = 0
        """The part of `held_bytes` that clients left behind, whose tasks go on."""
        self._rounds = 0
        """Recounts so far."""
        self._peak_bytes = 0
        """The most that was held since free memory was returned."""

    # ---- what is held ------------------------------------------------------------------------------------------------

    def hold(self, client: ClientSession, key: TaskId | bytes, size: int) -> None:
        """A payload of the client came in: of a task, or a function by its digest."""
        more = size - client.payloads.get(key, 0)
        client.payloads[key] = size
        client.payload_bytes += more
        self._take(more)

    def release(self, client: ClientSession, key: TaskId | bytes) -> None:
        """The payload is not needed any more, if it was counted."""
        size = client.payloads.pop(key, 0)
        client.payload_bytes -= size
        self._release(size)

    def _take(self, size: int) -> None:
        self.held_bytes += size
        if self.held_bytes > self._peak_bytes:
            self._peak_bytes = self.held_bytes

    def _release(self, size: int) -> None:
        self.held_bytes -= size
        self.released_bytes += size

    def release_results(self, client: ClientSession) -> None:
        """The client left for good: nobody reads its results."""
        self._release(client.unread_bytes)
        client.unread_bytes = client.waiting_bytes = client.counted_results = 0

    def release_all(self, client: ClientSession) -> None:
        """Nothing of the client is left."""
        self._release(client.payload_bytes)
        self.departed_bytes -= client.departed_bytes
        client.payload_bytes = client.departed_bytes = 0
        client.payloads.clear()

    def depart(self, client: ClientSession) -> None:
        """The client left and its tasks go on: its place is kept for them."""
        place = len(client.environment.cwd) + sum(map(len, client.environment.path))
        if place > TASK_BYTES:
            self.hold(client, PLACE, place)
        client.departed_bytes = client.payload_bytes
        self.departed_bytes += client.departed_bytes

    def count_unread(self, client: ClientSession) -> ClientPaused | ClientResumed | None:
        """Results were sent to the client, wait for it, or were acknowledged: what the core must hear of it."""
        results = client.queued_results
        if client.counted_results != len(results):
            client.waiting_bytes += sum([result_bytes(result) for result in results[client.counted_results :]])
            client.counted_results = len(results)
        unread = client.unacked_bytes + client.waiting_bytes
        more = unread - client.unread_bytes
        client.unread_bytes = unread
        if more > 0:
            self._take(more)
        else:
            self._release(-more)
        limit = self._limit()
        if client.paused:
            if unread <= limit // 2:
                client.paused = False
                return ClientResumed(client.number)
        elif unread > limit and not client.admin:
            client.paused = True
            name = "client_bytes" if limit == self._config.client_bytes else "total_bytes"
            return ClientPaused(
                client.number, f"its client has {unread:,} bytes of unread results, more than {name} allows ({limit:,})"
            )
        return None

    def recount(self) -> None:
        """Every heartbeat: what small tasks add up to, and which promises a client has heard of since."""
        self._rounds += 1
        if self._rounds % self._config.missed_heartbeats == 0:
            for client in self._sessions.clients.values():
                if client.connection is not None:  # one that is away sends what it was promised when it comes back
                    client.previous_promise_bytes = client.highest_promise_bytes
                    client.highest_promise_bytes = client.promised_bytes
        sessions = self._sessions
        tasks = sum(client.unfinished for client in sessions.clients.values())
        tasks += sum(client.unfinished for client in sessions.departed.values())
        self.task_bytes = tasks * TASK_BYTES

    def trim(self) -> None:
        """Return free memory to the operating system, if most of what was held was released."""
        released = self._peak_bytes - self.held_bytes
        if released >= TRIM_BYTES and released >= self.held_bytes:
            self._peak_bytes = self.held_bytes
            return_free_memory()

    # ---- what follows ------------------------------------------------------------------------------------------------

    def free_bytes(self) -> int:
        """What is left of the total."""
        return self.total_bytes - self.held_bytes - self.task_bytes

    def _minimum(self) -> int:
        return self.total_bytes // (MINIMUM_SHARE * max(FEWEST_SHARES, self._shares()))

    def _shares(self) -> int:
        """Clients among which memory is divided: those that left while their tasks go on count as well."""
        return len(self._sessions.clients) + len(self._sessions.departed)

    def _limit(self) -> int:
        """The bytes of payloads, and the bytes of unread results, that each client may have held now."""
        return min(self._config.client_bytes, max(self.free_bytes(), self._minimum()))

    def credit_of(self, client: ClientSession) -> int:
        """How many bytes the client may have under way beyond what was accepted."""
        window = self._window_bytes
        room = self._limit() - held_for(client)
        if client.paused:
            room += window  # an acknowledgement may wait until a call that needs the result is accepted
        fair = max(self.free_bytes() // (1 + self._shares()), self._minimum())
        credit = max(0, min(window, room, fair))
        if not credit and not client.unfinished and client.received == client.accepted:
            return 1  # one call, whatever its size
        return credit

    def _exempt(self, size: int) -> int:
        """How much of the largest part of a message does not count against a promise."""
        return 0 if self.departed_bytes > self.total_bytes // 2 else size

    def limit_name(self, client: ClientSession) -> str:
        """The setting that keeps the client's credit down."""
        own = max(held_for(client), self._limit()) >= self._config.client_bytes
        return "client_bytes" if own else "total_bytes"

    def worth_telling(self, client: ClientSession, credit: int) -> bool:
        """Whether a client should hear that its credit has changed."""
        told = client.credit_bytes
        if not credit or not told:
            return credit != told
        return abs(credit - told) * CREDIT_STEPS >= max(credit, told)

    def promise(self, client: ClientSession) -> None:
        """The client hears what was accepted, and what it was told last counts from there."""
        if client.credit_bytes:
            client.promised_bytes = held_for(client) + client.credit_bytes
            client.highest_promise_bytes = max(client.highest_promise_bytes, client.promised_bytes)

    def overdrawn(self, client: ClientSession, sizes: Mapping[int, int], functions: Mapping[bytes, bytes]) -> str:
        """Why a message with calls of these sizes is not taken from the client, which ignores its credit; "" if it is.

        What a client may have held is the highest promise of the last `missed_heartbeats` heartbeats or more, since it
        may send before it learns of a lower one, and a slack of a window, which shrinks to nothing as the clients
        together exceed the total. The largest call and function of a message may exceed that, unless clients that have
        left hold half of the total.
        """
        held = held_for(client)
        if sizes:
            held += sum(sizes.values()) - self._exempt(max(sizes.values()))
        if functions:
            each = [len(body) for body in functions.values()]
            held += sum(each) + TASK_BYTES * len(each) - self._exempt(TASK_BYTES + max(each))
        promised = max(client.promised_bytes, client.highest_promise_bytes, client.previous_promise_bytes)
        slack = max(self._window_bytes, OVERDRAFT_BYTES)
        if held <= promised + max(0, slack + min(0, self.free_bytes())):
            return ""
        name = self.limit_name(client)
        limit = self._config.client_bytes if name == "client_bytes" else self.total_bytes
        return (
            f"the scheduler holds {held:,} bytes of this client, and {name} is {limit:,}: "
            "submit more when tasks have ended, as credit_bytes allows"
        )


def held_for(client: ClientSession) -> int:
    """The bytes of payloads that are held for a client."""
    return client.payload_bytes + client.unfinished * TASK_BYTES


def result_bytes(end: TaskEnd | Attached) -> int:
    """About what the end of a task takes."""
    if isinstance(end, Attached):
        return TASK_BYTES + sum([len(frame) for frame in end.frames])
    return TASK_BYTES + len(end.body) + len(end.stdout) + len(end.stderr)
