"""Client intake: what clients say, as events. Submissions above all, so the loop over them is written for speed.

Every submission that arrives whole is counted in `received` and will be accepted or refused, in order; that is what
credit and resumption rest on. A submission that makes no sense (an unknown function, a negative timeout) is refused
by itself; only a message that cannot be read, or breaks a limit as a whole, is dropped with an Error (R25).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trio_sched.core.events import (
    DEFAULT_SPEC,
    SESSION_SHIFT,
    CancelRequested,
    Dependency,
    ResultsReceived,
    TaskSpec,
    TaskSubmitted,
)
from trio_sched.errors import WireError
from trio_sched.server.budget import ByteBudget
from trio_sched.server.config import Config
from trio_sched.server.functions import Functions
from trio_sched.server.happenings import Asked, Left, Pinged, Rejected, Watched
from trio_sched.server.hub import Hub
from trio_sched.server.links import CLIENTS
from trio_sched.server.outbox import Outbox
from trio_sched.server.reader import Reader
from trio_sched.server.sessions import ClientSession
from trio_sched.wire.native import (
    COUNTER_MASK,
    FUNCTION_DIGEST_BYTES,
    INLINE_BYTES,
    TASK_BYTES,
    Attached,
    Bye,
    Call,
    Cancel,
    Frame,
    Options,
    Ping,
    Query,
    Stop,
    Submit,
    Watch,
    attach,
    encode,
    options_bytes,
)
from trio_sched.wire.ranges import RANGES, check, check_length

CREDIT_SLACK = 2
"""A client that has so many times its credit under way does not count, and is not listened to."""
SPARE_LEVELS = 100


class Intake(Reader):
    """Reads what clients sent."""

    who = "a client"

    def __init__(
        self,
        hub: Hub,
        config: Config,
        functions: Functions,
        outbox: Outbox,
        budget: ByteBudget,
        stop: Callable[[str], None],
    ) -> None:
        super().__init__(hub, CLIENTS, hub.inbox.add_submissions)
        self._config = config
        self._functions = functions
        self._outbox = outbox
        self._budget = budget
        self._stop = stop
        self.handlers = {
            Submit: self._submit,
            Ping: self._ping,
            Cancel: self._cancel,
            Query: self._query,
            Watch: self._watch,
            Stop: self._shut_down,
            Bye: self._bye,
        }

    # ---- submissions ------------------------------------------------------------------------------------------------

    def _submit(self, client: ClientSession, message: Submit, frames: Sequence[Frame]) -> None:
        calls = message.tasks
        sizes = self._check(client, calls)
        _check_received(client, message.received)
        payloads = attach(calls, frames)
        if frames:
            for payload in payloads:
                if type(payload) is Attached:
                    task = payload.record.id
                    sizes[task] = sizes.get(task, 0) + sum([len(frame) for frame in payload.frames])
        functions_sent = message.functions
        if (calls or functions_sent) and (refusal := self._budget.overdrawn(client, sizes, functions_sent)):
            self._reject(client, calls, refusal)
            if message.received:
                self._received(client, message.received)
            return
        for digest, body in functions_sent.items():
            self._learn(client, digest, body)
        number = client.number
        base = number << SESSION_SHIFT
        functions = client.functions
        for task, size in sizes.items():
            self._budget.hold(client, base | task, size)
        add = self.events.append
        for call, payload in zip(calls, payloads, strict=True):
            call.id = task = base | call.id
            if call.fn:
                shared = functions.get(call.fn)
                if shared is None:
                    add(Rejected(number, task, f"its function {call.fn.hex()} did not come with it, or not whole"))
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
                add(Rejected(number, task, str(error)))
                continue
            call.resources = options.resources or None
            add(TaskSubmitted(number, task, payload, spec))
        client.received += len(calls)
        if message.received:
            self._received(client, message.received)
        for digest in message.drop:
            self._forget(client, digest)

    def _reject(self, client: ClientSession, calls: Sequence[Call], reason: str) -> None:
        client.received += len(calls)
        base = client.number << SESSION_SHIFT
        self.events += [Rejected(client.number, base | call.id, reason) for call in calls]
        self.hub.note("over_credit_bytes", session=client.number, why=reason)

    def _check(self, client: ClientSession, calls: Sequence[Call]) -> dict[int, int]:
        """What makes a whole message unfit to be taken. Returns the bytes inside of calls that are not small, by id."""
        if client.admin:
            raise WireError("a session opened with admin submits nothing", "unexpected")
        limit = self._config.max_tasks_per_message
        if len(calls) > limit:
            raise WireError(f"{len(calls)} tasks in one message; max_tasks_per_message is {limit}", "too_large")
        under_way = client.received - client.accepted + len(calls)
        if under_way > CREDIT_SLACK * self._config.credit:
            raise WireError(f"{under_way} submissions under way; the credit is {self._config.credit}", "credit")
        sizes: dict[int, int] = {}
        for call in calls:
            if not 0 < call.id <= COUNTER_MASK:
                raise WireError(f"a task has the id {call.id}; ids count from 1 to {COUNTER_MASK}")
            if call.fn and len(call.fn) != FUNCTION_DIGEST_BYTES:
                raise WireError(
                    f"fn of task {call.id} has {len(call.fn):,} bytes; a digest has {FUNCTION_DIGEST_BYTES}"
                )
            if call.inputs is not None or call.resources is not None or call.attached is not None:
                raise WireError(f"task {call.id} has inputs, resources or attached, which only the scheduler sets")
            size = len(call.body)
            if call.call:
                _check_name(call)
            if call.args is not None or call.kwargs is not None:
                size = _check_depth(call)
            if size <= TASK_BYTES:
                size = 0
            if call.options is not None:
                size += options_bytes(call.options)
            if size:
                sizes[call.id] = size
        return sizes

    def _spec(self, client: ClientSession, options: Options) -> TaskSpec:
        """What the options mean; the last answer is kept, since most tasks of a client ask for the same."""
        if client.spec is not None and client.options == options:
            return client.spec
        spec = spec_of(options, client.number << SESSION_SHIFT)
        if options_bytes(options) <= INLINE_BYTES:
            client.options, client.spec = options, spec
        return spec

    def _learn(self, client: ClientSession, digest: bytes, body: bytes) -> None:
        shared = self._functions.hold(client.number, digest, body)
        if shared is None:
            self.hub.note("bad_digest", session=client.number)
        else:
            client.functions[shared] = shared
            self._budget.hold(client, shared, TASK_BYTES + len(body))

    def _forget(self, client: ClientSession, digest: bytes) -> None:
        self._budget.release(client, digest)
        if client.functions.pop(digest, None) is not None and self._functions.let_go(client.number, digest):
            self._outbox.drop_function(digest)

    # ---- the rest ---------------------------------------------------------------------------------------------------

    def _received(self, client: ClientSession, seq: int) -> None:
        tasks = client.acknowledge(seq)
        if tasks:
            self.events.append(ResultsReceived(client.number, tasks))
            self._outbox.count_unread(client)
            if client.ends:
                self._outbox.touch(client)  # its window is open again

    def _ping(self, client: ClientSession, message: Ping, _frames: Sequence[Frame]) -> None:
        _check_received(client, message.received)
        if message.received:
            self._received(client, message.received)
        self.events.append(Pinged(client))

    def _cancel(self, client: ClientSession, message: Cancel, _frames: Sequence[Frame]) -> None:
        base = client.number << SESSION_SHIFT
        _check_ids("cancel", message.tasks)
        for task in message.tasks:
            own = task <= COUNTER_MASK or task >> SESSION_SHIFT == client.number
            # Everybody who has the client's token is an operator, and may cancel what others submitted.
            self.events.append(CancelRequested(_full(task, base), client.number if own else None))

    def _query(self, client: ClientSession, message: Query, _frames: Sequence[Frame]) -> None:
        task = message.task
        if isinstance(task, int):
            if task:
                _check_ids("query", (task,))
            task = _full(task, client.number << SESSION_SHIFT)
        self.events.append(Asked(client, message.request, message.what, task))

    def _watch(self, client: ClientSession, message: Watch, _frames: Sequence[Frame]) -> None:
        self.events.append(Watched(client, message.on))

    def _shut_down(self, client: ClientSession, message: Stop, _frames: Sequence[Frame]) -> None:
        self._stop(message.reason or f"client {client.number} asked for it")

    def _bye(self, client: ClientSession, message: Bye, _frames: Sequence[Frame]) -> None:
        cancel = message.cancel or client.cancel_on_leave
        self.events.append(Left(client, message.reason or "said good-bye", cancel))


def _check_depth(call: Call) -> int:
    """Plain arguments nested so deeply that they could just be decoded might not be encoded again: try it, some
    levels deeper. Returns the size of the call."""
    nested: Any = call
    for _ in range(SPARE_LEVELS):
        nested = [nested]
    try:
        return len(encode(nested))
    except (RecursionError, TypeError, ValueError, OverflowError) as error:
        raise WireError(f"the arguments of task {call.id} cannot be sent on: {error}") from None


def _check_name(call: Call) -> None:
    """Raises WireError for a name that no call has."""
    try:
        check_length("call", call.call, f"call of task {call.id} has")
    except ValueError as error:
        raise WireError(str(error)) from None


def _check_received(client: ClientSession, seq: int) -> None:
    """Raises WireError for a count of results that the client cannot have."""
    if not 0 <= seq <= client.seq:
        raise WireError(f"received is {seq}; it must be from 0 to {client.seq}, the messages of results sent so far")


def _check_ids(what: str, tasks: Sequence[int]) -> None:
    """Raises WireError for an id that no task can have."""
    for task in tasks:
        if task not in RANGES["id"]:
            raise WireError(f"{what} names the task {task}; an id is {RANGES['id']}")


# ---- options --------------------------------------------------------------------------------------------------------


def _full(task: int, base: int) -> int:
    """An id without a session part is one of the sender's own."""
    return task if task > COUNTER_MASK else base | task


