"""Direct calls, output and control messages with real ipyparallel clients and engines."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import ipyparallel as ipp
import pytest

from tests.ipyparallel.controller_fixture import RunningController, running_controller
from tests.ipyparallel.controller_fixture import client as connected

pytestmark = pytest.mark.filterwarnings("ignore:::ipyparallel", "ignore:::jupyter_client", "ignore:::zmq")
TIMEOUT_S = 30


@pytest.fixture(scope="module")
def two() -> Iterator[RunningController]:
    """A controller with two engines."""
    with running_controller(engines=2) as running:
        yield running


@pytest.fixture
def client(two: RunningController) -> Iterator[Any]:
    """A client for one test, which knows both engines."""
    with connected(two, 2) as client:
        client[:].clear(block=True)
        yield client


# ---- direct calls ---------------------------------------------------------------------------------------------------


def test_apply_and_map_return_results(client: Any) -> None:
    view = client[:]
    assert view.apply_async(pow, 2, 10).get(TIMEOUT_S) == [1024, 1024]
    assert view.map_async(lambda x: x * x, range(7)).get(TIMEOUT_S) == [0, 1, 4, 9, 16, 25, 36]
    assert client[1].apply_async(lambda: 7).get(TIMEOUT_S) == 7


def test_push_pull_scatter_gather_keep_values(client: Any) -> None:
    view = client[:]
    view.push({"a": bytes(1 << 20), "b": 2}, block=True)
    assert view.pull("a", block=True) == [bytes(1 << 20)] * 2
    assert view["b"] == [2, 2]
    view.scatter("part", list(range(9)), block=True)
    assert client[0]["part"] == list(range(5))
    assert view.gather("part", block=True) == list(range(9))


def test_exception_of_a_call_is_raised_by_its_name(client: Any) -> None:
    with pytest.raises(ipp.error.RemoteError, match="ZeroDivisionError"):
        client[0].apply_async(lambda: 1 / 0).get(TIMEOUT_S)
    with pytest.raises(ipp.error.CompositeError, match="ZeroDivisionError"):
        client[:].apply_async(lambda: 1 / 0).get(TIMEOUT_S)


# ---- output ---------------------------------------------------------------------------------------------------------


def test_printed_and_displayed_output_arrives(client: Any) -> None:
    view = client[:]
    result = view.execute("import sys; print('out'); print('err', file=sys.stderr)")
    result.get(TIMEOUT_S)
    assert result.wait_for_output(TIMEOUT_S)
    assert result.stdout == ["out\n", "out\n"]
    assert result.stderr == ["err\n", "err\n"]
    shown = client[0].execute(
        "from IPython.display import display, HTML\ndisplay(HTML('<b>x</b>'))\n6 * 7", silent=False
    )
    shown.get(TIMEOUT_S)
    assert shown.wait_for_output(TIMEOUT_S)
    assert [output["data"]["text/html"] for output in shown.outputs] == ["<b>x</b>"]
    assert shown.execute_result["data"]["text/plain"] == "42"


def test_output_of_a_call_goes_to_its_client_only(two: RunningController, client: Any) -> None:
    with connected(two) as other_client:
        result = client[0].apply_async(print, "mine")
        result.get(TIMEOUT_S)
        assert result.wait_for_output(TIMEOUT_S)
        assert result.stdout == "mine\n"
        assert not other_client.metadata


def test_output_is_recorded(two: RunningController, client: Any) -> None:
    result = client[0].apply_async(print, "kept")
    result.get(TIMEOUT_S)
    assert result.wait_for_output(TIMEOUT_S)
    [record] = client.db_query({"msg_id": result.msg_ids[0]})
    assert record["stdout"] == "kept\n"
    assert record["engine_uuid"] == client._engines[0]
    assert record["completed"] >= record["submitted"]


# ---- control --------------------------------------------------------------------------------------------------------


def test_clear_empties_the_engines_namespaces(client: Any) -> None:
    client[:].push({"a": 1}, block=True)
    client.clear(block=True)
    assert client[:].apply_async(lambda: "a" in globals()).get(TIMEOUT_S) == [False, False]


def test_waiting_calls_are_aborted(client: Any) -> None:
    view = client[:]
    running = view.apply_async(time.sleep, 1)
    waiting = view.apply_async(lambda: 1)
    view.abort(waiting, block=True)
    for end in waiting.get(TIMEOUT_S, return_exceptions=True):
        assert isinstance(end, ipp.error.TaskAborted)
    assert running.get(TIMEOUT_S) == [None, None]


def test_signal_interrupts_a_call(client: Any) -> None:
    """The engine's nanny answers while the engine is busy."""

    def wait() -> str:
        import time

        print("begun", flush=True)
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            return "interrupted"
        return "not interrupted"

    running = client[:].apply_async(wait)
    until = time.monotonic() + TIMEOUT_S
    while not all("begun" in printed for printed in running.stdout):
        assert time.monotonic() < until
        running.wait(0.05)
    client.send_signal(signal.SIGINT, block=True)
    assert running.get(TIMEOUT_S) == ["interrupted"] * 2


def test_no_message_was_dropped(two: RunningController, client: Any) -> None:
    """The last test of this module that uses the shared controller."""
    client[:].apply_async(lambda: 1).get(TIMEOUT_S)
    assert not {reason for reason in two.counters if reason != "unknown_heart"}


# ---- engines that leave ---------------------------------------------------------------------------------------------
# ------------------------------------------------------------------------------------------------


def test_one_engine_and_then_all_shut_down() -> None:
    with running_controller() as running:
        engines = running.start_engines(2)
        with connected(running, 2) as client:
            client.shutdown([0], block=True)
            _wait_until(lambda: client.ids == [1])
            assert client[1].apply_async(lambda: 1).get(TIMEOUT_S) == 1
            client.shutdown(hub=True, block=True)
        for engine in engines:
            engine.wait(TIMEOUT_S)


def test_dead_engine_fails_its_direct_call() -> None:
    with running_controller(engines=2) as running, connected(running, 2) as client:
        doomed = client[0].apply_async(lambda: __import__("os")._exit(1))
        with pytest.raises(ipp.error.RemoteError, match="EngineError: Engine 0 died"):
            doomed.get(TIMEOUT_S)
        _wait_until(lambda: client.ids == [1])
        assert client[1].apply_async(lambda: 1).get(TIMEOUT_S) == 1


def _wait_until(condition: Any) -> None:
    limit = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)
