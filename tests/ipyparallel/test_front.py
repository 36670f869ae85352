"""Real ipyparallel clients and engines against the front: tasks and all that one may ask of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ipyparallel.stand import PATIENCE_S, Stand, client, stand

ipp = pytest.importorskip("ipyparallel")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def controller() -> Iterator[Stand]:
    with stand(2, ping_ms=500) as running:
        yield running


@pytest.fixture
def view(controller: Stand) -> Iterator[Any]:
    with client(controller, 2) as connected:
        yield connected.load_balanced_view()


def failure_of(result: Any) -> str:
    """The name of the remote error."""
    with pytest.raises(ipp.RemoteError) as caught:
        result.get(PATIENCE_S)
    return str(caught.value.ename)


def test_apply_and_map(view: Any) -> None:
    assert view.apply(lambda x: x + 1, 41).get(PATIENCE_S) == 42
    assert list(view.map_async(lambda x: x * x, range(100))) == [x * x for x in range(100)]


def test_an_error_of_the_task_is_its_own(view: Any) -> None:
    assert failure_of(view.apply(lambda: 1 / 0)) == "ZeroDivisionError"


def test_large_arguments_and_results(view: Any) -> None:
    data = os.urandom(3_000_000)
    assert view.apply(lambda given: given + b"!", data).get(PATIENCE_S) == data + b"!"


def test_r2_after(view: Any) -> None:
    first = view.apply(time.sleep, 0.2)
    with view.temp_flags(after=[first]):
        second = view.apply(lambda: 2)
    assert second.get(PATIENCE_S) == 2
    assert first.ready()


def test_r6_follow(view: Any) -> None:
    first = view.apply(os.getpid)
    with view.temp_flags(follow=[first]):
        others = [view.apply(os.getpid) for _ in range(6)]
    assert {other.get(PATIENCE_S) for other in others} == {first.get(PATIENCE_S)}


def test_r4_an_impossible_dependency(view: Any) -> None:
    bad = view.apply(lambda: 1 / 0)
    with view.temp_flags(after=[bad]):
        assert failure_of(view.apply(lambda: 2)) == "ImpossibleDependency"
    with view.temp_flags(after=ipp.Dependency([bad], success=False, failure=True)):
        assert view.apply(lambda: 3).get(PATIENCE_S) == 3


def test_r5_an_invalid_dependency(view: Any) -> None:
    with view.temp_flags(after=["never submitted"]):
        assert failure_of(view.apply(lambda: 2)) == "InvalidDependency"


def test_r7_targets(view: Any) -> None:
    with view.temp_flags(targets=[1]):
        results = [view.apply(lambda: 1) for _ in range(6)]
    for result in results:
        result.get(PATIENCE_S)
    assert {result.engine_id for result in results} == {1}


def test_r18_retries(view: Any) -> None:
    with view.temp_flags(retries=1):
        result = view.apply(lambda: 1 / 0)
    assert failure_of(result) == "ZeroDivisionError"


def test_r19_an_unmet_functional_dependency(view: Any) -> None:
    here = view.apply(os.getpid).get(PATIENCE_S)

    @ipp.depend(lambda pid: os.getpid() != pid, here)
    def elsewhere() -> int:
        return os.getpid()

    elsewhere.__module__ = "__main__"
    assert view.apply(elsewhere).get(PATIENCE_S) != here


def test_r21_timeout(view: Any) -> None:
    with view.temp_flags(targets=[0]):
        slow = view.apply(time.sleep, 1)
        with view.temp_flags(timeout=0.2):
            late = view.apply(lambda: 1)
    assert failure_of(late) == "TaskTimeout"
    slow.get(PATIENCE_S)


def test_direct_and_broadcast_views_and_output(controller: Stand) -> None:
    controller.until_disconnected("client iopub")  # the former client
    with client(controller, 2) as connected:
        controller.until(lambda: controller.is_subscribed("iopub"))  # the protocol has no answer to a subscription
        direct = connected[:].apply_async(print, "hello")
        direct.get(PATIENCE_S)
        direct.wait_for_output(PATIENCE_S)
        assert direct.stdout == ["hello\n", "hello\n"]
        assert connected.broadcast_view().apply_sync(lambda: 5) == [5, 5]


def test_r20_an_engine_that_dies_with_a_task() -> None:
    with stand(1, ping_ms=200, server={"grace_s": 0.5}) as alone, client(alone, 1) as connected:
        view = connected.load_balanced_view()
        pid = view.apply(os.getpid).get(PATIENCE_S)
        dying = view.apply(os.kill, pid, signal.SIGKILL)  # the engine has it: killed from outside, it may not yet
        waiting = view.apply(lambda: "served later")
        assert failure_of(dying) == "EngineError"
        assert connected.ids == []
        alone.start_engines(1)
        assert waiting.get(PATIENCE_S) == "served later"
        assert connected.ids == [1]


def test_an_engine_that_shuts_down_unregisters() -> None:
    with stand(2) as two, client(two, 2) as connected:
        connected.shutdown(targets=[0], block=True)
        until = time.monotonic() + PATIENCE_S
        while connected.ids != [1]:
            assert time.monotonic() < until
        assert connected.load_balanced_view().apply(lambda: 1).get(PATIENCE_S) == 1


def test_a_client_shuts_the_controller_down() -> None:
    with stand(1) as one:
        with client(one, 1) as connected:
            connected.shutdown(hub=True, block=False)
        one._thread.join(PATIENCE_S)
        assert not one._thread.is_alive()


@pytest.mark.parametrize("scheme", ["leastload", "lru", "plainrandom", "twobin", "weighted", "pure"])
def test_r11_schemes(scheme: str) -> None:
    with stand(2, scheme=scheme) as running, client(running, 2) as connected:
        view = connected.load_balanced_view()
        results = [view.apply(os.getpid) for _ in range(30)]
        assert len({result.get(PATIENCE_S) for result in results}) == 2
        if scheme == "pure":
            with view.temp_flags(after=results[:1]):
                assert failure_of(view.apply(lambda: 1)) == "SubmissionRefused"


def until_there(path: str, _data: bytes) -> None:
    import os  # it runs in the engine's own namespace
    import time

    while not os.path.exists(path):
        time.sleep(0.01)


def test_beyond_the_limit_of_bytes_a_task_is_refused_until_others_have_ended(tmp_path: Path) -> None:
    with stand(1, total_bytes=2_000_000) as small, client(small, 1) as connected:
        view = connected.load_balanced_view()
        go_on = tmp_path / "go on"
        first = view.apply(ipp.interactive(until_there), str(go_on), bytes(1_500_000))
        second = view.apply(len, bytes(1_500_000))
        with pytest.raises(ipp.RemoteError, match="total_bytes is 2,000,000"):
            second.get(PATIENCE_S)
        go_on.touch()
        first.get(PATIENCE_S)
        assert view.apply(len, bytes(3_000_000)).get(PATIENCE_S) == 3_000_000  # nothing else is held
