"""Sessions that end and resume: nothing is lost, nothing runs or arrives twice (R1, R27)."""

from __future__ import annotations

import trio

from tests.server.stepped_server import ADDRESS, SteppedServer
from trio_sched.testing import FakeClient, ServerHarness, open_harness, run_virtual
from trio_sched.wire import native
from trio_sched.wire.ids import counter_of


def test_r27_results_are_kept_for_a_disconnected_client() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            task = await client.submit("x")
            client.dealer.cut()
            await engine.finish(await engine.next_call(), "here")
            await trio.sleep(60)
            assert (await client.rejoin()).resumed
            assert (await client.result_of(task)).body == b"here"

    run_virtual(main)


def test_r27_unacknowledged_results_are_sent_again() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine(eager=True)
            first = await client.submit("1")
            await client.result_of(first)
            client.dealer.lose()
            for body in ("2", "3"):
                client.dealer._router.arrive(
                    [client.dealer.routing_id, native.encode(native.Submit(client.calls(body)))]
                )
                await trio.sleep(0.1)
            await harness.settle()
            assert len(engine.received_messages) >= 3
            client.sent += [native.Call(2), native.Call(3)]
            assert (await client.rejoin()).resumed
            await client.result_of(client.task_id(3))
            assert [counter_of(task) for task in client.deliveries] == [1, 2, 3]

    run_virtual(main)


def test_the_welcome_says_how_many_submissions_arrived() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client()
            await client.submit("1", "2")
            await harness.settle()
            client.dealer.lose()
            await client.submit("3")
            welcome = await client.rejoin()
            assert welcome.accepted == 2
            await harness.settle()
            assert harness.server.sessions.clients[client.number].submission_count == 3
            assert harness.server.scheduler.counters == {}

    run_virtual(main)


def test_an_unacknowledged_refusal_is_sent_again() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client()
            client.dealer.lose()
            call = native.Call(1, b"?" * 16)
            client.dealer._router.arrive([client.dealer.routing_id, native.encode(native.Submit([call]))])
            await harness.settle()
            await client.rejoin()
            refused = await client.expect(native.Refused)
            assert refused.id == client.task_id(1)
            assert "did not come with it" in refused.reason

    run_virtual(main)


def test_a_wrong_secret_resumes_nothing() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            victim = await harness.client()
            task = await victim.submit("x")
            thief = FakeClient(harness.connect, harness.running.connection.token, session=victim.number, secret="guess")
            await harness._joined(thief)
            assert not thief.welcome.resumed
            assert thief.number != victim.number
            engine = await harness.engine(eager=True)
            assert engine.number
            assert (await victim.result_of(task)).outcome == "ok"
            assert thief.results == {}

    run_virtual(main)


def test_an_engine_cannot_resume_a_client() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client()
            engine = await harness.engine(session=client.number, secret=client.welcome.secret)
            assert engine.number != client.number

    run_virtual(main)


def test_a_session_of_another_instance_is_not_resumed() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client(session=77, secret="of old", scheduler="another")
            assert not client.welcome.resumed

    run_virtual(main)


def test_a_silent_client_is_forgotten_and_renewed_when_it_sends_again() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine(eager=True)
            assert engine.number
            client.sends_heartbeats = False
            await trio.sleep(30)
            assert client.number not in harness.server.sessions.clients  # its session was empty
            client.sends_heartbeats = True
            assert (await client.expect(native.Welcome)).renewed  # it got an unknown_peer error, and said Hello
            assert (await client.result_of(await client.submit("x"))).outcome == "ok"

    run_virtual(main)


