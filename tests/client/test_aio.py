"""The asynchronous client with a real scheduler, under trio and under asyncio."""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
import pytest

import trio_sched
from trio_sched import AsyncFuture, open_client
from trio_sched.transport.connection_info import ConnectionInfo
from trio_sched.wire import native

Run: TypeAlias = Callable[[Callable[[], Awaitable[Any]]], Any]
sleep = time.sleep
#: Options of a task that no engine can run.
NEVER: Any = {"resources": {"unobtainium": 1}}


def test_submit_await_and_map(run: Run, scheduler: ConnectionInfo) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            future = client.submit(divmod, 17, 5)
            assert await future == (3, 2)
            assert await future == (3, 2)
            assert future.value == (3, 2)
            assert future.error is None
            assert repr(future) == f"<AsyncFuture {client.session}-1 ok>"
            assert [x async for x in client.map(abs, range(-5, 0))] == [5, 4, 3, 2, 1]
            assert [x async for x in client.map(pow, range(7), [2] * 7, chunksize=3)] == [0, 1, 4, 9, 16, 25, 36]
            assert await client.gather(*[client.submit(abs, -n) for n in range(200)]) == list(range(200))
            assert await client.gather([client.submit(abs, -n) for n in range(3)]) == [0, 1, 2]
            assert await client.options(priority=2, label="x").submit(abs, -1) == 1

    run(main)


def test_bye_is_the_last_message_of_a_client(run: Run, scheduler: ConnectionInfo, client: trio_sched.Client) -> None:
    async def main() -> None:
        for _ in range(3):
            async with open_client(scheduler):
                pass

    before = client.status()["counters"].get("unknown_peer", 0)
    run(main)
    assert client.status()["counters"].get("unknown_peer", 0) == before


def test_an_error_is_raised_where_its_future_is_awaited(run: Run, scheduler: ConnectionInfo) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            future = client.submit(operator.truediv, 1, 0)
            with pytest.raises(ZeroDivisionError) as caught:
                await future
            assert isinstance(caught.value.__cause__, trio_sched.RemoteTraceback)
            with pytest.raises(ZeroDivisionError):
                assert future.value
            results = client.map(operator.floordiv, [4, 4, 4], [1, 0, 2])
            assert await anext(results) == 4
            with pytest.raises(ZeroDivisionError):
                await anext(results)
            with pytest.raises(StopAsyncIteration):
                await anext(results)
            with pytest.raises(trio_sched.SubmitError, match=r"argument 1 \(a lock\)"):
                client.submit(print, threading.Lock())
            with pytest.raises(RuntimeError, match="has not ended; await it"):
                assert client.submit(sleep, 0.05).value

    run(main)


def test_r9_futures_as_arguments_stand_for_their_results(run: Run, scheduler: ConnectionInfo) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client, client.open_task_group() as group:
            one = group.submit(abs, -1)
            two = group.submit(operator.add, one, 1)
            three = group.submit(sum, [one, two])
        assert (one.value, two.value, three.value) == (1, 2, 3)

    run(main)


def test_queries_and_r23_cancel(run: Run, scheduler: ConnectionInfo) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            never = client.options(**NEVER).submit(abs, 1)
            assert "unobtainium" in await client.explain(never)
            assert (await client.status())["name"] == "own"
            assert len(await client.engines()) == 2
            assert never.cancel()
            assert not never.cancel()
            assert isinstance(never.error, trio_sched.TaskCancelled)
            with pytest.raises(trio_sched.TaskCancelled):
                await never
            other = client.options(**NEVER).submit(abs, 1)
            client.cancel(other.task_id)
            with pytest.raises(trio_sched.TaskCancelled):
                await other
            client.cancel(client.options(**NEVER).submit(abs, 1))
            assert any("cancel" in what for _, what in await client.story(other))

    run(main)


def test_leaving_the_block_waits_for_the_tasks(run: Run, scheduler: ConnectionInfo) -> None:
    async def main() -> list[AsyncFuture[None]]:
        async with open_client(scheduler) as client:
            return [client.submit(sleep, 0.02) for _ in range(5)]

    assert all(future.succeeded for future in run(main))


def test_an_error_of_the_block_is_raised_unwrapped_and_cancels_the_tasks(run: Run, scheduler: ConnectionInfo) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            with pytest.raises(KeyError, match="body"):  # noqa: PT012  # the whole block is what is tested
                async with open_client(scheduler) as inner:
                    future = inner.options(**NEVER).submit(abs, 1)
                    await inner.status()
                    raise KeyError("body")
            with pytest.raises(trio_sched.SchedulerClosed, match="closed before the task ended"):
                assert future.value
            while not (await client.explain(future.task_id)).startswith("it ended as cancelled"):
                await client.status()

    run(main)


