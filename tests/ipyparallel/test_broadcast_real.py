"""The broadcast view of a real ipyparallel client, plain and coalescing, on real engines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ipyparallel as ipp
import pytest

from tests.ipyparallel.controller_fixture import RunningController, running_controller
from tests.ipyparallel.controller_fixture import client as connected

pytestmark = pytest.mark.filterwarnings("ignore:::ipyparallel", "ignore:::jupyter_client", "ignore:::zmq")
TIMEOUT_S = 30
COUNT = 3


@pytest.fixture(scope="module")
def three() -> Iterator[RunningController]:
    """A controller and three engines, which connect to two ports for the broadcast view."""
    with running_controller(engines=COUNT) as running:
        yield running


@pytest.fixture
def client(three: RunningController) -> Iterator[Any]:
    with connected(three, COUNT) as client:
        client[:].clear(block=True)
        yield client


@pytest.fixture(params=[False, True], ids=["plain", "coalescing"])
def view(request: pytest.FixtureRequest, client: Any) -> Any:
    return client.broadcast_view(is_coalescing=request.param)


def test_apply_runs_on_every_target(view: Any) -> None:
    assert view.apply_async(pow, 2, 5).get(TIMEOUT_S) == [32] * COUNT


def test_push_and_pull_reach_every_target(view: Any) -> None:
    view.push({"a": bytes(1 << 20), "b": 2}, block=True)
    assert view.pull(["a", "b"], block=True) == [[bytes(1 << 20), 2]] * COUNT
    assert view["b"] == [2] * COUNT


def test_map_scatter_and_gather_keep_the_order(view: Any) -> None:
    assert view.map_sync(lambda x: x * x, range(7)) == [0, 1, 4, 9, 16, 25, 36]
    view.scatter("part", list(range(10)), block=True)
    assert view.gather("part", block=True) == list(range(10))


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2], [2, 0]])
def test_results_are_in_the_order_of_the_targets(client: Any, view: Any, order: list[int]) -> None:
    """ipyparallel's own controller coalesces them in the order of their arrival."""
    client[:].scatter("rank", client.ids, flatten=True, block=True)
    chosen = client.broadcast_view(order, is_coalescing=view.is_coalescing)
    result = chosen.pull("rank", block=False)
    assert result.get(TIMEOUT_S) == order
    assert result.engine_id == order


def test_error_of_one_engine_is_raised(client: Any, view: Any) -> None:
    client[:].scatter("rank", client.ids, flatten=True, block=True)
    result = view.apply_async(lambda rank: 1 / (rank - 1), ipp.Reference("rank"))
    with pytest.raises((ipp.error.RemoteError, ipp.error.CompositeError), match="ZeroDivisionError"):
        result.get(TIMEOUT_S)


def test_100_concurrent_requests_are_answered(view: Any) -> None:
    results = [view.apply_async(lambda x: x, number) for number in range(100)]
    assert [result.get(TIMEOUT_S) for result in results] == [[number] * COUNT for number in range(100)]


def test_output_of_every_engine_arrives(client: Any) -> None:
    result = client.broadcast_view().apply_async(print, "hello")
    result.get(TIMEOUT_S)
    assert result.wait_for_output(TIMEOUT_S)
    assert result.stdout == ["hello\n"] * COUNT


def test_each_target_has_a_record(client: Any) -> None:
    """The ids of the records are those that the client knows."""
    result = client.broadcast_view().apply_async(lambda x: x, bytes(1000))
    result.get(TIMEOUT_S)
    records = client.db_query({"msg_id": {"$in": result.msg_ids}})
    assert {record["engine_uuid"] for record in records} == set(client._engines.values())
    assert all(record["completed"] for record in records)
    with pytest.raises(ipp.error.RemoteError, match="was broadcast"):
        client.resubmit(result.msg_ids[:1], block=True)


def test_dead_target_fails_the_call_and_not_later_ones(three: RunningController, view: Any, client: Any) -> None:
    [extra] = three.start_engines(1)
    client.wait_for_engines(COUNT + 1, timeout=TIMEOUT_S, interactive=False)
    doomed = max(client.ids)
    wider = client.broadcast_view(is_coalescing=view.is_coalescing)
    result = wider.apply_async(lambda own: own == engine_id() and __import__("os")._exit(1), doomed)
    with pytest.raises((ipp.error.EngineError, ipp.error.CompositeError, ipp.error.RemoteError)):
        result.get(TIMEOUT_S)
    extra.wait(TIMEOUT_S)
    client.wait_for_engines(COUNT, timeout=TIMEOUT_S, interactive=False)
    assert view.apply_async(lambda: 1).get(TIMEOUT_S) == [1] * COUNT


def engine_id() -> int:
    """Return the number of the engine that runs this function."""
    from ipykernel.kernelapp import IPKernelApp

    return int(IPKernelApp.instance().kernel.engine_id)