def test_r22_unread_results_expire_after_keep_results_s() -> None:
    async def main() -> None:
        async with open_harness(keep_results_s=100.0) as harness:
            client, engine = await harness.client(), await harness.engine()
            await client.submit("x")
            client.dealer.cut()
            client.sends_heartbeats = False
            await engine.finish(await engine.next_call())
            await trio.sleep(100)
            assert client.number in harness.server.sessions.clients
            await trio.sleep(20)
            assert client.number not in harness.server.sessions.clients
            client.accepted = 1
            welcome = await client.rejoin()
            assert (welcome.resumed, welcome.renewed, welcome.accepted) == (True, True, 1)

    run_virtual(main)


def test_an_empty_session_is_forgotten_after_keep_idle_s_and_renewed() -> None:
    async def main() -> None:
        async with open_harness(keep_idle_s=5.0) as harness:
            client, engine = await harness.client(), await harness.engine(eager=True)
            first = await client.submit("x", fn=b"f")
            await client.result_of(first)
            await trio.sleep(3)  # a ping acknowledges the result
            number = client.number
            client.dealer.cut()
            client.sends_heartbeats = False
            harness.server.ingress.connection_lost(harness.server.sessions.clients[number].connection, "closed")  # type: ignore[arg-type]
            await trio.sleep(3)
            assert number in harness.server.sessions.clients
            await trio.sleep(5)
            assert number not in harness.server.sessions.clients
            assert number not in harness.server.scheduler.clients
            assert not harness.server.scheduler.completed.get(first).result  # type: ignore[union-attr]
            welcome = await client.rejoin()
            assert (welcome.session, welcome.renewed, welcome.accepted) == (number, True, 1)
            client._functions.clear()  # the functions have to be sent again
            second = await client.submit("y", fn=b"f", after=[first])
            assert (await client.result_of(second)).outcome == "ok"
            assert client.received == 2
            assert engine.number
            assert harness.server.scheduler.counters == {}

    run_virtual(main)


def test_a_session_with_an_unread_result_or_an_unfinished_task_is_kept() -> None:
    async def main() -> None:
        async with open_harness(keep_idle_s=5.0) as harness:
            waiting, unread = await harness.client(), await harness.client()
            await waiting.submit("x")
            engine = await harness.engine()
            call = await engine.next_call()
            await unread.submit("y")
            for client in (waiting, unread):
                client.sends_heartbeats = False
                client.dealer.cut()
            await engine.finish(await engine.next_call())
            await trio.sleep(100)
            assert waiting.number in harness.server.sessions.clients
            assert unread.number in harness.server.sessions.clients
            assert (await unread.rejoin()).resumed
            await engine.finish(call)

    run_virtual(main)


def test_a_session_that_comes_back_just_before_the_audit_that_would_end_it_stays() -> None:
    by_hand = SteppedServer(keep_idle_s=5.0)
    client = by_hand.client()
    session = by_hand.server.sessions.clients[client.number]
    assert session.connection is not None
    by_hand.server.ingress.connection_lost(session.connection, "closed")
    by_hand.step()
    by_hand.now = 60.0
    client.reconnect()
    client.send(client.hello())
    by_hand.receive()
    by_hand.server.auditor.timer.fire(by_hand.now)
    by_hand.work(client)
    assert by_hand.server.sessions.clients == {client.number: session}
    assert client.welcome.resumed
    assert not client.welcome.renewed


def test_a_session_that_comes_back_just_after_the_audit_that_ended_it_is_renewed() -> None:
    by_hand = SteppedServer(keep_idle_s=5.0)
    client = by_hand.client()
    number = client.number
    session = by_hand.server.sessions.clients[number]
    assert session.connection is not None
    by_hand.server.ingress.connection_lost(session.connection, "closed")
    by_hand.step()
    by_hand.now = 60.0
    by_hand.server.auditor.timer.fire(by_hand.now)
    by_hand.step()
    client.reconnect()
    client.send(client.hello())
    by_hand.work(client)
    assert (client.number, client.welcome.renewed) == (number, True)
    assert by_hand.server.sessions.clients[number] is not session
    assert number in by_hand.server.scheduler.clients


