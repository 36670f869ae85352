"""Clients that go and come back: nothing is lost, nothing runs or arrives twice (R1, R27)."""

from __future__ import annotations

import trio

from trio_sched.testing import FakeClient, open_world, run_virtual
from trio_sched.wire import native


def test_r27_results_wait_for_a_client_that_is_away() -> None:
    async def main() -> None:
        async with open_world() as world:
            client, engine = await world.client(), await world.engine()
            task = await client.submit("x")
            client.dealer.cut()
            await engine.finish(await engine.next_call(), "here")
            await trio.sleep(60)
            assert (await client.rejoin()).resumed
            assert (await client.end_of(task)).body == b"here"

    run_virtual(main)


def test_r27_what_was_not_acknowledged_is_sent_again() -> None:
    async def main() -> None:
        async with open_world() as world:
            client, engine = await world.client(), await world.engine(eager=True)
            first = await client.submit("1")
            await client.end_of(first)
            client.dealer.lose()
            for body in ("2", "3"):
                client.dealer._router.arrive(
                    [client.dealer.routing_id, native.encode(native.Submit(client.calls(body)))]
                )
                await trio.sleep(0.1)
            await world.settle()
            assert len(engine.heard) >= 3
            client.sent += [native.Call(2), native.Call(3)]
            assert (await client.rejoin()).resumed
            await client.end_of(client.full(3))
            assert [task & native.COUNTER_MASK for task in client.deliveries] == [1, 2, 3]

    run_virtual(main)


def test_submissions_that_did_not_arrive_are_named_by_the_welcome() -> None:
    async def main() -> None:
        async with open_world() as world:
            client = await world.client()
            await client.submit("1", "2")
            await world.settle()
            client.dealer.lose()
            await client.submit("3")
            welcome = await client.rejoin()
            assert welcome.accepted == 2
            await world.settle()
            assert world.server.sessions.clients[client.number].received == 3
            assert world.server.scheduler.counters == {}

    run_virtual(main)


def test_a_refusal_is_told_again_too() -> None:
    async def main() -> None:
        async with open_world() as world:
            client = await world.client()
            client.dealer.lose()
            call = native.Call(1, b"?" * 16)
            client.dealer._router.arrive([client.dealer.routing_id, native.encode(native.Submit([call]))])
            await world.settle()
            await client.rejoin()
            refused = await client.hear(native.Refused)
            assert refused.id == client.full(1)
            assert "did not come with it" in refused.reason

    run_virtual(main)


def test_a_wrong_secret_resumes_nothing() -> None:
    async def main() -> None:
        async with open_world() as world:
            victim = await world.client()
            task = await victim.submit("x")
            thief = FakeClient(world.connect, world.running.connection.token, session=victim.number, secret="guess")
            await world._joined(thief)
            assert not thief.welcome.resumed
            assert thief.number != victim.number
            engine = await world.engine(eager=True)
            assert engine.number
            assert (await victim.end_of(task)).outcome == "ok"
            assert thief.ends == {}

    run_virtual(main)


def test_an_engine_cannot_resume_a_client() -> None:
    async def main() -> None:
        async with open_world() as world:
            client = await world.client()
            engine = await world.engine(session=client.number, secret=client.welcome.secret)
            assert engine.number != client.number

    run_virtual(main)


def test_a_session_of_another_instance_is_not_resumed() -> None:
    async def main() -> None:
        async with open_world() as world:
            client = await world.client(session=77, secret="of old", scheduler="another")
            assert not client.welcome.resumed

    run_virtual(main)


def test_a_client_falls_silent_and_is_answered_again_when_it_speaks() -> None:
    async def main() -> None:
        async with open_world() as world:
            client, engine = await world.client(), await world.engine(eager=True)
            assert engine.number
            client.beating = False
            await trio.sleep(30)
            session = world.server.sessions.clients[client.number]
            assert session.link is None
            client.beating = True
            await client.hear(native.Welcome)  # it was told that nobody knows it, and said Hello
            assert (await client.end_of(await client.submit("x"))).outcome == "ok"

    run_virtual(main)


def test_r22_nobody_waits_for_ever_for_a_client() -> None:
    async def main() -> None:
        async with open_world(keep_results_s=100.0) as world:
            client, engine = await world.client(), await world.engine()
            await client.submit("x")
            client.dealer.cut()
            client.beating = False
            await engine.finish(await engine.next_call())
            await trio.sleep(100)
            assert client.number in world.server.sessions.clients
            await trio.sleep(20)
            assert client.number not in world.server.sessions.clients
            assert not (await client.rejoin()).resumed

    run_virtual(main)


def test_r27_a_client_that_says_good_bye_leaves_its_tasks_running() -> None:
    async def main() -> None:
        async with open_world() as world:
            client, engine = await world.client(), await world.engine()
            await client.submit("x")
            call = await engine.next_call()
            client.leave()
            await world.settle()
            assert engine.recalled == []
            await engine.finish(call)
            await world.settle()
            assert world.server.scheduler.ends["ok"] == 1

    run_virtual(main)


def test_r27_unless_it_asks_otherwise() -> None:
    async def main() -> None:
        async with open_world() as world:
            leaving, dying = await world.client(), await world.client(cancel_on_leave=True)
            one, two = await leaving.submit("x"), await dying.submit("y")
            leaving.leave(cancel=True)
            dying.dealer.lose()
            await trio.sleep(30)
            assert world.server.scheduler.ends["cancelled"] == 2
            assert one not in world.server.scheduler.tasks
            assert two not in world.server.scheduler.tasks

    run_virtual(main)


