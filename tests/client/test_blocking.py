"""The blocking client with a real scheduler and engines: the interface of executors, and its extensions."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import operator
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trio_sched
from trio_sched import Client, Future
from trio_sched.client.session import SessionUpdate
from trio_sched.transport.connection_info import ConnectionInfo
from trio_sched.wire import native

LIMIT_S = 60.0


sleep = time.sleep  # importable on engines


# ---- an executor ----------------------------------------------------------------------------------------------------


def test_submit_returns_a_future_with_the_result(client: Client) -> None:
    future = client.submit(divmod, 17, 5)
    assert isinstance(client, concurrent.futures.Executor)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(LIMIT_S) == (3, 2)
    assert future.task_id == f"{client.session}-1"
    assert isinstance(future.engine, int)
    assert future.took_s is not None
    assert future.took_s < 1


def test_keyword_arguments_lambdas_and_closures(client: Client) -> None:
    offset = 10
    assert client.submit(int, "ff", base=16).result(LIMIT_S) == 255
    assert client.submit(lambda x: x + offset, 5).result(LIMIT_S) == 15
    assert client.submit("a-b".split, "-").result(LIMIT_S) == ["a", "b"]


def test_map_keeps_the_order(client: Client) -> None:
    assert list(client.map(pow, range(20), [2] * 20)) == [n * n for n in range(20)]
    assert list(client.map(pow, range(23), [2] * 23, chunksize=5)) == [n * n for n in range(23)]
    assert list(client.map(abs, [])) == []
    assert list(client.map(pow, [1, 2, 3], [1, 1])) == [1, 2]
    with pytest.raises(ValueError, match="chunksize=0"):
        client.map(abs, [1], chunksize=0)


def test_map_raises_at_the_failed_call_and_ends(client: Client) -> None:
    results = client.map(operator.floordiv, [8, 8, 8, 8], [1, 2, 0, 4])
    assert next(results) == 8
    assert next(results) == 4
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_map_raises_timeout_error_in_time(client: Client) -> None:
    with pytest.raises(TimeoutError):
        list(client.map(sleep, [0.3, 0.3, 0.3], timeout=0.01))


def test_wait_and_as_completed(client: Client) -> None:
    futures = [client.submit(abs, -n) for n in range(30)]
    assert {future.result() for future in concurrent.futures.as_completed(futures, LIMIT_S)} == set(range(30))
    waited = concurrent.futures.wait([client.submit(abs, 1), client.submit(sleep, 0.01)], LIMIT_S)
    assert not waited.not_done


def test_callbacks_may_submit_but_not_wait(client: Client) -> None:
    ended = threading.Event()
    chained: list[Future[int]] = []

    def then(future: concurrent.futures.Future[int]) -> None:
        chained.append(client.submit(abs, future.result() - 7))
        with pytest.raises(RuntimeError, match="cannot wait for a result there"):
            client.submit(abs, -4).result()
        with pytest.raises(RuntimeError, match="a callback runs in the client's thread"):
            client.status()
        ended.set()

    client.submit(abs, -2).add_done_callback(then)
    assert ended.wait(LIMIT_S)
    assert chained[0].result(LIMIT_S) == 5


def after_gate(path: str, function: Any, *args: Any) -> Any:
    """Call a function after a writer has opened the FIFO."""
    open(path).close()
    return function(*args)


after_gate.__module__ = "__main__"  # pickled by value: engines cannot import the tests


def test_a_callback_that_exits_does_not_end_the_client(
    client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    ended = threading.Event()

    def exits(_future: Any) -> None:
        ended.set()
        sys.exit("from a callback")

    client.submit(after_gate, str(gate), abs, -1).add_done_callback(exits)
    gate.write_text("")  # now the call can run
    assert ended.wait(LIMIT_S)
    assert client.submit(abs, -1).result(LIMIT_S) == 1
    assert "exception calling callback" in caplog.text
    assert "SystemExit: from a callback" in caplog.text


def test_a_task_that_exits_does_not_end_the_client(client: Client, tmp_path: Path) -> None:
    """The task's SystemExit is raised in the callback that asks for the result."""
    os.mkfifo(gate := tmp_path / "gate")
    future = client.submit(after_gate, str(gate), sys.exit, 3)
    ended = threading.Event()
    future.add_done_callback(lambda one: [ended.set(), one.result()])
    gate.write_text("")
    assert ended.wait(LIMIT_S)
    assert client.submit(abs, -1).result(LIMIT_S) == 1
    assert isinstance(future.exception(LIMIT_S), SystemExit)


