"""More connections than descriptors, on every kind of listener, while honest peers are served."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attack.harness import ATTACKERS, Attacker, HonestClient, Server, poll
from trio_sched.errors import NoSchedulerError
from trio_sched.transport.connection_info import ENV_DIRECTORY

pytestmark = pytest.mark.attack
FEW = {resource.RLIMIT_NOFILE: (1024, 1024)}
SOFT = {resource.RLIMIT_NOFILE: (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1])}
ATTACK_COUNT = 1_500
TCP = ("--bind", "tcp://127.0.0.1:0")
WEBSOCKET = ("--websocket-port", "0")


def target_of(server: Server, arguments: tuple[str, ...]) -> str:
    """Return the address that the attacker connects to: a path, or HOST:PORT."""
    if arguments == WEBSOCKET:
        return server.connection.websocket.removeprefix("ws://").split("/")[0]
    return server.connection.address.removeprefix("ipc://").removeprefix("tcp://")


def status(server: Server) -> dict[str, Any]:
    """Return the output of `trio-sched status --json`."""
    environment = {**os.environ, ENV_DIRECTORY: str(server.directory)}
    command = [sys.executable, "-m", "trio_sched", "status", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    view: dict[str, Any] = json.loads(done.stdout)
    return view


@pytest.mark.parametrize("arguments", [(), TCP, WEBSOCKET], ids=["ipc", "tcp", "websocket"])
def test_silent_connections_beyond_the_descriptor_limit_do_not_block_clients(arguments: tuple[str, ...]) -> None:
    with Server("-n", "2", *arguments, limits=FEW) as server, HonestClient(server) as honest:
        attacker = Attacker("silent_connections.py", target_of(server, arguments), ATTACK_COUNT)
        outcome = honest.during(attacker)
        assert attacker.first_line.startswith("opened")
        with attacker:
            with server.client(connect_timeout=30) as newcomer:
                assert newcomer.submit(pow, 2, 10).result(30) == 1024
            view = status(server)
            assert view["connections"]["open"] <= view["connections"]["max"]
            assert view["connections"]["descriptors"] == 1024
            assert server.descriptor_count() < 1024
        with attacker:
            honest.round_trips(1)
        assert not honest.lost
        assert "Too many open files" not in server.log
    outcome.check(slowdown=10)


@pytest.mark.parametrize("arguments", [(), TCP], ids=["ipc", "tcp"])
def test_engines_beyond_the_descriptor_limit_are_refused(arguments: tuple[str, ...]) -> None:
    """Engines within the limit are served, others are refused, and the error of a client names the limit."""
    crowd = [sys.executable, str(ATTACKERS / "crowd.py")]
    with Server("--max-clients", "2000", *arguments, command="serve", limits=FEW) as server:
        files = (server.client_file, server.engine_file)
        with Attacker("crowd.py", *files, 100) as inside:
            others = subprocess.Popen([*crowd, *files, "500"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            try:
                poll(lambda: "connection_refused" in server.log, "refusals in the log")
                with pytest.raises(NoSchedulerError, match="max_connections"):
                    connect_until_refused(server)
                assert server.descriptor_count() < 1024
            finally:
                others.kill()
                others.wait()
        assert inside.first_line.endswith(" 0 lost")
        assert ", 0 lost" in inside.output, inside.output
        with server.client(connect_timeout=30) as late:
            assert late.status()["connections"]["refused"] > 0
        assert server.is_running, server.log


def connect_until_refused(server: Server) -> None:
    """Connect until a client is refused. A connection may end meanwhile, and at first all peers are in handshakes."""
    for _ in range(20):
        try:
            server.client(connect_timeout=3).shutdown()
        except NoSchedulerError as error:
            if "max_connections" in str(error):
                raise


@pytest.mark.parametrize("arguments", [(), TCP], ids=["ipc", "tcp"])
def test_a_thousand_clients_and_engines_are_served_while_ten_thousand_are_refused(arguments: tuple[str, ...]) -> None:
    """The soft limit of 1,024 is raised to the hard one."""
    limits = ("--max-clients", "2000", "--max-connections", "2500")
    with Server(*limits, *arguments, command="serve", limits=SOFT) as server:
        crowd = Attacker("crowd.py", server.client_file, server.engine_file, 1000)
        with crowd:
            print(crowd.first_line)
            assert crowd.first_line.endswith(" 0 lost")
            with Attacker("silent_connections.py", target_of(server, arguments), 10_000) as attacker:
                print(attacker.first_line, "descriptors", server.descriptor_count())
                assert server.descriptor_count() < 6000
        print(crowd.output)
        assert ", 0 lost" in crowd.output
        assert server.is_running, server.log


# ---- ipyparallel ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ipyparallel_engine(file: Path) -> Iterator[None]:
    """Run an engine of ipyparallel."""
    command = [sys.executable, "-W", "ignore", "-m", "ipyparallel.engine", f"--file={file}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_silent_connections_to_the_ipyparallel_controller_do_not_block_clients(tmp_path: Path) -> None:
    ipyparallel = pytest.importorskip("ipyparallel")
    options = (f"--profile-dir={tmp_path}", "--native=attacked", "--log-level=info")
    with Server(*options, command="ipcontroller", limits=FEW) as server:
        security = tmp_path / "security"
        client_file, engine_file = (security / f"ipcontroller-{side}.json" for side in ("client", "engine"))
        ports = {
            port
            for file in (client_file, engine_file)
            for value in json.loads(file.read_text()).values()
            for port in (value if isinstance(value, list) else [value])
            if isinstance(port, int)
        }
        assert len(ports) >= 12
        with ipyparallel_engine(engine_file), ipyparallel.Client(str(client_file), timeout=30) as client:
            client.wait_for_engines(1, timeout=60)
            view = client.load_balanced_view()
            with contextlib.ExitStack() as stack:
                for port in sorted(ports):
                    stack.enter_context(Attacker("silent_connections.py", f"127.0.0.1:{port}", 150))
                for number in range(50):
                    assert view.apply_async(pow, number, 2).get(timeout=30) == number**2
                with ipyparallel.Client(str(client_file), timeout=30) as newcomer:
                    assert newcomer[:].apply_async(pow, 2, 10).get(timeout=30) == [1024]
                assert server.descriptor_count() < 1024
        assert server.is_running, server.log
        assert "silent_connection_closed" in server.log or "connection_refused" in server.log
