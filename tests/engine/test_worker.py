"""A real worker process at a scripted scheduler: calls, values, errors, output, places."""

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
from trio_sched.wire.native import Call, Place

from .conftest import Line
from .scripted import Gate, pass_gate, whole

# ---- values ---------------------------------------------------------------------------------------------------------


def test_a_call_returns_its_value(line: Line) -> None:
    got = line.scheduler.run(line.peer, lambda a, *, b: a * b, 6, b=7)
    assert got.value == 42
    assert got.end.outcome == "ok"
    assert got.end.attempt == 1
    assert 0 <= got.end.took_s < 1
    assert (got.end.stdout, got.end.stderr) == ("", "")


def test_a_batch_is_answered_in_order(line: Line) -> None:
    calls = [line.scheduler.call(lambda n: n, n) for n in range(10)]
    tasks = line.scheduler.assign(line.peer, *calls)
    got = line.scheduler.answers(line.peer, *tasks)
    assert [g.value for g in got] == list(range(10))


def test_large_arrays_travel_out_of_band_and_may_be_written_to(line: Line) -> None:
    def add_one_in_place(array: Any) -> Any:
        array += 1
        return {"sum": array}

    for length in (10, 1_000_000):  # below and above the size from which the transport does not copy
        got = line.scheduler.run(line.peer, add_one_in_place, np.zeros(length))
        assert len(got.frames) == got.end.frames == 1
        assert memoryview(got.frames[0]).nbytes == 8 * length
        assert (got.value["sum"] == 1).all()


def test_a_large_body_is_a_frame(line: Line) -> None:
    got = line.scheduler.run(line.peer, lambda text: text * 2, "x" * 100_000)
    assert got.end.body == b""
    assert got.value == "x" * 200_000


def test_r9_results_of_other_tasks_are_arguments(line: Line) -> None:
    class Future:
        def __reduce__(self) -> Any:
            return payload.met(self)

    scheduler = line.scheduler
    array = scheduler.run(line.peer, lambda: np.arange(3.0))
    number = scheduler.run(line.peer, lambda: 10)
    big = np.ones(1000)
    with payload.meeting() as met:
        first, second = Future(), Future()
        call, functions, frames = scheduler.call(lambda a, b, c: (a * b + c.sum(), b), first, second, big)
    assert list(met) == [first, second]
    call.inputs = [scheduler.value_of(array), scheduler.value_of(number)]
    frames = (*frames, *array.frames, *number.frames)
    call.frames = len(frames)
    (task,) = scheduler.assign(line.peer, (call, functions, frames))
    result, ten = scheduler.answers(line.peer, task)[0].value
    assert result.tolist() == [1000.0, 1010.0, 1020.0]
    assert ten == 10


def test_calls_by_name_answer_in_plain_data_where_they_can(line: Line) -> None:
    scheduler = line.scheduler

    def run(name: str, *args: Any, **kwargs: Any) -> Any:
        call = Call(scheduler.task_id(), call=name, args=list(args), kwargs=kwargs)
        (task,) = scheduler.assign(line.peer, (call, {}, ()))
        return scheduler.answers(line.peer, task)[0]

    root = run("math:sqrt", 16)
    assert (root.end.codec, root.value) == ("msgpack", 4.0)
    assert run("builtins:int.from_bytes", b"\x01\x00", byteorder="big").value == 256
    nothing = run("builtins:print")
    assert (nothing.end.codec, nothing.value, nothing.end.stdout) == ("msgpack", None, "\n")
    other = run("builtins:complex", 1, 2)
    assert (other.end.codec, other.value) == ("pickle", 1 + 2j)
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


def test_async_def_tasks_share_a_loop_that_nothing_is_left_on(line: Line) -> None:
    async def first() -> int:
        loop = asyncio.get_running_loop()
        loop.left = asyncio.create_task(asyncio.Event().wait())  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        return id(loop)

    async def second() -> tuple[int, bool]:
        loop = asyncio.get_running_loop()
        return id(loop), loop.left.cancelled()  # type: ignore[attr-defined]

    async def third() -> None:
        raise ValueError("from a coroutine")

    scheduler, peer = line.scheduler, line.peer
    loop = scheduler.run(peer, first).value
    assert scheduler.run(peer, second).value == (loop, True)
    failed = scheduler.run(peer, third)
    assert isinstance(failed.value, ValueError)
    assert failed.end.error is not None
    assert "in third" in failed.end.error.traceback


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_an_exception_arrives_as_its_type_and_with_its_whole_traceback(line: Line) -> None:
    def outer() -> None:
        try:
            {}["key"]
        except KeyError as error:
            raise ValueError("outer failed") from error

    got = line.scheduler.run(line.peer, outer)
    assert got.end.outcome == "error"
    assert type(got.value) is ValueError
    assert got.value.args == ("outer failed",)
    error = got.end.error
    assert error is not None
    assert (error.name, error.message) == ("ValueError", "outer failed")
    assert error.traceback.startswith("Traceback (most recent call last):\n")
    assert "KeyError: 'key'" in error.traceback
    assert "The above exception was the direct cause" in error.traceback
    assert "in outer" in error.traceback
    assert error.traceback.endswith("ValueError: outer failed\n")
    assert "trio_sched/engine" not in error.traceback


