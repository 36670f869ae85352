"""The client's side of the native protocol, without sockets, clocks or threads; `Connection` and `AsyncConnection` use
it.

The invariants, and why one class keeps them all:

* Tasks are sent with ascending counters. The calls that are sent and not accepted, and their bytes, do not exceed the
  scheduler's credit. While queued calls wait for credit in bytes, the session `is_blocked`, and the blocking client's
  `submit` waits.
* A copy of each Submit is kept until all of its calls are accepted. After a broken connection the copies are sent again
  in the same order. The scheduler recognizes repeated calls, so no task is lost, and none runs twice.
* `received` in a message allows the scheduler to drop results. A result that an unaccepted call names as an input (R9)
  must be kept until that call is accepted: the acknowledgement of such a result is delayed until then.
* If another scheduler instance answers, which has no record of the session, the tasks end as lost; they are not
  submitted again without the user's knowledge. The same instance removes a session without tasks and results after
  some time; it renews the session under the same number.

`receive` handles one message and returns what the connection must do; `outgoing` returns what is to be sent now. The
blocking client's threads make every call under one lock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

from msgspec import Struct
from msgspec.structs import replace

from trio_sched.client.functions import Function, FunctionRegistry
from trio_sched.errors import WireError
from trio_sched.wire import native
from trio_sched.wire.heartbeat import NEVER, Heartbeat
from trio_sched.wire.ids import MAX_COUNTER, counter_of
from trio_sched.wire.native import TASK_BYTES, Call, Frame, FramedRecord, TaskResult

MAX_TASKS_PER_SUBMIT = 1000
#: A Submit is closed at this size; a single larger task has a Submit of its own.
MAX_BYTES_PER_SUBMIT = 1 << 20
#: The most bytes of a call on the wire in addition to its body, its buffers and its options.
CALL_OVERHEAD_BYTES = 128
#: Results and their bytes that may be unacknowledged before an acknowledgement is sent as a message of its own. The
#: scheduler's window is 32 MB.
ACK_RESULTS = 1000
ACK_BYTES = 4 << 20


class Handle(Protocol):
    """The client's object for one task: a future."""

    #: The function that the task calls; None: the session does not manage it.
    @property
    def function(self) -> Function | None: ...


H = TypeVar("H", bound=Handle)
Out: TypeAlias = tuple[native.FromClient, Sequence[Frame]]


class SessionUpdate(Struct, Generic[H]):
    """What one message means for the connection. An empty field: the message has nothing of that kind."""

    #: Tasks that ended, with their results and the results' frames.
    ended: list[tuple[H, TaskResult | FramedRecord]] = []
    #: Tasks that the scheduler refused, with the reasons.
    refused: list[tuple[H, str]] = []
    #: Tasks of which the scheduler has no record any longer.
    lost: list[H] = []
    #: Replies to queries: (request, data, error).
    replies: list[tuple[int, Any, str]] = []
    #: Monitor events, after a Watch.
    events: list[native.MonitorEvent] = []
    #: Whether the session begins or continues.
    welcomed: bool = False
    #: Whether a Hello must be sent again on a new connection.
    rejoin: bool = False
    #: Why the scheduler refuses this client.
    rejected: str = ""
    #: Why the scheduler could not handle a message of this client.
    error: str = ""
    #: Why the scheduler shuts down; None: it does not.
    closing: str | None = None


class UnackedSubmit(Struct):
    """A Submit of which the scheduler has not accepted all calls."""

    #: The numbers of its first and last call in the order sent, counted from 1.
    first: int
    last: int
    message: native.Submit
    frames: list[Frame]
    #: Its share of the credit in bytes.
    size_bytes: int

    def without_accepted(self, accepted: int) -> UnackedSubmit:
        """Return the same Submit without those of its calls that are among the first `accepted` sent."""
        done = max(0, accepted - self.first + 1)
        if not done:
            return self
        skipped = sum(call.frames for call in self.message.tasks[:done])
        message = replace(self.message, tasks=self.message.tasks[done:])
        frames = self.frames[skipped:]
        size_bytes = sum([TASK_BYTES + _call_bytes(call) for call in message.tasks]) + sum(map(len, frames))
        return UnackedSubmit(self.first + done, self.last, message, frames, size_bytes)


