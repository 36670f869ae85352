"""The byte budget: credit, refusals, pauses (R34), and that all memory is released."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from trio_sched.server import budget, sessions
from trio_sched.testing import FakeClient, FakeEngine, World, open_world, run_virtual
from trio_sched.wire import native
from trio_sched.wire.payload import digest

MB = 1 << 20
NOBODY: Any = {"resources": {"nobody has this": 1.0}}


def submit(client: FakeClient, size: int = MB, **options: Any) -> int:
    """Submit one call with a frame of `size` bytes. Returns the task id."""
    [call] = client.calls(b"", **options)
    call.frames = 1
    client.sent.append(call)
    client.say(native.Submit([call]), [bytes(size)])
    return client.full(call.id)


async def heard_credit(world: World, client: FakeClient) -> tuple[int | None, str]:
    """Return the credit that the client was told last, and the name of the limit."""
    await world.settle()
    told = [message for message in client.unheard(native.Accepted) if message.credit_bytes is not None]
    return (told[-1].credit_bytes, told[-1].limit) if told else (None, "")


def test_credit_shrinks_to_zero_and_grows_as_tasks_end() -> None:
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


def test_a_call_larger_than_the_limit_is_accepted_while_nothing_else_is_held() -> None:
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


def test_submissions_beyond_the_credit_are_refused_with_the_name_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_plain_arguments_and_functions_are_counted() -> None:
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


def test_one_client_leaves_a_part_of_the_total_for_another() -> None:
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
            assert credit > MB  # it is told although its own tasks have not changed

    run_virtual(main)


def test_bytes_of_departed_clients_count_until_their_tasks_have_ended() -> None:
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
    """Wait for two audits."""
    await trio.sleep(2 * world.server.config.heartbeat_s)
    await world.settle()


async def results_of(world: World, client: FakeClient, engine: FakeEngine, count: int, size: int = MB) -> None:
    """Submit `count` tasks, and answer every call that the engine gets."""
    await client.submit(*["x"] * count)
    await work(world, engine, size)


async def work(world: World, engine: FakeEngine, size: int = MB) -> None:
    """Answer calls until the engine gets no more; gathered results are sent in between."""
    await world.settle()
    while engine.queued():
        await engine.finish(engine.take_call(), b"", [bytes(size)])
        await trio.sleep(0.01)
        await world.settle()


def test_r34_a_client_that_reads_no_results_is_paused_until_it_has_read_half() -> None:
    async def main() -> None:
        async with open_world(client_bytes=4 * MB, hwm=1) as world:
            slow, other, engine = await world.client(), await world.client(), await world.engine()
            slow.acknowledging = False
            await results_of(world, slow, engine, 10)
            assert len(slow.ends) in (5, 6)  # calls that were sent before the pause go on
            last = slow.full(10)
            assert "unread results, more than client_bytes allows" in await other.ask("explain", last)
            row = (await other.ask("status"))["clients"][0]
            assert row["unread_bytes"] > 4 * MB
            assert "unread" in row["paused"]
            task = await other.submit("y")
            await engine.finish(await engine.next_call())
            assert (await other.end_of(task)).outcome == "ok"
            slow.acknowledging = True
            slow.say(native.Ping(1))
            await world.settle()
            assert (await other.ask("status"))["clients"][0]["paused"]
            slow.say(native.Ping(slow.received - 1))
            await world.settle()
            assert (await other.ask("status"))["clients"][0]["paused"] == ""
            for _ in range(10):
                slow.say(slow.ping())
                await work(world, engine)
            assert len(slow.ends) == 10

    run_virtual(main)


def test_r34_a_disconnected_client_is_paused_and_loses_nothing() -> None:
    async def main() -> None:
        async with open_world(client_bytes=4 * MB, hwm=1) as world:
            client, engine = await world.client(), await world.engine()
            await client.submit(*["x"] * 10)
            world.server.hub.connection_lost(world.server.sessions.clients[client.number].connection, "closed")  # type: ignore[arg-type]
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


def test_free_memory_is_returned_when_most_of_it_was_released(monkeypatch: pytest.MonkeyPatch) -> None:
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


# ---- limits on what one message may make the server keep ------------------------------------------------------------


def test_fields_that_are_too_long_are_refused_without_being_quoted() -> None:
    async def main() -> None:
        async with open_world() as world:
            client = await world.client()
            for call, why in (
                (native.Call(1, fn=bytes(MB)), "fn of task 1 has 1,048,576 bytes; a digest has 16"),
                (native.Call(1, call="m:" + "x" * MB), "call of task 1 has 1,048,578 characters; the most is 1,000"),
                (native.Call(1, call="m:x", inputs=[native.Value(bytes(MB))]), "only the scheduler sets"),
                (native.Call(1, call="m:x", attached=[bytes(MB)]), "only the scheduler sets"),
                (native.Call(1, call="m:x", resources={"x" * MB: 1.0}), "only the scheduler sets"),
            ):
                client.say(native.Submit([call]))
                error = await client.hear(native.Error)
                assert error.kind == "malformed"
                assert why in error.message
            for number, (options, why) in enumerate(
                (
                    (native.Options(label="x" * MB), "label has 1,048,576 characters; the most is 1,000"),
                    (native.Options(resources={"x" * MB: 1.0}), "the name of a resource has 1,048,576 characters"),
                    (native.Options(resources={str(n): 1.0 for n in range(101)}), "resources has 101 entries"),
                    (native.Options(targets=list(range(1001))), "1001 targets; the most is 1000"),
                ),
                1,
            ):
                client.say(native.Submit([native.Call(number, call="m:x", options=options)]))
                refused = await client.hear(native.Refused)
                assert why in refused.reason
                assert len(refused.reason) < 200
            session = world.server.sessions.clients[client.number]
            assert world.server.budget.held_bytes == 0
            assert session.refusal_bytes < 2000
            client.say(native.Ping())

    run_virtual(main)


def test_a_hello_that_is_too_large_is_answered_with_an_error() -> None:
    async def main() -> None:
        async with open_world() as world:
            for hello, why in (
                ({"path": ["x" * MB]}, "path has 1,048,576 characters in all; the most is 262,144"),
                ({"path": [""] * 10_001}, "path has 10,001 entries; the most is 10,000"),
                ({"cwd": "x" * MB}, "cwd has 1,048,576 characters; the most is 4,096"),
                ({"name": "x" * MB}, "name has 1,048,576 characters; the most is 1,000"),
            ):
                newcomer = await world.newcomer()
                token = world.running.connection.token
                newcomer.say(native.Hello(role="client", token=token, **hello))
                error = await newcomer.hear(native.Error)
                assert error.kind == "malformed"
                assert why in error.message
            assert world.server.sessions.clients == {}

    run_virtual(main)


def test_refusals_that_are_kept_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "REFUSALS_KEPT_BYTES", 10_000)

    async def main() -> None:
        async with open_world() as world:
            client = await world.client()
            session = world.server.sessions.clients[client.number]
            for number in range(1, 101):
                client.say(native.Submit([native.Call(number, call="m:x", options=native.Options(retries=-1))]))
            await world.settle()
            assert 5_000 < session.refusal_bytes <= 10_000
            assert 0 < len(session.refusals) < 50
            assert session.refusals[-1][1].id == client.full(100)

    run_virtual(main)


def test_ids_in_options_and_functions_without_tasks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "OVERDRAFT_BYTES", 0)

    async def main() -> None:
        async with open_world(client_bytes=MB, window_bytes=MB) as world:
            client = await world.client()
            first = await client.submit("x", **NOBODY)
            second = await client.submit("x", after=[first] * 1000)
            await world.settle()
            assert world.server.sessions.clients[client.number].payloads == {second: 1000 * native.NAMED_BYTES}
            for number in range(5):
                body = bytes([number]) * MB
                client.say(native.Submit([], functions={digest(body): body}))
            await world.settle()
            assert len(world.server.sessions.clients[client.number].functions) < 4
            assert world.server.hub.counters["over_credit_bytes"] > 0

    run_virtual(main)


def test_clients_that_ignore_their_credit_do_not_exceed_the_total_by_an_overdraft_each() -> None:
    async def main() -> None:
        async with open_world(total_bytes=64 * MB) as world:
            clients = []
            for _ in range(20):
                clients.append(await world.client())
                for _ in range(16):
                    submit(clients[-1], **NOBODY)
                await world.settle()
            slack = budget.OVERDRAFT_BYTES
            assert world.server.budget.held_bytes <= 64 * MB * 5 // 4 + slack + len(clients) * MB
            assert world.server.hub.counters["over_credit_bytes"] > 0

    run_virtual(main)


def test_a_promise_made_before_others_exceeded_the_total_is_kept() -> None:
    async def main() -> None:
        async with open_world(total_bytes=64 * MB) as world:
            honest = await world.client()
            promised = honest.welcome.credit_bytes
            assert promised == 32 * MB
            for _ in range(8):
                client = await world.client()
                for _ in range(32):
                    submit(client, **NOBODY)
                await world.settle()
            assert world.server.budget.free_bytes() < 0
            await honest.submit("x", **NOBODY)
            await world.settle()
            told = honest.unheard(native.Accepted)[-1].credit_bytes
            assert told is not None
            assert 0 < told < 4 * MB
            for _ in range(promised // MB - 1):  # sent before the client learned that
                submit(honest, **NOBODY)
            await world.settle()
            assert honest.unheard(native.Refused) == []

    run_virtual(main)


def test_bytes_of_departed_clients_are_bounded() -> None:
    async def main() -> None:
        async with open_world(total_bytes=64 * MB) as world:
            for _ in range(60):
                client = await world.client(path=["x" * 1000])
                submit(client, 8 * MB, **NOBODY)
                await world.settle()
                client.leave()
                await world.settle()
            held = world.server.budget
            assert held.held_bytes <= 64 * MB * 5 // 4 + budget.OVERDRAFT_BYTES
            assert 0 < held.departed_bytes <= held.held_bytes
            other = await world.client()
            assert other.welcome.credit_bytes is not None
            assert 0 < other.welcome.credit_bytes <= MB

    run_virtual(main)


def test_departed_clients_with_unfinished_tasks_count_against_max_clients() -> None:
    async def main() -> None:
        async with open_world(max_clients=2) as world:
            engine = await world.engine()
            for _ in range(2):
                client = await world.client()
                await client.submit("x")
                client.leave()
                await world.settle()
            newcomer = await world.newcomer()
            token = world.running.connection.token
            newcomer.say(native.Hello(role="client", token=token))
            error = await newcomer.hear(native.Error)
            assert error.kind == "too_many"
            assert "2 clients left while their tasks go on; max_clients is 2" in error.message
            for _ in range(2):
                await engine.finish(await engine.next_call())
            await rounds(world)
            await world.client()

    run_virtual(main)