def _ids(name: str, tasks: Sequence[int], base: int) -> tuple[int, ...]:
    for task in tasks:
        check("id", task, f"{name} names the task")
    return tuple(dict.fromkeys([_full(task, base) for task in tasks]))


def _dependency(name: str, tasks: Sequence[int], flags: tuple[bool, bool, bool], base: int) -> Dependency | None:
    ids = _ids(name, tasks, base)
    _all, success, failure = flags
    if ids or not (success or failure):  # R2 refuses that even where no task is named
        return Dependency(ids, *flags)
    return None


def amounts(resources: dict[str, float]) -> tuple[tuple[str, float], ...]:
    """Resources as the core has them. Raises ValueError for an amount outside of its range."""
    check_length("resources", resources)
    for name, amount in resources.items():
        check_length("resource name", name, "the name of a resource has")
        check("resource", amount, f"resource {name!r} is")
    return tuple(sorted((name, amount) for name, amount in resources.items() if amount))


def spec_of(options: Options, base: int) -> TaskSpec:
    """Wire options as the core's. Raises ValueError that says what is wrong with them."""
    if options.timeout_s is not None:
        check("timeout_s", options.timeout_s)
    check_length("label", options.label)
    check("backoff_s", options.backoff_s)
    check("retries", options.retries)
    check("priority", options.priority)
    after = (options.after_all, options.after_success, options.after_failure)
    follow = (options.follow_all, options.follow_success, options.follow_failure)
    spec = TaskSpec(
        after=_dependency("after", options.after, after, base),
        follow=_dependency("follow", options.follow, follow, base),
        inputs=_ids("inputs", options.inputs, base),
        targets=None if options.targets is None else frozenset(options.targets),
        resources=amounts(options.resources),
        priority=options.priority,
        retries=options.retries,
        timeout_s=options.timeout_s,
        backoff_s=options.backoff_s,
        same_engine=options.same_engine,
        label=options.label,
    )
    return DEFAULT_SPEC if spec == DEFAULT_SPEC else spec