def test_an_exception_that_cannot_be_pickled_or_read_back_arrives_in_words(line: Line) -> None:
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
        got = line.scheduler.run(line.peer, fail, kind, *args)
        error = got.end.error
        assert error is not None
        assert kind.__name__ in error.name
        assert error.message == message
        assert "in fail" in error.traceback
        assert (got.end.body == b"") == (kind is not UnspeakableError)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, RecursionError])
def test_nothing_that_a_task_raises_ends_the_worker(line: Line, kind: type[BaseException]) -> None:
    def fail(kind: type[BaseException]) -> None:
        raise kind("for good")

    got = line.scheduler.run(line.peer, fail, kind)
    assert got.end.outcome == "error"
    assert type(got.value) is kind
    assert line.scheduler.run(line.peer, os.getpid).value == line.peer.hello.pid


def test_r19_unmet_dependency_is_an_answer_of_its_own(line: Line) -> None:
    def decline() -> None:
        raise UnmetDependency("no GPU here")

    got = line.scheduler.run(line.peer, decline)
    assert (got.end.outcome, got.end.reason, got.end.body) == ("unmet", "no GPU here", b"")


def test_a_result_that_cannot_be_pickled_names_its_type(line: Line) -> None:
    got = line.scheduler.run(line.peer, threading.Lock)
    assert got.end.outcome == "error"
    assert isinstance(got.value, ResultError)
    assert "of type _thread.lock, cannot be pickled: TypeError: cannot pickle '_thread.lock' object" in str(got.value)


def test_what_cannot_be_loaded_is_a_call_error_that_names_it(line: Line) -> None:
    scheduler = line.scheduler
    missing = b"\x80\x05cno_such_module\nno_such_function\n."
    call = Call(scheduler.task_id(), fn=payload.digest(missing), body=payload.dumps(((), {}))[0])
    (task,) = scheduler.assign(line.peer, (call, {call.fn: missing}, ()))
    got = scheduler.answers(line.peer, task)[0]
    assert isinstance(got.value, CallError)
    place = f"engine {line.peer.session} at {os.uname().nodename} ({sys.executable}, Python {sys.version.split()[0]})"
    assert str(got.value).startswith(
        f"on {place}, the function of the task needs the module 'no_such_module', which is"
    )
    assert "No module named 'no_such_module'. Install the module on that host" in str(got.value)

    call, functions, _ = scheduler.call(int)
    call.body = b"\x80\x05cno_such_module\nThing\n."
    (task,) = scheduler.assign(line.peer, (call, functions, ()))
    got = scheduler.answers(line.peer, task)[0]
    assert "an argument of the task needs the module 'no_such_module'" in str(got.value)

    call = Call(scheduler.task_id(), fn=b"0123456789abcdef", body=payload.dumps(((), {}))[0])
    (task,) = scheduler.assign(line.peer, (call, {}, ()))
    assert "did not send the function with digest" in str(scheduler.answers(line.peer, task)[0].value)


def test_a_dropped_function_is_forgotten(line: Line) -> None:
    scheduler = line.scheduler
    call, functions, _ = scheduler.call(lambda: "once")
    (task,) = scheduler.assign(line.peer, (call, functions, ()))
    assert scheduler.answers(line.peer, task)[0].value == "once"
    again = Call(scheduler.task_id(), fn=call.fn, body=call.body)
    (task,) = scheduler.assign(line.peer, (again, {}, ()), drop=[call.fn])
    assert isinstance(scheduler.answers(line.peer, task)[0].value, CallError)


def test_a_result_whose_pickling_raises_anything_is_an_error(line: Line) -> None:
    class Nasty:
        def __reduce__(self) -> Any:
            raise SystemExit("no")

    assert isinstance(line.scheduler.run(line.peer, Nasty).value, ResultError)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_task_may_use_processes_of_its_own(line: Line, method: str) -> None:
    def work(method: str) -> list[int]:
        import multiprocessing

        with multiprocessing.get_context(method).Pool(1) as pool:  # leaving terminates its processes by SIGTERM
            return pool.map(abs, [-1, 2])

    got = line.scheduler.run(line.peer, work, method)
    assert got.end.outcome == "ok", got.end.error
    assert got.value == [1, 2]


@pytest.mark.parametrize(("ending", "code"), [("return", 0), ("raise", 1), ("exit", 7)])
def test_a_process_that_a_task_forks_is_no_second_worker(line: Line, ending: str, code: int) -> None:
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

    got = line.scheduler.run(line.peer, work, ending)
    assert got.end.outcome == "ok", got.end.error
    assert got.value == code
    assert line.scheduler.run(line.peer, abs, -1).value == 1


# ---- output ---------------------------------------------------------------------------------------------------------


