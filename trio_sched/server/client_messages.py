"""The handlers of clients' events in the actor's turn.

Every submission in a well-formed message is counted in `submission_count` and will be accepted or refused, in order:
credit and resumption depend on these counts. A submission that is not valid (an unknown function, a negative timeout)
is refused alone; a message that exceeds the client's credit is rejected as a whole (R25).

Submissions are counted against credit and memory as soon as they arrive, and then wait in a backlog, of which each turn
handles a bounded slice (R31): a flood of submissions delays neither results nor notifications. All other messages of
clients wait in the same backlog, so that the messages of one client keep their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from trio_sched.core.events import CancelRequested, MonitoringChanged, ResultsReceived, TaskSubmitted
from trio_sched.core.ids import MAX_COUNTER, expand_task_id, session_base, session_of
from trio_sched.errors import WireError
from trio_sched.server.budget import ByteBudget
from trio_sched.server.config import Config
from trio_sched.server.events import (
    CancelReceived,
    Effect,
    Event,
    HeartbeatReceived,
    QueryReceived,
    SendMessage,
    SubmissionRejected,
    SubmissionsReceived,
    WatchChanged,
)
from trio_sched.server.ingress import Ingress
from trio_sched.server.outbox import Outbox
from trio_sched.server.queries import QueryHandler
from trio_sched.server.sessions import ClientSession, FunctionCache
from trio_sched.server.task_specs import spec_of
from trio_sched.wire.native import INLINE_BYTES, TASK_BYTES, Call, Options, Pong, Reply, options_bytes

#: Messages of a client with more unanswered submissions than this many times its credit are rejected.
CREDIT_SLACK = 2


class ClientMessages:
    """Handlers of the events of clients. Each returns effects."""

    def __init__(
        self,
        config: Config,
        ingress: Ingress,
        core: Callable[[Any, float], list[Effect]],
        functions: FunctionCache,
        budget: ByteBudget,
        outbox: Outbox,
        queries: QueryHandler,
    ) -> None:
        self._config = config
        self._ingress = ingress
        self._core = core
        self._functions = functions
        self._budget = budget
        self._outbox = outbox
        self._queries = queries
        self._slice = config.submissions_per_turn
        self._backlog: deque[Event] = deque()
        #: (session, event, now) -> effects, by the type of the event.
        self.handlers: dict[type, Callable[[Any, Any, float], list[Effect]]] = {
            SubmissionsReceived: self._submissions_received,
            HeartbeatReceived: self._heartbeat_received,
            CancelReceived: self._cancel_received,
            QueryReceived: self._query_received,
            WatchChanged: self._watch_changed,
        }

    # ---- the backlog -------------------------------------------------------------------------------------------------

    def add(self, event: Event, _now: float) -> list[Effect]:
        """Add an event to the end of the backlog."""
        self._backlog.append(event)
        return []

    @property
    def has_backlog(self) -> bool:
        """Whether events of clients wait in the backlog."""
        return bool(self._backlog)

    def take_slice(self) -> Sequence[Event]:
        """Take the events that this turn is to handle."""
        backlog = self._backlog
        if len(backlog) <= self._slice:
            self._backlog = deque()
            return backlog
        self._ingress.inbox.wake()
        return [backlog.popleft() for _ in range(self._slice)]

    # ---- submissions -------------------------------------------------------------------------------------------------

    def _submissions_received(self, client: ClientSession, event: SubmissionsReceived, _now: float) -> list[Effect]:
        calls, sizes = event.calls, event.sizes
        self._check_credit(client, calls)
        _check_received(client, event.received)
        if (calls or event.functions) and (refusal := self._budget.find_refusal(client, sizes, event.functions)):
            self._reject(client, calls, refusal)
        else:
            self._submit(client, event)
        client.submission_count += len(calls)
        if event.received and (received := self._acknowledge(client, event.received)):
            self._backlog.append(received)  # behind the tasks, which may name a result as input
        return []

    def _check_credit(self, client: ClientSession, calls: Sequence[Call]) -> None:
        if client.admin:
            raise WireError("a session opened with admin submits nothing", "unexpected")
        under_way = client.submission_count - client.accepted_count + len(calls)
        if under_way > CREDIT_SLACK * self._config.credit:
            raise WireError(f"{under_way} submissions under way; the credit is {self._config.credit}", "credit")

    def _reject(self, client: ClientSession, calls: Sequence[Call], reason: str) -> None:
        base = session_base(client.number)
        self._backlog.extend([SubmissionRejected(client.number, base | call.id, reason) for call in calls])
        self._ingress.note("over_credit_bytes", session=client.number, why=reason)

    def _submit(self, client: ClientSession, event: SubmissionsReceived) -> None:
        """Add an event of the core to the backlog for each call; count functions and large calls as held bytes."""
        for digest, body in event.functions.items():
            self._functions.hold(client.number, digest, body)
            client.functions[digest] = digest
            self._budget.hold(client, digest, TASK_BYTES + len(body))
        number = client.number
        base = session_base(number)
        functions = client.functions
        for task, size in event.sizes.items():
            self._budget.hold(client, base | task, size)
        add = self._backlog.append
        for call, payload in zip(event.calls, event.payloads, strict=True):
            call.id = task = base | call.id
            if call.fn:
                shared = functions.get(call.fn)
                if shared is None:
                    why = f"its function {call.fn.hex()} did not come with it, or not whole"
                    add(SubmissionRejected(number, task, why))
                    continue
                call.fn = shared
            options = call.options
            if options is None:
                add(TaskSubmitted(number, task, payload))
                continue
            call.options = None
            try:
                spec = self._spec(client, options)
            except ValueError as error:
                add(SubmissionRejected(number, task, str(error)))
                continue
            call.resources = options.resources or None
            add(TaskSubmitted(number, task, payload, spec))
        for digest in event.dropped:
            self._drop_function(client, digest)

    def _spec(self, client: ClientSession, options: Options) -> Any:
        """Return the spec of the options. The last one is kept: most tasks of a client have the same options."""
        if client.spec is not None and client.options == options:
            return client.spec
        spec = spec_of(options, client.number)
        if options_bytes(options) <= INLINE_BYTES:
            client.options, client.spec = options, spec
        return spec

    def _drop_function(self, client: ClientSession, digest: bytes) -> None:
        self._budget.release(client, digest)
        if client.functions.pop(digest, None) is not None and self._functions.release(client.number, digest):
            self._outbox.drop_function(digest)

    # ---- the rest ----------------------------------------------------------------------------------------------------

    def _acknowledge(self, client: ClientSession, seq: int) -> ResultsReceived | None:
        tasks = client.acknowledge(seq)
        if not tasks:
            return None
        self._outbox.count_unread(client)
        if client.queued_results:
            self._outbox.mark_dirty(client)  # its window is open again
        return ResultsReceived(client.number, tasks)

    def _heartbeat_received(self, client: ClientSession, event: HeartbeatReceived, now: float) -> list[Effect]:
        _check_received(client, event.received)
        effects: list[Effect] = []
        if event.received and (received := self._acknowledge(client, event.received)):
            effects += self._core(received, now)
        client.accepted_sent_count = client.accepted_count
        effects.append(SendMessage(client, Pong(client.accepted_count)))
        return effects

    def _cancel_received(self, client: ClientSession, event: CancelReceived, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for task in event.tasks:
            is_own = task <= MAX_COUNTER or session_of(task) == client.number
            # A client that names the task of another one is an operator: every client has the same token.
            cancel = CancelRequested(expand_task_id(client.number, task), client.number if is_own else None)
            effects += self._core(cancel, now)
        return effects

    def _query_received(self, client: ClientSession, event: QueryReceived, now: float) -> list[Effect]:
        task = event.task
        if isinstance(task, int):
            task = expand_task_id(client.number, task)
        try:
            reply = Reply(event.request, self._queries.answer(event.what, task, now))
        except LookupError as error:
            reply = Reply(event.request, error=str(error.args[0]))
        return [SendMessage(client, reply)]

    def _watch_changed(self, client: ClientSession, event: WatchChanged, now: float) -> list[Effect]:
        return self.set_watching(client, event.on, now)

    def set_watching(self, client: ClientSession, on: bool, now: float) -> list[Effect]:
        """Begin or stop to send monitor events to the client (R28)."""
        watchers = self._outbox.watchers
        had_watchers = bool(watchers)
        if on:
            watchers[client.number] = client
        else:
            watchers.pop(client.number, None)
        if bool(watchers) == had_watchers:
            return []
        return self._core(MonitoringChanged(not had_watchers), now)


def _check_received(client: ClientSession, seq: int) -> None:
    """Check the number of the last message of results that the client claims to have received.

    :raises WireError: no such message was sent.
    """
    if not 0 <= seq <= client.seq:
        raise WireError(f"received is {seq}; it must be from 0 to {client.seq}, the messages of results sent so far")
