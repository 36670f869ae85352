"""Timeouts, grace periods, heartbeats and expiry, in virtual time."""

from __future__ import annotations

import pytest
import trio

from tests.server.stepped_server import SteppedServer
from trio_sched.core.events import TimePassed
from trio_sched.testing import open_harness, run_virtual
from trio_sched.wire import native


def test_r21_a_task_that_cannot_start_times_out_exactly() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client()
            submitted_at = trio.current_time()
            task = await client.submit("x", timeout_s=7.25)
            end = await client.result_of(task)
            assert end.outcome == "timeout"
            assert end.error is not None
            assert end.error.name == "TaskTimeout"
            assert trio.current_time() - submitted_at == pytest.approx(7.25, abs=0.01)

    run_virtual(main)


def test_r18_a_retry_waits_for_its_backoff() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            await client.submit("x", retries=1, backoff_s=3.0)
            await engine.fail(await engine.next_call())
            failed_at = trio.current_time()
            call = await engine.next_call()
            assert call.attempt == 2
            assert trio.current_time() - failed_at == pytest.approx(3.0, abs=0.01)

    run_virtual(main)


def test_r20_a_silent_engine_is_unregistered_after_its_grace_period() -> None:
    async def main() -> None:
        async with open_harness(grace_s=5.0) as harness:
            client = await harness.client()
            silent = await harness.engine()
            task = await client.submit("x")
            await silent.next_call()
            silent.dealer.lose()
            silent_since = trio.current_time()
            other = await harness.engine()
            await other.finish(await other.next_call(timeout_s=60), "done")
            # 5 periods of 2 s of silence, noticed at the next audit, then 5 s of grace
            assert 15.0 <= trio.current_time() - silent_since <= 19.5
            assert (await client.result_of(task)).engine == other.number

    run_virtual(main)


def test_r20_a_result_within_the_grace_period_counts() -> None:
    async def main() -> None:
        async with open_harness(grace_s=5.0) as harness:
            client, engine = await harness.client(), await harness.engine()
            task = await client.submit("x")
            call = await engine.next_call()
            engine.dealer.cut()
            await trio.sleep(13.0)
            assert harness.server.sessions.engines[engine.number].lost
            await engine.finish(call, "late, but here")
            assert (await engine.rejoin()).resumed
            end = await client.result_of(task)
            assert (end.outcome, end.body) == ("ok", b"late, but here")

    run_virtual(main)


def test_r20_an_engine_that_returns_after_the_grace_period_gets_another_id() -> None:
    async def main() -> None:
        async with open_harness(grace_s=5.0) as harness:
            client, engine = await harness.client(), await harness.engine()
            task = await client.submit("x")
            call = await engine.next_call()
            number = engine.number
            engine.dealer.lose()
            await trio.sleep(30.0)
            welcome = await engine.rejoin()
            assert not welcome.resumed
            assert welcome.session != number
            again = await engine.next_call()
            assert again.id == call.id
            assert again.attempt == 2
            await engine.finish(again, "second")
            assert (await client.result_of(task)).body == b"second"

    run_virtual(main)


def test_r20_a_hello_in_the_turn_in_which_the_grace_period_ends_begins_a_new_session() -> None:
    by_hand = SteppedServer(grace_s=5.0)
    engine = by_hand.engine()
    number = engine.number
    connection = by_hand.server.sessions.engines[number].connection
    assert connection is not None
    by_hand.server.ingress.connection_lost(connection, "it was cut")
    by_hand.step()
    engine.reconnect()
    by_hand.now = 5.0
    by_hand.server.inbox.add_notifications([TimePassed()])
    engine.send(engine.hello())
    by_hand.work(engine)
    [welcome] = engine.take_unread(native.Welcome)[-1:]
    assert (welcome.resumed, welcome.session) == (False, number + 1)
    assert list(by_hand.server.sessions.engines) == list(by_hand.server.scheduler.engines) == [number + 1]
    assert by_hand.server.scheduler.counters == {}