def test_a_session_that_gives_way_and_is_renewed_in_one_turn_is_kept() -> None:
    """The ForgetSession of that turn is about the earlier session and not about the renewed one."""
    by_hand = SteppedServer(max_clients=2)
    first, second = by_hand.client(), by_hand.client()
    number = first.number
    for session in list(by_hand.server.sessions):
        assert session.connection is not None
        by_hand.server.ingress.connection_lost(session.connection, "closed")
    by_hand.step()
    newcomer = FakeClient(lambda: by_hand.network.connect(ADDRESS), "client's")
    newcomer.send(newcomer.hello())
    first.reconnect()
    first.send(first.hello())
    by_hand.work(newcomer, first)
    assert (first.number, first.welcome.renewed) == (number, True)
    assert set(by_hand.server.sessions.clients) == {number, newcomer.number}
    assert set(by_hand.server.scheduler.clients) == {number, newcomer.number}
    assert second.number not in by_hand.server.sessions.departed


def test_a_session_is_not_renewed_without_its_secret_or_while_its_tasks_run() -> None:
    async def main() -> None:
        async with open_harness(keep_results_s=20.0) as harness:
            client = await harness.client()
            await client.submit("x")
            client.sends_heartbeats = False
            client.dealer.cut()
            await trio.sleep(60)
            assert client.number in harness.server.sessions.departed
            client.accepted = 1
            old = client.number
            assert not (await client.rejoin()).resumed
            token = harness.running.connection.token
            for number in (old, client.number + 1, 10**9):
                thief = FakeClient(harness.connect, token, session=number, secret=client.welcome.secret, accepted=0)
                assert not (await harness._joined(thief)).welcome.resumed

    run_virtual(main)


async def many(harness: ServerHarness, count: int) -> list[FakeClient]:
    return [await harness.client() for _ in range(count)]


def test_unreachable_clients_give_way_at_max_clients() -> None:
    async def main() -> None:
        async with open_harness(max_clients=5, keep_idle_s=1e6) as harness:
            dead = await many(harness, 5)
            for client in dead:
                client.sends_heartbeats = False
                client.dealer.cut()  # the scheduler has not noticed
            first = dead[0].number
            newcomer = await harness.client()
            assert newcomer.number
            assert first not in harness.server.sessions.clients  # the one that was silent for the longest time
            assert len(harness.server.sessions.clients) == 5
            assert (await dead[0].rejoin()).renewed  # another client gave way

    run_virtual(main)


def test_connected_clients_and_clients_with_tasks_or_results_do_not_give_way() -> None:
    async def main() -> None:
        async with open_harness(max_clients=3, keep_idle_s=1e6) as harness:
            alive, busy, unread = await many(harness, 3)
            await busy.submit("x")
            await unread.submit("y")
            engine = await harness.engine(hwm=2)
            for client in (busy, unread):
                client.sends_heartbeats = False
                client.dealer.cut()
            calls = [await engine.next_call(), await engine.next_call()]
            await engine.finish(next(call for call in calls if call.body == b"y"))
            newcomer = await harness.newcomer(harness.running.connection.token)
            newcomer.send(newcomer.hello())
            error = await newcomer.expect(native.Error)
            assert error.kind == "too_many"
            assert "max_clients is 3" in error.message
            assert len(harness.server.sessions.clients) == 3
            assert (await alive.rejoin()).resumed
            assert harness.server.ingress.counters["too_many"] == 1

    run_virtual(main)


def test_a_failed_search_for_an_idle_client_is_not_repeated_at_once() -> None:
    async def main() -> None:
        async with open_harness(max_clients=2) as harness:
            alive = await many(harness, 2)
            newcomer = await harness.newcomer(harness.running.connection.token)
            for _ in range(10):
                newcomer.send(newcomer.hello())
                await newcomer.expect(native.Error)
            assert len(alive[0].take_unread(native.Pong)) == 1

    run_virtual(main)


