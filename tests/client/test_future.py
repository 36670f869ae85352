"""The lean future, held against what the standard library expects of one."""

from __future__ import annotations

import concurrent.futures
import pickle
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, InvalidStateError
from typing import Any

import pytest

import trio_sched
from trio_sched.client.ends import Outcome, SessionRef
from trio_sched.client.future import Future, settle
from trio_sched.errors import ImpossibleDependency, RemoteTraceback, ResultError, TaskTimeout
from trio_sched.wire import payload
from trio_sched.wire.native import Attached, RemoteError, TaskEnd

cancelled: list[int] = []


def future(number: int = 17) -> Future[Any]:
    return Future(SessionRef(3, cancelled.append), number=number)


def ok(value: Any, **fields: Any) -> TaskEnd:
    return TaskEnd(3 << 32 | 17, body=payload.dumps(value)[0], engine=2, **fields)


def ended(outcome: Outcome) -> Future[Any]:
    one = future()
    settle([(one, outcome)])
    return one


def test_a_pending_future() -> None:
    one = future()
    assert isinstance(one, concurrent.futures.Future)
    assert (one.done(), one.cancelled(), one.running(), one.succeeded) == (False, False, False, False)
    assert (one.task_id, one.full_id, one.session) == ("3-17", 3 << 32 | 17, 3)
    assert (one.engine, one.took_s, one.stdout, one.stderr) == (None, None, "", "")
    assert repr(one) == "<Future 3-17 pending>"
    with pytest.raises(TimeoutError, match="task 3-17 did not end within 0 s"):
        one.result(0)
    with pytest.raises(TimeoutError):
        one.exception(0)


def test_a_good_end() -> None:
    one = ended(ok([1, 2], stdout="said", stderr="moaned", took_s=0.5))
    assert one.result() == [1, 2]
    assert one.result() is one.result()
    assert one.exception() is None
    assert (one.done(), one.engine, one.stdout, one.stderr, one.took_s) == (True, 2, "said", "moaned", 0.5)
    assert repr(one) == "<Future 3-17 ok>"


def test_a_remote_exception_has_its_own_type_and_the_remote_traceback_as_cause() -> None:
    end = TaskEnd(
        17, outcome="error", body=pickle.dumps(KeyError("k")), error=RemoteError("KeyError", "'k'", "Trace...")
    )
    one = ended(end)
    with pytest.raises(KeyError, match="k") as caught:
        one.result()
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert caught.value.__cause__.text == "Trace..."
    assert one.exception() is caught.value


def test_an_exception_that_could_not_be_pickled_is_told_in_words() -> None:
    one = ended(TaskEnd(17, outcome="error", error=RemoteError("Odd", "no luck", "Trace...")))
    with pytest.raises(ResultError, match="task 3-17 raised Odd: no luck"):
        one.result()
    one = ended(TaskEnd(17, outcome="error", body=b"rubbish", error=RemoteError("Odd", "no luck", "Trace...")))
    with pytest.raises(ResultError, match=r"raised Odd: no luck \(which cannot be unpickled here") as caught:
        one.result()
    assert isinstance(caught.value.__cause__, RemoteTraceback)


def test_a_result_that_cannot_be_unpickled_says_so() -> None:
    one = ended(TaskEnd(17, body=b"rubbish"))
    with pytest.raises(ResultError, match="task 3-17 succeeded, but its result cannot be unpickled here"):
        one.result()


def test_r24_ends_that_the_scheduler_made() -> None:
    one = ended(TaskEnd(17, outcome="unreachable", error=RemoteError("ImpossibleDependency", "3-1 failed")))
    assert isinstance(one.exception(), ImpossibleDependency)
    one = ended(TaskEnd(17, outcome="timeout", reason="did not start within 3 s"))
    with pytest.raises(TaskTimeout, match="did not start within 3 s"):
        one.result()
    assert one.took_s is None


