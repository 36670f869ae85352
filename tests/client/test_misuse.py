"""Common mistakes: each error says what is wrong, and what to write instead."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import trio_sched
from trio_sched import Client, open_client
from trio_sched.client import misuse
from trio_sched.client.local_cluster import LocalCluster
from trio_sched.transport.connection_info import ConnectionInfo


def take(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def message(error: type[BaseException], action: Callable[[], Any]) -> str:
    """Return the text of the exception that the action raises."""
    with pytest.raises(error) as caught:
        action()
    return str(caught.value)


def enter_open_client(*args: Any, **kwargs: Any) -> None:
    async def main() -> None:
        async with open_client(*args, **kwargs):
            pass

    anyio.run(main)


@pytest.mark.parametrize("make", [Client, enter_open_client])
def test_wrong_arguments_of_a_client_are_explained(make: Any) -> None:
    name = "Client" if make is Client else "open_client"
    assert message(TypeError, lambda: make(4)) == (
        f"{name}(4): the first argument names a running scheduler; to start a local cluster with 4 "
        f"engines write {name}(engines=4)"
    )
    for word in ("max_workers", "n_workers", "processes"):
        assert message(TypeError, lambda word=word: make(**{word: 4})) == (
            f"{name}() has no {word}; to start a local cluster with 4 engines write {name}(engines=4)"
        )
    assert message(TypeError, lambda: make(processes=False)).endswith(f"write {name}(engines=N)")
    assert message(TypeError, lambda: make(connect_timout=4)).startswith(
        f"{name}() has no argument 'connect_timout'; it has where, engines, hwm, "
    )
    assert message(TypeError, lambda: make(b"lab")) == (
        f"{name}(b'lab'): the first argument names a running scheduler: its name, or the path of its connection file"
    )


@pytest.mark.parametrize("address", ["tcp://h:7077", "h:7077", "ipc:///tmp/x.sock", "ws://h:1/"])
def test_an_address_in_place_of_a_connection_file_is_explained(address: str) -> None:
    assert message(trio_sched.ConnectionFileError, lambda: Client(address)) == (
        f"'{address}' is an address, which does not do without the keys of the scheduler there; copy its connection "
        "file NAME-client.json to here, and give the path of that"
    )


def test_an_option_that_the_function_does_not_take_is_explained(client: Client) -> None:
    def fit(rows: int, *, timeout: float = 0.0) -> float:
        return rows + timeout

    assert message(TypeError, lambda: client.submit(fit, 1, priority=3)) == (
        "fit() has no parameter 'priority'; as an option of the task, write options(priority=3).submit(fit, ...)"
    )
    assert client.submit(fit, 1, timeout=2.0).result(60) == 3.0
    assert message(TypeError, lambda: client.map(fit, [1], priority=3)) == (
        "map() has no argument 'priority'; as an option of the tasks, write options(priority=3).map(fit, ...)"
    )
    assert "functools.partial" in message(TypeError, lambda: client.map(fit, [1], depth=3))
    assert client.submit(take, priority=3).result(60) == ((), {"priority": 3})
    assert client.submit(dict, priority=3).result(60) == {"priority": 3}  # `dict` has no signature
    assert client.submit(trio_sched.require("json")(fit), 1, timeout=2.0).result(60) == 3.0
    assert "has no parameter 'label'" in message(
        TypeError, lambda: client.options(priority=1).submit(trio_sched.require("json")(fit), 1, label="x")
    )
    assert "has no parameter 'retries'" in message(TypeError, lambda: client.submit("".join, [], retries=3))


def test_an_option_that_the_function_does_not_take_is_explained_by_the_asynchronous_client(
    scheduler: ConnectionInfo,
) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            with pytest.raises(TypeError, match=r"abs\(\) has no parameter 'priority'"):
                client.submit(abs, -1, priority=3)  # type: ignore[call-arg]  # the point of the test

    anyio.run(main)


def test_the_parameters_of_a_function_are_looked_up_once_and_keep_nothing_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = []
    find_keywords = misuse._find_keywords
    monkeypatch.setattr(misuse, "_find_keywords", lambda function: looked.append(1) or find_keywords(function))

    def fit(timeout: float) -> float:
        return timeout

    misuse.check_keywords(fit, {"rows": 1})
    assert not looked
    for _ in range(3):
        misuse.check_keywords(fit, {"timeout": 1})
    assert len(looked) == 1
    reference = weakref.ref(fit)
    del fit
    gc.collect()
    assert reference() is None


def test_a_generator_as_an_argument_is_explained(client: Client) -> None:
    numbers = (number for number in range(3))
    assert message(trio_sched.SubmitError, lambda: client.submit(sum, numbers)) == (
        "argument 1 (a generator) cannot be pickled: TypeError: cannot pickle 'generator' object; "
        "pass a list of its items, or map() a function over it"
    )
    assert message(trio_sched.SubmitError, lambda: client.submit(take, 1, rows=[numbers])) == (
        "argument 'rows' (a list) cannot be pickled: TypeError: cannot pickle 'generator' object; "
        "there is a generator in it: pass a list of its items"
    )


def test_a_coroutine_or_another_executor_s_future_as_an_argument_is_explained(client: Client) -> None:
    async def work() -> None:
        pass

    coroutine = work()
    text = message(trio_sched.SubmitError, lambda: client.submit(take, coroutine))
    coroutine.close()
    assert text.endswith("; await it, and pass its result")
    loop = asyncio.new_event_loop()
    for future in (concurrent.futures.Future[int](), loop.create_future()):
        text = message(trio_sched.SubmitError, lambda future=future: client.submit(take, future))
        assert text.startswith("argument 1 (a Future) cannot be pickled: ")
        assert text.endswith("; it is a future of another executor: pass its result")
    loop.close()


def test_a_future_of_another_client_is_explained_and_may_be_a_dependency(
    client: Client, scheduler: ConnectionInfo
) -> None:
    with Client(scheduler) as other:
        never = other.options(resources={"unobtainium": 1}).submit(abs, 1)
        other.status()  # the scheduler has the task by then
        advice = f"(this client's session is {client.session}); wait for its result, and pass that"
        whose = f"task {never.task_id} belongs to another client {advice}"
        submit: Any = client.submit
        assert message(trio_sched.SubmitError, lambda: submit(take, 1, never)) == f"argument 2: {whose}"
        assert message(trio_sched.SubmitError, lambda: submit(take, x=[never])) == f"argument 'x': {whose}"
        after = client.options(after=never, after_failure=True).submit(abs, -1)
        client.cancel(never)
        assert isinstance(never.exception(60), trio_sched.TaskCancelled)
        assert after.result(60) == 1


def test_a_future_of_another_scheduler_is_explained(client: Client) -> None:
    """A task of another scheduler may have the number of a task of this one."""
    cluster = LocalCluster(1)
    try:
        with Client(cluster.connection(), connect_timeout=60) as other:
            foreign = other.options(resources={"unobtainium": 1}).submit(abs, 1)
            whose = f"task {foreign.task_id} belongs to another scheduler than this client's"
            for option in ("after", "follow"):
                assert message(ValueError, lambda option=option: client.options(**{option: [foreign]})) == (
                    f"{whose}; wait for its result before you submit"
                )
            assert message(ValueError, lambda: client.cancel(foreign)) == f"{whose}; cancel it with its own cancel()"
            for ask in (client.explain, client.story):
                assert message(ValueError, lambda ask=ask: ask(foreign)) == f"{whose}; ask its own client"
            foreign._session_ref.session = client.session  # sessions of several schedulers have the same numbers
            foreign.number = client.submit(abs, 1).number
            advice = f"(this client's session is {client.session}); wait for its result, and pass that"
            assert message(trio_sched.SubmitError, lambda: client.submit(take, foreign)) == (
                f"argument 1: task {foreign.task_id} belongs to a client of another scheduler {advice}"
            )
            other.shutdown(cancel_futures=True)
    finally:
        cluster.close()