def test_naming_a_session_does_not_bypass_the_limits() -> None:
    async def main() -> None:
        async with open_harness(max_clients=1, max_engines=1) as harness:
            await harness.client()
            await harness.engine()
            for role, token in (
                ("client", harness.running.connection.token),
                ("engine", harness.running.engine_connection.token),
            ):
                newcomer = await harness.newcomer()
                newcomer.send(native.Hello(role=role, token=token, session=77, secret="?"))  # type: ignore[arg-type]
                assert (await newcomer.expect(native.Error)).kind == "too_many"

    run_virtual(main)


def test_admin_sessions_are_opened_beyond_max_clients_and_submit_nothing() -> None:
    async def main() -> None:
        async with open_harness(max_clients=1, max_admins=2) as harness:
            busy = await harness.client()
            task = await busy.submit("x")
            admins = [await harness.client(admin=True) for _ in range(5)]
            assert len(harness.server.sessions.admins) == 2  # the one that was silent for the longest time gives way
            assert len(harness.server.scheduler.clients) == 1
            admin = admins[-1]
            admin.send(native.Query(1, "status"))
            assert len((await admin.expect(native.Reply)).data["clients"]) == 1
            await admin.submit("no")
            assert "submits nothing" in (await admin.expect(native.Error)).message
            admin.send(native.Cancel([task]))
            assert (await busy.result_of(task)).outcome == "cancelled"
            admin.send(native.Watch())
            admin.leave()
            harness.server.ingress.connection_lost(
                harness.server.sessions.admins[admins[-2].number].connection, "closed"
            )  # type: ignore[arg-type]
            await harness.settle()
            assert not harness.server.sessions.admins
            assert not harness.server.scheduler.monitored
            assert harness.server.scheduler.counters == {}

    run_virtual(main)


def test_r27_tasks_go_on_after_a_bye() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            await client.submit("x")
            call = await engine.next_call()
            client.leave()
            await harness.settle()
            assert engine.recalled == []
            await engine.finish(call)
            await harness.settle()
            assert harness.server.scheduler.outcome_counts["ok"] == 1

    run_virtual(main)


def test_r27_tasks_are_cancelled_after_a_bye_that_asks_for_it() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            leaving, dying = await harness.client(), await harness.client(cancel_on_leave=True)
            one, two = await leaving.submit("x"), await dying.submit("y")
            leaving.leave(cancel=True)
            dying.dealer.lose()
            await trio.sleep(30)
            assert harness.server.scheduler.outcome_counts["cancelled"] == 2
            assert one not in harness.server.scheduler.tasks
            assert two not in harness.server.scheduler.tasks

    run_virtual(main)


def test_r27_a_lost_connection_does_not_end_a_session() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client(cancel_on_leave=True)
            await client.submit("x")
            await harness.settle()
            for _ in range(2):
                connection = harness.server.sessions.clients[client.number].connection
                assert connection is not None
                harness.server.ingress.connection_lost(connection, "its front says so")
                client.reconnect()
                await trio.sleep(8)
                assert (await client.join()).resumed
            client.dealer.lose()
            harness.server.ingress.connection_lost(harness.server.sessions.clients[client.number].connection, "again")  # type: ignore[arg-type]
            await trio.sleep(13)
            assert harness.server.scheduler.outcome_counts["cancelled"] == 1
            assert not harness.server.sessions.clients

    run_virtual(main)


