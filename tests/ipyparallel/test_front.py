"""Tasks of real ipyparallel clients on real engines: dependencies, targets, retries, timeouts, schemes, limits."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ipyparallel.controller_fixture import TIMEOUT_S, RunningController, client, running_controller

ipp = pytest.importorskip("ipyparallel")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def controller() -> Iterator[RunningController]:
    with running_controller(2, ping_ms=500) as running:
        yield running


@pytest.fixture
def view(controller: RunningController) -> Iterator[Any]:
    with client(controller, 2) as connected:
        yield connected.load_balanced_view()


def failure_of(result: Any) -> str:
    """Return the name of the remote error."""
    with pytest.raises(ipp.RemoteError) as caught:
        result.get(TIMEOUT_S)
    return str(caught.value.ename)


def test_apply_and_map_return_results(view: Any) -> None:
    assert view.apply(lambda x: x + 1, 41).get(TIMEOUT_S) == 42
    assert list(view.map_async(lambda x: x * x, range(100))) == [x * x for x in range(100)]


def test_exception_of_a_task_is_raised_by_its_name(view: Any) -> None:
    assert failure_of(view.apply(lambda: 1 / 0)) == "ZeroDivisionError"


def test_large_arguments_and_results_arrive(view: Any) -> None:
    data = os.urandom(3_000_000)
    assert view.apply(lambda given: given + b"!", data).get(TIMEOUT_S) == data + b"!"


def test_r2_task_runs_after_its_dependency(view: Any) -> None:
    first = view.apply(time.sleep, 0.2)
    with view.temp_flags(after=[first]):
        second = view.apply(lambda: 2)
    assert second.get(TIMEOUT_S) == 2
    assert first.ready()


def test_r6_tasks_follow_to_the_same_engine(view: Any) -> None:
    first = view.apply(os.getpid)
    with view.temp_flags(follow=[first]):
        others = [view.apply(os.getpid) for _ in range(6)]
    assert {other.get(TIMEOUT_S) for other in others} == {first.get(TIMEOUT_S)}


def test_r4_impossible_dependency_fails_the_task(view: Any) -> None:
    bad = view.apply(lambda: 1 / 0)
    with view.temp_flags(after=[bad]):
        assert failure_of(view.apply(lambda: 2)) == "ImpossibleDependency"
    with view.temp_flags(after=ipp.Dependency([bad], success=False, failure=True)):
        assert view.apply(lambda: 3).get(TIMEOUT_S) == 3


def test_r5_unknown_dependency_fails_the_task(view: Any) -> None:
    with view.temp_flags(after=["never submitted"]):
        assert failure_of(view.apply(lambda: 2)) == "InvalidDependency"


def test_r7_tasks_run_on_their_target(view: Any) -> None:
    with view.temp_flags(targets=[1]):
        results = [view.apply(lambda: 1) for _ in range(6)]
    for result in results:
        result.get(TIMEOUT_S)
    assert {result.engine_id for result in results} == {1}


def test_r18_exhausted_retries_give_the_last_error(view: Any) -> None:
    with view.temp_flags(retries=1):
        result = view.apply(lambda: 1 / 0)
    assert failure_of(result) == "ZeroDivisionError"


def test_r19_task_runs_on_an_engine_that_accepts_it(view: Any) -> None:
    here = view.apply(os.getpid).get(TIMEOUT_S)

    @ipp.depend(lambda pid: os.getpid() != pid, here)
    def elsewhere() -> int:
        return os.getpid()

    elsewhere.__module__ = "__main__"
    assert view.apply(elsewhere).get(TIMEOUT_S) != here


def test_r21_waiting_task_times_out(view: Any) -> None:
    with view.temp_flags(targets=[0]):
        slow = view.apply(time.sleep, 1)
        with view.temp_flags(timeout=0.2):
            late = view.apply(lambda: 1)
    assert failure_of(late) == "TaskTimeout"
    slow.get(TIMEOUT_S)


def test_direct_and_broadcast_views_return_results_and_output(controller: RunningController) -> None:
    with client(controller, 2) as connected:
        direct = connected[:].apply_async(print, "hello")
        direct.get(TIMEOUT_S)
        direct.wait_for_output(TIMEOUT_S)
        assert direct.stdout == ["hello\n", "hello\n"]
        assert connected.broadcast_view().apply_sync(lambda: 5) == [5, 5]


def test_r20_task_of_a_dead_engine_fails_and_waiting_ones_run() -> None:
    with running_controller(1, ping_ms=200, server={"grace_s": 0.5}) as alone, client(alone, 1) as connected:
        view = connected.load_balanced_view()
        pid = view.apply(os.getpid).get(TIMEOUT_S)
        dying = view.apply(os.kill, pid, signal.SIGKILL)  # in the task: a signal from outside might arrive before it
        waiting = view.apply(lambda: "served later")
        assert failure_of(dying) == "EngineError"
        assert connected.ids == []
        alone.start_engines(1)
        assert waiting.get(TIMEOUT_S) == "served later"
        assert connected.ids == [1]


def test_engine_that_shuts_down_is_removed() -> None:
    with running_controller(2) as two, client(two, 2) as connected:
        connected.shutdown(targets=[0], block=True)
        until = time.monotonic() + TIMEOUT_S
        while connected.ids != [1]:
            assert time.monotonic() < until
        assert connected.load_balanced_view().apply(lambda: 1).get(TIMEOUT_S) == 1


def test_client_shuts_the_controller_down() -> None:
    with running_controller(1) as one:
        with client(one, 1) as connected:
            connected.shutdown(hub=True, block=False)
        one._thread.join(TIMEOUT_S)
        assert not one._thread.is_alive()


@pytest.mark.parametrize("scheme", ["leastload", "lru", "plainrandom", "twobin", "weighted", "pure"])
def test_r11_each_scheme_uses_both_engines(scheme: str) -> None:
    with running_controller(2, scheme=scheme) as running, client(running, 2) as connected:
        view = connected.load_balanced_view()
        results = [view.apply(os.getpid) for _ in range(30)]
        assert len({result.get(TIMEOUT_S) for result in results}) == 2
        if scheme == "pure":
            with view.temp_flags(after=results[:1]):
                assert failure_of(view.apply(lambda: 1)) == "SubmissionRefused"


def wait_for_file(path: str, _data: bytes) -> None:
    import os  # the function runs in the engine's namespace
    import time

    while not os.path.exists(path):
        time.sleep(0.01)


def test_task_beyond_total_bytes_is_refused_until_others_end(tmp_path: Path) -> None:
    with running_controller(1, total_bytes=2_000_000) as small, client(small, 1) as connected:
        view = connected.load_balanced_view()
        continue_file = tmp_path / "continue"
        first = view.apply(ipp.interactive(wait_for_file), str(continue_file), bytes(1_500_000))
        second = view.apply(len, bytes(1_500_000))
        with pytest.raises(ipp.RemoteError, match="total_bytes is 2,000,000"):
            second.get(TIMEOUT_S)
        continue_file.touch()
        first.get(TIMEOUT_S)
        assert view.apply(len, bytes(3_000_000)).get(TIMEOUT_S) == 3_000_000  # the only task that is held
