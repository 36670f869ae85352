"""R25 and R26: what is wrong changes nothing, is counted by reason, and answered where the sender is known."""

from __future__ import annotations

from typing import Any

import pytest

from trio_sched.testing import FakeClient, open_world, run_virtual
from trio_sched.wire import native


@pytest.mark.parametrize(
    "garbage", [b"", b"\xff\xff", b"{}", b"\x81\xa4type\xa5hello", b"\x93\x01\x02\x03", b"x" * 5000]
)
def test_r25_garbage_from_a_stranger_is_counted_and_not_answered(garbage: bytes) -> None:
    async def main() -> None:
        async with open_world() as world:
            stranger = await world.stranger()
            stranger.say_raw([garbage])
            await world.settle()
            assert stranger.heard == []
            assert world.server.hub.counters["malformed"] + world.server.hub.counters["unknown_type"] == 1

    run_virtual(main)


def test_r25_an_empty_message_is_nothing() -> None:
    async def main() -> None:
        async with open_world() as world:
            stranger = await world.stranger()
            stranger.say_raw([])
            await world.settle()
            assert world.server.hub.counters == {"malformed": 1}

    run_virtual(main)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (b"\xc1", "malformed"),
        (b"\x81\xa4type\xa7weather", "unknown_type"),
        (b"\x82\xa4type\xa6submit\xa5tasks\x01", "malformed"),
        (native.encode(native.Finished([])), "unexpected"),
        (native.encode(native.Died(1)), "unexpected"),
        (native.encode(native.Submit([native.Call(0)])), "malformed"),
        (native.encode(native.Submit([native.Call(1 << 40)])), "malformed"),
        (native.encode(native.Submit([native.Call(1, frames=3)])), "malformed"),
        (native.encode(native.Submit([native.Call(1, frames=-3)])), "malformed"),
        (native.encode(native.Submit([native.Call(1, frames=-3), native.Call(2, frames=3)])), "malformed"),
        (native.encode(native.Submit([native.Call(n) for n in range(1, 12)])), "too_large"),
    ],
)
def test_r25_a_client_hears_what_was_wrong(message: bytes, kind: str) -> None:
    async def main() -> None:
        async with open_world(max_tasks_per_message=10) as world:
            client = await world.client()
            client.say_raw([message])
            assert (await client.hear(native.Error)).kind == kind
            assert world.server.hub.counters == {kind: 1}
            assert not world.server.scheduler.tasks
            assert world.server.sessions.clients[client.number].received == 0

    run_virtual(main)


def test_r25_an_unknown_version_is_told_what_to_do() -> None:
    async def main() -> None:
        async with open_world() as world:
            stranger = await world.stranger()
            stranger.say(native.Hello(role="client", version=99, token=world.running.connection.token))
            error = await stranger.hear(native.Error)
            assert error.kind == "unknown_version"
            assert "install the same trio_sched" in error.message

    run_virtual(main)


@pytest.mark.parametrize("role", ["client", "engine", "nanny"])
def test_r25_without_the_role_s_token_nobody_gets_in(role: Any) -> None:
    async def main() -> None:
        async with open_world() as world:
            connection = world.running.engine_connection if role == "client" else world.running.connection
            for token in ("", "guess", connection.token):
                stranger = await world.stranger()
                stranger.say(native.Hello(role=role, token=token))
                assert (await stranger.hear(native.Error)).kind == "unauthenticated"
            assert list(world.server.sessions) == []

    run_virtual(main)


def test_r25_a_stranger_s_submission_is_not_taken() -> None:
    async def main() -> None:
        async with open_world() as world:
            stranger = await world.stranger()
            stranger.returning = False
            stranger.say(native.Submit([native.Call(1)]))
            assert (await stranger.hear(native.Error)).kind == "unknown_peer"
            assert not world.server.scheduler.tasks

    run_virtual(main)