class SchedulerSession(Generic[H]):
    """The session of one client with one scheduler."""

    def __init__(self, hello: native.Hello, functions: FunctionRegistry, engines: int = 0) -> None:
        """Begin without a session number.

        :param hello: the first message; later ones add the session to resume.
        :param engines: the least number of engines that must have joined before the first submission; the Welcome may
            have a larger one.
        """
        #: Unfinished tasks by counter.
        self.tasks: dict[int, H] = {}
        #: The session number; 0 before the first Welcome.
        self.number = 0
        #: The instance id of the scheduler.
        self.scheduler = ""
        #: The Python versions of the engines.
        self.pythons: list[str] = []
        self.engine_count = 0
        #: The number of engines that must have joined before the first submission.
        self.expected_engine_count = engines
        #: The largest message that the scheduler takes; 0: not known, or not limited.
        self.max_message_bytes = 0
        #: Why the scheduler shuts down; None: it does not.
        self.closing: str | None = None
        #: The counter that `submit` gives to the next call.
        self.next_counter = 1
        #: Whether queued calls wait because no credit in bytes is left.
        self.is_blocked = False
        #: The scheduler's setting that limits the credit in bytes; empty: not known.
        self.limiting_setting = ""
        #: When the last message of the scheduler arrived, or the current connection was opened.
        self.last_received_at = NEVER
        self.heartbeat = Heartbeat(grace=1)
        self._hello = hello
        self._functions = functions
        self._secret = ""
        self._welcomed = False
        self._hello_due = True
        self._queue: deque[Call | FramedRecord] = deque()
        self._credit = 0
        self._credit_bytes: float = math.inf
        self._unaccepted_bytes = 0
        self._sent = 0
        self._accepted = 0
        self._unaccepted: deque[UnackedSubmit] = deque()
        self._to_resend: deque[UnackedSubmit] = deque()
        self._last_sent_counter = 0
        self._cancelled: set[int] = set()
        self._cancels_due: list[int] = []
        #: Cancels of tasks that are not sent yet.
        self._cancels_later: list[int] = []
        self._messages_due: list[native.FromClient] = []
        self._queries: dict[int, native.Query] = {}
        self._request = 0
        #: Counter of an unfinished task -> the number of the last submission that names it as an input.
        self._needed_inputs: dict[int, int] = {}
        self._received = 0
        self._acknowledged = 0
        #: (seq of Results, number of the submission that must be accepted before that seq is acknowledged).
        self._held_acks: deque[tuple[int, int]] = deque()
        self._unacked_results = 0
        self._unacked_bytes = 0

    # ---- requests of the client -------------------------------------------------------------------------------------

    def submit(self, handle: H, call: Call, frames: Sequence[Frame], inputs: Iterable[int] = ()) -> int | None:
        """Queue a call, under the next counter, which is also put into the call.

        :param handle: its `function` is the function that `call.fn` names.
        :param inputs: counters of unfinished tasks whose results are arguments (R9).
        :returns: the counter; None, and nothing is queued, when one of the inputs has ended: the scheduler may have
            dropped its result, so the arguments must be pickled again with the value in its place.
        """
        for counter in inputs:
            if counter not in self.tasks:
                return None
        counter = call.id = self.next_counter
        self.next_counter = counter + 1
        function = handle.function
        if function is not None:
            function.submitted += 1  # inline: a method call would add 2 % to the cost of a submission
            self._functions.by_digest.setdefault(function.digest, function)
        self.tasks[counter] = handle
        for needed in inputs:
            self._needed_inputs[needed] = self._submission_number()
        self._queue.append(FramedRecord(call, tuple(frames)) if frames else call)
        return counter

    def _submission_number(self) -> int:
        """The position, in the order sent, of the call that is queued next."""
        return self._sent + len(self._queue) + 1

    def cancel(self, counters: Iterable[int]) -> None:
        """Request the cancellation of tasks: this session's by counter, any task by full id (R23).

        Their results still arrive.
        """
        for counter in counters:
            if counter > MAX_COUNTER:
                self._messages_due.append(native.Cancel([counter]))
            elif counter in self.tasks and counter not in self._cancelled:
                self._cancelled.add(counter)
                (self._cancels_due if counter <= self._last_sent_counter else self._cancels_later).append(counter)

    def drop_unsent(self) -> list[H]:
        """Remove the calls that are not sent yet, and return their handles. No remaining task may depend on them."""
        dropped = []
        for entry in self._queue:
            handle = self.tasks.pop(_call_of(entry).id)
            self._functions.task_ended(handle.function)
            dropped.append(handle)
        self._queue.clear()
        self.is_blocked = False
        self._cancels_later.clear()
        self._needed_inputs = {task: by for task, by in self._needed_inputs.items() if by <= self._sent}
        self._held_acks = deque(hold for hold in self._held_acks if hold[1] <= self._sent)
        return dropped

    def query(self, what: str, task: int = 0) -> int:
        """Send a query, and again after a broken connection. The reply will be in `SessionUpdate.replies`, with the
        returned request number."""
        self._request += 1
        self._queries[self._request] = native.Query(self._request, what, task)
        self._messages_due.append(self._queries[self._request])
        return self._request

    def send(self, message: native.FromClient) -> None:
        """Send a message (Watch, Stop) once, after everything that is queued now."""
        self._messages_due.append(message)

    @property
    def sent(self) -> int:
        """The number of calls sent."""
        return self._sent

    @property
    def open_count(self) -> int:
        """The number of tasks that have neither ended nor been cancelled by this client."""
        return len(self.tasks) - len(self._cancelled)

    @property
    def has_unaccepted(self) -> bool:
        """Whether a sent call is not accepted."""
        return bool(self._unaccepted)

    @property
    def has_unsent(self) -> bool:
        """Whether a call waits for credit, or for the next `outgoing`."""
        return bool(self._queue)

    @property
    def all_accepted(self) -> bool:
        """Whether the scheduler has accepted every submitted call."""
        return not self._queue and not self._unaccepted

    @property
    def is_busy(self) -> bool:
        """Whether `outgoing` would return something other than a heartbeat now."""
        if not self._welcomed:
            return self._hello_due
        return bool(
            (self._queue and self._sent - self._accepted < self._credit and self._unaccepted_bytes < self._credit_bytes)
            or self._messages_due
            or self._to_resend
            or self._cancels_due
        )

    @property
    def is_welcomed(self) -> bool:
        """Whether the scheduler has answered the last Hello."""
        return self._welcomed

    @property
    def is_ready(self) -> bool:
        """Whether the scheduler has answered, and the engines that must join first have joined."""
        return self._welcomed and self.engine_count >= self.expected_engine_count

    def connection_opened(self, now: float) -> None:
        """Note that there is a new connection: a Hello is due, and the scheduler's silence counts from now."""
        self.last_received_at = now
        self._rejoin()

    def check_silence(self, now: float) -> float | None:
        """Return for how many seconds the scheduler has been silent; None: for so long that the connection is broken.

        This method or `outgoing` must be called at least once a heartbeat: a longer pause means that this process was
        suspended, and gives the scheduler one more period.
        """
        self.heartbeat.tick(now)
        silence_s = self.heartbeat.silence_s(self.last_received_at, now)
        return None if self.heartbeat.is_silent(self.last_received_at, now) else silence_s

    # ---- messages to the scheduler ----------------------------------------------------------------------------------

    def outgoing(self, now: float) -> list[Out]:
        """Return the messages to send now, in order, with their frames."""
        self.heartbeat.tick(now)
        if not self._welcomed:
            if not self._hello_due:
                return []
            self._hello_due = False
            return [(self._make_hello(), ())]
        out: list[Out] = []
        while self._to_resend:
            sent = self._to_resend.popleft()
            out.append((sent.message, sent.frames))
        if dropped := self._functions.drop_unneeded():
            out.append((native.Submit([], drop=dropped), ()))  # alone: a call of the same message could name one
        while (submit := self._next_submit()) is not None:
            out.append(submit)
        self.is_blocked = bool(self._queue) and self._unaccepted_bytes >= self._credit_bytes
        if self._cancels_later and self._cancels_later[0] <= self._last_sent_counter:  # the first, to save the scan
            self._cancels_due += [counter for counter in self._cancels_later if counter <= self._last_sent_counter]
            self._cancels_later = [counter for counter in self._cancels_later if counter > self._last_sent_counter]
        if self._cancels_due:
            out.append((native.Cancel(self._cancels_due), ()))
            self._cancels_due = []
        out.extend((message, ()) for message in self._messages_due)
        self._messages_due.clear()
        overdue = self._unacked_results >= ACK_RESULTS or self._unacked_bytes >= ACK_BYTES
        ping_due = now >= self.heartbeat.due_at
        if ping_due:
            self.heartbeat.sent(now)
        if ping_due or (overdue and self._ackable() > self._acknowledged):
            out.append((native.Ping(received=self._acknowledge()), ()))
        return out

    def _make_hello(self) -> native.Hello:
        return replace(
            self._hello,
            session=self.number,
            secret=self._secret,
            scheduler=self.scheduler,
            received=self._ackable(),
            accepted=self._accepted if self.number else -1,
        )

    def _next_submit(self) -> Out | None:
        queue = self._queue
        limit = min(self._credit - (self._sent - self._accepted), MAX_TASKS_PER_SUBMIT, len(queue))
        limit_bytes = min(self._credit_bytes - self._unaccepted_bytes, MAX_BYTES_PER_SUBMIT)
        if limit <= 0 or limit_bytes <= 0:
            return None
        tasks: list[Call] = []
        frames: list[Frame] = []
        functions: dict[bytes, bytes] = {}
        size = 0  # in bytes
        while len(tasks) < limit:
            entry: Any = queue[0]
            has_frames = type(entry) is FramedRecord
            call: Call = entry.record if has_frames else entry
            call_size = _call_bytes(call)
            if has_frames:
                call_size += sum(map(len, entry.frames))
            function = self._functions.by_digest[call.fn] if call.fn else None
            if function is not None and not function.sent:
                call_size += TASK_BYTES + len(function.data)
            if tasks and size + call_size > limit_bytes:
                break
            queue.popleft()
            if has_frames:
                frames.extend(entry.frames)
            if function is not None and not function.sent:
                function.sent = True
                functions[call.fn] = function.data
            tasks.append(call)
            size += call_size + CALL_OVERHEAD_BYTES
        submit = native.Submit(tasks, functions=functions, received=self._acknowledge())
        size += (TASK_BYTES - CALL_OVERHEAD_BYTES) * len(tasks)
        self._unaccepted_bytes += size
        self._unaccepted.append(UnackedSubmit(self._sent + 1, self._sent + len(tasks), submit, frames, size))
        self._sent += len(tasks)
        self._last_sent_counter = tasks[-1].id
        return submit, frames

    # ---- messages from the scheduler --------------------------------------------------------------------------------

    def receive(self, parts: Sequence[Frame], now: float) -> SessionUpdate[H]:
        """Handle one message, as received from the socket.

        :raises WireError: the message is malformed, or contradicts the state of the session.
        """
        message = native.decode_to_client(parts[0])
        handler = _HANDLERS[type(message)]
        self.last_received_at = now
        update: SessionUpdate[H] = SessionUpdate()
        handler(self, message, parts[1:], update)
        if type(message) is native.Results:
            self._unacked_bytes += sum(map(len, parts))
        return update

    def _on_welcome(self, message: native.Welcome, frames: Sequence[Frame], update: SessionUpdate[H]) -> None:
        if message.version != native.VERSION:
            update.rejected = (
                f"the scheduler speaks version {message.version} of the protocol, this client {native.VERSION}"
            )
            return
        resuming = self.number != 0
        self._welcomed = update.welcomed = True
        self._credit = message.credit
        self._set_credit_bytes(message.credit_bytes)
        self.limiting_setting = ""
        self.heartbeat.period_s = message.heartbeat_s
        self.max_message_bytes = message.max_message_bytes
        self.pythons = message.pythons
        self.engine_count = message.engines
        if not resuming:
            self.expected_engine_count = max(self.expected_engine_count, message.engines + message.starting)
        if resuming and message.renewed:
            update.lost = self._renew()
            return
        if resuming and message.resumed:
            self._resume(message)
            return
        if resuming:
            update.lost = self.reset()
        self.number = message.session
        self._secret = message.secret
        self.scheduler = message.scheduler

    def _resume(self, message: native.Welcome) -> None:
        """Queue the messages again that may have been lost with the broken connection."""
        self._accept(message.accepted)
        self._to_resend = deque(unacked.without_accepted(self._accepted) for unacked in self._unaccepted)
        self._unaccepted = deque(self._to_resend)
        self._unaccepted_bytes = sum([unacked.size_bytes for unacked in self._unaccepted])
        self._cancels_due = [counter for counter in self._cancelled if counter <= self._last_sent_counter]
        self._messages_due.extend(query for query in self._queries.values() if query not in self._messages_due)
        self.heartbeat.make_due()

    def _renew(self) -> list[H]:
        """Continue a session that the scheduler had removed and has renewed: calls that are not accepted are queued
        again, as if they had not been sent.

        Returns the accepted tasks that have not ended: there are some only if the client was disconnected for so long
        that their results were dropped.
        """
        self._received = self._acknowledged = self._ackable()
        self._held_acks.clear()
        self._unacked_results = self._unacked_bytes = 0
        self._functions.mark_all_unsent()
        for unacked in reversed(self._unaccepted):
            left = unacked.without_accepted(self._accepted)
            calls = cast("list[Call | FramedRecord]", native.attach(left.message.tasks, left.frames))
            self._queue.extendleft(reversed(calls))
        self._unaccepted.clear()
        self._to_resend.clear()
        self._unaccepted_bytes = 0
        self._sent = self._accepted
        self._last_sent_counter = _call_of(self._queue[0]).id - 1 if self._queue else self.next_counter - 1
        queued = {_call_of(entry).id for entry in self._queue}
        lost = [self.tasks.pop(counter) for counter in list(self.tasks) if counter not in queued]
        for handle in lost:
            self._functions.task_ended(handle.function)
        self._cancelled &= self.tasks.keys()
        self._cancels_due = []
        self._cancels_later = sorted(self._cancelled)
        self._messages_due.extend(query for query in self._queries.values() if query not in self._messages_due)
        self.heartbeat.make_due()
        return lost

    def reset(self) -> list[H]:
        """Clear the session, which ended with its scheduler instance, and return the handles of the lost tasks."""
        lost = list(self.tasks.values())
        for handle in lost:
            self._functions.task_ended(handle.function)
        self._functions.mark_all_unsent()
        self.tasks.clear()
        for collection in (self._queue, self._unaccepted, self._to_resend, self._held_acks):
            collection.clear()
        self.is_blocked = False
        self._needed_inputs.clear()
        self._cancelled.clear()
        self._cancels_due.clear()
        self._cancels_later.clear()
        self._sent = self._accepted = self._received = self._acknowledged = self._unaccepted_bytes = 0
        self._unacked_results = self._unacked_bytes = 0
        return lost

    def _on_results(self, message: native.Results, frames: Sequence[Frame], update: SessionUpdate[H]) -> None:
        self._accept(message.accepted)
        if message.seq <= self._received:
            return  # a repetition
        if message.seq > self._received + 1:
            update.rejoin = True  # some are missing: the scheduler sends them again to a client that resumes
            return
        self._received = message.seq
        self._unacked_results += len(message.results)
        records: Sequence[Any] = native.attach(message.results, frames) if frames else message.results
        tasks, cancelled, needed_inputs = self.tasks, self._cancelled, self._needed_inputs
        for result in records:
            counter = counter_of(result.record.id if type(result) is FramedRecord else result.id)
            handle = tasks.pop(counter, None)
            if handle is None:
                continue
            self._functions.task_ended(handle.function)
            if cancelled:
                cancelled.discard(counter)
            if needed_inputs and (needed_by := needed_inputs.pop(counter, 0)) > self._accepted:
                self._held_acks.append((message.seq, needed_by))
            update.ended.append((handle, result))

    def _on_pong(self, message: native.Pong, frames: Sequence[Frame], update: SessionUpdate[H]) -> None:
        self._accept(message.accepted)

    def _on_accepted(self, message: native.Accepted, frames: Sequence[Frame], update: SessionUpdate[H]) -> None:
        self._accept(message.accepted)
        if message.credit_bytes is not None:
            self._set_credit_bytes(message.credit_bytes)
            self.limiting_setting = message.limit

    def _set_credit_bytes(self, credit_bytes: int | None) -> None:
        self._credit_bytes = math.inf if credit_bytes is None else credit_bytes

    def _on_refused(self, message: native.Refused, frames: Sequence[Frame], update: SessionUpdate[H]) -> None:
        counter = counter_of(message.id)
        handle = self.tasks.pop(counter, None)
        if handle is not None:
            self._functions.task_ended(handle.function)
            self._cancelled.discard(counter)
            update.refused.append((handle, message.reason))

    def _on_reply(self, message: native.Reply, frames: Sequence[Frame], update: SessionUpdate[H]) -> None:
        if self._queries.pop(message.request, None) is not None:
            update.replies.append((message.request, message.data, message.error))

    def _on_closing(self, message: native.Closing, frames: Sequence[Frame], update: SessionUpdate[H]) -> None:
        self.closing = update.closing = message.reason or "no reason given"

    def _on_engines(self, message: native.Engines, frames: Sequence[Frame], update: SessionUpdate[H]) -> None:
        self.pythons = message.pythons
        self.engine_count = message.count

    def _on_events(self, message: native.Events, frames: Sequence[Frame], update: SessionUpdate[H]) -> None:
        update.events = message.events

    def _on_error(self, message: native.Error, frames: Sequence[Frame], update: SessionUpdate[H]) -> None:
        if message.kind == "unknown_peer":
            if self._welcomed:  # for each dropped message there is one such error
                self._rejoin()
        elif not self._welcomed:
            update.rejected = f"{message.message} ({message.kind})"
        else:
            update.error = f"{message.message} ({message.kind})"

    def _accept(self, accepted: int) -> None:
        if accepted <= self._accepted:
            return
        if accepted > self._sent:
            raise WireError(f"the scheduler accepted {accepted} submissions, but {self._sent} were sent")
        self._accepted = accepted
        while self._unaccepted and self._unaccepted[0].last <= accepted:
            self._unaccepted_bytes -= self._unaccepted.popleft().size_bytes
        while self._held_acks and self._held_acks[0][1] <= accepted:
            self._held_acks.popleft()

    # ---- acknowledgements -------------------------------------------------------------------------------------------

    def _ackable(self) -> int:
        """The highest seq of Results that may be acknowledged."""
        return min(self._received, self._held_acks[0][0] - 1) if self._held_acks else self._received

    def _acknowledge(self) -> int:
        self._acknowledged = self._ackable()
        self._unacked_results = self._unacked_bytes = 0
        return self._acknowledged

    def _rejoin(self) -> None:
        """Send Hello with the next `outgoing`."""
        self._welcomed = False
        self._hello_due = True


def _call_of(entry: Call | FramedRecord) -> Call:
    """The call of an entry of the queue."""
    return cast("Call", entry.record) if isinstance(entry, FramedRecord) else entry


def _call_bytes(call: Call) -> int:
    """A call's share of the credit in bytes, without its frames and `TASK_BYTES`."""
    return len(call.body) if call.options is None else len(call.body) + native.options_bytes(call.options)


_HANDLERS: dict[type, Callable[..., None]] = {
    native.Welcome: SchedulerSession._on_welcome,
    native.Results: SchedulerSession._on_results,
    native.Accepted: SchedulerSession._on_accepted,
    native.Pong: SchedulerSession._on_pong,
    native.Refused: SchedulerSession._on_refused,
    native.Reply: SchedulerSession._on_reply,
    native.Closing: SchedulerSession._on_closing,
    native.Engines: SchedulerSession._on_engines,
    native.Events: SchedulerSession._on_events,
    native.Error: SchedulerSession._on_error,
}