def test_r20_lost_assignments_are_sent_again_when_the_engine_returns() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            engine.dealer.lose()
            task = await client.submit("x")
            await harness.settle()
            assert engine.queued() == []
            assert (await engine.rejoin()).resumed
            await engine.finish(await engine.next_call(), "done")
            assert (await client.result_of(task)).outcome == "ok"

    run_virtual(main)


def test_r20_a_task_assigned_in_the_turn_of_an_engine_s_return_is_sent_once() -> None:
    """The engine's last result and its Hello are read together, so a call is queued when the Hello is handled."""

    async def main() -> None:
        async with open_harness(hwm=1) as harness:
            client, engine = await harness.client(), await harness.engine()
            await client.submit("x", "y")
            call = await engine.next_call()
            engine.answer_ok(call)
            assert (await engine.rejoin()).resumed
            assert (await engine.next_call()).body == b"y"
            await harness.settle()
            assert engine.repeated == set()

    run_virtual(main)


def test_heartbeats_of_a_nanny_count_for_its_engines() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            nanny = await harness.nanny()
            engine = await harness.engine(nanny=nanny.number)
            engine.sends_heartbeats = False
            await trio.sleep(120)
            assert not harness.server.sessions.engines[engine.number].lost

    run_virtual(main)


def test_the_engines_of_a_silent_nanny_are_lost() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            nanny = await harness.nanny()
            engine = await harness.engine(nanny=nanny.number)
            engine.sends_heartbeats = False
            nanny.dealer.lose()
            await trio.sleep(13)
            assert harness.server.sessions.engines[engine.number].lost

    run_virtual(main)


def test_r20_a_reported_death_has_no_grace_period() -> None:
    async def main() -> None:
        async with open_harness(grace_s=1000.0) as harness:
            client, nanny = await harness.client(), await harness.nanny()
            engine = await harness.engine(nanny=nanny.number)
            running = await client.submit("x")
            waiting = await client.submit("y")
            await engine.next_call()
            nanny.report_death(engine, "killed by signal 9", [running])
            other = await harness.engine()
            calls = [await other.next_call(timeout_s=1), await other.next_call(timeout_s=1)]
            assert [call.id for call in calls] == [running, waiting]
            assert f"engine {engine.number} died" in str(await client.query("story", running))

    run_virtual(main)


def test_a_death_can_be_reported_by_pid() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            nanny = await harness.nanny()
            engine = await harness.engine(nanny=nanny.number, pid=4711)
            nanny.send(native.WorkerDied(0, "killed", pid=4711))
            await harness.settle()
            assert engine.number not in harness.server.sessions.engines

    run_virtual(main)


def test_an_engine_that_is_alive_only_by_its_nanny_is_probed() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, nanny = await harness.client(), await harness.nanny()
            ghost = await harness.engine(nanny=nanny.number)
            task = await client.submit("x")
            await ghost.next_call()
            ghost.sends_heartbeats = False
            ghost.dealer.cut()  # the worker died, and the report was lost
            other = await harness.engine()
            await other.finish(await other.next_call(timeout_s=60), "done")
            assert (await client.result_of(task)).engine == other.number

    run_virtual(main)


def test_silence_during_a_suspension_of_the_scheduler_does_not_count() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            clock = trio.lowlevel.current_clock()
            clock.jump(1000.0)  # type: ignore[attr-defined]  # the MockClock of run_virtual
            client.sends_heartbeats = engine.sends_heartbeats = False
            await trio.sleep(9.0)
            sessions = harness.server.sessions
            assert sessions.clients[client.number].connection is not None
            assert not sessions.engines[engine.number].lost
            await trio.sleep(5.0)
            assert sessions.clients[client.number].connection is None
            assert sessions.engines[engine.number].lost

    run_virtual(main)


def test_results_are_acknowledged_every_heartbeat_period() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            await client.submit("x")
            await engine.finish(await engine.next_call())
            await trio.sleep(3.0)
            assert engine.acked == 1

    run_virtual(main)