@pytest.mark.parametrize(
    "hello",
    [
        *({"slots": slots} for slots in (0, 10**9)),
        *({"hwm": hwm} for hwm in (-1, 10**7)),
        *({"resources": {"gpu": amount}} for amount in (-1.0, 1e300, float("nan"))),
    ],
)
def test_r25_an_engine_that_makes_no_sense_is_not_taken(hello: dict[str, Any]) -> None:
    async def main() -> None:
        async with open_world() as world:
            stranger = await world.stranger()
            stranger.say(native.Hello(role="engine", token=world.running.engine_connection.token, **hello))
            assert (await stranger.hear(native.Error)).kind == "malformed"
            assert not world.server.sessions.engines

    run_virtual(main)


@pytest.mark.parametrize("weight", [0.0, 5e-324, 1e-4, 1001.0, float("inf"), float("nan")])
def test_r32_a_weight_that_would_distort_fair_share_is_refused(weight: float) -> None:
    async def main() -> None:
        async with open_world() as world:
            stranger = await world.stranger()
            stranger.say(native.Hello(role="client", token=world.running.connection.token, weight=weight))
            error = await stranger.hear(native.Error)
            assert error.message == f"weight is {weight}; it must be from 0.001 to 1,000"
            assert not world.server.sessions.clients

    run_virtual(main)


@pytest.mark.parametrize(
    "message",
    [
        native.Ping(received=1),
        native.Ping(received=-1),
        native.Submit([native.Call(1)], received=1),
        native.Cancel([-1]),
        native.Cancel([1 << 62]),
        native.Query(1, "explain", -3),
    ],
    ids=str,
)
def test_r32_counts_and_ids_out_of_range_change_nothing(message: native.Message) -> None:
    async def main() -> None:
        async with open_world() as world:
            client = await world.client()
            client.say(message)
            assert (await client.hear(native.Error)).kind == "malformed"
            assert not world.server.scheduler.tasks

    run_virtual(main)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"timeout_s": -1.0}, "timeout_s is -1.0"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"retries": -1}, "retries is -1"),
        ({"retries": 1_000_001}, "retries is 1000001; it must be from 0 to 1,000,000"),
        ({"backoff_s": 86_401.0}, "backoff_s is 86401.0; it must be from 0 to 86,400"),
        ({"timeout_s": 1e13}, "timeout_s is"),
        ({"priority": 1 << 62}, "priority is"),
        ({"resources": {"gpu": 1e16}}, "resource 'gpu' is"),
        ({"follow": [1 << 62]}, "follow names the task"),
        ({"backoff_s": float("inf")}, "backoff_s is inf"),
        ({"resources": {"gpu": float("nan")}}, "resource 'gpu' is nan"),
        ({"after": [0]}, "after names the task 0"),
        ({"inputs": [-5]}, "inputs names the task -5"),
        ({"after_success": False}, "success"),
    ],
)
def test_r25_a_submission_that_makes_no_sense_is_refused_by_itself(options: dict[str, Any], reason: str) -> None:
    async def main() -> None:
        async with open_world() as world:
            client, engine = await world.client(), await world.engine(eager=True)
            assert engine.number
            wrong = await client.submit("wrong", **options)
            right = await client.submit("right")
            refused = await client.hear(native.Refused)
            assert refused.id == wrong
            assert reason in refused.reason
            assert (await client.end_of(right)).outcome == "ok"
            await world.settle()
            assert world.server.sessions.clients[client.number].accepted == 2

    run_virtual(main)


def test_r25_a_function_that_is_not_what_its_digest_says_is_not_taken() -> None:
    async def main() -> None:
        async with open_world() as world:
            client = await world.client()
            client.say(native.Submit([native.Call(1, b"d" * 16)], {b"d" * 16: b"something else"}))
            assert "not whole" in (await client.hear(native.Refused)).reason
            assert world.server.hub.counters["bad_digest"] == 1

    run_virtual(main)


def test_r25_a_client_that_ignores_its_credit_is_not_listened_to() -> None:
    async def main() -> None:
        async with open_world(credit=5) as world:
            client = await world.client()
            await client.submit(*"abcdefghijk")
            assert (await client.hear(native.Error)).kind == "credit"
            assert not world.server.scheduler.tasks

    run_virtual(main)


