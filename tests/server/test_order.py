"""R31: what an engine sent before it left is handled before its leaving; results and comings go before submissions."""

from __future__ import annotations

import trio

from trio_sched.core.events import CancelRequested, ClientJoined, TaskFinished
from trio_sched.server.hub import Inbox
from trio_sched.testing import open_world, run_virtual
from trio_sched.wire import native


def test_r31_what_an_engine_sent_before_its_bye_counts() -> None:
    async def main() -> None:
        async with open_world() as world:
            client, engine = await world.client(), await world.engine()
            task = await client.submit("x")
            call = await engine.next_call()
            engine.end_ok(call)
            engine.leave()
            assert (await client.end_of(task)).outcome == "ok"

    run_virtual(main)


def test_r31_what_an_engine_sent_before_its_death_counts() -> None:
    """Many times, because Trio runs the readers in random order."""

    async def main() -> None:
        async with open_world() as world:
            client, nanny = await world.client(), await world.nanny()
            for _ in range(40):
                engine = await world.engine(nanny=nanny.number)
                task = await client.submit("x")
                engine.end_ok(await engine.next_call())
                nanny.report_death(engine)
                end = await client.end_of(task)
                assert (end.outcome, end.engine) == ("ok", engine.number)

    run_virtual(main)


def test_r31_the_deaths_that_a_nanny_reports_before_its_bye_count() -> None:
    async def main() -> None:
        async with open_world() as world:
            client, nanny = await world.client(), await world.nanny()
            engine = await world.engine(nanny=nanny.number)
            await client.submit("x")
            running = (await engine.next_call()).id
            nanny.say(native.Died(engine.number, "it was stopped", [running]))
            nanny.say(native.Bye())
            await world.settle()
            assert engine.number not in world.server.sessions.engines
            assert nanny.number not in world.server.sessions.nannies
            assert world.server.hub.counters == {}

    run_virtual(main)


def test_what_a_client_that_was_away_says_before_its_hello_is_counted_once() -> None:
    """As a process does that was suspended: it says what it has to say before it knows that it was given up."""

    async def main() -> None:
        async with open_world() as world:
            clients = [await world.client() for _ in range(20)]  # many times: Trio runs the readers in random order
            for client in clients:
                await client.submit("first")
                client.beating = client.returning = False
            await trio.sleep(30)
            for client in clients:
                assert world.server.sessions.clients[client.number].link is None
                client.submit_nowait("second")
                client.say(client.hello())
            await world.settle()
            for client in clients:
                assert client.unheard(native.Welcome)[-1].accepted == 2
                assert world.server.sessions.clients[client.number].received == 2

    run_virtual(main)


def test_r31_the_inbox_gives_results_then_notifications_then_a_slice_of_submissions() -> None:
    async def main() -> None:
        inbox = Inbox(slice_=3)
        a, b, c, d, e, f = (CancelRequested(number) for number in range(6))
        result, joined, urgent = TaskFinished(1, 1, "ok"), ClientJoined(2), TaskFinished(1, 2, "ok")
        inbox.add_submissions([a, b, c, d, e])
        inbox.add_notifications([joined])
        inbox.add_results([result])
        inbox.add_submissions([f])
        await inbox.wait()
        assert inbox.take() == [result, joined, a, b, c]
        inbox.add_results([urgent])
        await inbox.wait()
        assert inbox.take() == [urgent, d, e, f]
        with trio.move_on_after(1) as nothing_more:
            await inbox.wait()
        assert nothing_more.cancelled_caught

    run_virtual(main)


def test_r31_a_flood_of_submissions_does_not_keep_results_waiting() -> None:
    async def main() -> None:
        async with open_world(submissions_per_turn=10, hwm=1) as world:
            flood, client = await world.client(), await world.client()
            engine = await world.engine()
            task = await client.submit("x")
            call = await engine.next_call()
            await flood.submit(*(str(n) for n in range(5000)))
            await engine.finish(call)
            await client.end_of(task)
            assert world.server.sessions.clients[flood.number].accepted < 5000

    run_virtual(main)