def test_arrays_travel_out_of_band_and_can_be_written_to() -> None:
    import numpy as np

    body, buffers = payload.dumps(np.arange(100_000))
    assert buffers
    end = TaskEnd(17, body=body, frames=len(buffers))
    array = ended(Attached(end, tuple(memoryview(bytes(buffer)) for buffer in buffers))).result()
    array[0] = 5
    assert array.sum() == 100_000 * 99_999 // 2 + 5


def test_plain_data_results() -> None:
    import msgspec

    assert ended(TaskEnd(17, codec="msgpack", body=msgspec.msgpack.encode({"a": 1}))).result() == {"a": 1}


# ---- cancelling -----------------------------------------------------------------------------------------------------


def test_r23_cancel_ends_the_future_now_and_tells_the_scheduler() -> None:
    one = future(8)
    called: list[Any] = []
    one.add_done_callback(called.append)
    cancelled.clear()
    assert one.cancel()
    assert one.cancel()
    assert cancelled == [8]
    assert called == [one]
    assert one.cancelled()
    assert one.done()
    for look in (one.result, one.exception):
        with pytest.raises(CancelledError):
            look()
    settle([(one, ok(1))])  # the end that comes after all
    assert one.cancelled()
    assert repr(one) == "<Future 3-8 cancelled>"


def test_cancelling_what_nobody_watches_builds_nothing() -> None:
    one = future()
    assert one.cancel()
    assert one._condition_if_any is None
    called: list[Any] = []
    one.add_done_callback(called.append)
    assert called == [one]


def test_what_has_ended_cannot_be_cancelled() -> None:
    cancelled.clear()
    assert not ended(ok(1)).cancel()
    assert cancelled == []


# ---- with the standard library --------------------------------------------------------------------------------------


def test_wait_and_as_completed() -> None:
    done, late, bad = ended(ok(1)), future(), future()
    assert concurrent.futures.wait([done, late], timeout=0) == ({done}, {late})
    assert concurrent.futures.wait([done, late], return_when=FIRST_COMPLETED).done == {done}
    timer = threading.Timer(0.01, settle, [[(late, ok(2)), (bad, TaskEnd(1, outcome="error"))]])
    timer.start()
    assert set(concurrent.futures.as_completed([done, late, bad], timeout=10)) == {done, late, bad}
    assert concurrent.futures.wait([done, late, bad], return_when=FIRST_EXCEPTION).not_done == set()


def test_wait_for_the_first_exception() -> None:
    good, bad, never = future(), future(), future()
    threading.Timer(0.01, settle, [[(good, ok(2)), (bad, TaskEnd(1, outcome="error"))]]).start()
    waited = concurrent.futures.wait([good, bad, never], timeout=10, return_when=FIRST_EXCEPTION)
    assert waited.not_done == {never}


def test_our_wait_and_as_completed_are_the_standard_ones() -> None:
    done, late, standard = ended(ok(1)), future(), concurrent.futures.Future[int]()
    waited = trio_sched.wait([done, late, standard], timeout=0)
    assert (waited.done, waited.not_done) == ({done}, {late, standard})
    threading.Timer(0.01, settle, [[(late, ok(2))]]).start()
    standard.set_result(3)
    assert set(trio_sched.as_completed([done, late, standard], timeout=10)) == {done, late, standard}
    assert trio_sched.wait([done, future()], return_when=FIRST_COMPLETED).done == {done}
    with pytest.raises(TimeoutError, match=r"1 \(of 2\) futures unfinished"):
        list(trio_sched.as_completed([done, future()], timeout=0))


def test_waiting_is_told_of_cancellation() -> None:
    one = future()
    threading.Timer(0.01, one.cancel).start()
    assert concurrent.futures.wait([one], timeout=10).done == {one}


def test_result_waits_for_the_end() -> None:
    one = future()
    threading.Timer(0.01, settle, [[(one, ok(2))]]).start()
    assert one.result(10) == 2