def test_r25_limits_of_clients_and_engines() -> None:
    async def main() -> None:
        async with open_world(max_clients=1, max_engines=1) as world:
            client, engine = await world.client(), await world.engine()
            for role, token in (
                ("client", world.running.connection.token),
                ("engine", world.running.engine_connection.token),
            ):
                stranger = await world.stranger()
                stranger.say(native.Hello(role=role, token=token))  # type: ignore[arg-type]  # both are roles
                error = await stranger.hear(native.Error)
                assert error.kind == "too_many"
                assert "is 1" in error.message
            assert (await client.rejoin()).resumed  # those who are in already may come back
            assert (await engine.rejoin()).resumed

    run_virtual(main)


def test_r25_a_flood_of_garbage_is_not_a_flood_of_logs(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with open_world() as world:
            stranger = await world.stranger()
            for _ in range(1000):
                stranger.say_raw([b"secret payload \xff"])
            await world.settle()
            assert world.server.hub.counters["malformed"] == 1000

    run_virtual(main)
    logged = caplog.text
    assert logged.count("dropped") == 10
    assert "secret" not in logged


def test_r26_an_engine_that_answers_for_a_task_it_never_had_does_no_harm() -> None:
    async def main() -> None:
        async with open_world() as world:
            client, engine = await world.client(), await world.engine()
            rogue = await world.engine()
            task = await client.submit("x")
            await world.settle()
            owner, other = (engine, rogue) if engine.queued() else (rogue, engine)
            call = await owner.next_call()
            await other.finish(call, "a lie")
            await other.finish(native.Call(12345678901, attempt=1), "another")
            await world.settle()
            assert client.ends == {}
            await owner.finish(call, "the truth")
            await owner.finish(call, "again")
            assert (await client.end_of(task)).body == b"the truth"
            await world.settle()
            assert world.server.scheduler.counters["stray_result"] == 3
            assert client.deliveries == [task]

    run_virtual(main)


def test_r26_a_nanny_cannot_bury_another_s_engine() -> None:
    async def main() -> None:
        async with open_world() as world:
            nanny, stranger = await world.nanny(), await world.nanny()
            engine = await world.engine(nanny=nanny.number)
            stranger.report_death(engine)
            await world.settle()
            assert engine.number in world.server.sessions.engines
            assert world.server.hub.counters["death_of_unknown"] == 1

    run_virtual(main)


def test_r26_leaving_twice_does_no_harm() -> None:
    async def main() -> None:
        async with open_world() as world:
            nanny = await world.nanny()
            engine = await world.engine(nanny=nanny.number)
            engine.leave()
            engine.leave()
            nanny.report_death(engine)
            await world.settle()
            assert engine.number not in world.server.scheduler.engines

    run_virtual(main)


def test_an_engine_decides_only_between_ok_error_and_unmet() -> None:
    async def main() -> None:
        async with open_world() as world:
            client, engine = await world.client(), await world.engine()
            task = await client.submit("x")
            call = await engine.next_call()
            engine.say(native.Finished([native.TaskEnd(call.id, "timeout", reason="I say so", attempt=call.attempt)]))
            end = await client.end_of(task)
            assert (end.outcome, end.error) == ("error", native.RemoteError("EngineError", "I say so"))

    run_virtual(main)


def test_messages_larger_than_the_limit_close_the_connection() -> None:
    async def main() -> None:
        async with open_world(max_message_bytes=1 << 16) as world:
            client = await world.client()
            assert client.welcome.max_message_bytes == 1 << 16
            await client.submit(b"x" * (1 << 17))
            await world.settle()
            assert not world.server.scheduler.tasks

    run_virtual(main)


def test_a_stranger_list_does_not_grow_without_bound() -> None:
    async def main() -> None:
        async with open_world() as world:
            dealers = [world.connect() for _ in range(1100)]
            for dealer in dealers:
                dealer.send([b"garbage"])
            await world.settle()
            peer = FakeClient(world.connect, world.running.connection.token)
            assert (await world._joined(peer)).number

    run_virtual(main)
