"""Accepted and refused addresses; no scheduler replaces the socket of another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
import zmq

from trio_sched.errors import AddressInUseError, ConfigError
from trio_sched.transport import curve
from trio_sched.transport.connection_info import ConnectionInfo, ipc_address
from trio_sched.transport.zmq_blocking import BlockingDealer
from trio_sched.transport.zmq_socket import ZmqSocket


def test_tcp_without_keys_is_refused_on_both_sides() -> None:
    with pytest.raises(ConfigError, match="TCP without CURVE is refused"):
        ZmqSocket.router("tcp://127.0.0.1:0")
    connection = ConnectionInfo("x", "client", "tcp://127.0.0.1:9", "token")
    with pytest.raises(ConfigError, match="TCP without CURVE is refused"):
        ZmqSocket.dealer(connection)
    with pytest.raises(ConfigError, match="TCP without CURVE is refused"):
        BlockingDealer(connection)


@pytest.mark.parametrize("address", ["inproc://x", "udp://127.0.0.1:1", "ws://127.0.0.1:0", "127.0.0.1:0", ""])
def test_other_transports_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="must begin with"):
        ZmqSocket.router(address, keys=curve.new_keys().for_server())
    with pytest.raises(ConfigError, match="must begin with"):
        ZmqSocket.dealer(ConnectionInfo("x", "client", address, "token"))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1", "tcp://:0", "tcp://127.0.0.1:99999", "tcp://127.0.0.1:x"])
def test_an_invalid_port_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="with a port up to"):
        ZmqSocket.router(address, keys=curve.new_keys().for_server())
    with pytest.raises(ConfigError, match="with a port up to"):
        ZmqSocket.dealer(ConnectionInfo("x", "client", address, "token"))


@pytest.mark.parametrize("address", ["tcp://no such host:0", "tcp://192.0.2.1:0"])
def test_an_address_that_cannot_be_bound_is_an_error(address: str) -> None:
    with pytest.raises(ConfigError, match="cannot bind"):
        ZmqSocket.router(address, keys=curve.new_keys().for_server())


@pytest.mark.parametrize("key", ["short", "ü" * 40, "x" * 40 + "y"])
def test_invalid_keys_are_an_error(key: str) -> None:
    with pytest.raises(ConfigError, match="not CURVE keys"):
        ZmqSocket.dealer(
            ConnectionInfo("x", "client", "tcp://127.0.0.1:9", "t", server_key=key, public_key=key, secret_key=key)
        )


def test_an_ipc_socket_must_be_in_a_private_directory(runtime_dir: Path) -> None:
    runtime_dir.chmod(0o711)
    with pytest.raises(ConfigError, match="chmod 700"):
        ZmqSocket.router(f"ipc://{runtime_dir}/x.sock")


@pytest.mark.parametrize("address", ["ipc://relative.sock", "ipc://@abstract", "ipc://*"])
def test_an_ipc_address_must_be_an_absolute_path(address: str) -> None:
    with pytest.raises(ConfigError, match="absolute path"):
        ZmqSocket.router(address)


def test_port_0_becomes_a_free_port(run: Any, secured: Any) -> None:
    async def main() -> None:
        with secured.router() as router:
            assert router.address.startswith("tcp://127.0.0.1:")
            assert int(router.address.rpartition(":")[2]) > 0

    run(main)


def test_a_port_in_use_is_an_error(secured: Any) -> None:
    with secured.router() as router, pytest.raises(AddressInUseError, match="choose another port"):
        ZmqSocket.router(router.address, keys=secured.keys.for_server())


def test_a_name_in_use_is_an_error(local: Any) -> None:
    with local.router(), pytest.raises(AddressInUseError, match="choose another name"):
        local.router()


def test_a_stale_socket_file_is_replaced(run: Any, local: Any) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(local.address.removeprefix("ipc://"))

    async def main() -> None:
        with local.router() as router, ZmqSocket.dealer(local.connection(router)) as dealer:
            dealer.send([b"hello"])
            with anyio.fail_after(10):
                assert len(await router.receive()) == 1

    run(main)


def test_a_regular_file_at_the_path_is_not_removed(local: Any) -> None:
    path = Path(local.address.removeprefix("ipc://"))
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is not a socket"):
        local.router()
    assert path.read_text() == "precious"


def test_libzmq_has_no_high_water_marks(local: Any) -> None:
    with local.router(max_message_bytes=1000) as router, ZmqSocket.dealer(local.connection(router)) as dealer:
        for made in (router, dealer):
            assert (made._option(zmq.SNDHWM), made._option(zmq.RCVHWM)) == (0, 0)
        assert (router._option(zmq.MAXMSGSIZE), dealer._option(zmq.MAXMSGSIZE)) == (1000, -1)


def test_several_schedulers_run_in_one_process(run: Any, runtime_dir: Path) -> None:
    async def main() -> None:
        with ZmqSocket.router(ipc_address("a")) as first, ZmqSocket.router(ipc_address("b")) as second:
            for router, word in ((first, b"1"), (second, b"2")):
                with ZmqSocket.dealer(ConnectionInfo("x", "client", router.address, "t")) as dealer:
                    dealer.send([word])
                    with anyio.fail_after(10):
                        [[_, body]] = await router.receive()
                    assert body == word

    run(main)
