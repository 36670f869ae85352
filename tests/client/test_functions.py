"""When the remembered bytes of a function are used, and when it is pickled again."""

from __future__ import annotations

import functools
import gc
import operator
import types
from collections.abc import Callable
from typing import Any

import pytest

from trio_sched.client.conditions import depend
from trio_sched.client.functions import FunctionRegistry
from trio_sched.wire import payload


@pytest.fixture
def functions() -> FunctionRegistry:
    return FunctionRegistry()


@pytest.fixture
def dumps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The functions that were pickled, in order."""
    pickled: list[Any] = []
    dump_function = payload.dump_function

    def record(function: Callable[..., Any]) -> bytes:
        pickled.append(function)
        return dump_function(function)

    monkeypatch.setattr(payload, "dump_function", record)
    return pickled


def run_source(source: str, **names: Any) -> dict[str, Any]:
    """Return the namespace of a script or notebook with this source: its functions are pickled by value."""
    namespace: dict[str, Any] = {"__name__": "__main__", **names}
    exec(source, namespace)
    return namespace


@pytest.mark.parametrize(
    "function",
    [
        len,
        operator.add,
        functools.reduce,
        types.SimpleNamespace,
        run_source("def f(x): return x + 1")["f"],
        run_source("def f(x): return len(str(x)) + limit", limit=3)["f"],
        run_source("def g(x): return x\ndef f(x): return g(x)")["f"],
        run_source("def f(n): return n and f(n - 1)")["f"],
        run_source("class C:\n    def m(self): return 1\ndef f(): return C().m()")["f"],
        run_source("class C:\n    x = (1, 2)\n    m = staticmethod(abs)\ndef f(): return C.m(1)")["f"],
        run_source("def outer(a):\n    def f(): return a\n    return f")["outer"]("text"),
        functools.partial(operator.add, 1),
        depend(callable, len)(operator.add),
        depend(callable, len)(run_source("def f(x): return x")["f"]),
    ],
)
def test_functions_that_capture_only_immutable_objects_are_pickled_once(
    functions: FunctionRegistry, dumps: list[Any], function: Any
) -> None:
    first = functions.register(function)
    assert functions.register(function) is first
    assert len(dumps) == 1
    assert payload.digest(first.data) == first.digest


def test_a_changed_global_is_noticed(functions: FunctionRegistry) -> None:
    namespace = run_source("def f(x): return x + limit", limit=3)
    before = functions.register(namespace["f"])
    namespace["limit"] = 4
    after = functions.register(namespace["f"])
    assert before.digest != after.digest
    assert payload.loads(after.data)(1) == 5


def test_a_changed_helper_function_is_noticed(functions: FunctionRegistry) -> None:
    namespace = run_source("def g(x): return x\ndef f(x): return g(x)")
    before = functions.register(namespace["f"])
    exec("def g(x): return 2 * x", namespace)
    assert functions.register(namespace["f"]).digest != before.digest


def test_a_changed_class_is_noticed(functions: FunctionRegistry) -> None:
    namespace = run_source("class C:\n    size = 1\ndef f(): return C.size")
    before = functions.register(namespace["f"])
    namespace["C"].size = 2
    after = functions.register(namespace["f"])
    assert after.digest != before.digest
    exec("def more(self): return 1\nC.more = staticmethod(more)", namespace)
    assert functions.register(namespace["f"]).digest not in (before.digest, after.digest)


def test_a_name_that_appears_later_is_noticed(functions: FunctionRegistry, dumps: list[Any]) -> None:
    namespace = run_source("def f(x): return x + offset")
    functions.register(namespace["f"])
    namespace["offset"] = 1
    assert payload.loads(functions.register(namespace["f"]).data)(1) == 2
    assert len(dumps) == 2


def test_a_changed_cell_is_noticed(functions: FunctionRegistry) -> None:
    def counter() -> tuple[Callable[[], int], Callable[[], None]]:
        count = 0

        def bump() -> None:
            nonlocal count
            count += 1

        return lambda: count, bump

    read, bump = counter()
    before = functions.register(read)
    assert functions.register(read) is before
    bump()
    assert payload.loads(functions.register(read).data)() == 1


def test_a_changed_default_or_code_is_noticed(functions: FunctionRegistry) -> None:
    function = run_source("def f(x=1): return x")["f"]
    functions.register(function)
    function.__defaults__ = (2,)
    assert payload.loads(functions.register(function).data)() == 2
    function.__code__ = run_source("def f(x): return -x")["f"].__code__
    assert payload.loads(functions.register(function).data)() == -2


def test_a_function_that_captures_a_list_is_pickled_each_time(functions: FunctionRegistry, dumps: list[Any]) -> None:
    rows = [1]
    function = run_source("def f(): return rows", rows=rows)["f"]
    before = functions.register(function)
    assert functions.register(function) is before  # the same bytes, so the same digest
    rows.append(2)
    assert payload.loads(functions.register(function).data)() == [1, 2]
    assert len(dumps) == 3


def test_a_collected_function_is_dropped_when_its_tasks_have_ended(functions: FunctionRegistry) -> None:
    record = functions.register(run_source("def f(n): return n and f(n - 1)")["f"])
    record.sent = True
    record.submitted = 1
    gc.collect()
    assert functions.drop_unneeded() == []  # one of its tasks has not ended
    record.ended = 1
    functions.unneeded.append(record)
    assert functions.drop_unneeded() == [record.digest]
    assert not functions.by_digest


def test_a_live_function_is_kept(functions: FunctionRegistry) -> None:
    function = run_source("def f(): return 1")["f"]
    record = functions.register(function)
    record.sent = True
    record.submitted = record.ended = 1
    functions.unneeded.append(record)
    assert functions.drop_unneeded() == []
    assert functions.register(function) is record


def test_dropped_closures_are_forgotten(functions: FunctionRegistry) -> None:
    for number in range(50):
        record = functions.register(run_source(f"def f(): return {number}")["f"])
        record.submitted = record.ended = 1
    gc.collect()
    functions.drop_unneeded()
    functions.register(len)
    functions.drop_unneeded()
    assert len(functions.by_digest) == 1
    assert len(functions._by_object) <= 1
