"""The client's side of the native protocol, without sockets, clocks or threads: both faces drive this one.

What must hold, and why it is all in one place:

* Tasks go out with ascending counters, and no more than the scheduler's credit, in calls and in bytes, may be under
  way unanswered. When calls wait here for bytes, the session is `blocked`, and a face that can makes `submit` wait.
* A copy of each Submit is kept until `accepted` covers it: whatever a broken connection swallowed is sent again, in the
  same order, so that a lost message loses no task and a repeated one runs none twice.
* `received` tells the scheduler which results it may forget. A result that a call under way names as an input (R9) must
  not be forgotten before that call was accepted, or the call would arrive to find its input gone: such acknowledgements
  are held back.
* A scheduler that does not know our session (another instance) has lost our tasks: they end as lost, none is silently
  submitted twice. One that forgot it because nothing of it was left renews it under its number, and we go on.

`handle` takes a message and returns what the face must do about it; `outgoing` returns what is to be sent now. A face
with threads calls everything under one lock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeAlias

from msgspec.structs import replace

from trio_sched.client.functions import Functions
from trio_sched.client.liveness import Liveness
from trio_sched.client.news import H, News
from trio_sched.client.sent_calls import SentCalls, call_bytes, counter_of
from trio_sched.errors import WireError
from trio_sched.wire import native
from trio_sched.wire.native import COUNTER_MASK, TASK_BYTES, Attached, Call, Frame

MAX_TASKS_PER_SUBMIT = 1000
MAX_BYTES_PER_SUBMIT = 1 << 20
"""A Submit is closed when it is this large (one task may be larger)."""
CALL_OVERHEAD_BYTES = 128
"""What a call may take on the wire beside its body and buffers, without options."""
ACK_RESULTS = 1000
ACK_BYTES = 4 << 20
"""Results that may be unacknowledged before we say so in a message of its own; DESIGN's window is 32 MB."""

Out: TypeAlias = tuple[native.FromClient, Sequence[Frame]]


