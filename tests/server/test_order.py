"""R31: messages of an engine are handled before its departure; results and joins before submissions."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import trio

from tests.server.stepped_server import SteppedServer
from trio_sched.core.events import CancelRequested, ClientJoined, Event, TaskFinished
from trio_sched.core.scheduler import Scheduler
from trio_sched.testing import open_harness, run_virtual
from trio_sched.wire import native


def test_r31_results_sent_before_a_bye_count() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            task = await client.submit("x")
            call = await engine.next_call()
            engine.answer_ok(call)
            engine.leave()
            assert (await client.result_of(task)).outcome == "ok"

    run_virtual(main)


@pytest.mark.parametrize("is_one_burst", [True, False])
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_r31_results_sent_before_a_reported_death_count_whichever_reader_runs_first(
    order: tuple[int, ...], is_one_burst: bool
) -> None:
    """The reader of engines' messages runs before or after that of nannies' messages, and the actor in between."""
    by_hand = SteppedServer()
    client, nanny = by_hand.client(), by_hand.nanny()
    engine = by_hand.engine(nanny=nanny.number)
    task = client.submit_nowait("x")
    by_hand.work(engine)
    engine.answer_ok(engine.take_call())
    if not is_one_burst:
        by_hand.receive()
    nanny.report_death(engine)
    by_hand.receive()
    for index in order:
        by_hand.readers[index].read_nowait()
        by_hand.step()
    by_hand.deliver([client])
    assert (client.results[task].outcome, client.results[task].engine) == ("ok", engine.number)
    assert engine.number not in by_hand.server.sessions.engines
    assert by_hand.server.scheduler.counters == {}


def test_r31_deaths_that_a_nanny_reports_before_its_bye_count() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, nanny = await harness.client(), await harness.nanny()
            engine = await harness.engine(nanny=nanny.number)
            await client.submit("x")
            running = (await engine.next_call()).id
            nanny.send(native.WorkerDied(engine.number, "it was stopped", [running]))
            nanny.send(native.Bye())
            await harness.settle()
            assert engine.number not in harness.server.sessions.engines
            assert nanny.number not in harness.server.sessions.nannies
            assert harness.server.ingress.counters == {}

    run_virtual(main)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_submissions_sent_over_a_former_connection_before_the_hello_are_counted_once(order: tuple[int, ...]) -> None:
    """A process that was suspended sends what it has to say before it knows that its connection was given up."""
    by_hand = SteppedServer()
    client = by_hand.client()
    client.submit_nowait("first")
    by_hand.work(client)
    session = by_hand.server.sessions.clients[client.number]
    assert session.connection is not None
    by_hand.server.ingress.connection_lost(session.connection, "nothing was heard from it")
    by_hand.step()
    assert session.connection is None
    client.submit_nowait("second")
    by_hand.receive()
    client.send(client.hello())
    by_hand.receive()
    for index in order:
        by_hand.readers[index].read_nowait()
        by_hand.step()
    by_hand.deliver([client])
    assert client.take_unread(native.Welcome)[-1].accepted == 2
    assert session.submission_count == 2


def test_r31_a_step_handles_results_then_notifications_then_a_slice_of_submissions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handled: list[Event] = []

    def handle(_scheduler: Scheduler, event: Event, _now: float) -> list[Any]:
        handled.append(event)
        return []

    monkeypatch.setattr(Scheduler, "handle", handle)

    async def main() -> None:
        server = SteppedServer(submissions_per_turn=3).server
        inbox = server.inbox
        a, b, c, d, e, f = (CancelRequested(number) for number in range(6))
        result, joined, urgent = TaskFinished(1, 1, "ok"), ClientJoined(2), TaskFinished(1, 2, "ok")
        inbox.add_client_events([a, b, c, d, e])
        inbox.add_notifications([joined])
        inbox.add_engine_events([result])
        inbox.add_client_events([f])
        await inbox.wait()
        server.actor.step(0.0)
        assert handled == [result, joined, a, b, c]
        handled.clear()
        inbox.add_engine_events([urgent])
        await inbox.wait()
        server.actor.step(0.0)
        assert handled == [urgent, d, e, f]
        with trio.move_on_after(1) as nothing_more:
            await inbox.wait()
        assert nothing_more.cancelled_caught

    run_virtual(main)


def test_r31_a_flood_of_submissions_does_not_delay_results() -> None:
    async def main() -> None:
        async with open_harness(submissions_per_turn=10, hwm=1) as harness:
            flood, client = await harness.client(), await harness.client()
            engine = await harness.engine()
            task = await client.submit("x")
            call = await engine.next_call()
            await flood.submit(*(str(n) for n in range(5000)))
            await engine.finish(call)
            await client.result_of(task)
            assert harness.server.sessions.clients[flood.number].accepted_count < 5000

    run_virtual(main)