def test_r27_a_closed_connection_is_not_yet_a_departure() -> None:
    async def main() -> None:
        async with open_world() as world:
            client = await world.client(cancel_on_leave=True)
            await client.submit("x")
            await world.settle()
            for _ in range(2):
                link = world.server.sessions.clients[client.number].link
                assert link is not None
                world.server.hub.gone(link, "its front says so")
                client.reconnect()
                await trio.sleep(8)
                assert (await client.join()).resumed
            client.dealer.lose()
            world.server.hub.gone(world.server.sessions.clients[client.number].link, "again")  # type: ignore[arg-type]
            await trio.sleep(13)
            assert world.server.scheduler.ends["cancelled"] == 1
            assert not world.server.sessions.clients

    run_virtual(main)


def test_r27_what_is_read_after_the_connection_was_found_closed_counts() -> None:
    async def main() -> None:
        async with open_world() as world:
            client, engine = await world.client(), await world.engine()
            await client.submit("x", "y")
            client.dealer.cut()  # behind its last words, which wait to be read
            await engine.finish(await engine.next_call())  # the scheduler cannot tell it, and gives its connection up
            await world.settle()
            assert world.server.sessions.clients[client.number].link is None

            def said(message: native.FromPeer) -> None:
                client.dealer._router.arrive([client.dealer.routing_id, native.encode(message)])

            said(native.Submit(client.calls("z")))
            await world.settle()
            assert world.server.sessions.clients[client.number].received == 3
            said(native.Bye(cancel=True))
            await world.settle()
            assert client.number not in world.server.sessions.clients
            recalled = await engine.hear(native.Recall)
            assert recalled.tasks == [client.full(2), client.full(3)]
            said(native.Bye())  # as a stranger
            await world.settle()
            assert world.server.hub.counters == {"unknown_peer": 1}

    run_virtual(main)


def test_r31_what_engines_and_nannies_sent_before_they_were_found_gone_counts() -> None:
    async def main() -> None:
        async with open_world() as world:
            client, nanny = await world.client(), await world.nanny()
            engine = await world.engine(nanny=nanny.number)
            number = engine.number
            await client.submit("x", "y")
            call, running = await engine.next_call(), await engine.next_call()
            for peer in (engine, nanny):
                session = world.server.sessions.engines.get(peer.number) or world.server.sessions.nannies[peer.number]
                world.server.hub.gone(session.link, "its connection is gone")
            await world.settle()
            router = engine.dealer._router
            done = native.Finished([native.TaskEnd(call.id, body=b"1", attempt=call.attempt)])
            died = native.Died(number, "it was killed", [running.id])
            router.arrive([engine.dealer.routing_id, native.encode(done)])
            router.arrive([nanny.dealer.routing_id, native.encode(died)])
            await world.settle()
            assert (await client.end_of(call.id)).body == b"1"
            assert number not in world.server.sessions.engines
            assert world.server.hub.counters == {}

    run_virtual(main)


def test_r27_an_old_connection_s_good_bye_does_not_end_a_session_that_is_back() -> None:
    async def main() -> None:
        async with open_world() as world:
            client, engine = await world.client(), await world.engine(eager=True)
            old = client.dealer.routing_id
            assert (await client.rejoin()).resumed
            client.dealer._router.arrive([old, native.encode(native.Bye(cancel=True))])
            assert engine.number
            assert (await client.end_of(await client.submit("x"))).outcome == "ok"

    run_virtual(main)


def test_a_hello_said_twice_is_one_session() -> None:
    async def main() -> None:
        async with open_world() as world:
            client = await world.stranger(world.running.connection.token)
            client.say(client.hello())
            client.say(client.hello())
            await client.hear(native.Welcome)
            await world.settle()
            assert client.unheard(native.Welcome) == []
            assert len(world.server.sessions.clients) == 1

    run_virtual(main)


def test_the_welcome_goes_to_the_connection_that_said_hello() -> None:
    async def main() -> None:
        async with open_world() as world:
            client = await world.client()
            client.reconnect()
            first = client.dealer
            client.say(client.hello())
            client.reconnect()
            client.say(client.hello())
            await client.hear(native.Welcome)
            await world.settle()
            assert client.unheard(native.Welcome) == []
            assert first.receive_nowait() == []

    run_virtual(main)


def test_what_is_said_in_the_same_breath_as_hello_is_heard() -> None:
    async def main() -> None:
        async with open_world() as world:
            client = await world.stranger(world.running.connection.token)
            client.say(client.hello())
            await world.settle()
            client.say(native.Query(5, "status"))
            assert (await client.hear(native.Reply)).request == 5

    run_virtual(main)


def test_a_welcome_tells_how_many_engines_are_here_and_how_many_are_being_started() -> None:
    async def main() -> None:
        async with open_world() as world:

            async def told() -> tuple[int, int]:
                client = await world.stranger(world.running.connection.token)
                client.say(client.hello())
                welcome = await client.hear(native.Welcome)
                return welcome.engines, welcome.starting

            assert await told() == (0, 0)
            world.running.expect_engines(2)
            assert await told() == (0, 2)
            first = await world.engine()
            assert await told() == (1, 1)
            await world.engine()
            assert await told() == (2, 0)
            first.say(native.Bye())
            await world.settle()
            assert await told() == (1, 0)  # all of them have joined once
            world.running.expect_engines(5)
            world.running.expect_engines(0)
            assert await told() == (1, 0)

    run_virtual(main)