def test_r27_messages_read_after_the_connection_was_lost_count() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            await client.submit("x", "y")
            client.dealer.cut()  # its last messages wait to be read
            await engine.finish(await engine.next_call())  # the send fails, and the connection is given up
            await harness.settle()
            assert harness.server.sessions.clients[client.number].connection is None

            def said(message: native.FromPeer) -> None:
                client.dealer._router.arrive([client.dealer.routing_id, native.encode(message)])

            said(native.Submit(client.calls("z")))
            await harness.settle()
            assert harness.server.sessions.clients[client.number].submission_count == 3
            said(native.Bye(cancel=True))
            await harness.settle()
            assert client.number not in harness.server.sessions.clients
            recalled = await engine.expect(native.Recall)
            assert recalled.tasks == [client.task_id(2), client.task_id(3)]
            said(native.Bye())  # without a session
            await harness.settle()
            assert harness.server.ingress.counters == {"unknown_peer": 1}

    run_virtual(main)


def test_r31_messages_of_engines_and_nannies_read_after_their_connection_was_lost_count() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, nanny = await harness.client(), await harness.nanny()
            engine = await harness.engine(nanny=nanny.number)
            number = engine.number
            await client.submit("x", "y")
            call, running = await engine.next_call(), await engine.next_call()
            for peer in (engine, nanny):
                session = (
                    harness.server.sessions.engines.get(peer.number) or harness.server.sessions.nannies[peer.number]
                )
                harness.server.ingress.connection_lost(session.connection, "its connection is gone")
            await harness.settle()
            router = engine.dealer._router
            done = native.Finished([native.TaskResult(call.id, body=b"1", attempt=call.attempt)])
            died = native.WorkerDied(number, "it was killed", [running.id])
            router.arrive([engine.dealer.routing_id, native.encode(done)])
            router.arrive([nanny.dealer.routing_id, native.encode(died)])
            await harness.settle()
            assert (await client.result_of(call.id)).body == b"1"
            assert number not in harness.server.sessions.engines
            assert harness.server.ingress.counters == {}

    run_virtual(main)


def test_r27_a_bye_over_an_earlier_connection_does_not_end_a_resumed_session() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine(eager=True)
            old = client.dealer.routing_id
            assert (await client.rejoin()).resumed
            client.dealer._router.arrive([old, native.encode(native.Bye(cancel=True))])
            assert engine.number
            assert (await client.result_of(await client.submit("x"))).outcome == "ok"

    run_virtual(main)


def test_a_repeated_hello_opens_one_session() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.newcomer(harness.running.connection.token)
            client.send(client.hello())
            client.send(client.hello())
            await client.expect(native.Welcome)
            await harness.settle()
            assert client.take_unread(native.Welcome) == []
            assert len(harness.server.sessions.clients) == 1

    run_virtual(main)


def test_the_welcome_is_sent_over_the_connection_of_the_last_hello() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client()
            client.reconnect()
            first = client.dealer
            client.send(client.hello())
            client.reconnect()
            client.send(client.hello())
            await client.expect(native.Welcome)
            await harness.settle()
            assert client.take_unread(native.Welcome) == []
            assert first.receive_nowait() == []

    run_virtual(main)


def test_a_message_sent_directly_after_the_hello_is_handled() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.newcomer(harness.running.connection.token)
            client.send(client.hello())
            await harness.settle()
            client.send(native.Query(5, "status"))
            assert (await client.expect(native.Reply)).request == 5

    run_virtual(main)


def test_the_welcome_has_the_counts_of_connected_and_of_starting_engines() -> None:
    async def main() -> None:
        async with open_harness() as harness:

            async def told() -> tuple[int, int]:
                client = await harness.newcomer(harness.running.connection.token)
                client.send(client.hello())
                welcome = await client.expect(native.Welcome)
                return welcome.engines, welcome.starting

            assert await told() == (0, 0)
            harness.running.expect_engines(2)
            assert await told() == (0, 2)
            first = await harness.engine()
            assert await told() == (1, 1)
            await harness.engine()
            assert await told() == (2, 0)
            first.send(native.Bye())
            await harness.settle()
            assert await told() == (1, 0)  # all expected engines have joined once
            harness.running.expect_engines(5)
            harness.running.expect_engines(0)
            assert await told() == (1, 0)

    run_virtual(main)