# ---- errors that were not seen --------------------------------------------------------------------------------------


def test_leaving_raises_the_error_that_was_not_seen(run: Run, scheduler: ConnectionInfo) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            client.submit(operator.truediv, 1, 0)
            client.submit(abs, -1)

    with pytest.raises(ZeroDivisionError) as caught:
        run(main)
    assert isinstance(caught.value.__cause__, trio_sched.RemoteTraceback)


def test_leaving_raises_several_unseen_errors_as_a_group_without_their_consequences(
    run: Run, scheduler: ConnectionInfo
) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            bad = client.submit(operator.truediv, 1, 0)
            client.submit(abs, bad)
            client.map(int, ["1", "x", "2"])

    with pytest.raises(ExceptionGroup, match="their errors were not looked at") as caught:
        run(main)
    assert {type(error) for error in caught.value.exceptions} == {ZeroDivisionError, ValueError}
    assert len(caught.value.exceptions) == 2


def test_an_error_that_was_seen_is_not_raised_again(run: Run, scheduler: ConnectionInfo) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            bad = [client.submit(operator.truediv, 1, 0) for _ in range(4)]
            with pytest.raises(ZeroDivisionError):
                await bad[0]
            for future in bad[1:]:
                await future.wait()
            assert isinstance(bad[1].error, ZeroDivisionError)
            with pytest.raises(ZeroDivisionError):
                assert bad[2].value
            with pytest.raises(ZeroDivisionError):
                await client.gather(*bad)
            never = client.options(**NEVER).submit(abs, 1)
            client.cancel(client.options(**NEVER).submit(abs, 1))
            never.cancel()
            assert never.cancelled()

    run(main)


def test_gather_and_map_raise_the_first_error_in_place_of_the_others(run: Run, scheduler: ConnectionInfo) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            late = client.submit(sleep, 0.05)
            bad = [client.submit(operator.truediv, 1, 0), client.options(after=late).submit(operator.truediv, 1, 0)]
            with pytest.raises(ZeroDivisionError):
                await client.gather(*bad)
            results = client.map(operator.floordiv, [4, 4, 4, 4], [1, 0, 0, 0])
            assert await anext(results) == 4
            with pytest.raises(ZeroDivisionError):
                await anext(results)

    run(main)


def test_an_error_that_another_task_awaits_while_the_block_is_left_counts_as_seen(
    run: Run, scheduler: ConnectionInfo
) -> None:
    async def main() -> None:
        seen: list[type[BaseException]] = []

        async def look(future: AsyncFuture[Any]) -> None:
            try:
                await future
            except ZeroDivisionError as error:
                seen.append(type(error))

        async with anyio.create_task_group() as tasks, open_client(scheduler) as client:
            late = client.submit(sleep, 0.05)
            tasks.start_soon(look, client.options(after=late).submit(operator.truediv, 1, 0))
        assert seen == [ZeroDivisionError]

    run(main)


def test_an_error_of_the_block_is_raised_without_unseen_errors(run: Run, scheduler: ConnectionInfo) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            await client.submit(operator.truediv, 1, 0).wait()
            raise KeyError("body")

    with pytest.raises(KeyError, match="body"):
        run(main)


def test_only_the_first_unseen_failures_are_kept(
    run: Run, scheduler: ConnectionInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_sched.client.async_future.MAX_UNSEEN_FAILURES", 3)

    async def main() -> None:
        async with open_client(scheduler) as client:
            for number in range(10):
                client.submit(int, f"x{number}")

    with pytest.raises(ExceptionGroup) as caught:
        run(main)
    assert len(caught.value.exceptions) == 3


# ---- task groups ----------------------------------------------------------------------------------------------------


def test_a_group_waits_for_its_tasks_and_then_refuses_submissions(run: Run, scheduler: ConnectionInfo) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            async with client.open_task_group() as group:
                futures = [group.submit(sleep, 0.01) for _ in range(10)]
                late = group.options(retries=1).submit(abs, -1)
            assert all(future.succeeded for future in futures)
            assert late.value == 1
            with pytest.raises(RuntimeError, match="this task group was left"):
                group.submit(abs, 1)
            async with client.open_task_group():
                pass

    run(main)


def test_an_error_cancels_the_group_on_the_scheduler(run: Run, scheduler: ConnectionInfo) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            reached = False
            with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012  # the whole block is what is tested
                async with client.open_task_group() as group:
                    never = group.options(**NEVER).submit(abs, 1)
                    bad = group.submit(operator.truediv, 1, 0)
                    consequence = group.submit(abs, bad)
                    await anyio.sleep(30)
                    reached = True
            assert not reached
            assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
            assert isinstance(never.error, trio_sched.TaskCancelled)
            assert isinstance(consequence.error, (trio_sched.ImpossibleDependency, trio_sched.TaskCancelled))
            assert "cancelled" in await client.explain(never)

    run(main)


def test_an_error_awaited_in_the_group_is_raised_once(run: Run, scheduler: ConnectionInfo) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            with pytest.raises(ExceptionGroup) as caught:  # the whole block is what is tested
                async with client.open_task_group() as group:
                    await group.submit(operator.truediv, 1, 0)
            assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
            with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012  # the whole block is what is tested
                async with client.open_task_group() as group:
                    bad = group.submit(operator.truediv, 1, 0)
                    await group.submit(abs, bad)
            assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]

    run(main)


