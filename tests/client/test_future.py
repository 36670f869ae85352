"""`Future`: decoding, cancellation, and what the standard library expects of a future."""

from __future__ import annotations

import concurrent.futures
import pickle
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, InvalidStateError
from typing import Any

import pytest

import trio_sched
from trio_sched.client.future import Future, resolve
from trio_sched.client.results import Outcome, SessionRef
from trio_sched.errors import ImpossibleDependency, RemoteTraceback, ResultError, TaskTimeout
from trio_sched.wire import payload
from trio_sched.wire.native import FramedRecord, RemoteError, TaskResult

cancelled: list[int] = []


def future(number: int = 17) -> Future[Any]:
    return Future(SessionRef(3, cancelled.append), number=number)


def ok(value: Any, **fields: Any) -> TaskResult:
    return TaskResult(3 << 32 | 17, body=payload.dumps(value)[0], engine=2, **fields)


def resolved(outcome: Outcome) -> Future[Any]:
    one = future()
    resolve([(one, outcome)])
    return one


def test_a_pending_future_has_no_result() -> None:
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


def test_a_successful_task_has_its_value() -> None:
    one = resolved(ok([1, 2], stdout="said", stderr="moaned", took_s=0.5))
    assert one.result() == [1, 2]
    assert one.result() is one.result()
    assert one.exception() is None
    assert (one.done(), one.engine, one.stdout, one.stderr, one.took_s) == (True, 2, "said", "moaned", 0.5)
    assert repr(one) == "<Future 3-17 ok>"


def test_a_remote_exception_has_its_own_type_and_the_remote_traceback_as_cause() -> None:
    end = TaskResult(
        17, outcome="error", body=pickle.dumps(KeyError("k")), error=RemoteError("KeyError", "'k'", "Trace...")
    )
    one = resolved(end)
    with pytest.raises(KeyError, match="k") as caught:
        one.result()
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert caught.value.__cause__.text == "Trace..."
    assert one.exception() is caught.value


def test_an_exception_that_could_not_be_pickled_is_a_result_error() -> None:
    one = resolved(TaskResult(17, outcome="error", error=RemoteError("Odd", "no luck", "Trace...")))
    with pytest.raises(ResultError, match="task 3-17 raised Odd: no luck"):
        one.result()
    one = resolved(TaskResult(17, outcome="error", body=b"rubbish", error=RemoteError("Odd", "no luck", "Trace...")))
    with pytest.raises(ResultError, match=r"raised Odd: no luck \(which cannot be unpickled here") as caught:
        one.result()
    assert isinstance(caught.value.__cause__, RemoteTraceback)


def test_a_result_that_cannot_be_unpickled_is_a_result_error() -> None:
    one = resolved(TaskResult(17, body=b"rubbish"))
    with pytest.raises(ResultError, match="task 3-17 succeeded, but its result cannot be unpickled here"):
        one.result()


def test_r24_outcomes_that_the_scheduler_decided_have_their_own_errors() -> None:
    one = resolved(TaskResult(17, outcome="unreachable", error=RemoteError("ImpossibleDependency", "3-1 failed")))
    assert isinstance(one.exception(), ImpossibleDependency)
    one = resolved(TaskResult(17, outcome="timeout", reason="did not start within 3 s"))
    with pytest.raises(TaskTimeout, match="did not start within 3 s"):
        one.result()
    assert one.took_s is None


def test_arrays_are_sent_out_of_band_and_are_writable() -> None:
    import numpy as np

    body, buffers = payload.dumps(np.arange(100_000))
    assert buffers
    end = TaskResult(17, body=body, frames=len(buffers))
    array = resolved(FramedRecord(end, tuple(memoryview(bytes(buffer)) for buffer in buffers))).result()
    array[0] = 5
    assert array.sum() == 100_000 * 99_999 // 2 + 5


def test_a_result_in_msgpack_is_decoded() -> None:
    import msgspec

    assert resolved(TaskResult(17, codec="msgpack", body=msgspec.msgpack.encode({"a": 1}))).result() == {"a": 1}


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
    resolve([(one, ok(1))])  # the result arrives after the cancellation
    assert one.cancelled()
    assert repr(one) == "<Future 3-8 cancelled>"


def test_cancelling_an_unwatched_future_creates_no_condition() -> None:
    one = future()
    assert one.cancel()
    assert one._condition_if_any is None
    called: list[Any] = []
    one.add_done_callback(called.append)
    assert called == [one]


def test_a_task_that_has_ended_cannot_be_cancelled() -> None:
    cancelled.clear()
    assert not resolved(ok(1)).cancel()
    assert cancelled == []


# ---- with the standard library --------------------------------------------------------------------------------------


def test_standard_wait_and_as_completed_accept_our_futures() -> None:
    done, late, bad = resolved(ok(1)), future(), future()
    assert concurrent.futures.wait([done, late], timeout=0) == ({done}, {late})
    assert concurrent.futures.wait([done, late], return_when=FIRST_COMPLETED).done == {done}
    timer = threading.Timer(0.01, resolve, [[(late, ok(2)), (bad, TaskResult(1, outcome="error"))]])
    timer.start()
    assert set(concurrent.futures.as_completed([done, late, bad], timeout=10)) == {done, late, bad}
    assert concurrent.futures.wait([done, late, bad], return_when=FIRST_EXCEPTION).not_done == set()


