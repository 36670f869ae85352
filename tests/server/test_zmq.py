"""The server over real sockets: ipc and tcp with CURVE, real time, real signals."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import zmq

from trio_sched.errors import AddressInUseError
from trio_sched.server.config import Config
from trio_sched.server.serve import Running, serve, stop_on_signals
from trio_sched.testing import FakeClient, FakeEngine
from trio_sched.transport import curve
from trio_sched.transport.connection_info import ConnectionInfo, find_connection
from trio_sched.transport.zmq_socket import ZmqSocket
from trio_sched.wire import native


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private directory with a name that is short enough for a socket."""
    path = tmp_path_factory.mktemp("z")
    path.chmod(0o700)
    return path


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Running]:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            server: Running = await nursery.start(serve, config)
            yield server
            server.stop("the test is over")


async def joined(nursery: trio.Nursery, kind: Any, connection: ConnectionInfo, **more: Any) -> Any:
    peer = kind(lambda: ZmqSocket.dealer(connection), connection.token, **more)
    await nursery.start(peer.run)
    await peer.join()
    return peer


@pytest.mark.parametrize("address", ["", "tcp://127.0.0.1:0"])
def test_tasks_and_results_pass_through_real_sockets(directory: Path, address: str) -> None:
    async def main() -> None:
        async with running(Config(runtime_dir=str(directory), address=address)) as server, trio.open_nursery() as peers:
            client = await joined(peers, FakeClient, server.connection)
            await joined(peers, FakeEngine, server.engine_connection, eager=True)
            big = bytes(1 << 20)
            call = client.calls("")[0]
            call.frames = 1
            client.send(native.Submit([call]), [big])
            for _ in range(5):
                await client.submit(*(str(n) for n in range(200)))
            last = await client.submit("last")
            assert (await client.result_of(last)).body == b"last"
            for counter in range(1, 1003):
                assert (await client.result_of(client.task_id(counter))).outcome == "ok"
            assert len(client.deliveries) == 1002
            peers.cancel_scope.cancel()

    trio.run(main)


def test_each_role_has_its_own_keys_over_tcp(directory: Path) -> None:
    async def main() -> None:
        async with running(Config(runtime_dir=str(directory), address="tcp://127.0.0.1:0")) as server:
            keys = {server.connection.secret_key, server.engine_connection.secret_key, ""}
            assert len(keys) == 3
            assert not server.addresses["native"].endswith(":0")

    trio.run(main)


