"""`submit` waits while the scheduler holds as many bytes of calls as its settings allow."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest

from trio_sched import Client, open_client
from trio_sched.client.local_cluster import LocalCluster
from trio_sched.transport.connection_info import ConnectionInfo

LIMIT_S = 60.0
MB = 1 << 20
CALLS = 100
UNRUNNABLE: Any = {"resources": {"unobtainium": 1.0}}


@pytest.fixture(scope="module")
def scheduler() -> Iterator[ConnectionInfo]:
    """A scheduler with one engine that holds 4 MiB for each client."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TRIO_SCHED_CLIENT_BYTES", str(4 * MB))
    cluster = LocalCluster(1)
    try:
        yield cluster.connection(LIMIT_S)
    finally:
        cluster.close()
        patch.undo()


class SubmittingThread:
    """A thread that submits 100 calls of 1 MiB, and waits for credit after some of them."""

    def __init__(self, client: Client, waiting: int = 1) -> None:
        """Start the thread, and wait until `waiting` threads in all wait for credit."""
        self.client = client
        self.futures: list[Any] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        wait_until(lambda: client._connection._waiting_for_credit == waiting)

    def _run(self) -> None:
        try:
            for _ in range(CALLS):
                self.futures.append(self.client.options(**UNRUNNABLE).submit(len, bytes(MB)))
        except BaseException as error:
            self.error = error

    def join(self) -> None:
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive()


def wait_until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def client(scheduler: ConnectionInfo) -> Iterator[Client]:
    client = Client(scheduler, connect_timeout=LIMIT_S)
    yield client
    client.shutdown(cancel_futures=True)


def test_submit_waits_until_tasks_have_ended(client: Client) -> None:
    submitting = SubmittingThread(client)
    assert 3 <= len(submitting.futures) < CALLS

    def cancel_all() -> bool:
        for future in list(submitting.futures):
            future.cancel()
        return not submitting.thread.is_alive()

    wait_until(cancel_all)
    assert submitting.error is None
    assert len(submitting.futures) == CALLS


def test_many_large_calls_go_through_a_small_window(client: Client) -> None:
    futures = [client.submit(len, bytes(MB)) for _ in range(30)]
    assert [future.result(LIMIT_S) for future in futures] == [MB] * 30
    assert client.submit(len, bytes(9 * MB)).result(LIMIT_S) == 9 * MB


def test_another_client_does_not_wait(client: Client, scheduler: ConnectionInfo) -> None:
    submitting = SubmittingThread(client)
    with Client(scheduler, connect_timeout=LIMIT_S) as other:
        assert other.submit(len, bytes(MB)).result(LIMIT_S) == MB
        [row] = [row for row in other.status()["clients"] if row["client"] == client.session]
        assert row["held_bytes"] >= 2 * MB
    client.shutdown(cancel_futures=True)
    submitting.join()
    assert isinstance(submitting.error, RuntimeError)
    assert "after shutdown" in str(submitting.error)


def test_a_callback_never_waits(client: Client) -> None:
    submitting = SubmittingThread(client)
    more: list[Any] = []
    done = threading.Event()

    def submit_more(_future: object) -> None:
        more.extend(client.options(**UNRUNNABLE).submit(len, bytes(MB)) for _ in range(3))
        done.set()

    small = submitting.futures[0]
    small.add_done_callback(submit_more)
    # cancelled by the scheduler, so that the callback runs in the client's own thread
    client._connection.cancel(small.number)
    assert done.wait(LIMIT_S)
    assert len(more) == 3
    client.shutdown(wait=False, cancel_futures=True)
    submitting.join()


def test_ctrl_c_interrupts_a_submit_that_waits(client: Client) -> None:
    def interrupt() -> None:
        wait_until(lambda: client._connection._waiting_for_credit)
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    never = client.options(**UNRUNNABLE)
    with pytest.raises(KeyboardInterrupt):
        list(map(never.submit, [len] * CALLS, [bytes(MB)] * CALLS))
    interrupter.join()
    assert client._connection._waiting_for_credit == 0
    assert client.status()["clients"]


def test_the_reason_of_waiting_is_logged_once(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trio_sched.client.connection.LOG_WAITING_AFTER_S", 0.0)
    first = SubmittingThread(client)
    second = SubmittingThread(client, waiting=2)
    client.shutdown(wait=False, cancel_futures=True)
    first.join()
    second.join()
    logged = [record.getMessage() for record in caplog.records if "submit waits" in record.getMessage()]
    assert len(logged) == 1
    assert "client_bytes" in logged[0]


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_wait_for_credit_waits_until_calls_are_sent(scheduler: ConnectionInfo, backend: str) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            never = client.options(**UNRUNNABLE)
            futures = [never.submit(len, bytes(MB)) for _ in range(8)]
            with anyio.move_on_after(0.2) as scope:
                await never.wait_for_credit()
            assert scope.cancelled_caught
            for future in futures:
                future.cancel()
            with anyio.fail_after(LIMIT_S):
                await client.wait_for_credit()
                assert await client.submit(len, bytes(MB)) == MB
                await client.wait_for_credit()

    run: Callable[[Callable[[], Awaitable[Any]]], Any] = lambda main: anyio.run(main, backend=backend)  # noqa: E731
    run(main)