def test_the_client_is_an_executor_of_an_asyncio_loop(client: Client) -> None:
    async def main() -> int:
        return await asyncio.get_running_loop().run_in_executor(client, abs, -3)

    assert asyncio.run(main()) == 3


def test_exceptions_keep_their_type_and_have_the_remote_traceback_as_cause(client: Client) -> None:
    def fail() -> None:
        raise LookupError("not here")

    future = client.submit(fail)
    with pytest.raises(LookupError, match="not here") as caught:
        future.result(LIMIT_S)
    assert "in fail" in str(caught.value.__cause__)
    assert isinstance(future.exception(), LookupError)


def test_the_output_of_a_task_is_returned(client: Client) -> None:
    def talk() -> None:
        import sys

        print("spoken")
        print("grumbled", file=sys.stderr)

    future = client.submit(talk)
    future.result(LIMIT_S)
    assert (future.stdout, future.stderr) == ("spoken\n", "grumbled\n")


def test_leaving_waits_for_tasks_and_later_submissions_are_refused(scheduler: ConnectionInfo) -> None:
    with Client(scheduler) as client:
        futures = [client.submit(sleep, 0.02) for _ in range(6)]
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="after shutdown"):
        client.submit(abs, 1)
    client.shutdown()


def test_shutdown_without_waiting_lets_tasks_end(scheduler: ConnectionInfo) -> None:
    client = Client(scheduler)
    future = client.submit(sleep, 0.05)
    client.shutdown(wait=False)
    assert future.result(LIMIT_S) is None


def test_shutdown_can_cancel(scheduler: ConnectionInfo) -> None:
    client = Client(scheduler)
    futures = [client.submit(sleep, 0.2) for _ in range(50)]
    client.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in futures)


def test_a_garbage_collected_client_ends_when_its_tasks_have_ended(scheduler: ConnectionInfo) -> None:
    client = Client(scheduler)
    connection = client._connection
    future = client.submit(sleep, 0.02)
    gone = weakref.ref(client)
    del client
    gc.collect()
    assert gone() is None
    future.result(LIMIT_S)
    connection.join(LIMIT_S)
    assert not connection._thread.is_alive()


def test_every_call_of_a_burst_is_run(client: Client) -> None:
    futures = [client.submit(abs, -n) for n in range(5000)]
    assert sum(future.result(LIMIT_S) for future in futures) == 4999 * 2500


def test_many_threads_can_submit_at_once(client: Client) -> None:
    sums: list[int] = []

    def work() -> None:
        futures = [client.submit(abs, -n) for n in range(300)]
        sums.append(sum(future.result(LIMIT_S) for future in futures))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert sums == [299 * 150] * 6


def test_arguments_are_sent_as_they_were_at_submit(client: Client) -> None:
    import numpy as np

    array = np.zeros(50_000)
    futures = []
    for n in range(5):
        array[:] = n
        futures.append(client.submit(np.sum, array))
    assert [future.result(LIMIT_S) for future in futures] == [n * 50_000 for n in range(5)]
    result = client.submit(np.negative, array).result(LIMIT_S)
    result += 1  # results are writable
    assert result[0] == -3


# ---- errors at submit -----------------------------------------------------------------------------------------------


