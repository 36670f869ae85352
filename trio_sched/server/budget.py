"""The memory used for clients: the bytes of calls and results that the scheduler holds for them; credit and pauses.

Two limits apply, `client_bytes` for each client and `total_bytes` for all clients together. The bytes that may be held
for one client now are the smaller of its own limit and the free part of the total, but never less than a minimum share.
So one client that uses all of its credit leaves half of the total free, and n such clients leave 1/(n + 1) of it.

* The scheduler sends each client its credit: the bytes of submissions that the client may have sent and that are not
  accepted yet. The credit shrinks to 0 as the bytes held for the client approach its limit, and grows as its tasks end.
  Submissions of a client that ignores its credit are refused.
* A client that leaves more bytes of results unread than the limit is paused (R34) until it has read half of the limit.

Payloads larger than `TASK_BYTES` are counted one by one; in addition, every task counts as `TASK_BYTES`.
"""

from __future__ import annotations

from collections.abc import Mapping

from trio_sched.core.events import ClientPaused, ClientResumed
from trio_sched.core.ids import TaskId
from trio_sched.server.config import Config
from trio_sched.server.memory import memory_bytes, return_free_memory
from trio_sched.server.sessions import ClientSession, Sessions
from trio_sched.wire.native import TASK_BYTES, FramedRecord, TaskResult

#: The smallest window of unanswered bytes: room for one message.
MIN_WINDOW_BYTES = 1 << 20
#: The least number of bytes by which a client may exceed its promise while all clients together are below the total.
OVERDRAFT_BYTES = 32 << 20
#: The credit is sent to its client when it has changed by one part of this many.
CREDIT_STEPS = 8
#: Without `total_bytes`, clients may use one part of this many of the memory.
MEMORY_SHARE = 4
#: One part of this many of the total is divided evenly among the clients, so that each has a minimum.
MINIMUM_SHARE = 4
#: The smallest number of shares into which that part is divided.
MIN_SHARES = 16
#: The key of a departed client's environment among its payloads; a digest has another length.
_ENVIRONMENT = b"environment"
#: Bytes that must have been released, and half of all, before free memory is returned to the operating system.
TRIM_BYTES = 32 << 20


