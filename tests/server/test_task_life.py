"""The life of one task: submit, assign, finish, deliver, with functions, frames, inputs and environments."""

from __future__ import annotations

from trio_sched.testing import open_harness, run_virtual
from trio_sched.wire import native
from trio_sched.wire.ids import counter_of
from trio_sched.wire.payload import digest


def test_a_task_is_sent_to_an_engine_and_its_result_to_the_client() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            task = await client.submit("hello")
            call = await engine.next_call()
            assert (call.id, call.body, call.attempt) == (task, b"hello", 1)
            await engine.finish(call, "world")
            end = await client.result_of(task)
            assert (end.outcome, end.body, end.engine) == ("ok", b"world", engine.number)

    run_virtual(main)


def test_calls_reach_engines_with_resources_and_without_options() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine(resources={"gpu": 2.0})
            await client.submit("x", resources={"gpu": 1.0}, priority=3, label="fit")
            call = await engine.next_call()
            assert call.options is None
            assert call.resources == {"gpu": 1.0}

    run_virtual(main)


def test_a_function_travels_once_to_each_engine() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client()
            one = await harness.engine(eager=True)
            for _ in range(2):
                await client.result_of(await client.submit("x", fn=b"the function"))
            two = await harness.engine(eager=True)
            await client.result_of(await client.submit("x", fn=b"the function"))
            await harness.settle()
            sent = [
                message.functions
                for message in one.received_messages + two.received_messages
                if isinstance(message, native.Assign)
            ]
            assert [functions for functions in sent if functions] == [{digest(b"the function"): b"the function"}] * 2

    run_virtual(main)


def test_a_dropped_function_is_dropped_on_the_engines_with_their_next_calls() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine(eager=True)
            await client.result_of(await client.submit("x", fn=b"f"))
            client.send(native.Submit([], drop=[digest(b"f")]))
            await client.result_of(await client.submit("y"))
            assert engine.functions == {}

    run_virtual(main)


def test_a_function_held_by_another_session_is_kept() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            one, two = await harness.client(), await harness.client()
            engine = await harness.engine(eager=True)
            for client in (one, two):
                await client.result_of(await client.submit("x", fn=b"f"))
            one.send(native.Submit([], drop=[digest(b"f")]))
            await two.result_of(await two.submit("y", fn=b"f"))
            assert digest(b"f") in engine.functions

    run_virtual(main)


def test_the_functions_of_a_departed_client_are_kept_while_its_tasks_go_on() -> None:
    async def main() -> None:
        async with open_harness(hwm=1) as harness:
            client = await harness.client()
            await client.submit("x", "y", fn=b"f")
            client.leave()
            await harness.settle()
            engine = await harness.engine()
            await engine.finish(await engine.next_call())
            call = await engine.next_call()
            assert engine.functions == {digest(b"f"): b"f"}
            await engine.finish(call)
            other = await harness.client()
            for _ in range(10):  # longer than the time between two audits
                await other.expect(native.Pong)
            await other.submit("z")
            await engine.next_call()
            assert engine.functions == {}

    run_virtual(main)


def test_a_client_s_environment_is_sent_once_to_each_engine() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client(cwd="/home/me", path=["/home/me/lib"])
            engine = await harness.engine(eager=True)
            await client.result_of(await client.submit("x"))
            assert engine.environments == {client.number: native.ClientEnvironment("/home/me", ["/home/me/lib"])}
            await client.result_of(await client.submit("y"))
            assigns = engine.take_unread(native.Assign)
            assert [len(assign.places) for assign in assigns] == [1, 0]

    run_virtual(main)


def test_a_changed_environment_is_sent_again() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client(cwd="/old")
            engine = await harness.engine(eager=True)
            await client.result_of(await client.submit("x"))
            client._hello.cwd = "/new"
            await client.rejoin()
            await client.result_of(await client.submit("y"))
            assert engine.environments[client.number].cwd == "/new"

    run_virtual(main)


def test_frames_travel_with_their_records() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            one, two = client.calls("a", "b")
            one.frames, two.frames = 2, 1
            client.send(native.Submit([one, two]), [b"1", b"22", b"333"])
            first, second = await engine.next_call(), await engine.next_call()
            assert (first.frames, second.frames) == (2, 1)
            await engine.finish(first, "A", [b"big"])
            end = await client.result_of(first.id)
            assert (end.frames, list(client.frames[first.id])) == (1, [b"big"])

    run_virtual(main)


def test_r09_inputs_come_with_the_call_behind_its_own_frames() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            a = await client.submit("a")
            b = await client.submit("b")
            await engine.finish(await engine.next_call(), "value a", [b"frame of a"])
            await engine.finish(await engine.next_call(), "value b")
            call = client.calls("c", inputs=[a, b])[0]
            call.frames = 1
            client.send(native.Submit([call]), [b"own"])
            given = await engine.next_call()
            assert given.frames == 2
            assert given.inputs == [native.Value(b"value a", 1), native.Value(b"value b")]

    run_virtual(main)


def test_errors_are_delivered_as_the_engine_sent_them() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            task = await client.submit("x")
            await engine.fail(await engine.next_call(), "no such file")
            end = await client.result_of(task)
            assert end.outcome == "error"
            assert end.error == native.RemoteError("ValueError", "no such file")

    run_virtual(main)


def test_an_end_decided_by_the_scheduler_names_its_error() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client()
            task = await client.submit("x", targets=[999])
            end = await client.result_of(task)
            assert (end.outcome, end.engine) == ("unreachable", -1)
            assert end.error is not None
            assert end.error.name == "ImpossibleDependency"

    run_virtual(main)


def test_r19_a_declined_task_is_not_sent_to_the_same_engine_again() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client()
            first = await harness.engine()
            task = await client.submit("x")
            other = await harness.engine()
            await first.decline(await first.next_call())
            await other.finish(await other.next_call(), "done")
            assert (await client.result_of(task)).engine == other.number

    run_virtual(main)


def test_r23_cancelling_a_running_task_recalls_it() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            task = await client.submit("x")
            call = await engine.next_call()
            client.send(native.Cancel([counter_of(task)]))
            await harness.settle()
            assert engine.recalled == [task]
            await engine.finish(call, "too late")
            end = await client.result_of(task)
            assert end.outcome == "cancelled"

    run_virtual(main)


def test_r23_a_full_id_lets_an_operator_cancel_another_s_task() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, operator = await harness.client(), await harness.client()
            task = await client.submit("x")
            operator.send(native.Cancel([task]))
            assert (await client.result_of(task)).outcome == "cancelled"

    run_virtual(main)


def test_queries_are_answered() -> None:
    async def main() -> None:
        async with open_harness(name="lab") as harness:
            client, engine = await harness.client(name="me"), await harness.engine()
            task = await client.submit("x")
            status = await client.query("status")
            assert status["name"] == "lab"
            assert status["tasks"]["assigned"] == 1
            assert status["clients"][0]["name"] == "me"
            assert (await client.query("engines"))[0]["engine"] == engine.number
            assert "should be running" in await client.query("explain", task)
            assert (await client.query("story", task))[0][1] == "accepted"
            assert "there is no view 'weather'" in await client.query("weather")

    run_virtual(main)


def test_clients_are_told_the_versions_and_the_number_of_engines() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client()
            engine = await harness.engine(python="3.12.1")
            assert await client.expect(native.Engines) == native.Engines(["3.12.1"], 1)
            engine.leave()
            assert await client.expect(native.Engines) == native.Engines([], 0)
            late = await harness.client()
            assert late.welcome.pythons == []

    run_virtual(main)