def test_the_object_that_cannot_be_pickled_is_named(client: Client) -> None:
    with pytest.raises(trio_sched.SubmitError, match=r"argument 2 \(a lock\) cannot be pickled"):
        client.submit(print, 1, threading.Lock())
    with pytest.raises(trio_sched.SubmitError, match=r"argument 'file' \(a lock\)"):
        client.submit(print, 1, file=threading.Lock())
    lock = threading.Lock()
    with pytest.raises(trio_sched.SubmitError, match=r"the function .*<lambda> \(a function\) cannot be pickled"):
        client.submit(lambda: lock)
    assert client.submit(abs, -1).result(LIMIT_S) == 1


def test_arguments_that_are_too_large_are_refused_at_once(client: Client) -> None:
    client._connection.session.max_message_bytes = 100_000
    with pytest.raises(trio_sched.SubmitError, match=r"take 2\d\d,\d\d\d bytes, but the scheduler takes .* 100,000"):
        client.submit(len, b"x" * 200_000)


def test_engines_of_another_python_version_are_an_error_or_a_warning(client: Client) -> None:
    watch = client._connection.watch
    session = client._connection.session
    with client._connection.lock:
        session.pythons = ["2.7.18"]
        watch.apply(session, SessionUpdate(), was_welcomed=True)
    with pytest.raises(trio_sched.VersionMismatch, match=r"the engines run Python 2\.7\.18"):
        client.submit(abs, 1)
    assert client.status()["name"] == "own"
    version = ".".join(map(str, sys.version_info[:2])) + ".99"
    with client._connection.lock:
        session.pythons = [version]
        watch.apply(session, SessionUpdate(), was_welcomed=True)
    with pytest.warns(RuntimeWarning, match=r"some engines run Python .*\.99"):
        future = client.submit(abs, 1)
    client.submit(abs, 1).result(LIMIT_S)  # the warning is issued once
    assert future.result(LIMIT_S) == 1


# ---- options, dependencies, inputs ----------------------------------------------------------------------------------


def test_r9_futures_as_arguments_at_any_depth(client: Client) -> None:
    one, two = client.submit(abs, -1), client.submit(abs, -2)
    total = client.submit(sum, [one, two, 10])
    nested = client.submit(lambda rows: rows["a"][0] + rows["b"], {"a": (total,), "b": one})
    assert nested.result(LIMIT_S) == 14
    assert client.submit(divmod, 17, b := client.submit(abs, -5)).result(LIMIT_S) == (3, 2)
    assert client.submit(divmod, 17, b).result(LIMIT_S) == (3, 2)  # now by value


def test_r9_an_input_may_end_during_submission(client: Client) -> None:
    futures = [client.submit(operator.add, client.submit(abs, -n), 1) for n in range(300)]
    assert [future.result(LIMIT_S) for future in futures] == list(range(1, 301))
    tail = client.submit(abs, 0)
    for _ in range(200):
        tail = client.submit(operator.add, tail, 1)
    assert tail.result(LIMIT_S) == 200


def test_r9_a_failed_input_fails_the_task(client: Client) -> None:
    bad = client.submit(operator.truediv, 1, 0)
    with pytest.raises(trio_sched.ImpossibleDependency):
        client.submit(abs, bad).result(LIMIT_S)
    bad.exception(LIMIT_S)
    with pytest.raises(trio_sched.ImpossibleDependency):
        client.submit(abs, bad).result(LIMIT_S)


def test_r9_a_future_of_another_client_is_refused(client: Client, scheduler: ConnectionInfo) -> None:
    with Client(scheduler) as other:
        slow = other.submit(sleep, 0.1)
        with pytest.raises(trio_sched.SubmitError, match="belongs to another client"):
            client.submit(print, slow)
        slow.result(LIMIT_S)
        assert client.submit(str, slow).result(LIMIT_S) == "None"  # the task has ended: its value is sent


def test_r8_dependencies_on_tasks_of_another_client(client: Client, scheduler: ConnectionInfo) -> None:
    with Client(scheduler) as other:
        done = other.submit(abs, 1)
        done.result(LIMIT_S)
        assert client.options(after=done.task_id, follow=done).submit(abs, -1).result(LIMIT_S) == 1


