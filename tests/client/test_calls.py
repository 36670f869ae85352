"""`make_call`: the futures among the arguments become inputs (R9)."""

from __future__ import annotations

import operator
import time
from typing import Any

from trio_sched.client.calls import make_call
from trio_sched.client.functions import Function
from trio_sched.client.future import Future, resolve
from trio_sched.client.results import SessionRef
from trio_sched.wire import payload
from trio_sched.wire.native import TaskResult

FUNCTION = Function(b"digest", b"data")
SESSION_REF = SessionRef(3, lambda counter: None)


def future(number: int) -> Future[Any]:
    return Future(SESSION_REF, number=number)


class ResolvesOnDump:
    """An argument that resolves a future when it is pickled."""

    def __init__(self, future: Future[Any], result: TaskResult) -> None:
        self.future, self.result = future, result

    def __reduce__(self) -> Any:
        resolve([(self.future, self.result)])
        return operator.neg, (1,)


def test_r9_an_input_that_ends_during_the_pickling_is_reported() -> None:
    good, bad, pending = future(1), future(2), future(3)
    resolving = [
        ResolvesOnDump(good, TaskResult(3 << 32 | 1, body=payload.dumps(5)[0])),
        ResolvesOnDump(bad, TaskResult(3 << 32 | 2, outcome="cancelled")),
    ]
    call, _, unfinished = make_call(FUNCTION, (good, bad, pending, *resolving), {}, None, SESSION_REF, 0)
    assert call.options is not None
    assert call.options.inputs == [1, 2, 3]
    assert unfinished == [good, pending]  # the value of `good` must be in the call; `bad` makes the task impossible
    call, _, unfinished = make_call(FUNCTION, (good, bad, pending), {}, None, SESSION_REF, 0)
    assert call.options is not None
    assert call.options.inputs == [2, 3]
    assert unfinished == [pending]


def test_r9_the_cost_of_many_inputs_is_linear() -> None:
    inputs = [future(number) for number in range(1, 30_001)]
    began = time.perf_counter()
    call, _, unfinished = make_call(FUNCTION, (inputs, lambda: None), {}, None, SESSION_REF, 0)
    assert time.perf_counter() - began < 5.0  # half a minute, if each were compared with all before it
    assert call.options is not None
    assert len(unfinished) == len(call.options.inputs) == 30_000
