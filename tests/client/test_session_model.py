"""Random walks of a session against a model of the scheduler, over connections that break at any moment.

Whichever messages are lost, every task runs once and ends once, in order of submission, within the credit; and the
scheduler forgets no result that an unaccepted task needs.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

from trio_sched.client.functions import Function, FunctionRegistry
from trio_sched.client.session import SchedulerSession
from trio_sched.wire import native
from trio_sched.wire.native import Call, TaskResult

CREDIT = 3


class Handle:
    def __init__(self, function: Function) -> None:
        self.function: Function | None = function


class Scheduler:
    """A model of the scheduler: one session, whose results are kept until they are acknowledged."""

    def __init__(self) -> None:
        #: Counters of the received submissions, in order; the first `answered` of them are accepted.
        self.arrived: list[int] = []
        self.answered = 0
        self.running: list[int] = []
        #: seq -> the tasks whose results it has; removed when it is acknowledged.
        self.results: dict[int, list[int]] = {}
        self.seq = 0
        self.functions: set[bytes] = set()
        self.forgotten: set[int] = set()
        self.welcomed = False
        self.forgets_when_empty = False

    def is_empty(self) -> bool:
        return not self.running and not self.results and self.answered == len(self.arrived)

    def handle(self, message: Any) -> list[Any]:
        """Return the answers to one message."""
        if isinstance(message, native.Hello):
            again, self.welcomed = message.session == 3, True
            self.acknowledge(message.received)
            renewed = again and self.forgets_when_empty and self.is_empty()
            if renewed:
                self.functions.clear()
                self.seq, self.answered = message.received, message.accepted
                assert message.accepted == len(self.arrived), (
                    "the session was empty, so the client knows of all that arrived"
                )
            welcome = native.Welcome(
                3, "s", "i", resumed=again, renewed=renewed, accepted=len(self.arrived), credit=CREDIT
            )
            return [welcome, *(self.message(seq) for seq in self.results)]
        if not self.welcomed:
            return [native.Error("unknown_peer", "say hello")]
        if isinstance(message, native.Submit):
            self.acknowledge(message.received)
            self.functions |= set(message.functions)
            for call in message.tasks:
                self.take(call)
            self.functions -= set(message.drop)
            return []
        if isinstance(message, native.Ping):
            self.acknowledge(message.received)
            return [native.Pong(accepted=self.answered)]
        return []

    def take(self, call: Call) -> None:
        assert call.id > max(self.arrived, default=0), "repeated, or out of order"
        assert call.fn in self.functions, "a function that was never sent"
        for needed in call.options.inputs if call.options else []:
            assert needed in self.arrived
            assert needed not in self.forgotten, "an input that was acknowledged too early"
        self.arrived.append(call.id)

    def accept(self, count: int) -> list[Any]:
        """Accept some of the arrived tasks, and run them."""
        answered = self.arrived[self.answered : self.answered + count]
        self.running += answered
        self.answered += len(answered)
        return [native.Accepted(self.answered)] if answered else []

    def acknowledge(self, received: int) -> None:
        for seq in [seq for seq in self.results if seq <= received]:
            self.forgotten |= set(self.results.pop(seq))

    def finish(self, count: int) -> list[Any]:
        done, self.running = self.running[:count], self.running[count:]
        if not done:
            return []
        self.seq += 1
        self.results[self.seq] = done
        return [self.message(self.seq)]

    def message(self, seq: int) -> native.Results:
        results = [TaskResult(3 << 32 | task) for task in self.results[seq]]
        return native.Results(seq, results, accepted=self.answered)


class ModelHarness:
    """A session, a model of the scheduler, and the messages between them."""

    def __init__(self) -> None:
        self.session: SchedulerSession[Handle] = SchedulerSession(native.Hello(role="client"), FunctionRegistry())
        self.functions = self.session._functions
        self.scheduler = Scheduler()
        self.now = 0.0
        self.to_scheduler: deque[Any] = deque()
        self.to_client: deque[Any] = deque()
        self.handles: list[Handle] = []
        self.ended: list[Handle] = []

    def submit(self, choice: int) -> None:
        handle = Handle(self.functions.intern(b"f%d" % (choice % 3)))
        assert handle.function is not None
        unfinished = list(self.session.tasks)
        inputs = [unfinished[choice % len(unfinished)]] if unfinished and choice % 2 else []
        call = Call(0, fn=handle.function.digest, options=native.Options(inputs=inputs))
        assert self.session.submit(handle, call, (), inputs) is not None
        self.handles.append(handle)

    def send(self) -> None:
        self.now += 1.0
        self.to_scheduler.extend(message for message, _ in self.session.outgoing(self.now))
        unaccepted = self.session.sent - self.session._accepted
        assert unaccepted <= CREDIT

    def deliver(self, count: int) -> None:
        """Deliver some messages each way."""
        for _ in range(min(count, len(self.to_scheduler))):
            message = native.decode_from_peer(native.encode(self.to_scheduler.popleft()))
            self.to_client.extend(self.scheduler.handle(message))
        for _ in range(min(count, len(self.to_client))):
            update = self.session.receive([native.encode(self.to_client.popleft())], self.now)
            assert not update.lost
            assert not update.rejected
            self.ended += [handle for handle, _ in update.ended]
            if update.rejoin:
                self.break_connection()

    def break_connection(self) -> None:
        """Lose the connection with all messages in transit."""
        self.to_scheduler.clear()
        self.to_client.clear()
        self.scheduler.welcomed = False
        self.session.connection_opened(self.now)

    def step(self, action: str, number: int) -> None:
        if action == "submit":
            self.submit(number)
        elif action == "send":
            self.send()
        elif action == "deliver":
            self.deliver(number)
        elif action == "finish":
            messages = self.scheduler.accept(number // 2) + self.scheduler.finish(number)
            self.to_client.extend(messages if self.scheduler.welcomed else [])
        else:
            self.break_connection()

    def finish_all(self) -> None:
        """Let every task end, without further broken connections."""
        for _ in range(20 + 4 * len(self.handles)):
            self.send()
            self.deliver(1000)
            self.step("finish", 1000)


ACTIONS = ["submit"] * 4 + ["send"] * 5 + ["deliver"] * 6 + ["finish"] * 3 + ["break"]


@pytest.mark.parametrize("seed", range(150))
def test_no_task_is_lost_and_no_task_runs_twice(seed: int) -> None:
    rng = random.Random(seed)
    harness = ModelHarness()
    harness.scheduler.forgets_when_empty = seed % 2 == 1
    for _ in range(200):
        harness.step(rng.choice(ACTIONS), rng.randint(1, 6))
    harness.finish_all()
    assert harness.ended == harness.handles
    assert not harness.session.tasks
    assert not harness.session.has_unsent
    harness.now += 10.0
    harness.send()
    harness.deliver(1000)
    assert not harness.scheduler.results, "everything is acknowledged in the end"