def test_an_error_of_the_group_s_block_cancels_its_tasks(run: Run, scheduler: ConnectionInfo) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012  # the whole block is what is tested
                async with client.open_task_group() as group:
                    never = group.options(**NEVER).submit(abs, 1)
                    raise KeyError("body")
            assert [repr(error) for error in caught.value.exceptions] == ["KeyError('body')"]
            assert isinstance(never.error, trio_sched.TaskCancelled)

    run(main)


def test_a_cancelled_scope_cancels_the_tasks_of_the_group(run: Run, scheduler: ConnectionInfo) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            with anyio.CancelScope() as scope:
                async with client.open_task_group() as group:
                    futures = [group.submit(sleep, 0.05) for _ in range(40)]
                    await futures[0]
                    scope.cancel()
            assert scope.cancelled_caught
            assert futures[0].succeeded
            assert isinstance(futures[-1].error, trio_sched.TaskCancelled)
            assert "cancelled" in await client.explain(futures[-1])

    run(main)


def test_cancelling_a_group_explicitly_raises_no_error(run: Run, scheduler: ConnectionInfo) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            async with client.open_task_group() as group:
                done = group.submit(abs, -1)
                never = group.options(**NEVER).submit(abs, 1)
                await done
                group.cancel()
                late = group.options(**NEVER).submit(abs, 1)
            assert done.value == 1
            assert isinstance(never.error, trio_sched.TaskCancelled)
            assert isinstance(late.error, trio_sched.TaskCancelled)

    run(main)


def test_leaving_a_group_waits_for_a_running_call_only_until_cancel_timeout(
    run: Run, scheduler: ConnectionInfo
) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            with anyio.CancelScope() as scope:
                async with client.open_task_group(cancel_timeout=0.05) as group:
                    future = group.submit(sleep, 1.0)
                    while not (await client.explain(future)).startswith("it is on engine"):
                        await client.status()
                    scope.cancel()
            assert isinstance(future.error, trio_sched.TaskCancelled)

    run(main)


# ---- failures -------------------------------------------------------------------------------------------------------


def test_no_task_is_lost_when_the_connection_is_opened_again(run: Run, scheduler: ConnectionInfo) -> None:
    async def main() -> None:
        async with open_client(scheduler) as client:
            futures = [client.submit(sleep, 0.001) for _ in range(50)]
            await anyio.lowlevel.checkpoint()
            client._connection._reopen()
            futures += [client.submit(sleep, 0) for _ in range(50)]
            assert await client.gather(*futures) == [None] * 100

    run(main)


def test_the_shutdown_of_the_scheduler_ends_every_future(run: Run) -> None:
    async def main() -> None:
        async with open_client(engines=1) as client:
            never = client.options(**NEVER).submit(abs, 1)
            assert await client.submit(abs, -1) == 1
            client._connection.session.send(native.Stop("the test is over"))
            client._connection.wake()
            with pytest.raises(trio_sched.SchedulerClosed):
                await never
            with pytest.raises(trio_sched.SchedulerClosed):
                client.submit(abs, 1)
            with pytest.raises(trio_sched.SchedulerClosed):
                await client.status()

    run(main)


def test_a_scheduler_that_does_not_answer_is_an_error(run: Run, tmp_path: Any) -> None:
    async def main() -> None:
        nobody = ConnectionInfo(name="nobody", role="client", address=f"ipc://{tmp_path}/none.sock", token="t")
        with pytest.raises(trio_sched.NoSchedulerError, match="did not answer within"):
            async with open_client(nobody, connect_timeout=0.1):
                pass

    run(main)