def test_callbacks(caplog: pytest.LogCaptureFixture) -> None:
    one = future()
    called: list[Any] = []
    one.add_done_callback(lambda f: 1 / 0)
    one.add_done_callback(called.append)
    settle([(one, ok(1))])
    one.add_done_callback(called.append)
    assert called == [one, one]
    assert "exception calling callback" in caplog.text


def end_with(error: type[BaseException]) -> Any:
    """A callback that raises this."""

    def callback(_future: Any) -> None:
        raise error("from a callback")

    return callback


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_ends_a_thread_does_not_end_the_clients(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    one: Future[Any] = Future(SessionRef(3, cancelled.append, threading.get_ident()))
    called: list[Any] = []
    one.add_done_callback(end_with(error))
    one.add_done_callback(called.append)
    settle([(one, ok(1))])
    assert called == [one]
    assert "exception calling callback" in caplog.text
    assert error.__name__ in caplog.text


def test_what_ends_a_thread_ends_the_users() -> None:
    one = future()
    one.add_done_callback(end_with(SystemExit))
    with pytest.raises(SystemExit):
        one.cancel()


class Exits:
    """A value whose unpickling raises what it is given."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return exit_with, (self.error,)


def exit_with(error: type[BaseException]) -> None:
    raise error("from unpickling")


def test_a_value_that_exits_when_it_is_unpickled_is_a_result_error() -> None:
    one = ended(TaskEnd(17, body=pickle.dumps(Exits(SystemExit))))
    with pytest.raises(ResultError, match="cannot be unpickled here: SystemExit: from unpickling"):
        one.result()
    one = ended(
        TaskEnd(17, outcome="error", body=pickle.dumps(Exits(SystemExit)), error=RemoteError("Odd", "no luck", "Trace"))
    )
    with pytest.raises(ResultError, match="raised Odd: no luck"):
        one.result()


def test_an_interrupted_look_at_a_value_can_be_repeated() -> None:
    one = ended(TaskEnd(17, body=pickle.dumps(Exits(KeyboardInterrupt))))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            one.result()


def test_set_result_and_set_exception_as_in_tests_of_others() -> None:
    one = future()
    one.set_result(5)
    assert (one.result(), one.exception(), one.succeeded) == (5, None, True)
    with pytest.raises(InvalidStateError):
        one.set_result(6)
    one = future()
    one.set_exception(KeyError("k"))
    assert isinstance(one.exception(), KeyError)


def test_many_threads_see_one_value() -> None:
    one = ended(ok([1]))
    seen: list[Any] = []
    threads = [threading.Thread(target=lambda: seen.append(one.result())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(value) for value in seen}) == 1


def test_settling_while_others_begin_to_wait_loses_nobody() -> None:
    futures = [future(number) for number in range(2000)]
    waiter = threading.Thread(target=lambda: concurrent.futures.wait(futures))
    waiter.start()
    for start in range(0, 2000, 50):
        settle([(one, ok(1)) for one in futures[start : start + 50]])
    waiter.join(20)
    assert not waiter.is_alive()


def test_r9_a_future_pickles_only_as_an_argument() -> None:
    with pytest.raises(TypeError, match="only be pickled as an argument"):
        pickle.dumps(future())
    assert pickle.loads(pickle.dumps(ended(ok({"a": 1})))) == {"a": 1}
    one, other = future(1), future(2)
    with payload.meeting() as met:
        body, _ = payload.dumps({"deep": [one, (other, one)]})
    assert list(met) == [one, other]
    with payload.providing(["first", "second"]):
        assert payload.loads(body) == {"deep": ["first", ("second", "first")]}


def test_a_million_of_them_fit() -> None:
    one = future()
    assert one._condition_if_any is None
    assert sys.getsizeof(one) <= 136
    assert ended(ok(1))._condition_if_any is None
