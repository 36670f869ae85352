"""A real worker process at a scripted scheduler: calls, values, errors, output, environments."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trio_sched.engine import capture
from trio_sched.errors import CallError, ResultError, UnmetDependency
from trio_sched.wire import payload
from trio_sched.wire.native import Call, ClientEnvironment

from .conftest import ConnectedWorker
from .scripted_scheduler import Gate, by_value, pass_gate

# ---- values ---------------------------------------------------------------------------------------------------------


def test_a_call_returns_its_value(connected: ConnectedWorker) -> None:
    answer = connected.scheduler.run(connected.peer, lambda a, *, b: a * b, 6, b=7)
    assert answer.value == 42
    assert answer.result.outcome == "ok"
    assert answer.result.attempt == 1
    assert 0 <= answer.result.took_s < 1
    assert (answer.result.stdout, answer.result.stderr) == ("", "")


def test_the_results_of_a_batch_are_sent_in_order(connected: ConnectedWorker) -> None:
    calls = [connected.scheduler.call(lambda n: n, n) for n in range(10)]
    tasks = connected.scheduler.assign(connected.peer, *calls)
    answers = connected.scheduler.answers(connected.peer, *tasks)
    assert [answer.value for answer in answers] == list(range(10))


def test_arrays_are_sent_out_of_band_and_are_writable(connected: ConnectedWorker) -> None:
    def add_one_in_place(array: Any) -> Any:
        array += 1
        return {"sum": array}

    for length in (10, 1_000_000):  # below and above the size from which the transport does not copy
        answer = connected.scheduler.run(connected.peer, add_one_in_place, np.zeros(length))
        assert len(answer.frames) == answer.result.frames == 1
        assert memoryview(answer.frames[0]).nbytes == 8 * length
        assert (answer.value["sum"] == 1).all()


def test_a_large_body_is_sent_as_a_frame(connected: ConnectedWorker) -> None:
    answer = connected.scheduler.run(connected.peer, lambda text: text * 2, "x" * 100_000)
    assert answer.result.body == b""
    assert answer.value == "x" * 200_000


def test_r9_results_of_other_tasks_are_arguments(connected: ConnectedWorker) -> None:
    class Future:
        def __reduce__(self) -> Any:
            return payload.collect(self)

    scheduler = connected.scheduler
    array = scheduler.run(connected.peer, lambda: np.arange(3.0))
    number = scheduler.run(connected.peer, lambda: 10)
    big = np.ones(1000)
    with payload.collecting_futures() as futures:
        first, second = Future(), Future()
        call, functions, frames = scheduler.call(lambda a, b, c: (a * b + c.sum(), b), first, second, big)
    assert list(futures) == [first, second]
    call.inputs = [scheduler.value_of(array), scheduler.value_of(number)]
    frames = (*frames, *array.frames, *number.frames)
    call.frames = len(frames)
    (task,) = scheduler.assign(connected.peer, (call, functions, frames))
    result, ten = scheduler.answers(connected.peer, task)[0].value
    assert result.tolist() == [1000.0, 1010.0, 1020.0]
    assert ten == 10


def test_results_of_calls_by_name_are_plain_data_if_possible(connected: ConnectedWorker) -> None:
    scheduler = connected.scheduler

    def run(name: str, *args: Any, **kwargs: Any) -> Any:
        call = Call(scheduler.task_id(), call=name, args=list(args), kwargs=kwargs)
        (task,) = scheduler.assign(connected.peer, (call, {}, ()))
        return scheduler.answers(connected.peer, task)[0]

    root = run("math:sqrt", 16)
    assert (root.result.codec, root.value) == ("msgpack", 4.0)
    assert run("builtins:int.from_bytes", b"\x01\x00", byteorder="big").value == 256
    nothing = run("builtins:print")
    assert (nothing.result.codec, nothing.value, nothing.result.stdout) == ("msgpack", None, "\n")
    other = run("builtins:complex", 1, 2)
    assert (other.result.codec, other.value) == ("pickle", 1 + 2j)
    for name, words in [
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("math:no_such", "has no attribute 'no_such'"),
        ("math", 'not of the form "module:name"'),
        ("math:pi", "not callable"),
    ]:
        error = run(name).value
        assert isinstance(error, CallError)
        assert name in str(error)
        assert words in str(error)


def test_async_def_tasks_share_a_loop_and_their_leftover_tasks_are_cancelled(connected: ConnectedWorker) -> None:
    async def first() -> int:
        loop = asyncio.get_running_loop()
        loop.left = asyncio.create_task(asyncio.Event().wait())  # type: ignore[attr-defined]  # for `second`
        await asyncio.sleep(0)
        return id(loop)

    async def second() -> tuple[int, bool]:
        loop = asyncio.get_running_loop()
        return id(loop), loop.left.cancelled()  # type: ignore[attr-defined]  # set by `first`

    async def third() -> None:
        raise ValueError("from a coroutine")

    scheduler, peer = connected.scheduler, connected.peer
    loop = scheduler.run(peer, first).value
    assert scheduler.run(peer, second).value == (loop, True)
    failed = scheduler.run(peer, third)
    assert isinstance(failed.value, ValueError)
    assert failed.result.error is not None
    assert "in third" in failed.result.error.traceback


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_an_exception_arrives_with_its_type_and_its_whole_traceback(connected: ConnectedWorker) -> None:
    def outer() -> None:
        try:
            {}["key"]
        except KeyError as error:
            raise ValueError("outer failed") from error

    answer = connected.scheduler.run(connected.peer, outer)
    assert answer.result.outcome == "error"
    assert type(answer.value) is ValueError
    assert answer.value.args == ("outer failed",)
    error = answer.result.error
    assert error is not None
    assert (error.name, error.message) == ("ValueError", "outer failed")
    assert error.traceback.startswith("Traceback (most recent call last):\n")
    assert "KeyError: 'key'" in error.traceback
    assert "The above exception was the direct cause" in error.traceback
    assert "in outer" in error.traceback
    assert error.traceback.endswith("ValueError: outer failed\n")
    assert "trio_sched/engine" not in error.traceback


def test_an_exception_that_cannot_be_pickled_or_unpickled_arrives_in_words(connected: ConnectedWorker) -> None:
    class UnpicklableError(Exception):
        def __reduce__(self) -> Any:
            raise TypeError("not me")

    class UnreadableError(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    class UnspeakableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    def fail(kind: type[Exception], *args: Any) -> None:
        raise kind(*args)

    for kind, args, message in [
        (UnpicklableError, ("gone",), "gone"),
        (UnreadableError, (1, 2), "1 and 2"),
        (UnspeakableError, (), "(its message cannot be shown: RuntimeError)"),
    ]:
        answer = connected.scheduler.run(connected.peer, fail, kind, *args)
        error = answer.result.error
        assert error is not None
        assert kind.__name__ in error.name
        assert error.message == message
        assert "in fail" in error.traceback
        assert (answer.result.body == b"") == (kind is not UnspeakableError)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, RecursionError])
def test_no_exception_of_a_task_ends_the_worker(connected: ConnectedWorker, kind: type[BaseException]) -> None:
    def fail(kind: type[BaseException]) -> None:
        raise kind("for good")

    answer = connected.scheduler.run(connected.peer, fail, kind)
    assert answer.result.outcome == "error"
    assert type(answer.value) is kind
    assert connected.scheduler.run(connected.peer, os.getpid).value == connected.peer.hello.pid


def test_r19_an_unmet_dependency_is_an_outcome(connected: ConnectedWorker) -> None:
    def decline() -> None:
        raise UnmetDependency("no GPU here")

    answer = connected.scheduler.run(connected.peer, decline)
    assert (answer.result.outcome, answer.result.reason, answer.result.body) == ("unmet", "no GPU here", b"")


def test_a_result_that_cannot_be_pickled_names_its_type(connected: ConnectedWorker) -> None:
    answer = connected.scheduler.run(connected.peer, threading.Lock)
    assert answer.result.outcome == "error"
    assert isinstance(answer.value, ResultError)
    message = str(answer.value)
    assert "of type _thread.lock, cannot be pickled: TypeError: cannot pickle '_thread.lock' object" in message


def test_a_function_or_argument_that_cannot_be_loaded_is_a_call_error(connected: ConnectedWorker) -> None:
    scheduler = connected.scheduler
    missing = b"\x80\x05cno_such_module\nno_such_function\n."
    call = Call(scheduler.task_id(), fn=payload.digest(missing), body=payload.dumps(((), {}))[0])
    (task,) = scheduler.assign(connected.peer, (call, {call.fn: missing}, ()))
    answer = scheduler.answers(connected.peer, task)[0]
    assert isinstance(answer.value, CallError)
    engine = (
        f"engine {connected.peer.session} at {os.uname().nodename} ({sys.executable}, Python {sys.version.split()[0]})"
    )
    assert str(answer.value).startswith(
        f"on {engine}, the function of the task needs the module 'no_such_module', which is"
    )
    assert "No module named 'no_such_module'. Install the module on that host" in str(answer.value)

    call, functions, _ = scheduler.call(int)
    call.body = b"\x80\x05cno_such_module\nThing\n."
    (task,) = scheduler.assign(connected.peer, (call, functions, ()))
    answer = scheduler.answers(connected.peer, task)[0]
    assert "an argument of the task needs the module 'no_such_module'" in str(answer.value)

    call = Call(scheduler.task_id(), fn=b"0123456789abcdef", body=payload.dumps(((), {}))[0])
    (task,) = scheduler.assign(connected.peer, (call, {}, ()))
    assert "did not send the function with digest" in str(scheduler.answers(connected.peer, task)[0].value)


def test_a_dropped_function_is_forgotten(connected: ConnectedWorker) -> None:
    scheduler = connected.scheduler
    call, functions, _ = scheduler.call(lambda: "once")
    (task,) = scheduler.assign(connected.peer, (call, functions, ()))
    assert scheduler.answers(connected.peer, task)[0].value == "once"
    again = Call(scheduler.task_id(), fn=call.fn, body=call.body)
    (task,) = scheduler.assign(connected.peer, (again, {}, ()), drop=[call.fn])
    assert isinstance(scheduler.answers(connected.peer, task)[0].value, CallError)


def test_a_result_whose_pickling_raises_any_exception_is_an_error(connected: ConnectedWorker) -> None:
    class Nasty:
        def __reduce__(self) -> Any:
            raise SystemExit("no")

    assert isinstance(connected.scheduler.run(connected.peer, Nasty).value, ResultError)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_task_may_use_multiprocessing(connected: ConnectedWorker, method: str) -> None:
    def work(method: str) -> list[int]:
        import multiprocessing

        with multiprocessing.get_context(method).Pool(1) as pool:  # leaving terminates its processes by SIGTERM
            return pool.map(abs, [-1, 2])

    answer = connected.scheduler.run(connected.peer, work, method)
    assert answer.result.outcome == "ok", answer.result.error
    assert answer.value == [1, 2]


@pytest.mark.parametrize(("ending", "code"), [("return", 0), ("raise", 1), ("exit", 7)])
def test_a_process_that_a_task_forks_exits_where_the_task_ends(
    connected: ConnectedWorker, ending: str, code: int
) -> None:
    def work(ending: str) -> int:
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where its traceback goes
        if ending == "exit":
            sys.exit(7)
        if ending == "raise":
            raise ValueError("in the child")
        return -1

    answer = connected.scheduler.run(connected.peer, work, ending)
    assert answer.result.outcome == "ok", answer.result.error
    assert answer.value == code
    assert connected.scheduler.run(connected.peer, abs, -1).value == 1


# ---- output ---------------------------------------------------------------------------------------------------------


def test_output_is_sent_with_the_result(connected: ConnectedWorker) -> None:
    def talk() -> None:
        print("to stdout")
        print("to stderr", file=sys.stderr)
        sys.stdout.buffer.write("bytes, too: é\n".encode())
        thread = threading.Thread(target=print, args=("from a thread",))
        thread.start()
        thread.join()
        logging.warning("logged")

    scheduler = connected.scheduler
    tasks = scheduler.assign(connected.peer, scheduler.call(talk), scheduler.call(int))
    loud, silent = scheduler.answers(connected.peer, *tasks)
    assert loud.result.stdout == "to stdout\nbytes, too: é\nfrom a thread\n"
    assert loud.result.stderr == "to stderr\nWARNING:root:logged\n"
    assert (silent.result.stdout, silent.result.stderr) == ("", "")


def test_output_is_sent_with_an_error(connected: ConnectedWorker) -> None:
    def fail() -> None:
        print("before")
        raise ValueError

    answer = connected.scheduler.run(connected.peer, fail)
    assert (answer.result.outcome, answer.result.stdout) == ("error", "before\n")


def test_long_output_is_cut_in_the_middle(connected: ConnectedWorker) -> None:
    def chatter() -> None:
        print("begin")
        for _ in range(100):
            print("x" * 50_000)
        print("end")

    text = connected.scheduler.run(connected.peer, chatter).result.stdout
    assert text.startswith("begin\nxxx")
    assert text.endswith("xxx\nend\n")
    assert "characters cut ...]" in text
    assert len(text) < capture.LIMIT + 100


def test_text_that_utf8_cannot_encode_is_escaped(connected: ConnectedWorker) -> None:
    def talk(name: str) -> None:
        print("reading", name)
        raise FileNotFoundError(name)

    answer = connected.scheduler.run(connected.peer, talk, os.fsdecode(b"caf\xe9"))
    assert answer.result.stdout == "reading caf\\udce9\n"
    assert answer.result.error is not None
    assert answer.result.error.message == "caf\\udce9"
    assert answer.value.args == ("caf\udce9",)


def test_a_task_has_no_standard_input(connected: ConnectedWorker) -> None:
    answer = connected.scheduler.run(connected.peer, input)
    assert type(answer.value) is EOFError


# ---- environments ---------------------------------------------------------------------------------------------------


def test_tasks_run_in_the_environment_of_their_client(connected: ConnectedWorker, tmp_path: Path) -> None:
    scheduler = connected.scheduler
    (tmp_path / "of_the_client.py").write_text("ANSWER = 42\n")

    def look() -> tuple[str, int]:
        import of_the_client

        return os.getcwd(), of_the_client.ANSWER

    def in_session(session: int, function: Any, **more: Any) -> Any:
        call, functions, frames = scheduler.call(function)
        call.id = scheduler.task_id(session)
        (task,) = scheduler.assign(connected.peer, (call, functions, frames), **more)
        return scheduler.answers(connected.peer, task)[0].value

    home = scheduler.run(connected.peer, os.getcwd).value
    environment = ClientEnvironment(str(tmp_path), ["/no/such/entry", str(tmp_path)])
    assert in_session(20, look, places={20: environment}) == (str(tmp_path), 42)
    assert in_session(21, os.getcwd, places={21: ClientEnvironment("/no/such/place")}) == home
    assert in_session(20, os.getcwd) == str(tmp_path)
    path = in_session(20, lambda: list(sys.path))
    assert path.count(str(tmp_path)) == 1
    assert "/no/such/entry" not in path


def test_directory_and_umask_are_reset_after_a_task(connected: ConnectedWorker, tmp_path: Path) -> None:
    scheduler = connected.scheduler

    def look() -> tuple[str, int]:
        umask = os.umask(0)
        os.umask(umask)
        return os.getcwd(), umask

    def spoil(descriptors: bool) -> None:
        os.chdir("/")
        os.umask(0o777)
        if descriptors:
            for name in os.listdir("/proc/self/fd"):
                if os.path.realpath(f"/proc/self/fd/{name}") == str(directory):
                    os.close(int(name))

    directory = tmp_path.resolve()
    before = scheduler.run(connected.peer, look).value
    for deed in (lambda: spoil(False), lambda: spoil(True)):
        calls = [scheduler.call(deed), scheduler.call(look)]
        for call, _, _ in calls:
            call.id = scheduler.task_id(30)
        tasks = scheduler.assign(connected.peer, *calls, places={30: ClientEnvironment(str(directory))})
        assert scheduler.answers(connected.peer, *tasks)[1].value == (str(directory), before[1])
    assert scheduler.run(connected.peer, look).value == before


# ---- while a task runs ----------------------------------------------------------------------------------------------


def test_results_do_not_wait_for_a_long_task_that_follows(connected: ConnectedWorker, gate: Gate) -> None:
    scheduler = connected.scheduler
    quick, slow = scheduler.assign(connected.peer, scheduler.call(int), scheduler.call(pass_gate, *gate.pipes))
    gate.entered()
    assert scheduler.answers(connected.peer, quick)[0].value == 0
    gate.release("slow")
    assert scheduler.answers(connected.peer, slow)[0].value == "slow"


@by_value
def wait_for_signal() -> None:
    import threading

    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(60)


def test_sigint_interrupts_only_the_running_task(connected: ConnectedWorker) -> None:
    os.kill(connected.peer.hello.pid, signal.SIGINT)
    answer = connected.scheduler.run(connected.peer, wait_for_signal)
    assert type(answer.value) is KeyboardInterrupt
    assert answer.result.error is not None
    assert "in wait_for_signal" in answer.result.error.traceback
    os.kill(connected.peer.hello.pid, signal.SIGINT)
    assert connected.scheduler.run(connected.peer, math.sqrt, 4).value == 2