def test_standard_wait_returns_at_the_first_exception() -> None:
    good, bad, never = future(), future(), future()
    threading.Timer(0.01, resolve, [[(good, ok(2)), (bad, TaskResult(1, outcome="error"))]]).start()
    waited = concurrent.futures.wait([good, bad, never], timeout=10, return_when=FIRST_EXCEPTION)
    assert waited.not_done == {never}


def test_our_wait_and_as_completed_behave_as_the_standard_ones() -> None:
    done, late, standard = resolved(ok(1)), future(), concurrent.futures.Future[int]()
    waited = trio_sched.wait([done, late, standard], timeout=0)
    assert (waited.done, waited.not_done) == ({done}, {late, standard})
    threading.Timer(0.01, resolve, [[(late, ok(2))]]).start()
    standard.set_result(3)
    assert set(trio_sched.as_completed([done, late, standard], timeout=10)) == {done, late, standard}
    assert trio_sched.wait([done, future()], return_when=FIRST_COMPLETED).done == {done}
    with pytest.raises(TimeoutError, match=r"1 \(of 2\) futures unfinished"):
        list(trio_sched.as_completed([done, future()], timeout=0))


def test_a_cancellation_wakes_waiters() -> None:
    one = future()
    threading.Timer(0.01, one.cancel).start()
    assert concurrent.futures.wait([one], timeout=10).done == {one}


def test_result_waits_until_the_task_has_ended() -> None:
    one = future()
    threading.Timer(0.01, resolve, [[(one, ok(2))]]).start()
    assert one.result(10) == 2


def test_a_callback_that_raises_is_logged_and_the_others_run(caplog: pytest.LogCaptureFixture) -> None:
    one = future()
    called: list[Any] = []
    one.add_done_callback(lambda f: 1 / 0)
    one.add_done_callback(called.append)
    resolve([(one, ok(1))])
    one.add_done_callback(called.append)
    assert called == [one, one]
    assert "exception calling callback" in caplog.text


def raising(error: type[BaseException]) -> Any:
    """Make a callback that raises this exception."""

    def callback(_future: Any) -> None:
        raise error("from a callback")

    return callback


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_callback_s_exit_does_not_end_the_client_s_thread(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    one: Future[Any] = Future(SessionRef(3, cancelled.append, threading.get_ident()))
    called: list[Any] = []
    one.add_done_callback(raising(error))
    one.add_done_callback(called.append)
    resolve([(one, ok(1))])
    assert called == [one]
    assert "exception calling callback" in caplog.text
    assert error.__name__ in caplog.text


def test_a_callback_s_exit_is_raised_in_the_user_s_thread() -> None:
    one = future()
    one.add_done_callback(raising(SystemExit))
    with pytest.raises(SystemExit):
        one.cancel()


class RaisesOnLoad:
    """A value whose unpickling raises the given exception."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return raise_on_load, (self.error,)


def raise_on_load(error: type[BaseException]) -> None:
    raise error("from unpickling")


def test_a_value_that_exits_when_it_is_unpickled_is_a_result_error() -> None:
    one = resolved(TaskResult(17, body=pickle.dumps(RaisesOnLoad(SystemExit))))
    with pytest.raises(ResultError, match="cannot be unpickled here: SystemExit: from unpickling"):
        one.result()
    one = resolved(
        TaskResult(
            17,
            outcome="error",
            body=pickle.dumps(RaisesOnLoad(SystemExit)),
            error=RemoteError("Odd", "no luck", "Trace"),
        )
    )
    with pytest.raises(ResultError, match="raised Odd: no luck"):
        one.result()


def test_an_interrupted_decoding_can_be_repeated() -> None:
    one = resolved(TaskResult(17, body=pickle.dumps(RaisesOnLoad(KeyboardInterrupt))))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            one.result()


def test_set_result_and_set_exception_end_a_future() -> None:
    one = future()
    one.set_result(5)
    assert (one.result(), one.exception(), one.succeeded) == (5, None, True)
    with pytest.raises(InvalidStateError):
        one.set_result(6)
    one = future()
    one.set_exception(KeyError("k"))
    assert isinstance(one.exception(), KeyError)


def test_all_threads_get_the_same_value() -> None:
    one = resolved(ok([1]))
    seen: list[Any] = []
    threads = [threading.Thread(target=lambda: seen.append(one.result())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(value) for value in seen}) == 1


def test_every_waiter_is_woken_when_futures_are_resolved_meanwhile() -> None:
    futures = [future(number) for number in range(2000)]
    waiter = threading.Thread(target=lambda: concurrent.futures.wait(futures))
    waiter.start()
    for start in range(0, 2000, 50):
        resolve([(one, ok(1)) for one in futures[start : start + 50]])
    waiter.join(20)
    assert not waiter.is_alive()


def test_r9_a_future_pickles_only_as_an_argument() -> None:
    with pytest.raises(TypeError, match="only be pickled as an argument"):
        pickle.dumps(future())
    assert pickle.loads(pickle.dumps(resolved(ok({"a": 1})))) == {"a": 1}
    one, other = future(1), future(2)
    with payload.collecting_futures() as collected:
        body, _ = payload.dumps({"deep": [one, (other, one)]})
    assert list(collected) == [one, other]
    with payload.provide_inputs(["first", "second"]):
        assert payload.loads(body) == {"deep": ["first", ("second", "first")]}


def test_an_unwatched_future_is_small() -> None:
    one = future()
    assert one._condition_if_any is None
    assert sys.getsizeof(one) <= 136
    assert resolved(ok(1))._condition_if_any is None