def test_a_client_finds_the_scheduler_by_name(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIO_SCHED_RUNTIME_DIR", str(directory))

    async def main() -> None:
        async with running(Config(name="lab")) as server:
            assert find_connection("lab", "client") == server.connection
            assert find_connection("lab", "engine") == server.engine_connection

    trio.run(main)


def test_a_second_scheduler_of_the_same_name_raises_address_in_use_error(directory: Path) -> None:
    async def main() -> None:
        config = Config(runtime_dir=str(directory))
        async with running(config):
            with pytest.raises(AddressInUseError, match="choose another name"):
                await serve(config)

    trio.run(main)


def test_a_wildcard_address_is_advertised_by_name(directory: Path) -> None:
    async def main() -> None:
        config = Config(runtime_dir=str(directory), address="tcp://0.0.0.0:0", advertised_host="head.example")
        async with running(config) as server:
            assert server.connection.address.startswith("tcp://head.example:")

    trio.run(main)


def test_r29_a_signal_stops_the_scheduler(directory: Path) -> None:
    async def main() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                server = await nursery.start(serve, Config(runtime_dir=str(directory)))
                async with trio.open_nursery() as peers:
                    await peers.start(stop_on_signals, server.stop)
                    client = await joined(peers, FakeClient, server.connection)
                    os.kill(os.getpid(), signal.SIGTERM)
                    assert (await client.expect(native.Closing)).reason == "SIGTERM"
                    peers.cancel_scope.cancel()

    trio.run(main)
    assert list(directory.iterdir()) == []


def test_r29_the_second_signal_raises_keyboard_interrupt(directory: Path) -> None:
    async def main() -> None:
        reasons: list[str] = []
        with pytest.RaisesGroup(KeyboardInterrupt), trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                await nursery.start(stop_on_signals, reasons.append)
                for _ in range(2):
                    os.kill(os.getpid(), signal.SIGINT)
                    await trio.sleep(0.05)
        assert reasons == ["SIGINT"]

    trio.run(main)


def test_a_dead_client_process_is_noticed_when_results_are_sent(directory: Path) -> None:
    async def main() -> None:
        async with running(Config(runtime_dir=str(directory))) as server, trio.open_nursery() as peers:
            client = await joined(peers, FakeClient, server.connection)
            engine = await joined(peers, FakeEngine, server.engine_connection)
            await client.submit(*(str(number) for number in range(1000)))
            await engine.next_call()
            client.dealer.close()
            session = server.server.sessions.clients[client.number]
            while session.connection is not None:
                await engine.finish(await engine.next_call())
            with trio.move_on_after(30):
                while not (session.unacked or session.queued_results):  # none may have arrived yet
                    await engine.finish(await engine.next_call())
            assert session.unacked or session.queued_results
            peers.cancel_scope.cancel()

    trio.run(main)


def test_r30_peers_are_notified_of_a_cancellation(directory: Path) -> None:
    async def main() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as peers:
                async with trio.open_nursery() as nursery:
                    server = await nursery.start(serve, Config(runtime_dir=str(directory)))
                    client = await joined(peers, FakeClient, server.connection)
                    nursery.cancel_scope.cancel()
                assert "cancelled" in (await client.expect(native.Closing)).reason
                peers.cancel_scope.cancel()

    trio.run(main)
    assert list(directory.iterdir()) == []


# ---- the role is what the key proves --------------------------------------------------------------------------------


@pytest.mark.parametrize(("keys_of", "says"), [("engine", "client"), ("client", "engine"), ("client", "nanny")])
def test_a_hello_for_another_role_than_the_key_s_is_refused(directory: Path, keys_of: str, says: Any) -> None:
    """The token of the role in the Hello does not help."""

    async def main() -> None:
        async with running(Config(runtime_dir=str(directory), address="tcp://127.0.0.1:0")) as server:
            files: dict[str, ConnectionInfo] = {"client": server.connection, "engine": server.engine_connection}
            token = files["client" if says == "client" else "engine"].token
            with ZmqSocket.dealer(files[keys_of]) as dealer:
                dealer.send_many([[native.encode(native.Hello(role=says, token=token))]])
                error = native.decode_to_client((await dealer.receive())[0][0])
            assert isinstance(error, native.Error)
            assert error.kind == "unauthenticated"
            assert f"the key of your connection is that of the role {keys_of!r}" in error.message
            assert server.status()["counters"]["unauthenticated"] == 1
            sessions = server.server.sessions
            assert [sessions.clients, sessions.engines, sessions.nannies] == [{}, {}, {}]

    trio.run(main)


def test_a_peer_of_another_role_cannot_reuse_a_routing_id(directory: Path) -> None:
    """Peers choose their routing ids, so a new connection with the id of a former client is unauthenticated."""

    async def main() -> None:
        async with running(Config(runtime_dir=str(directory), address="tcp://127.0.0.1:0")) as server:
            hello = native.Hello(role="client", token=server.connection.token)
            await answer(server.connection, hello, native.Welcome)
            [session] = server.server.sessions.clients.values()
            await answer(server.engine_connection, native.Query(1, "status"), native.Error)
            assert session.connection is not None  # the Query did not close the session

    trio.run(main)


async def answer(connection: ConnectionInfo, message: Any, kind: type) -> None:
    """Connect under a chosen routing id and send the message, until an answer of this kind arrives.

    A ROUTER ignores a second connection with the same routing id while it holds the first.
    """
    while True:
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.routing_id = b"chosen"
            curve.set_client_options(socket, connection)
            socket.connect(connection.address)
            socket.send(native.encode(message))
            if await trio.to_thread.run_sync(socket.poll, 500):
                assert isinstance(native.decode_to_client(socket.recv()), kind)
                return


def test_status_counts_connections_and_rejections(directory: Path) -> None:
    async def main() -> None:
        config = Config(runtime_dir=str(directory), max_connections=2)
        async with running(config) as server, trio.open_nursery() as peers:
            client = await joined(peers, FakeClient, server.connection)
            await joined(peers, FakeEngine, server.engine_connection)
            for _ in range(2):  # the hello may be read before its connection is counted
                await client.query("status")
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as late:
                    late.start_soon(joined, late, FakeClient, server.connection)
                    while not (status := await client.query("status"))["connections"]["refused"]:
                        pass
                    scope.cancel()
            connections = status["connections"]
            assert connections["max"] == 2
            assert "2 connections of at most 2" in connections["refusing"]
            assert status["counters"]["connection_refused"] >= 1
            peers.cancel_scope.cancel()

    trio.run(main)