class Session(Generic[H]):
    """One client's session with a scheduler."""

    def __init__(self, hello: native.Hello, functions: Functions, engines: int = 0) -> None:
        """`engines`: how many must have joined before the first submission, whatever the scheduler says."""
        self.tasks: dict[int, H] = {}
        """Unfinished tasks by counter."""
        self.number = 0
        """The session number, 0 before the first Welcome."""
        self.scheduler = ""
        self.pythons: list[str] = []
        self.engine_count = 0
        """How many engines are here."""
        self.engines_due = engines
        """How many engines must have joined before the first submission."""
        self.max_message_bytes = 0
        self.closing: str | None = None
        self._hello = hello
        self._functions = functions
        self._secret = ""
        self._welcomed = False
        self._hello_due = True
        self._counter = 0
        self._queue: deque[Call | Attached] = deque()
        self.blocked = False
        """Whether calls wait here because the scheduler takes no more bytes."""
        self.limit = ""
        """The setting of the scheduler that keeps the credit in bytes down."""
        self._credit = 0
        self._credit_bytes: float = math.inf
        self._under_way_bytes = 0
        self._sent = 0
        self._accepted = 0
        self._unaccepted: deque[SentCalls] = deque()
        self._again: deque[SentCalls] = deque()
        self._last_sent_counter = 0
        self._cancelled: set[int] = set()
        self._cancels_due: list[int] = []
        self._cancels_later: list[int] = []
        """Of tasks that are not sent yet."""
        self._messages_due: list[native.FromClient] = []
        self._queries: dict[int, native.Query] = {}
        self._request = 0
        self._inputs_under_way: dict[int, int] = {}
        """Counter of an unfinished task -> the number of the last submission that names it as an input."""
        self._received = 0
        self._told = 0
        self._held: deque[tuple[int, int]] = deque()
        """(seq of Results, number of the submission that must be accepted before that seq is acknowledged)."""
        self._unacked_results = 0
        self._unacked_bytes = 0
        self.liveness = Liveness()

    # ---- what the user asks -----------------------------------------------------------------------------------------

    def submit(self, handle: H, call: Call, frames: Sequence[Frame], inputs: Iterable[int] = ()) -> int | None:
        """Queue a call; returns its counter, which is put into it too.

        `handle.function` is the function that `call.fn` names. `inputs`: counters of unfinished tasks whose results are
        arguments. None, and nothing is done, when one of them has ended meanwhile: its result may be gone from the
        scheduler, so the value must go along instead.
        """
        for counter in inputs:
            if counter not in self.tasks:
                return None
        self._counter = call.id = counter = self._counter + 1
        function = handle.function
        if function is not None:
            function.submitted += 1
            self._functions.by_digest.setdefault(function.digest, function)
        self.tasks[counter] = handle
        for needed in inputs:
            self._inputs_under_way[needed] = self._submission_number()
        self._queue.append(Attached(call, tuple(frames)) if frames else call)
        return counter

    def _submission_number(self) -> int:
        """Which one in the order sent the call that is queued next will be."""
        return self._sent + len(self._queue) + 1

    def cancel(self, counters: Iterable[int]) -> None:
        """Ask for these tasks to be cancelled, own ones by counter, any by full id. Their ends still come."""
        for counter in counters:
            if counter > COUNTER_MASK:
                self._messages_due.append(native.Cancel([counter]))
            elif counter in self.tasks and counter not in self._cancelled:
                self._cancelled.add(counter)
                (self._cancels_due if counter <= self._last_sent_counter else self._cancels_later).append(counter)

    def forget_unsent(self) -> list[H]:
        """Take back what was not sent yet; returns the handles. No other task may depend on these."""
        taken = []
        for entry in self._queue:
            handle = self.tasks.pop(counter_of(entry))
            self._functions.task_ended(handle.function)
            taken.append(handle)
        self._queue.clear()
        self.blocked = False
        self._cancels_later.clear()
        self._inputs_under_way = {task: by for task, by in self._inputs_under_way.items() if by <= self._sent}
        self._held = deque(hold for hold in self._held if hold[1] <= self._sent)
        return taken

    def ask(self, what: str, task: int = 0) -> int:
        """Ask for a view; the answer comes as News.answers under the number returned."""
        self._request += 1
        self._queries[self._request] = native.Query(self._request, what, task)
        self._messages_due.append(self._queries[self._request])
        return self._request

    def say(self, message: native.FromClient) -> None:
        """Send this after what is queued by now: Watch, Stop."""
        self._messages_due.append(message)

    @property
    def sent(self) -> int:
        """How many calls were sent."""
        return self._sent

    @property
    def waiting(self) -> int:
        """How many tasks have neither ended nor been cancelled here."""
        return len(self.tasks) - len(self._cancelled)

    @property
    def unaccepted(self) -> bool:
        """Whether submissions are under way unanswered."""
        return bool(self._unaccepted)

    @property
    def unsent(self) -> bool:
        """Whether calls wait here for credit or for the next turn."""
        return bool(self._queue)

    @property
    def handed_over(self) -> bool:
        """Whether the scheduler has everything that was submitted."""
        return not self._queue and not self._unaccepted

    @property
    def busy(self) -> bool:
        """Whether `outgoing` has something other than heartbeats to send now."""
        if not self._welcomed:
            return self._hello_due
        return bool(
            (self._queue and self._sent - self._accepted < self._credit and self._under_way_bytes < self._credit_bytes)
            or self._messages_due
            or self._again
            or self._cancels_due
        )

    # ---- what goes out ----------------------------------------------------------------------------------------------

    def outgoing(self, now: float) -> list[Out]:
        """What is to be sent now, in order."""
        if not self._welcomed:
            if not self._hello_due:
                return []
            self._hello_due = False
            return [(self._greeting(), ())]
        out: list[Out] = []
        while self._again:
            sent = self._again.popleft()
            out.append((sent.message, sent.frames))
        if dropped := self._functions.drop_unneeded():
            out.append((native.Submit([], drop=dropped), ()))  # by itself: a task of the same message might name one
        while (submit := self._next_submit()) is not None:
            out.append(submit)
        self.blocked = bool(self._queue) and self._under_way_bytes >= self._credit_bytes
        if (
            self._cancels_later and self._cancels_later[0] <= self._last_sent_counter
        ):  # the first: not to scan each time
            self._cancels_due += [counter for counter in self._cancels_later if counter <= self._last_sent_counter]
            self._cancels_later = [counter for counter in self._cancels_later if counter > self._last_sent_counter]
        if self._cancels_due:
            out.append((native.Cancel(self._cancels_due), ()))
            self._cancels_due = []
        out.extend((message, ()) for message in self._messages_due)
        self._messages_due.clear()
        overdue = self._unacked_results >= ACK_RESULTS or self._unacked_bytes >= ACK_BYTES
        if self.liveness.ping_due(now) or (overdue and self._ackable() > self._told):
            out.append((native.Ping(received=self._acknowledge()), ()))
        return out

    def _greeting(self) -> native.Hello:
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
        most_bytes = min(self._credit_bytes - self._under_way_bytes, MAX_BYTES_PER_SUBMIT)
        if limit <= 0 or most_bytes <= 0:
            return None
        tasks: list[Call] = []
        frames: list[Frame] = []
        functions: dict[bytes, bytes] = {}
        size = 0
        while len(tasks) < limit:
            entry = queue[0]
            if type(entry) is Attached:
                call: Call = entry.record  # type: ignore[assignment]  # only calls are in the queue
                its_size = sum(map(len, entry.frames)) + call_bytes(call)
            else:
                call = entry  # type: ignore[assignment]
                its_size = call_bytes(call)
            function = self._functions.by_digest[call.fn] if call.fn else None
            if function is not None and not function.sent:
                its_size += TASK_BYTES + len(function.data)
            if tasks and size + its_size > most_bytes:
                break
            queue.popleft()
            if type(entry) is Attached:
                frames.extend(entry.frames)
            if function is not None and not function.sent:
                function.sent = True
                functions[call.fn] = function.data
            tasks.append(call)
            size += its_size + CALL_OVERHEAD_BYTES
        submit = native.Submit(tasks, functions=functions, received=self._acknowledge())
        size += (TASK_BYTES - CALL_OVERHEAD_BYTES) * len(tasks)
        self._under_way_bytes += size
        self._unaccepted.append(SentCalls(self._sent + 1, self._sent + len(tasks), submit, frames, size))
        self._sent += len(tasks)
        self._last_sent_counter = tasks[-1].id
        return submit, frames

    # ---- what comes in ----------------------------------------------------------------------------------------------

    def receive(self, parts: Sequence[Frame], now: float) -> News[H]:
        """Handle one message as it came from the socket. Raises WireError."""
        message = native.decode_to_client(parts[0])
        handler = _HANDLERS[type(message)]
        self.liveness.heard(now)
        news: News[H] = News()
        handler(self, message, parts[1:], news)
        if type(message) is native.Results:
            self._unacked_bytes += sum(map(len, parts))
        return news

    def _on_welcome(self, message: native.Welcome, frames: Sequence[Frame], news: News[H]) -> None:
        if message.version != native.VERSION:
            news.rejected = (
                f"the scheduler speaks version {message.version} of the protocol, this client {native.VERSION}"
            )
            return
        again = self.number != 0
        self._welcomed = news.welcomed = True
        self._credit = message.credit
        self._set_credit_bytes(message.credit_bytes)
        self.limit = ""
        self.liveness.heartbeat_s = message.heartbeat_s
        self.max_message_bytes = message.max_message_bytes
        self.pythons = message.pythons
        self.engine_count = message.engines
        if not again:
            self.engines_due = max(self.engines_due, message.engines + message.starting)
        if again and message.renewed:
            news.lost = self._renew()
            return
        if again and message.resumed:
            self._resume(message)
            return
        if again:
            news.lost = self.start_anew()
        self.number = message.session
        self._secret = message.secret
        self.scheduler = message.scheduler

    def _resume(self, message: native.Welcome) -> None:
        """Send again what the broken connection swallowed."""
        self._accept(message.accepted)
        self._again = deque(sent.without(self._accepted) for sent in self._unaccepted)
        self._unaccepted = deque(self._again)
        self._under_way_bytes = sum([sent.size for sent in self._unaccepted])
        self._cancels_due = [counter for counter in self._cancelled if counter <= self._last_sent_counter]
        self._messages_due.extend(query for query in self._queries.values() if query not in self._messages_due)
        self.liveness.ping_at = None

    def _renew(self) -> list[H]:
        """The scheduler forgot the session and began it again where we were: what it has not accepted goes out again as
        if it had never been sent. Returns accepted tasks that have not ended; there are none, if we were not away for
        so long that their results were dropped."""
        self._received = self._told = self._ackable()
        self._held.clear()
        self._unacked_results = self._unacked_bytes = 0
        for function in self._functions.by_digest.values():
            function.sent = False
        calls = [call for sent in self._unaccepted for call in sent.without(self._accepted).calls()]
        self._queue.extendleft(reversed(calls))
        self._unaccepted.clear()
        self._again.clear()
        self._under_way_bytes = 0
        self._sent = self._accepted
        self._last_sent_counter = counter_of(self._queue[0]) - 1 if self._queue else self._counter
        waiting = set(map(counter_of, self._queue))
        lost = [self.tasks.pop(counter) for counter in list(self.tasks) if counter not in waiting]
        for handle in lost:
            self._functions.task_ended(handle.function)
        self._cancelled &= self.tasks.keys()
        self._cancels_due = []
        self._cancels_later = sorted(self._cancelled)
        self._messages_due.extend(query for query in self._queries.values() if query not in self._messages_due)
        self.liveness.ping_at = None
        return lost

    def start_anew(self) -> list[H]:
        """Another scheduler instance: nothing of the old session is left. Returns the handles of the lost tasks."""
        lost = list(self.tasks.values())
        for handle in lost:
            self._functions.task_ended(handle.function)
        for function in self._functions.by_digest.values():
            function.sent = False
        self.tasks.clear()
        for collection in (self._queue, self._unaccepted, self._again, self._held):
            collection.clear()
        self.blocked = False
        self._inputs_under_way.clear()
        self._cancelled.clear()
        self._cancels_due.clear()
        self._cancels_later.clear()
        self._sent = self._accepted = self._received = self._told = self._under_way_bytes = 0
        self._unacked_results = self._unacked_bytes = 0
        return lost

    def _on_results(self, message: native.Results, frames: Sequence[Frame], news: News[H]) -> None:
        self._accept(message.accepted)
        if message.seq <= self._received:
            return  # sent again, and had
        if message.seq > self._received + 1:
            news.rejoin = True  # some are missing: the scheduler sends them again to whoever comes back
            return
        self._received = message.seq
        self._unacked_results += len(message.results)
        records: Sequence[Any] = native.attach(message.results, frames) if frames else message.results
        tasks, cancelled, under_way = self.tasks, self._cancelled, self._inputs_under_way
        for end in records:
            counter = (end.record.id if type(end) is Attached else end.id) & COUNTER_MASK
            handle = tasks.pop(counter, None)
            if handle is None:
                continue
            self._functions.task_ended(handle.function)
            if cancelled:
                cancelled.discard(counter)
            if under_way and (needed_by := under_way.pop(counter, None)) is not None and needed_by > self._accepted:
                self._held.append((message.seq, needed_by))
            news.ended.append((handle, end))

    def _on_accepted(self, message: native.Pong, frames: Sequence[Frame], news: News[H]) -> None:
        self._accept(message.accepted)

    def _on_credit(self, message: native.Accepted, frames: Sequence[Frame], news: News[H]) -> None:
        self._accept(message.accepted)
        if message.credit_bytes is not None:
            self._set_credit_bytes(message.credit_bytes)
            self.limit = message.limit

    def _set_credit_bytes(self, credit_bytes: int | None) -> None:
        self._credit_bytes = math.inf if credit_bytes is None else credit_bytes

    def _on_refused(self, message: native.Refused, frames: Sequence[Frame], news: News[H]) -> None:
        handle = self.tasks.pop(message.id & COUNTER_MASK, None)
        if handle is not None:
            self._functions.task_ended(handle.function)
            self._cancelled.discard(message.id & COUNTER_MASK)
            news.refused.append((handle, message.reason))

    def _on_reply(self, message: native.Reply, frames: Sequence[Frame], news: News[H]) -> None:
        if self._queries.pop(message.request, None) is not None:
            news.answers.append((message.request, message.data, message.error))

    def _on_closing(self, message: native.Closing, frames: Sequence[Frame], news: News[H]) -> None:
        self.closing = news.closing = message.reason or "no reason given"

    def _on_engines(self, message: native.Engines, frames: Sequence[Frame], news: News[H]) -> None:
        self.pythons = message.pythons
        self.engine_count = message.count

    def _on_events(self, message: native.Events, frames: Sequence[Frame], news: News[H]) -> None:
        news.happened = message.events

    def _on_error(self, message: native.Error, frames: Sequence[Frame], news: News[H]) -> None:
        if message.kind == "unknown_peer":
            if self._welcomed:  # it says so once for each message that it would not take
                self.rejoin()
        elif not self._welcomed:
            news.rejected = f"{message.message} ({message.kind})"
        else:
            news.complaint = f"{message.message} ({message.kind})"

    def _accept(self, accepted: int) -> None:
        if accepted <= self._accepted:
            return
        if accepted > self._sent:
            raise WireError(f"the scheduler accepted {accepted} submissions, but {self._sent} were sent")
        self._accepted = accepted
        while self._unaccepted and self._unaccepted[0].last <= accepted:
            self._under_way_bytes -= self._unaccepted.popleft().size
        while self._held and self._held[0][1] <= accepted:
            self._held.popleft()

    # ---- acknowledgements, connections ------------------------------------------------------------------------------

    def _ackable(self) -> int:
        """The highest seq that may be acknowledged."""
        return min(self._received, self._held[0][0] - 1) if self._held else self._received

    def _acknowledge(self) -> int:
        self._told = self._ackable()
        self._unacked_results = self._unacked_bytes = 0
        return self._told

    def rejoin(self) -> None:
        """Say hello again, with the next `outgoing`."""
        self._welcomed = False
        self._hello_due = True

    @property
    def welcomed(self) -> bool:
        """Whether the scheduler has answered our (last) hello."""
        return self._welcomed

    @property
    def ready(self) -> bool:
        """Whether the scheduler has answered, and the engines that were to come first have joined."""
        return self._welcomed and self.engine_count >= self.engines_due

    def opened(self, now: float) -> None:
        """The face has opened a new connection: the scheduler gets its time to answer on it."""
        self.liveness.heard(now)
        self.rejoin()


_HANDLERS: dict[type, Callable[..., None]] = {
    native.Welcome: Session._on_welcome,
    native.Results: Session._on_results,
    native.Accepted: Session._on_credit,
    native.Pong: Session._on_accepted,
    native.Refused: Session._on_refused,
    native.Reply: Session._on_reply,
    native.Closing: Session._on_closing,
    native.Engines: Session._on_engines,
    native.Events: Session._on_events,
    native.Error: Session._on_error,
}
