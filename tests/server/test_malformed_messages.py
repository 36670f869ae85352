"""R25 and R26: malformed messages change nothing, are counted by reason, and answered where the sender is known."""

from __future__ import annotations

from typing import Any

import pytest

from trio_sched.testing import FakeClient, open_harness, run_virtual
from trio_sched.wire import native


@pytest.mark.parametrize(
    "garbage", [b"", b"\xff\xff", b"{}", b"\x81\xa4type\xa5hello", b"\x93\x01\x02\x03", b"x" * 5000]
)
def test_r25_malformed_messages_of_unauthenticated_peers_are_counted_and_not_answered(garbage: bytes) -> None:
    async def main() -> None:
        async with open_harness() as harness:
            newcomer = await harness.newcomer()
            newcomer.send_frames([garbage])
            await harness.settle()
            assert newcomer.received_messages == []
            assert harness.server.ingress.counters["malformed"] + harness.server.ingress.counters["unknown_type"] == 1

    run_virtual(main)


def test_r25_an_empty_message_is_malformed() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            newcomer = await harness.newcomer()
            newcomer.send_frames([])
            await harness.settle()
            assert harness.server.ingress.counters == {"malformed": 1}

    run_virtual(main)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (b"\xc1", "malformed"),
        (b"\x81\xa4type\xa7weather", "unknown_type"),
        (b"\x82\xa4type\xa6submit\xa5tasks\x01", "malformed"),
        (native.encode(native.Finished([])), "unexpected"),
        (native.encode(native.WorkerDied(1)), "unexpected"),
        (native.encode(native.Submit([native.Call(0)])), "malformed"),
        (native.encode(native.Submit([native.Call(1 << 40)])), "malformed"),
        (native.encode(native.Submit([native.Call(1, frames=3)])), "malformed"),
        (native.encode(native.Submit([native.Call(1, frames=-3)])), "malformed"),
        (native.encode(native.Submit([native.Call(1, frames=-3), native.Call(2, frames=3)])), "malformed"),
        (native.encode(native.Submit([native.Call(n) for n in range(1, 12)])), "too_large"),
    ],
)
def test_r25_a_client_is_told_why_its_message_was_rejected(message: bytes, kind: str) -> None:
    async def main() -> None:
        async with open_harness(max_tasks_per_message=10) as harness:
            client = await harness.client()
            client.send_frames([message])
            assert (await client.expect(native.Error)).kind == kind
            assert harness.server.ingress.counters == {kind: 1}
            assert not harness.server.scheduler.tasks
            assert harness.server.sessions.clients[client.number].submission_count == 0

    run_virtual(main)


def test_r25_the_error_for_an_unknown_version_names_the_remedy() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            newcomer = await harness.newcomer()
            newcomer.send(native.Hello(role="client", version=99, token=harness.running.connection.token))
            error = await newcomer.expect(native.Error)
            assert error.kind == "unknown_version"
            assert "install the same trio_sched" in error.message

    run_virtual(main)


@pytest.mark.parametrize("role", ["client", "engine", "nanny"])
def test_r25_a_hello_without_the_token_of_its_role_is_rejected(role: Any) -> None:
    async def main() -> None:
        async with open_harness() as harness:
            connection = harness.running.engine_connection if role == "client" else harness.running.connection
            for token in ("", "guess", connection.token):
                newcomer = await harness.newcomer()
                newcomer.send(native.Hello(role=role, token=token))
                assert (await newcomer.expect(native.Error)).kind == "unauthenticated"
            assert list(harness.server.sessions) == []

    run_virtual(main)


def test_r25_a_submission_of_an_unauthenticated_peer_is_rejected() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            newcomer = await harness.newcomer()
            newcomer.rejoins = False
            newcomer.send(native.Submit([native.Call(1)]))
            assert (await newcomer.expect(native.Error)).kind == "unknown_peer"
            assert not harness.server.scheduler.tasks

    run_virtual(main)


@pytest.mark.parametrize(
    "hello",
    [
        *({"slots": slots} for slots in (0, 10**9)),
        *({"hwm": hwm} for hwm in (-1, 10**7)),
        *({"resources": {"gpu": amount}} for amount in (-1.0, 1e300, float("nan"))),
    ],
)
def test_r25_a_hello_of_an_engine_with_values_out_of_range_is_rejected(hello: dict[str, Any]) -> None:
    async def main() -> None:
        async with open_harness() as harness:
            newcomer = await harness.newcomer()
            newcomer.send(native.Hello(role="engine", token=harness.running.engine_connection.token, **hello))
            assert (await newcomer.expect(native.Error)).kind == "malformed"
            assert not harness.server.sessions.engines

    run_virtual(main)


