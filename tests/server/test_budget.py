"""The byte budget: credit, refusals, pauses (R34), and that all memory is released."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from trio_sched.server import budget, sessions
from trio_sched.testing import FakeClient, FakeEngine, ServerHarness, open_harness, run_virtual
from trio_sched.wire import native
from trio_sched.wire.payload import digest

MB = 1 << 20
NOBODY: Any = {"resources": {"nobody has this": 1.0}}


def submit(client: FakeClient, size: int = MB, **options: Any) -> int:
    """Submit one call with a frame of `size` bytes. Returns the task id."""
    [call] = client.calls(b"", **options)
    call.frames = 1
    client.sent.append(call)
    client.send(native.Submit([call]), [bytes(size)])
    return client.task_id(call.id)


async def heard_credit(harness: ServerHarness, client: FakeClient) -> tuple[int | None, str]:
    """Return the credit that the client was told last, and the name of the limit."""
    await harness.settle()
    told = [message for message in client.take_unread(native.Accepted) if message.credit_bytes is not None]
    return (told[-1].credit_bytes, told[-1].limit) if told else (None, "")


def test_credit_shrinks_to_zero_and_grows_as_tasks_end() -> None:
    async def main() -> None:
        async with open_harness(client_bytes=4 * MB) as harness:
            client, engine = await harness.client(), await harness.engine()
            assert client.welcome.credit_bytes == 4 * MB
            tasks = [submit(client) for _ in range(3)]
            credit, limit = await heard_credit(harness, client)
            assert credit == MB - 3 * native.TASK_BYTES
            assert limit == "client_bytes"
            submit(client)
            assert await heard_credit(harness, client) == (0, "client_bytes")
            assert (await client.query("status"))["clients"][0]["held_bytes"] == 4 * (MB + native.TASK_BYTES)
            for _ in tasks:
                await engine.finish(await engine.next_call())
            credit, _ = await heard_credit(harness, client)
            assert credit == 3 * MB - native.TASK_BYTES
            await engine.finish(await engine.next_call())
            await heard_credit(harness, client)
            assert harness.server.sessions.clients[client.number].payloads == {}
            assert (await client.rejoin()).credit_bytes == 4 * MB

    run_virtual(main)


def test_small_tasks_are_counted_by_their_number() -> None:
    async def main() -> None:
        async with open_harness(client_bytes=1 << 16) as harness:
            client = await harness.client()
            await client.submit(*["x"] * 128)
            assert await heard_credit(harness, client) == (0, "client_bytes")
            assert harness.server.sessions.clients[client.number].payloads == {}

    run_virtual(main)


def test_a_call_larger_than_the_limit_is_accepted_while_nothing_else_is_held() -> None:
    async def main() -> None:
        async with open_harness(client_bytes=MB) as harness:
            client, engine = await harness.client(), await harness.engine()
            for _ in range(2):
                task = submit(client, 5 * MB)
                assert await heard_credit(harness, client) == (0, "client_bytes")
                await engine.finish(await engine.next_call())
                assert (await client.result_of(task)).outcome == "ok"
                credit, _ = await heard_credit(harness, client)
                assert credit == MB

    run_virtual(main)


def test_submissions_beyond_the_credit_are_refused_with_the_name_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "OVERDRAFT_BYTES", 0)

    async def main() -> None:
        async with open_harness(client_bytes=MB, window_bytes=MB) as harness:
            client = await harness.client()
            tasks = []
            for _ in range(5):
                tasks.append(submit(client, **NOBODY))
                await harness.settle()
            refused = client.take_unread(native.Refused)
            assert [message.id for message in refused] == tasks[2:]
            assert "client_bytes is 1,048,576" in refused[0].reason
            assert harness.server.budget.held_bytes == 2 * MB
            assert harness.server.ingress.counters["over_credit_bytes"] == 3
            client.send(native.Cancel(tasks[:2]))
            await harness.settle()
            task = submit(client, **NOBODY)
            await harness.settle()
            assert client.take_unread(native.Refused) == []
            assert task in harness.server.scheduler.tasks

    run_virtual(main)


def test_plain_arguments_and_functions_are_counted() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client()
            client.send(native.Submit([native.Call(1, call="builtins:len", args=["x" * MB])]))
            await client.submit("y", fn=bytes(MB))
            await harness.settle()
            assert 2 * MB < harness.server.budget.held_bytes < 2 * MB + 1000
            client.leave(cancel=True)
            await harness.settle()
            assert harness.server.budget.held_bytes == 0

    run_virtual(main)


def test_one_client_leaves_a_part_of_the_total_for_another() -> None:
    async def main() -> None:
        async with open_harness(total_bytes=16 * MB) as harness:
            greedy, other = await harness.client(), await harness.client()
            while greedy.welcome.credit_bytes:
                submit(greedy, **NOBODY)
                credit, limit = await heard_credit(harness, greedy)
                if credit is not None:
                    greedy.welcome.credit_bytes = credit
            assert limit == "total_bytes"
            assert harness.server.budget.held_bytes <= 9 * MB
            assert (await other.rejoin()).credit_bytes == harness.server.budget.free_bytes() // 3
            for _ in range(4):
                submit(other, **NOBODY)
            await harness.settle()
            greedy.leave(cancel=True)
            credit, _ = await heard_credit(harness, other)
            assert credit
            assert credit > MB  # it is told although its own tasks have not changed

    run_virtual(main)


def test_bytes_of_departed_clients_count_until_their_tasks_have_ended() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            submit(client)
            call = await engine.next_call()
            client.leave()
            await harness.settle()
            assert harness.server.budget.held_bytes == MB
            await engine.finish(call, bytes(MB))
            await rounds(harness)
            assert harness.server.budget.held_bytes == 0
            assert harness.server.sessions.departed == {}

    run_virtual(main)


async def rounds(harness: ServerHarness) -> None:
    """Wait for two audits."""
    await trio.sleep(2 * harness.server.config.heartbeat_s)
    await harness.settle()


async def results_of(
    harness: ServerHarness, client: FakeClient, engine: FakeEngine, count: int, size: int = MB
) -> None:
    """Submit `count` tasks, and answer every call that the engine gets."""
    await client.submit(*["x"] * count)
    await work(harness, engine, size)


async def work(harness: ServerHarness, engine: FakeEngine, size: int = MB) -> None:
    """Answer calls until the engine gets no more; gathered results are sent in between."""
    await harness.settle()
    while engine.queued():
        await engine.finish(engine.take_call(), b"", [bytes(size)])
        await trio.sleep(0.01)
        await harness.settle()


def test_r34_a_client_that_reads_no_results_is_paused_until_it_has_read_half() -> None:
    async def main() -> None:
        async with open_harness(client_bytes=4 * MB, hwm=1) as harness:
            slow, other, engine = await harness.client(), await harness.client(), await harness.engine()
            slow.acknowledging = False
            await results_of(harness, slow, engine, 10)
            assert len(slow.results) in (5, 6)  # calls that were sent before the pause go on
            last = slow.task_id(10)
            assert "unread results, more than client_bytes allows" in await other.query("explain", last)
            row = (await other.query("status"))["clients"][0]
            assert row["unread_bytes"] > 4 * MB
            assert "unread" in row["paused"]
            task = await other.submit("y")
            await engine.finish(await engine.next_call())
            assert (await other.result_of(task)).outcome == "ok"
            slow.acknowledging = True
            slow.send(native.Ping(1))
            await harness.settle()
            assert (await other.query("status"))["clients"][0]["paused"]
            slow.send(native.Ping(slow.received - 1))
            await harness.settle()
            assert (await other.query("status"))["clients"][0]["paused"] == ""
            for _ in range(10):
                slow.send(slow.ping())
                await work(harness, engine)
            assert len(slow.results) == 10

    run_virtual(main)


def test_r34_a_disconnected_client_is_paused_and_loses_nothing() -> None:
    async def main() -> None:
        async with open_harness(client_bytes=4 * MB, hwm=1) as harness:
            client, engine = await harness.client(), await harness.engine()
            await client.submit(*["x"] * 10)
            harness.server.ingress.connection_lost(harness.server.sessions.clients[client.number].connection, "closed")  # type: ignore[arg-type]
            client.sends_heartbeats = client.rejoins = False
            await harness.settle()
            await work(harness, engine)
            session = harness.server.sessions.clients[client.number]
            assert session.paused
            assert session.unread_bytes == session.waiting_bytes
            assert len(harness.server.scheduler.tasks) >= 4
            client.rejoins = client.sends_heartbeats = True
            await client.rejoin()
            for _ in range(20):
                client.send(client.ping())
                await work(harness, engine)
            assert len(client.results) == 10
            client.send(client.ping())
            await harness.settle()
            assert session.unread_bytes == 0
            assert harness.server.budget.held_bytes == 0

    run_virtual(main)


def test_free_memory_is_returned_when_most_of_it_was_released(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed = []
    monkeypatch.setattr(budget, "return_free_memory", lambda: trimmed.append(1))
    monkeypatch.setattr(budget, "TRIM_BYTES", 2 * MB)

    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client()
            tasks = [submit(client, **NOBODY) for _ in range(4)]
            await rounds(harness)
            client.send(native.Cancel(tasks[:1]))
            await rounds(harness)
            assert trimmed == []
            client.send(native.Cancel(tasks))
            await rounds(harness)
            assert trimmed == [1]

    run_virtual(main)


# ---- limits on what one message may make the server keep ------------------------------------------------------------


def test_fields_that_are_too_long_are_refused_without_being_quoted() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client()
            for call, why in (
                (native.Call(1, fn=bytes(MB)), "fn of task 1 has 1,048,576 bytes; a digest has 16"),
                (native.Call(1, call="m:" + "x" * MB), "call of task 1 has 1,048,578 characters; the limit is 1,000"),
                (native.Call(1, call="m:x", inputs=[native.Value(bytes(MB))]), "only the scheduler sets"),
                (native.Call(1, call="m:x", attached=[bytes(MB)]), "only the scheduler sets"),
                (native.Call(1, call="m:x", resources={"x" * MB: 1.0}), "only the scheduler sets"),
            ):
                client.send(native.Submit([call]))
                error = await client.expect(native.Error)
                assert error.kind == "malformed"
                assert why in error.message
            for number, (options, why) in enumerate(
                (
                    (native.Options(label="x" * MB), "label has 1,048,576 characters; the limit is 1,000"),
                    (native.Options(resources={"x" * MB: 1.0}), "the name of a resource has 1,048,576 characters"),
                    (native.Options(resources={str(n): 1.0 for n in range(101)}), "resources has 101 entries"),
                    (native.Options(targets=list(range(1001))), "1001 targets; the limit is 1000"),
                ),
                1,
            ):
                client.send(native.Submit([native.Call(number, call="m:x", options=options)]))
                refused = await client.expect(native.Refused)
                assert why in refused.reason
                assert len(refused.reason) < 200
            session = harness.server.sessions.clients[client.number]
            assert harness.server.budget.held_bytes == 0
            assert session.refusal_bytes < 2000
            client.send(native.Ping())

    run_virtual(main)


def test_a_hello_that_is_too_large_is_answered_with_an_error() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            for hello, why in (
                ({"path": ["x" * MB]}, "path has 1,048,576 characters in all; the limit is 262,144"),
                ({"path": [""] * 10_001}, "path has 10,001 entries; the limit is 10,000"),
                ({"cwd": "x" * MB}, "cwd has 1,048,576 characters; the limit is 4,096"),
                ({"name": "x" * MB}, "name has 1,048,576 characters; the limit is 1,000"),
            ):
                newcomer = await harness.newcomer()
                token = harness.running.connection.token
                newcomer.send(native.Hello(role="client", token=token, **hello))
                error = await newcomer.expect(native.Error)
                assert error.kind == "malformed"
                assert why in error.message
            assert harness.server.sessions.clients == {}

    run_virtual(main)


def test_refusals_that_are_kept_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "REFUSALS_KEPT_BYTES", 10_000)

    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client()
            session = harness.server.sessions.clients[client.number]
            for number in range(1, 101):
                client.send(native.Submit([native.Call(number, call="m:x", options=native.Options(retries=-1))]))
            await harness.settle()
            assert 5_000 < session.refusal_bytes <= 10_000
            assert 0 < len(session.refusals) < 50
            assert session.refusals[-1][1].id == client.task_id(100)

    run_virtual(main)


def test_ids_in_options_and_functions_without_tasks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "OVERDRAFT_BYTES", 0)

    async def main() -> None:
        async with open_harness(client_bytes=MB, window_bytes=MB) as harness:
            client = await harness.client()
            first = await client.submit("x", **NOBODY)
            second = await client.submit("x", after=[first] * 1000)
            await harness.settle()
            assert harness.server.sessions.clients[client.number].payloads == {second: 1000 * native.NAMED_BYTES}
            for number in range(5):
                body = bytes([number]) * MB
                client.send(native.Submit([], functions={digest(body): body}))
            await harness.settle()
            assert len(harness.server.sessions.clients[client.number].functions) < 4
            assert harness.server.ingress.counters["over_credit_bytes"] > 0

    run_virtual(main)


def test_clients_that_ignore_their_credit_do_not_exceed_the_total_by_an_overdraft_each() -> None:
    async def main() -> None:
        async with open_harness(total_bytes=64 * MB) as harness:
            clients = []
            for _ in range(20):
                clients.append(await harness.client())
                for _ in range(16):
                    submit(clients[-1], **NOBODY)
                await harness.settle()
            slack = budget.OVERDRAFT_BYTES
            assert harness.server.budget.held_bytes <= 64 * MB * 5 // 4 + slack + len(clients) * MB
            assert harness.server.ingress.counters["over_credit_bytes"] > 0

    run_virtual(main)


def test_a_promise_made_before_others_exceeded_the_total_is_kept() -> None:
    async def main() -> None:
        async with open_harness(total_bytes=64 * MB) as harness:
            honest = await harness.client()
            promised = honest.welcome.credit_bytes
            assert promised == 32 * MB
            for _ in range(8):
                client = await harness.client()
                for _ in range(32):
                    submit(client, **NOBODY)
                await harness.settle()
            assert harness.server.budget.free_bytes() < 0
            await honest.submit("x", **NOBODY)
            await harness.settle()
            told = honest.take_unread(native.Accepted)[-1].credit_bytes
            assert told is not None
            assert 0 < told < 4 * MB
            for _ in range(promised // MB - 1):  # sent before the client learned that
                submit(honest, **NOBODY)
            await harness.settle()
            assert honest.take_unread(native.Refused) == []

    run_virtual(main)


def test_bytes_of_departed_clients_are_bounded() -> None:
    async def main() -> None:
        async with open_harness(total_bytes=64 * MB) as harness:
            for _ in range(60):
                client = await harness.client(path=["x" * 1000])
                submit(client, 8 * MB, **NOBODY)
                await harness.settle()
                client.leave()
                await harness.settle()
            held = harness.server.budget
            assert held.held_bytes <= 64 * MB * 5 // 4 + budget.OVERDRAFT_BYTES
            assert 0 < held.departed_bytes <= held.held_bytes
            other = await harness.client()
            assert other.welcome.credit_bytes is not None
            assert 0 < other.welcome.credit_bytes <= MB

    run_virtual(main)


def test_departed_clients_with_unfinished_tasks_count_against_max_clients() -> None:
    async def main() -> None:
        async with open_harness(max_clients=2) as harness:
            engine = await harness.engine()
            for _ in range(2):
                client = await harness.client()
                await client.submit("x")
                client.leave()
                await harness.settle()
            newcomer = await harness.newcomer()
            token = harness.running.connection.token
            newcomer.send(native.Hello(role="client", token=token))
            error = await newcomer.expect(native.Error)
            assert error.kind == "too_many"
            assert "2 clients left while their tasks go on; max_clients is 2" in error.message
            for _ in range(2):
                await engine.finish(await engine.next_call())
            await rounds(harness)
            await harness.client()

    run_virtual(main)
