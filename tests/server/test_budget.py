"""What is held for clients in memory: credit in bytes, refusals, pauses (R34), and that all of it comes back."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from trio_sched.server import budget
from trio_sched.testing import FakeClient, FakeEngine, World, open_world, run_virtual
from trio_sched.wire import native

MB = 1 << 20
NOBODY: Any = {"resources": {"nobody has this": 1.0}}


def submit(client: FakeClient, size: int = MB, **options: Any) -> int:
    """One call with a frame of so many bytes; returns its full id."""
    [call] = client.calls(b"", **options)
    call.frames = 1
    client.sent.append(call)
    client.say(native.Submit([call]), [bytes(size)])
    return client.full(call.id)


async def heard_credit(world: World, client: FakeClient) -> tuple[int | None, str]:
    """What the client was told last, and the setting."""
    await world.settle()
    told = [message for message in client.unheard(native.Accepted) if message.credit_bytes is not None]
    return (told[-1].credit_bytes, told[-1].limit) if told else (None, "")


def test_credit_shrinks_to_nothing_and_comes_back_as_tasks_end() -> None:
    async def main() -> None:
        async with open_world(client_bytes=4 * MB) as world:
            client, engine = await world.client(), await world.engine()
            assert client.welcome.credit_bytes == 4 * MB
            tasks = [submit(client) for _ in range(3)]
            credit, limit = await heard_credit(world, client)
            assert credit == MB - 3 * native.TASK_BYTES
            assert limit == "client_bytes"
            submit(client)
            assert await heard_credit(world, client) == (0, "client_bytes")
            assert (await client.ask("status"))["clients"][0]["held_bytes"] == 4 * (MB + native.TASK_BYTES)
            for _ in tasks:
                await engine.finish(await engine.next_call())
            credit, _ = await heard_credit(world, client)
            assert credit == 3 * MB - native.TASK_BYTES
            await engine.finish(await engine.next_call())
            await heard_credit(world, client)
            assert world.server.sessions.clients[client.number].payloads == {}
            assert (await client.rejoin()).credit_bytes == 4 * MB

    run_virtual(main)


def test_small_tasks_are_counted_by_their_number() -> None:
    async def main() -> None:
        async with open_world(client_bytes=1 << 16) as world:
            client = await world.client()
            await client.submit(*["x"] * 128)
            assert await heard_credit(world, client) == (0, "client_bytes")
            assert world.server.sessions.clients[client.number].payloads == {}

    run_virtual(main)


def test_a_call_larger_than_the_limit_is_taken_when_nothing_else_is_held() -> None:
    async def main() -> None:
        async with open_world(client_bytes=MB) as world:
            client, engine = await world.client(), await world.engine()
            for _ in range(2):
                task = submit(client, 5 * MB)
                assert await heard_credit(world, client) == (0, "client_bytes")
                await engine.finish(await engine.next_call())
                assert (await client.end_of(task)).outcome == "ok"
                credit, _ = await heard_credit(world, client)
                assert credit == MB

    run_virtual(main)


def test_a_client_that_ignores_its_credit_is_refused_and_told_which_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "OVERDRAFT_BYTES", 0)

    async def main() -> None:
        async with open_world(client_bytes=MB, window_bytes=MB) as world:
            client = await world.client()
            tasks = []
            for _ in range(5):
                tasks.append(submit(client, **NOBODY))
                await world.settle()
            refused = client.unheard(native.Refused)
            assert [message.id for message in refused] == tasks[2:]
            assert "client_bytes is 1,048,576" in refused[0].reason
            assert world.server.budget.held_bytes == 2 * MB
            assert world.server.hub.counters["over_credit_bytes"] == 3
            client.say(native.Cancel(tasks[:2]))
            await world.settle()
            task = submit(client, **NOBODY)
            await world.settle()
            assert client.unheard(native.Refused) == []
            assert task in world.server.scheduler.tasks

    run_virtual(main)


def test_plain_arguments_and_functions_count_too() -> None:
    async def main() -> None:
        async with open_world() as world:
            client = await world.client()
            client.say(native.Submit([native.Call(1, call="builtins:len", args=["x" * MB])]))
            await client.submit("y", fn=bytes(MB))
            await world.settle()
            assert 2 * MB < world.server.budget.held_bytes < 2 * MB + 1000
            client.leave(cancel=True)
            await world.settle()
            assert world.server.budget.held_bytes == 0

    run_virtual(main)


def test_one_client_leaves_something_of_the_total_for_another() -> None:
    async def main() -> None:
        async with open_world(total_bytes=16 * MB) as world:
            greedy, other = await world.client(), await world.client()
            while greedy.welcome.credit_bytes:
                submit(greedy, **NOBODY)
                credit, limit = await heard_credit(world, greedy)
                if credit is not None:
                    greedy.welcome.credit_bytes = credit
            assert limit == "total_bytes"
            assert world.server.budget.held_bytes <= 9 * MB
            assert (await other.rejoin()).credit_bytes == world.server.budget.free_bytes() // 3
            for _ in range(4):
                submit(other, **NOBODY)
            await world.settle()
            greedy.leave(cancel=True)
            credit, _ = await heard_credit(world, other)
            assert credit
            assert credit > MB  # it hears of it though nothing of its own has changed

    run_virtual(main)


def test_what_clients_leave_behind_counts_until_its_tasks_have_ended() -> None:
    async def main() -> None:
        async with open_world() as world:
            client, engine = await world.client(), await world.engine()
            submit(client)
            call = await engine.next_call()
            client.leave()
            await world.settle()
            assert world.server.budget.held_bytes == MB
            await engine.finish(call, bytes(MB))
            await rounds(world)
            assert world.server.budget.held_bytes == 0
            assert world.server.sessions.departed == {}

    run_virtual(main)


async def rounds(world: World) -> None:
    """Two rounds of the auditor."""
    await trio.sleep(2 * world.server.config.heartbeat_s)
    await world.settle()


async def results_of(world: World, client: FakeClient, engine: FakeEngine, count: int, size: int = MB) -> None:
    """The client submits, and the engine answers as much as it is given."""
    await client.submit(*["x"] * count)
    await work(world, engine, size)


async def work(world: World, engine: FakeEngine, size: int = MB) -> None:
    """The engine answers until it is given nothing more; what is gathered goes out between two."""
    await world.settle()
    while engine.queued():
        await engine.finish(engine.take_call(), b"", [bytes(size)])
        await trio.sleep(0.01)
        await world.settle()


def test_r34_a_client_that_reads_no_results_is_paused_until_it_has_read_half() -> None:
    async def main() -> None:
        async with open_world(client_bytes=4 * MB, hwm=1) as world:
            deaf, other, engine = await world.client(), await world.client(), await world.engine()
            deaf.acknowledging = False
            await results_of(world, deaf, engine, 10)
            assert len(deaf.ends) in (5, 6)  # what was sent to the engine before the pause ends all the same
            last = deaf.full(10)
            assert "unread results, more than client_bytes allows" in await other.ask("explain", last)
            row = (await other.ask("status"))["clients"][0]
            assert row["unread_bytes"] > 4 * MB
            assert "unread" in row["paused"]
            task = await other.submit("y")
            await engine.finish(await engine.next_call())
            assert (await other.end_of(task)).outcome == "ok"
            deaf.acknowledging = True
            deaf.say(native.Ping(1))
            await world.settle()
            assert (await other.ask("status"))["clients"][0]["paused"]
            deaf.say(native.Ping(deaf.received - 1))
            await world.settle()
            assert (await other.ask("status"))["clients"][0]["paused"] == ""
            for _ in range(10):
                deaf.say(deaf.ping())
                await work(world, engine)
            assert len(deaf.ends) == 10

    run_virtual(main)


def test_r34_a_client_that_is_away_is_paused_too_and_loses_nothing() -> None:
    async def main() -> None:
        async with open_world(client_bytes=4 * MB, hwm=1) as world:
            client, engine = await world.client(), await world.engine()
            await client.submit(*["x"] * 10)
            world.server.hub.gone(world.server.sessions.clients[client.number].link, "closed")  # type: ignore[arg-type]
            client.beating = client.returning = False
            await world.settle()
            await work(world, engine)
            session = world.server.sessions.clients[client.number]
            assert session.paused
            assert session.unread_bytes == session.waiting_bytes
            assert len(world.server.scheduler.tasks) >= 4
            client.returning = client.beating = True
            await client.rejoin()
            for _ in range(20):
                client.say(client.ping())
                await work(world, engine)
            assert len(client.ends) == 10
            client.say(client.ping())
            await world.settle()
            assert session.unread_bytes == 0
            assert world.server.budget.held_bytes == 0

    run_virtual(main)


def test_memory_goes_back_when_most_of_it_was_released(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed = []
    monkeypatch.setattr(budget, "return_free_memory", lambda: trimmed.append(1))
    monkeypatch.setattr(budget, "TRIM_BYTES", 2 * MB)

    async def main() -> None:
        async with open_world() as world:
            client = await world.client()
            tasks = [submit(client, **NOBODY) for _ in range(4)]
            await rounds(world)
            client.say(native.Cancel(tasks[:1]))
            await rounds(world)
            assert trimmed == []
            client.say(native.Cancel(tasks))
            await rounds(world)
            assert trimmed == [1]

    run_virtual(main)
