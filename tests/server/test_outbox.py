"""The outbox: gathering, credit, windows, and slow peers that delay no other peer."""

from __future__ import annotations

import pytest
import trio

from tests.server.stepped_server import SteppedServer
from trio_sched.core.effects import Accept, AssignTask, ForgetEngine, ForgetSession
from trio_sched.core.events import (
    ClientJoined,
    ClientLeft,
    EngineJoined,
    EngineLost,
    TaskFinished,
    TaskSpec,
    TaskSubmitted,
)
from trio_sched.server.config import Config
from trio_sched.server.ingress import EffectHandler, Ingress, TaskEffect
from trio_sched.server.native import NativeFront
from trio_sched.testing import MemoryNetwork, open_harness, run_virtual
from trio_sched.wire import native


def test_the_last_expected_result_is_sent_at_once() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine(eager=True)
            assert engine.number
            began = trio.current_time()
            for _ in range(100):
                await client.result_of(await client.submit("x"))
            assert trio.current_time() == began  # virtual time: no task waited for a clock

    run_virtual(main)


def test_results_are_gathered_for_a_millisecond_when_others_were_just_sent() -> None:
    async def main() -> None:
        async with open_harness(hwm=0) as harness:
            client, engine = await harness.client(), await harness.engine()
            await client.submit(*(str(n) for n in range(10)))
            calls = [await engine.next_call() for _ in range(10)]
            await engine.finish(calls[0])
            await client.result_of(calls[0].id)  # none was sent before: at once
            began = trio.current_time()
            for call in calls[1:5]:
                await engine.finish(call)
                await harness.settle()
            await client.result_of(calls[4].id)
            assert trio.current_time() - began == pytest.approx(0.001, rel=0.01)
            assert [len(message.results) for message in client.take_unread(native.Results)] == [1, 4]

    run_virtual(main)


def test_credit_is_returned_with_results_and_by_itself() -> None:
    async def main() -> None:
        async with open_harness(credit=80, hwm=0) as harness:
            client = await harness.client()
            assert client.welcome.credit == 80
            await client.submit(*"abcdefghij")  # an eighth of the credit
            assert (await client.expect(native.Accepted)).accepted == 10
            began = trio.current_time()
            await client.submit("k")
            assert (await client.expect(native.Accepted)).accepted == 11
            assert trio.current_time() - began == pytest.approx(0.02, rel=0.01)
            await harness.engine(eager=True)
            assert (await client.expect(native.Results)).accepted == 11
            assert (await client.expect(native.Pong)).accepted == 11

    run_virtual(main)


def test_a_full_window_of_a_client_delays_only_its_own_results() -> None:
    async def main() -> None:
        async with open_harness(window_bytes=4096) as harness:
            slow, quick = await harness.client(), await harness.client()
            await harness.engine(eager=True)
            slow.acknowledging = False
            tasks = []
            for _ in range(20):
                tasks.append(await slow.submit(b"x" * 1000))
                await harness.settle()
            assert len(slow.results) == 4
            assert (await quick.result_of(await quick.submit("y"))).outcome == "ok"
            slow.acknowledging = True
            slow.send(slow.ping())
            for task in tasks:
                await slow.result_of(task, timeout_s=60)
            assert len(slow.deliveries) == 20

    run_virtual(main)


def test_a_full_window_of_an_engine_delays_calls_until_it_answers() -> None:
    async def main() -> None:
        async with open_harness(window_bytes=4096, hwm=0) as harness:
            client, engine = await harness.client(), await harness.engine()
            tasks = [await client.submit(b"x" * 2000) for _ in range(6)]
            await harness.settle()
            assert len(engine.queued()) == 2
            for _ in tasks:
                await engine.finish(await engine.next_call())
            for task in tasks:
                assert (await client.result_of(task)).outcome == "ok"

    run_virtual(main)


def test_a_call_that_was_never_sent_is_recalled_without_the_engine() -> None:
    async def main() -> None:
        async with open_harness(window_bytes=1024, hwm=0) as harness:
            client, engine = await harness.client(), await harness.engine()
            await client.submit(b"x" * 2000)
            held = await client.submit(b"y")
            await harness.settle()
            assert len(engine.queued()) == 1
            client.send(native.Cancel([held]))
            assert (await client.result_of(held)).outcome == "cancelled"
            assert engine.recalled == []

    run_virtual(main)


def test_many_results_travel_in_messages_of_bounded_size() -> None:
    async def main() -> None:
        async with open_harness(hwm=0) as harness:
            client, engine = await harness.client(), await harness.engine()
            task = await client.submit(*(str(n) for n in range(600)))
            await harness.settle()
            ends = [native.TaskResult(call, "ok", attempt=1) for call in engine.queued()]
            engine.send(native.Finished(ends))
            await client.result_of(task)
            assert [len(message.results) for message in client.take_unread(native.Results)] == [256, 256, 88]

    run_virtual(main)


