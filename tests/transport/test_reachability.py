"""The diagnosis of an unanswered address names the host, the cause and the source of the address."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

from trio_sched import Client, NoSchedulerError, open_client
from trio_sched.cli.admin_client import AdminClient
from trio_sched.engine.nanny import run_nanny
from trio_sched.server.config import Config
from trio_sched.server.serve import serve
from trio_sched.transport.connection_info import ConnectionInfo, to_json
from trio_sched.transport.curve import new_keys
from trio_sched.transport.reachability import describe_unanswered

NOWHERE = "the host 'nowhere.invalid' could not be resolved here"
WHERE_FROM = "The address comes from the connection file; .*--advertised-host"
LIMIT_S = 60


@pytest.fixture(autouse=True)
def _no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the lookup of an unknown name at once, which a slow name server would delay."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *more: Any, **options: Any) -> Any:
        if host == "nowhere.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine at which no process listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def connection_to(address: str, role: Any = "client") -> ConnectionInfo:
    keys = new_keys()
    pair = keys.roles[role]
    return ConnectionInfo(
        "lab", role, address, "t", server_key=keys.server.public, public_key=pair.public, secret_key=pair.secret
    )


def test_a_missing_local_socket_is_reported() -> None:
    assert describe_unanswered("ipc:///nowhere/x.sock") == ": nothing listens there"


def test_a_closed_port_is_reported(closed_port: int) -> None:
    text = describe_unanswered(f"tcp://127.0.0.1:{closed_port}")
    assert f"the host '127.0.0.1' could not be reached at port {closed_port} (Connection refused)" in text
    assert "is the scheduler running" in text


def test_an_open_port_of_another_process_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        text = describe_unanswered(f"tcp://127.0.0.1:{other.getsockname()[1]}")
    assert "or the file is that of a former one, since keys are new at each start: copy it again" in text


def test_a_slow_name_server_does_not_delay_the_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def getaddrinfo(*_arguments: Any, **_options: Any) -> None:
        answered.wait(LIMIT_S)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert "could not be resolved or reached within 0.01 s" in describe_unanswered("tcp://slow.invalid:1", 0.01)
    answered.set()


# ---- reports of the diagnosis ---------------------------------------------------------------------------------------


def test_a_client_reports_the_diagnosis() -> None:
    with pytest.raises(NoSchedulerError, match=f"did not answer within 0.01 s: {NOWHERE} .*{WHERE_FROM}"):
        Client(connection_to("tcp://nowhere.invalid:7077"), connect_timeout=0.01)


def test_an_async_client_reports_the_diagnosis() -> None:
    async def main() -> None:
        async with open_client(connection_to("tcp://nowhere.invalid:7077"), connect_timeout=0.01):
            raise AssertionError

    with pytest.raises(NoSchedulerError, match=f"did not answer within 0.01 s: {NOWHERE} .*{WHERE_FROM}"):
        anyio.run(main)


def test_a_command_reports_the_diagnosis(tmp_path: Path) -> None:
    path = tmp_path / "lab-client.json"
    path.touch(0o600)
    path.write_text(to_json(connection_to("tcp://nowhere.invalid:7077")))
    with pytest.raises(NoSchedulerError, match=f"did not answer in 0.01 s: {NOWHERE} .*{WHERE_FROM}"):
        AdminClient(path, timeout_s=0.01)


def test_engines_report_the_diagnosis() -> None:
    async def main() -> None:
        with trio.fail_after(LIMIT_S):
            await run_nanny(connection_to("tcp://nowhere.invalid:7077", "engine"), workers=1, start_timeout_s=0.01)

    with pytest.raises(NoSchedulerError, match=f"did not answer within 0.01 s: {NOWHERE} .*{WHERE_FROM}"):
        trio.run(main)


@pytest.mark.parametrize(("host", "warns"), [("nowhere.invalid", True), ("127.0.0.1", False)])
def test_a_scheduler_warns_of_an_unknown_advertised_host(
    runtime_dir: Path, caplog: pytest.LogCaptureFixture, host: str, warns: bool
) -> None:
    async def main() -> None:
        with trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as nursery:
                running = await nursery.start(serve, Config(address="tcp://0.0.0.0:0", advertised_host=host))
                while warns and "cannot be resolved" not in caplog.text:
                    await trio.lowlevel.checkpoint()
                running.stop("the test is over")

    with caplog.at_level(logging.WARNING, "trio_sched"):
        trio.run(main)
    assert ("the advertised host cannot be resolved here host='nowhere.invalid'" in caplog.text) == warns
    assert ("--advertised-host" in caplog.text) == warns