def test_r2_after_waits_according_to_its_flags(client: Client) -> None:
    bad = client.submit(operator.truediv, 1, 0)
    good = client.submit(abs, 1)
    with pytest.raises(trio_sched.ImpossibleDependency):
        client.options(after=[good, bad]).submit(abs, -3).result(LIMIT_S)
    assert client.options(after=[good, bad], after_all=False).submit(abs, -3).result(LIMIT_S) == 3
    assert client.options(after=bad, after_success=False, after_failure=True).submit(abs, -3).result(LIMIT_S) == 3
    assert client.options(after=good.task_id).submit(abs, -3).result(LIMIT_S) == 3


def test_r6_a_task_runs_where_the_followed_task_ran(client: Client) -> None:
    first = client.submit(os.getpid)
    followers = [client.options(follow=first).submit(os.getpid) for _ in range(4)]
    assert {follower.result(LIMIT_S) for follower in followers} == {first.result(LIMIT_S)}


def test_r7_a_task_runs_on_its_targets_only(client: Client) -> None:
    numbers = [engine["engine"] for engine in client.engines()]
    assert len(numbers) == 2
    for number in numbers:
        future = client.options(targets=number).submit(abs, 1)
        future.result(LIMIT_S)
        assert future.engine == number
    with pytest.raises(trio_sched.ImpossibleDependency):
        client.options(targets=[123456]).submit(abs, 1).result(LIMIT_S)


def test_r18_a_failed_task_is_retried(client: Client, tmp_path: Path) -> None:
    def fail_once(path: str) -> str:
        import os

        if not os.path.exists(path):
            open(path, "w").close()
            raise RuntimeError("the first time")
        return "the second time"

    future = client.options(retries=1, backoff=0.01).submit(fail_once, str(tmp_path / "tried"))
    assert future.result(LIMIT_S) == "the second time"


def test_r21_a_task_that_does_not_start_in_time_fails(client: Client) -> None:
    with pytest.raises(trio_sched.TaskTimeout):
        client.options(timeout=0.05, resources={"unobtainium": 1}).submit(abs, 1).result(LIMIT_S)


def test_r19_a_task_runs_where_its_condition_is_true(client: Client) -> None:
    assert client.submit(trio_sched.require("json", "os.path")(abs), -1).result(LIMIT_S) == 1
    one = client.engines()[0]["engine"]
    pid = client.options(targets=one).submit(os.getpid).result(LIMIT_S)

    def elsewhere(forbidden: int) -> bool:
        import os

        return os.getpid() != forbidden

    picky = trio_sched.depend(elsewhere, pid)(os.getpid)
    assert all(client.submit(picky).result(LIMIT_S) != pid for _ in range(3))
    with pytest.raises(trio_sched.ImpossibleDependency):
        client.options(targets=one).submit(picky).result(LIMIT_S)


def test_views_add_their_options_and_check_them(client: Client) -> None:
    view = client.options(priority=3).options(label="x", retries=1)
    assert view.submit(abs, -1).result(LIMIT_S) == 1
    assert list(view.map(abs, [-1, -2], chunksize=2)) == [1, 2]
    with pytest.raises(TypeError, match="no option 'retires'; it has after, "):
        client.options(retires=3)  # type: ignore[call-arg]  # the point of the test
    with pytest.raises(ValueError, match="retries=-1"):
        client.options(retries=-1)
    with pytest.raises(ValueError, match="'x' is not a task"):
        client.options(after="x")


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("priority", value) for value in ("x", 1.5, 10**30, -(10**30), NAN)),
        *(("retries", value) for value in ("x", 1.5, -1, 1_000_001, 10**30, INF)),
        *((name, value) for name in ("timeout", "backoff") for value in ("x", -1, 2e12, NAN, INF, 10**400)),
        ("backoff", 86_401),
        *((name, value) for name in ("after_all", "follow_failure", "same_engine") for value in ("x", 2)),
        *(("targets", value) for value in ("3", ["3"], [None], 1.5, [10**30])),
        *(
            ("resources", value)
            for value in ("x", ["gpu"], {"gpu": "x"}, {"gpu": NAN}, {"gpu": INF}, {"gpu": 1e16}, {3: 1})
        ),
        *((name, value) for name in ("after", "follow") for value in (3, [None], [[1]], 1.5, "0-0", "1-" + "9" * 20)),
        *(("label", value) for value in (3, b"x")),
    ],
)
def test_an_invalid_option_is_an_error_at_options(client: Client, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option if option not in ("after", "follow") else "task"):
        client.options(**{option: value})  # type: ignore[misc]  # the point of the test
    assert client.submit(abs, -1).result(LIMIT_S) == 1