def test_output_comes_back_with_its_task(line: Line) -> None:
    def talk() -> None:
        print("to stdout")
        print("to stderr", file=sys.stderr)
        sys.stdout.buffer.write("bytes, too: é\n".encode())
        thread = threading.Thread(target=print, args=("from a thread",))
        thread.start()
        thread.join()
        logging.warning("logged")

    scheduler = line.scheduler
    tasks = scheduler.assign(line.peer, scheduler.call(talk), scheduler.call(int))
    loud, silent = scheduler.answers(line.peer, *tasks)
    assert loud.end.stdout == "to stdout\nbytes, too: é\nfrom a thread\n"
    assert loud.end.stderr == "to stderr\nWARNING:root:logged\n"
    assert (silent.end.stdout, silent.end.stderr) == ("", "")


def test_output_comes_back_with_an_error(line: Line) -> None:
    def fail() -> None:
        print("before")
        raise ValueError

    got = line.scheduler.run(line.peer, fail)
    assert (got.end.outcome, got.end.stdout) == ("error", "before\n")


def test_long_output_is_cut_in_the_middle(line: Line) -> None:
    def chatter() -> None:
        print("begin")
        for _ in range(100):
            print("x" * 50_000)
        print("end")

    text = line.scheduler.run(line.peer, chatter).end.stdout
    assert text.startswith("begin\nxxx")
    assert text.endswith("xxx\nend\n")
    assert "characters cut ...]" in text
    assert len(text) < capture.LIMIT + 100


def test_text_that_utf8_has_no_form_for_comes_back_as_escapes(line: Line) -> None:
    def talk(name: str) -> None:
        print("reading", name)
        raise FileNotFoundError(name)

    got = line.scheduler.run(line.peer, talk, os.fsdecode(b"caf\xe9"))
    assert got.end.stdout == "reading caf\\udce9\n"
    assert got.end.error is not None
    assert got.end.error.message == "caf\\udce9"
    assert got.value.args == ("caf\udce9",)


def test_a_task_has_no_standard_input(line: Line) -> None:
    got = line.scheduler.run(line.peer, input)
    assert type(got.value) is EOFError


# ---- places ---------------------------------------------------------------------------------------------------------


def test_tasks_run_where_their_client_works(line: Line, tmp_path: Path) -> None:
    scheduler = line.scheduler
    (tmp_path / "of_the_client.py").write_text("ANSWER = 42\n")

    def look() -> tuple[str, int]:
        import of_the_client

        return os.getcwd(), of_the_client.ANSWER

    def in_session(session: int, function: Any, **more: Any) -> Any:
        call, functions, frames = scheduler.call(function)
        call.id = scheduler.task_id(session)
        (task,) = scheduler.assign(line.peer, (call, functions, frames), **more)
        return scheduler.answers(line.peer, task)[0].value

    home = scheduler.run(line.peer, os.getcwd).value
    place = Place(str(tmp_path), ["/no/such/entry", str(tmp_path)])
    assert in_session(20, look, places={20: place}) == (str(tmp_path), 42)
    assert in_session(21, os.getcwd, places={21: Place("/no/such/place")}) == home
    assert in_session(20, os.getcwd) == str(tmp_path)
    path = in_session(20, lambda: list(sys.path))
    assert path.count(str(tmp_path)) == 1
    assert "/no/such/entry" not in path


def test_what_a_task_does_to_directory_and_umask_ends_with_it(line: Line, tmp_path: Path) -> None:
    scheduler = line.scheduler

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
    before = scheduler.run(line.peer, look).value
    for deed in (lambda: spoil(False), lambda: spoil(True)):
        calls = [scheduler.call(deed), scheduler.call(look)]
        for call, _, _ in calls:
            call.id = scheduler.task_id(30)
        tasks = scheduler.assign(line.peer, *calls, places={30: Place(str(directory))})
        assert scheduler.answers(line.peer, *tasks)[1].value == (str(directory), before[1])
    assert scheduler.run(line.peer, look).value == before


# ---- while a task runs ----------------------------------------------------------------------------------------------


def test_results_do_not_wait_for_a_long_task_behind_them(line: Line, gate: Gate) -> None:
    scheduler = line.scheduler
    quick, slow = scheduler.assign(line.peer, scheduler.call(int), scheduler.call(pass_gate, *gate.pipes))
    gate.entered()
    assert scheduler.answers(line.peer, quick)[0].value == 0
    gate.release("slow")
    assert scheduler.answers(line.peer, slow)[0].value == "slow"


@whole
def wait_for_signal() -> None:
    import threading

    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(60)


def test_sigint_interrupts_the_task_that_runs_and_nothing_else(line: Line) -> None:
    os.kill(line.peer.hello.pid, signal.SIGINT)
    got = line.scheduler.run(line.peer, wait_for_signal)
    assert type(got.value) is KeyboardInterrupt
    assert got.end.error is not None
    assert "in wait_for_signal" in got.end.error.traceback
    os.kill(line.peer.hello.pid, signal.SIGINT)
    assert line.scheduler.run(line.peer, math.sqrt, 4).value == 2
