"""R29 and R30: an orderly shutdown, however it is requested; a scheduler inside a user's Trio program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from trio_sched.errors import AddressInUseError
from trio_sched.server.config import Config
from trio_sched.server.native import NativeFront
from trio_sched.server.serve import serve
from trio_sched.testing import FakeClient, MemoryNetwork, open_harness, run_virtual
from trio_sched.wire import native


def files_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_r29_running_tasks_end_others_are_recalled_new_ones_refused() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            running, waiting = await client.submit("x"), await client.submit("y")
            call = await engine.next_call()
            await harness.settle()
            harness.running.stop("enough")
            for peer in (client, engine):
                assert (await peer.expect(native.Closing)).reason == "enough"
            assert engine.recalled == [waiting]
            late = await client.submit("z")
            assert (await client.expect(native.Refused)).id == late
            engine.answer_recall(waiting)
            await trio.sleep(5)
            await engine.finish(call, "in time")
            assert (await client.result_of(running)).body == b"in time"
            await client.closed.wait()

    run_virtual(main)


def test_r29_tasks_that_run_longer_than_the_grace_period_are_abandoned() -> None:
    async def main() -> None:
        async with open_harness(shutdown_grace_s=10.0) as harness:
            client, engine = await harness.client(), await harness.engine()
            await client.submit("x")
            await engine.next_call()
            began = trio.current_time()
            harness.running.stop()
            await client.closed.wait()
            assert trio.current_time() - began == pytest.approx(10.0, abs=0.01)

    run_virtual(main)


def test_r29_an_idle_scheduler_stops_at_once() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client = await harness.client()
            began = trio.current_time()
            client.send(native.Stop("by request"))
            assert (await client.expect(native.Closing)).reason == "by request"
            await client.closed.wait()
            assert trio.current_time() == began

    run_virtual(main)


def test_r29_no_peer_can_join_during_a_shutdown() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            await client.submit("x")
            call = await engine.next_call()
            harness.running.stop()
            await harness.settle()
            newcomer = await harness.newcomer()
            newcomer.send(native.Hello(role="engine", token=harness.running.engine_connection.token))
            assert (await newcomer.expect(native.Error)).kind == "closing"
            await engine.finish(call)
            await client.closed.wait()

    run_virtual(main)


def test_r29_an_engine_gets_recalls_before_the_closing_message() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            await client.submit("x", "y")
            await engine.next_call()
            harness.running.stop()
            await engine.expect(native.Closing)
            kinds = [type(message) for message in engine.received_messages if not isinstance(message, native.Acked)]
            assert kinds[-2:] == [native.Recall, native.Closing]
            engine.leave()

    run_virtual(main)


def test_r29_a_returning_engine_may_deliver_results_during_a_shutdown() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            task = await client.submit("x")
            call = await engine.next_call()
            harness.running.stop("enough")
            await engine.expect(native.Closing)
            assert (await engine.rejoin()).resumed
            assert (await engine.expect(native.Closing)).reason == "enough"
            await engine.finish(call, "here")
            assert (await client.result_of(task)).body == b"here"
            await client.closed.wait()

    run_virtual(main)


def test_r29_the_shutdown_waits_until_a_large_result_is_acknowledged() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            await client.submit("x")
            call = await engine.next_call()
            client.sends_heartbeats = client.acknowledging = False
            harness.running.stop()
            await engine.finish(call, "", [bytes(1 << 20)])
            await trio.sleep(5)
            assert not client.closed.is_set()
            client.acknowledging = True
            client.send(client.ping())
            await client.closed.wait()

    run_virtual(main)


def test_r29_the_last_results_of_an_engine_are_acknowledged() -> None:
    async def main() -> None:
        async with open_harness() as harness:
            client, engine = await harness.client(), await harness.engine()
            await client.submit("x")
            call = await engine.next_call()
            harness.running.stop()
            await harness.settle()
            await engine.finish(call)
            await engine.closed.wait()
            assert engine.acked == 1

    run_virtual(main)


def test_r30_connection_files_exist_while_the_scheduler_runs(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    config = Config(name="lab", runtime_dir=str(tmp_path))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            running = await nursery.start(serve, config, [NativeFront(config, MemoryNetwork().open_router)])
            assert files_in(tmp_path) == ["lab-client.json", "lab-engine.json"]
            assert running.connection.token != running.engine_connection.token
            assert running.status()["name"] == "lab"
            running.stop()
        assert files_in(tmp_path) == []

    run_virtual(main)


def test_r30_cancellation_notifies_peers_and_leaves_no_files(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    network = MemoryNetwork()
    config = Config(runtime_dir=str(tmp_path))

    async def main() -> None:
        async with trio.open_nursery() as peers:
            async with trio.open_nursery() as nursery:
                running = await nursery.start(serve, config, [NativeFront(config, network.open_router)])
                connection = running.connection
                client = FakeClient(lambda: network.connect(connection.address), connection.token)
                await peers.start(client.run)
                await client.join()
                nursery.cancel_scope.cancel()
            assert "cancelled" in (await client.expect(native.Closing)).reason
        assert files_in(tmp_path) == []

    run_virtual(main)


def test_r30_two_schedulers_in_one_program() -> None:
    async def main() -> None:
        async with open_harness(name="one") as one, open_harness(name="two") as two:
            for harness in (one, two):
                client = await harness.client()
                await harness.engine(eager=True)
                assert (await client.result_of(await client.submit("x"))).outcome == "ok"

    run_virtual(main)


def test_r30_an_address_in_use_raises_address_in_use_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    network = MemoryNetwork()
    config = Config(runtime_dir=str(tmp_path))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, config, [NativeFront(config, network.open_router)])
            with pytest.raises(AddressInUseError):
                await serve(config, [NativeFront(config, network.open_router)])
            nursery.cancel_scope.cancel()

    run_virtual(main)


def test_a_front_that_fails_ends_the_scheduler(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    class Broken(NativeFront):
        def take(self, batch: Sequence[Sequence[native.Frame]], *others: Any) -> None:
            if batch[0][1] == b"trigger":
                raise ZeroDivisionError("a bug")
            super().take(batch, *others)

    async def main() -> None:
        network = MemoryNetwork()
        config = Config(runtime_dir=str(tmp_path))
        with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
            async with trio.open_nursery() as nursery:
                running = await nursery.start(serve, config, [Broken(config, network.open_router)])
                connection = running.connection
                client = FakeClient(lambda: network.connect(connection.address), connection.token)
                await nursery.start(client.run)
                await client.join()
                client.send_frames([b"trigger"])
        assert files_in(tmp_path) == []

    run_virtual(main)