def test_options_accept_numpy_scalars_and_none(client: Client) -> None:
    one, half = np.int64(1), np.float32(0.5)
    engines = np.array([engine["engine"] for engine in client.engines()])
    view = client.options(priority=one, retries=one, timeout=np.float64(60), backoff=half, same_engine=np.bool_(True))  # type: ignore[arg-type]  # numpy's types are not declared
    assert view.options(targets=engines, label=os.fsdecode(b"\xff")).submit(abs, -1).result(LIMIT_S) == 1
    assert view.options(targets=engines[0], timeout=None, after=None).submit(abs, -1).result(LIMIT_S) == 1  # type: ignore[arg-type]  # nor is None


def test_names_that_utf8_cannot_hold_do_not_stop_a_client(
    scheduler: ConnectionInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, os.fsdecode(b"/caf\xe9"), Path("/tmp")])
    monkeypatch.setattr(os, "getcwd", lambda: os.fsdecode(b"/caf\xe9"))
    with Client(scheduler, name=os.fsdecode(b"caf\xe9"), weight=np.float64(2)) as client:
        assert client.submit(abs, -1).result(LIMIT_S) == 1
    for bad in (0, -1, 5e-324, 1001, NAN, INF, "x"):
        with pytest.raises(ValueError, match="weight"):
            Client(scheduler, weight=bad)  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(ValueError, match="name"):
        Client(scheduler, name=3)  # type: ignore[arg-type]  # likewise


def test_an_object_that_is_not_callable_and_a_client_as_an_argument_are_errors_at_submit(client: Client) -> None:
    with pytest.raises(TypeError, match="'int' object is not callable"):
        client.submit(3)  # type: ignore[call-overload]  # the point of the test
    for mine in (client, client.options(priority=1)):
        with pytest.raises(trio_sched.SubmitError, match="a client cannot be sent"):
            client.submit(id, mine)


# ---- queries and cancellation ---------------------------------------------------------------------------------------


def test_r23_a_cancelled_task_ends_with_task_cancelled(client: Client) -> None:
    never = client.options(resources={"unobtainium": 1}).submit(abs, 1)
    assert "unobtainium" in client.explain(never)
    assert never.cancel()
    assert never.cancelled()
    with pytest.raises(CancelledError):
        never.result()
    other = client.options(resources={"unobtainium": 1}).submit(abs, 1)
    client.cancel(other.task_id)
    with pytest.raises(trio_sched.TaskCancelled):
        other.result(LIMIT_S)


def test_status_explain_and_story_answer(client: Client) -> None:
    future = client.submit(abs, -1)
    future.result(LIMIT_S)
    assert client.status()["tasks"]["ok"] >= 1
    assert "ok" in client.explain(future)
    assert any("accepted" in what for _, what in client.story(future.task_id))
    assert client.story("999999-1") == []
    assert repr(client) == f"<Client {client.session} of 'own'>"


# ---- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 warns of forking with threads
def test_a_client_in_a_forked_process_raises_an_error(client: Client) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    future = client.submit(sleep, 0.05)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            client.submit(abs, 1)
        except RuntimeError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading) as pipe:
        assert f"this Client was made in process {os.getpid()}" in pipe.read()
    future.result(LIMIT_S)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 warns of forking with threads