@pytest.mark.parametrize("weight", [0.0, 5e-324, 1e-4, 1001.0, float("inf"), float("nan")])
def test_r32_a_weight_that_would_distort_fair_share_is_refused(weight: float) -> None:
    async def main() -> None:
        async with open_harness() as harness:
            newcomer = await harness.newcomer()
            newcomer.send(native.Hello(role="client", token=harness.running.connection.token, weight=weight))
            error = await newcomer.expect(native.Error)
            assert error.message == f"weight is {weight}; it must be from 0.001 to 1,000"
            assert not harness.server.sessions.clients

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
        async with open_harness() as harness:
            client = await harness.client()
            client.send(message)
            assert (await client.expect(native.Error)).kind == "malformed"
            assert not harness.server.scheduler.tasks

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
def test_r25_a_submission_with_wrong_options_is_refused_alone(options: dict[str, Any], reason: str) -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine(eager=True)
            assert engine.number
            wrong = await client.submit("wrong", **options)
            right = await client.submit("right")
            refused = await client.expect(native.Refused)
            assert refused.id == wrong
            assert reason in refused.reason
            assert (await client.result_of(right)).outcome == "ok"
            await harness.settle()
            assert harness.server.sessions.clients[client.number].accepted_count == 2

    run_virtual(main)


def test_r25_a_function_with_a_wrong_digest_is_not_kept() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client()
            client.send(native.Submit([native.Call(1, b"d" * 16)], {b"d" * 16: b"something else"}))
            assert "not whole" in (await client.expect(native.Refused)).reason
            assert harness.server.ingress.counters["bad_digest"] == 1

    run_virtual(main)


def test_r25_a_message_beyond_twice_the_credit_is_rejected() -> None:
    async def main() -> None:
        async with open_harness(credit=5) as harness:
            client = await harness.client()
            await client.submit(*"abcdefghijk")
            assert (await client.expect(native.Error)).kind == "credit"
            assert not harness.server.scheduler.tasks

    run_virtual(main)


def test_r25_limits_of_clients_and_engines() -> None:
    async def main() -> None:
        async with open_harness(max_clients=1, max_engines=1) as harness:
            client, engine = await harness.client(), await harness.engine()
            for role, token in (
                ("client", harness.running.connection.token),
                ("engine", harness.running.engine_connection.token),
            ):
                newcomer = await harness.newcomer()
                newcomer.send(native.Hello(role=role, token=token))  # type: ignore[arg-type]  # both are roles
                error = await newcomer.expect(native.Error)
                assert error.kind == "too_many"
                assert "is 1" in error.message
            assert (await client.rejoin()).resumed  # sessions that exist may be resumed
            assert (await engine.rejoin()).resumed

    run_virtual(main)


def test_r25_a_flood_of_malformed_messages_makes_few_log_events(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with open_harness() as harness:
            newcomer = await harness.newcomer()
            for _ in range(1000):
                newcomer.send_frames([b"secret payload \xff"])
            await harness.settle()
            assert harness.server.ingress.counters["malformed"] == 1000

    run_virtual(main)
    logged = caplog.text
    assert logged.count("dropped") == 10
    assert "secret" not in logged


def test_r26_answers_for_tasks_that_the_engine_never_had_are_counted_and_ignored() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            rogue = await harness.engine()
            task = await client.submit("x")
            await harness.settle()
            owner, other = (engine, rogue) if engine.queued() else (rogue, engine)
            call = await owner.next_call()
            await other.finish(call, "a lie")
            await other.finish(native.Call(12345678901, attempt=1), "another")
            await harness.settle()
            assert client.results == {}
            await owner.finish(call, "the truth")
            await owner.finish(call, "again")
            assert (await client.result_of(task)).body == b"the truth"
            await harness.settle()
            assert harness.server.scheduler.counters["stray_result"] == 3
            assert client.deliveries == [task]

    run_virtual(main)


def test_r26_a_nanny_cannot_report_the_death_of_another_nanny_s_engine() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            nanny, newcomer = await harness.nanny(), await harness.nanny()
            engine = await harness.engine(nanny=nanny.number)
            newcomer.report_death(engine)
            await harness.settle()
            assert engine.number in harness.server.sessions.engines
            assert harness.server.ingress.counters["death_of_unknown"] == 1

    run_virtual(main)


def test_r26_a_repeated_departure_is_ignored() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            nanny = await harness.nanny()
            engine = await harness.engine(nanny=nanny.number)
            engine.leave()
            engine.leave()
            nanny.report_death(engine)
            await harness.settle()
            assert engine.number not in harness.server.scheduler.engines

    run_virtual(main)


def test_an_engine_decides_only_between_ok_error_and_unmet() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            task = await client.submit("x")
            call = await engine.next_call()
            engine.send(
                native.Finished([native.TaskResult(call.id, "timeout", reason="I say so", attempt=call.attempt)])
            )
            end = await client.result_of(task)
            assert (end.outcome, end.error) == ("error", native.RemoteError("EngineError", "I say so"))

    run_virtual(main)


def test_messages_larger_than_the_limit_close_the_connection() -> None:
    async def main() -> None:
        async with open_harness(max_message_bytes=1 << 16) as harness:
            client = await harness.client()
            assert client.welcome.max_message_bytes == 1 << 16
            await client.submit(b"x" * (1 << 17))
            await harness.settle()
            assert not harness.server.scheduler.tasks

    run_virtual(main)


def test_the_number_of_remembered_unauthenticated_connections_is_bounded() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            dealers = [harness.connect() for _ in range(1100)]
            for dealer in dealers:
                dealer.send([b"garbage"])
            await harness.settle()
            peer = FakeClient(harness.connect, harness.running.connection.token)
            assert (await harness._joined(peer)).number

    run_virtual(main)