def test_large_frames_close_a_message() -> None:
    async def main() -> None:
        async with open_harness(hwm=0) as harness:
            client, engine = await harness.client(), await harness.engine()
            task = await client.submit("a", "b", "c")
            calls = [await engine.next_call() for _ in range(3)]
            big = bytes(5 << 20)
            ends = [native.TaskResult(call.id, "ok", b"", 1, attempt=1) for call in calls]
            engine.send(native.Finished(ends), [big, big, b"small"])
            await client.result_of(task)
            assert [len(message.results) for message in client.take_unread(native.Results)] == [1, 1, 1]
            assert bytes(client.frames[task][0]) == b"small"

    run_virtual(main)


def test_one_message_carries_a_whole_turn() -> None:
    async def main() -> None:
        async with open_harness(hwm=0) as harness:
            client, engine = await harness.client(), await harness.engine()
            await client.submit(*(str(n) for n in range(100)))
            await harness.settle()
            assert [len(message.tasks) for message in engine.take_unread(native.Assign)] == [100]

    run_virtual(main)


def test_r28_no_events_are_made_without_a_monitor() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client()
            await harness.engine(eager=True)
            await client.result_of(await client.submit("x"))
            assert not harness.server.scheduler.monitored
            client.send(native.Watch())
            await harness.settle()
            assert harness.server.scheduler.monitored
            client.send(native.Watch(False))
            await harness.settle()
            assert not harness.server.scheduler.monitored
            await client.result_of(await client.submit("y"))
            assert client.take_unread(native.Events) == []

    run_virtual(main)


def test_r28_a_monitor_gets_the_events_in_order() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, monitor = await harness.client(), await harness.client()
            monitor.send(native.Watch())
            await harness.settle()
            engine = await harness.engine(eager=True)
            task = await client.submit("x")
            await client.result_of(task)
            await harness.settle()
            happened = [one for message in monitor.take_unread(native.Events) for one in message.events]
            assert [(one.what, one.task, one.engine, one.outcome) for one in happened] == [
                ("engine_joined", None, engine.number, None),
                ("submitted", task, None, None),
                ("assigned", task, engine.number, None),
                ("finished", task, engine.number, "ok"),
            ]

    run_virtual(main)


def test_r28_monitoring_ends_when_the_monitor_leaves() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            monitor = await harness.client()
            monitor.send(native.Watch())
            monitor.leave()
            await harness.settle()
            assert not harness.server.scheduler.monitored

    run_virtual(main)


def test_r28_a_slow_monitor_misses_events() -> None:
    async def main() -> None:
        async with open_harness(window_bytes=1024, heartbeat_s=100.0) as harness:
            client, monitor = await harness.client(), await harness.client()
            monitor.send(native.Watch())
            await harness.engine(eager=True)
            for _ in range(50):
                await client.result_of(await client.submit("x"))
            missed = harness.server.ingress.counters["events_missed"]
            assert missed > 50
            await trio.sleep(1)
            monitor.send(monitor.ping())
            await client.result_of(await client.submit("y"))
            await harness.settle()
            assert harness.server.ingress.counters["events_missed"] == missed

    run_virtual(main)


class EffectRecorder:
    """A front that keeps the effects for its ids, and counts those of each burst of sends."""

    def __init__(self) -> None:
        self.effects: list[TaskEffect] = []
        self.counts: list[int] = []

    @property
    def effect_handler(self) -> EffectHandler:
        return self

    def take(self, effect: TaskEffect) -> None:
        self.effects.append(effect)

    def flush(self) -> None:
        if len(self.effects) > sum(self.counts):
            self.counts.append(len(self.effects) - sum(self.counts))

    async def run(self, ingress: Ingress, *, task_status: trio.TaskStatus[dict[str, str]]) -> None:
        task_status.started({})


def test_effects_for_foreign_ids_reach_only_the_front_that_made_the_ids() -> None:
    recorder = EffectRecorder()
    by_hand = SteppedServer(fronts=[recorder])
    client = by_hand.client()
    client.submit_nowait("x")
    client.leave()
    by_hand.work()
    inbox = by_hand.server.inbox
    inbox.add_notifications([ClientJoined("c"), EngineJoined("e", kind="foreign")])
    inbox.add_client_events([TaskSubmitted("c", "t", None, TaskSpec(kind="foreign")), ClientLeft("c")])
    inbox.add_engine_events([])
    by_hand.step()
    inbox.add_engine_events([TaskFinished("e", "t", "ok")])
    inbox.add_notifications([EngineLost("e", confirmed=True)])
    by_hand.step()
    assert [type(effect) for effect in recorder.effects] == [Accept, AssignTask, ForgetSession, ForgetEngine]
    assert recorder.counts == [2, 2]


def test_only_one_front_carries_out_effects_for_foreign_ids() -> None:
    with pytest.raises(ValueError, match="only one of the fronts"):
        SteppedServer(fronts=[EffectRecorder(), EffectRecorder()])


def test_a_front_that_does_not_listen_yet_has_nothing_to_flush() -> None:
    NativeFront(Config(), MemoryNetwork().open_router).flush()