def test_a_process_can_fork_after_its_local_cluster_was_closed() -> None:
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    script = (
        "import os, sys, trio_sched\n"
        "with trio_sched.Client(engines=1, connect_timeout=60) as client:\n"
        "    client.submit(abs, -1).result()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(7)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    command = [
        sys.executable,
        "-W",
        "ignore::DeprecationWarning",
        "-c",
        script,
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert (ran.stderr, ran.returncode) == ("", 7)


def test_no_task_is_lost_when_the_connection_is_opened_again(client: Client) -> None:
    futures = [client.submit(sleep, 0.001) for _ in range(50)]
    connection = client._connection
    session = client.session
    with connection.lock:
        connection.session.last_received_at = time.monotonic() - 1000  # as after a long silence
    connection.wake()
    futures += [client.submit(abs, -n) for n in range(50)]
    assert [future.result(LIMIT_S) for future in futures[50:]] == list(range(50))
    assert not any(future.exception(LIMIT_S) for future in futures)
    assert client.session == session


def test_a_scheduler_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    nobody = ConnectionInfo(name="nobody", role="client", address=f"ipc://{tmp_path}/none.sock", token="t")
    with pytest.raises(trio_sched.NoSchedulerError, match=r"'nobody' at ipc://.* did not answer within"):
        Client(nobody, connect_timeout=0.1)
    with pytest.raises(trio_sched.ConnectionFileError, match="there is no connection file"):
        Client(tmp_path / "missing.json")


def test_a_wrong_token_is_refused(scheduler: ConnectionInfo) -> None:
    import msgspec

    with pytest.raises(trio_sched.NoSchedulerError, match="refuses this client"):
        Client(msgspec.structs.replace(scheduler, token="wrong"))


def test_a_defect_of_the_client_ends_every_future(
    scheduler: ConnectionInfo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(scheduler)
    future = client.submit(sleep, 0.05)
    monkeypatch.setattr(client._connection, "_receive", None)
    with pytest.raises(trio_sched.SchedulerClosed, match="the client failed"):
        future.result(LIMIT_S)
    assert "the client's thread failed" in caplog.text
    client.shutdown()


def test_a_message_of_an_unknown_type_is_logged_and_ignored(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    connection = client._connection
    assert connection._receive([b"\x81\xa4type\xa3new"]) is None
    assert "unknown message type 'new'" in caplog.text
    assert connection._receive([native.encode(native.Error("malformed", "what was that?"))]) is None
    assert "what was that?" in caplog.text
    assert client.submit(abs, -1).result(LIMIT_S) == 1


def test_a_submission_that_the_scheduler_cannot_decode_ends_the_client(client: Client) -> None:
    client.submit(abs, -1).result(LIMIT_S)
    connection = client._connection
    connection.session._unaccepted.append(connection.session._unaccepted)  # type: ignore[arg-type]  # a Submit that is never accepted
    why = connection._receive([native.encode(native.Error("too_large", "2000 tasks in one message"))])
    assert isinstance(why, trio_sched.SchedulerClosed)
    assert "did not take a message of this client: 2000 tasks" in str(why)
    connection.session._unaccepted.clear()


def test_submitted_calls_are_sent_at_exit(scheduler: ConnectionInfo, tmp_path: Path) -> None:
    from trio_sched.transport.connection_info import write_connection_files

    tmp_path.chmod(0o700)
    path, _ = write_connection_files(scheduler, scheduler, tmp_path)
    script = (
        "import sys, pathlib, trio_sched\n"
        "client = trio_sched.Client(sys.argv[1])\n"
        "client.submit(pathlib.Path(sys.argv[2]).touch)\n"
    )
    touched = tmp_path / "touched"
    subprocess.run([sys.executable, "-W", "error", "-c", script, str(path), str(touched)], check=True, timeout=LIMIT_S)
    with Client(scheduler) as client:
        until = time.monotonic() + LIMIT_S
        while not touched.exists():
            assert time.monotonic() < until
            client.submit(abs, 1).result(LIMIT_S)