class ByteBudget:
    """Counts the bytes held for each client, and derives credit, pauses and refusals from the counts."""

    def __init__(self, config: Config, sessions: Sessions) -> None:
        self._config = config
        self._sessions = sessions
        self._window_bytes = max(config.window_bytes, MIN_WINDOW_BYTES)
        self.total_bytes = config.total_bytes or memory_bytes() // MEMORY_SHARE
        #: Bytes of payloads and unread results of all clients, departed ones included.
        self.held_bytes = 0
        #: `TASK_BYTES` for each unfinished task, as of the last `recount`.
        self.task_bytes = 0
        #: All bytes that were ever released; a change shows that memory became free.
        self.released_bytes = 0
        #: The part of `held_bytes` that belongs to departed clients with unfinished tasks.
        self.departed_bytes = 0
        #: Number of recounts.
        self._rounds = 0
        #: The maximum of `held_bytes` since free memory was last returned.
        self._peak_bytes = 0

    # ---- held bytes --------------------------------------------------------------------------------------------------

    def hold(self, client: ClientSession, key: TaskId | bytes, size: int) -> None:
        """Count a payload of the client: that of a task by its id, or a function by its digest."""
        more = size - client.payloads.get(key, 0)
        client.payloads[key] = size
        client.payload_bytes += more
        self._take(more)

    def release(self, client: ClientSession, key: TaskId | bytes) -> None:
        """Release a payload, if it was counted."""
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
        """Release the results of a client that left for good."""
        self._release(client.unread_bytes)
        client.unread_bytes = client.waiting_bytes = client.counted_results = 0

    def release_all(self, client: ClientSession) -> None:
        """Release everything that is held for the client."""
        self._release(client.payload_bytes)
        self.departed_bytes -= client.departed_bytes
        client.payload_bytes = client.departed_bytes = 0
        client.payloads.clear()

    def depart(self, client: ClientSession) -> None:
        """Count the bytes of a client that left with unfinished tasks, its environment included."""
        size = len(client.environment.cwd) + sum(map(len, client.environment.path))
        if size > TASK_BYTES:
            self.hold(client, _ENVIRONMENT, size)
        client.departed_bytes = client.payload_bytes
        self.departed_bytes += client.departed_bytes

    def count_unread(self, client: ClientSession) -> ClientPaused | ClientResumed | None:
        """Count the results that the client has not acknowledged.

        Returns the event for the core if the client is to be paused or resumed (R34).
        """
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
        """Count the tasks, and drop old promises, which connected clients no longer use; once in a heartbeat period."""
        self._rounds += 1
        if self._rounds % self._config.missed_heartbeats == 0:
            for client in self._sessions.clients.values():
                if client.connection is not None:  # others may use an old promise when they reconnect
                    client.previous_promise_bytes = client.highest_promise_bytes
                    client.highest_promise_bytes = client.promised_bytes
        sessions = self._sessions
        tasks = sum(client.unfinished_count for client in sessions.clients.values())
        tasks += sum(client.unfinished_count for client in sessions.departed.values())
        self.task_bytes = tasks * TASK_BYTES

    def trim(self) -> None:
        """Return free memory to the operating system, if most of the held bytes were released."""
        released = self._peak_bytes - self.held_bytes
        if released >= TRIM_BYTES and released >= self.held_bytes:
            self._peak_bytes = self.held_bytes
            return_free_memory()

    # ---- credit and refusals -----------------------------------------------------------------------------------------

    def free_bytes(self) -> int:
        """Return the free part of the total; negative if the clients exceed it."""
        return self.total_bytes - self.held_bytes - self.task_bytes

    def _minimum(self) -> int:
        return self.total_bytes // (MINIMUM_SHARE * max(MIN_SHARES, self._share_count()))

    def _share_count(self) -> int:
        """Return the number of clients among which memory is divided, departed ones included."""
        return len(self._sessions.clients) + len(self._sessions.departed)

    def _limit(self) -> int:
        """Return the limit for one client now: of its bytes of payloads, and of its bytes of unread results."""
        return min(self._config.client_bytes, max(self.free_bytes(), self._minimum()))

    def credit_of(self, client: ClientSession) -> int:
        """Return how many bytes of unanswered submissions the client may have."""
        window = self._window_bytes
        free = self._limit() - held_for(client)
        if client.paused:
            free += window  # an acknowledgement may wait until a call that needs the result is accepted
        fair = max(self.free_bytes() // (1 + self._share_count()), self._minimum())
        credit = max(0, min(window, free, fair))
        if not credit and not client.unfinished_count and client.submission_count == client.accepted_count:
            return 1  # one call, whatever its size
        return credit

    def _exempt_bytes(self, size: int) -> int:
        """Return how many bytes of the largest part of a message do not count against the promise: all or none."""
        return 0 if self.departed_bytes > self.total_bytes // 2 else size

    def limit_name(self, client: ClientSession) -> str:
        """Return the name of the setting that limits the client's credit."""
        own = max(held_for(client), self._limit()) >= self._config.client_bytes
        return "client_bytes" if own else "total_bytes"

    def has_changed_enough(self, client: ClientSession, credit: int) -> bool:
        """Return whether the credit differs so much from the one that was last sent that it is sent again."""
        sent = client.credit_bytes
        if not credit or not sent:
            return credit != sent
        return abs(credit - sent) * CREDIT_STEPS >= max(credit, sent)

    def promise(self, client: ClientSession) -> None:
        """Record the promise of the credit that was last sent, because a new count of accepted submissions is sent:
        the client may have that many bytes in addition to those held for it now."""
        if client.credit_bytes:
            client.promised_bytes = held_for(client) + client.credit_bytes
            client.highest_promise_bytes = max(client.highest_promise_bytes, client.promised_bytes)

    def find_refusal(self, client: ClientSession, sizes: Mapping[int, int], functions: Mapping[bytes, bytes]) -> str:
        """Return why a message with calls of these sizes is refused; "" if it is not.

        The bytes held for a client may reach the highest promise of at least the last `missed_heartbeats` heartbeats,
        because the client may send before it learns about a lower promise, plus a slack of one window, which shrinks to
        0 as the clients together exceed the total. The largest call and function of a message may exceed this, unless
        departed clients hold half of the total.
        """
        held = held_for(client)
        if sizes:
            held += sum(sizes.values()) - self._exempt_bytes(max(sizes.values()))
        if functions:
            each = [len(body) for body in functions.values()]
            held += sum(each) + TASK_BYTES * len(each) - self._exempt_bytes(TASK_BYTES + max(each))
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
    """Return the bytes of payloads that are held for a client."""
    return client.payload_bytes + client.unfinished_count * TASK_BYTES


def result_bytes(result: TaskResult | FramedRecord) -> int:
    """Return about how many bytes a result takes."""
    if isinstance(result, FramedRecord):
        return TASK_BYTES + sum([len(frame) for frame in result.frames])
    return TASK_BYTES + len(result.body) + len(result.stdout) + len(result.stderr)
