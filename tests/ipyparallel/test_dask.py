"""The process of the Dask scheduler, and the replies to clients. `distributed` is a fake here; ipyparallel's own test
uses the real one (`nox -s downstream`).
"""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.ipyparallel.controller_fixture import TIMEOUT_S, client, running_controller
from trio_sched.ipyparallel.config import IppConfig
from trio_sched.ipyparallel.dask import DASHBOARD_PORT, DaskScheduler

FAKE = """
import asyncio, os

class Scheduler:
    def __init__(self, **arguments):
        print("Welcome to this scheduler")
        if "ip" in arguments:
            raise TypeError("unexpected argument 'ip'")
        if arguments.get("protocol") == "crash":
            os._exit(3)
        self.ip, self.port = arguments.get("host", "all"), os.getpid()
        self.address = repr(sorted(arguments.items()))

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exception):
        pass

    async def finished(self):
        await asyncio.Event().wait()
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "distributed.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


def with_scheduler(script: Callable[[DaskScheduler], Awaitable[None]], host: str | None = "127.0.0.1") -> None:
    async def main() -> None:
        with trio.fail_after(TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                dask = DaskScheduler(host)
                nursery.start_soon(dask.run)
                await trio.testing.wait_all_tasks_blocked()
                await script(dask)
                nursery.cancel_scope.cancel()

    trio.run(main)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.usefixtures("fake")
def test_one_scheduler_runs_at_a_time_until_it_is_stopped() -> None:
    pids: list[int] = []

    async def script(dask: DaskScheduler) -> None:
        replies: list[dict[str, Any]] = []

        async def ask() -> None:
            replies.append(await dask.start({"protocol": "tcp"}))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
        first, second = replies
        assert first == second
        assert first["status"] == "ok"
        assert first["ip"] == "127.0.0.1"
        pids.append(first["port"])
        assert await dask.stop() == {"status": "ok"}
        assert not runs(pids[0])
        assert await dask.stop() == {"status": "ok"}
        pids.append((await dask.start({}))["port"])
        assert runs(pids[1])

    with_scheduler(script)
    assert not runs(pids[1])  # it ended with the controller


@pytest.mark.usefixtures("fake")
def test_scheduler_binds_one_address_by_default() -> None:
    async def script(dask: DaskScheduler) -> None:
        async def arguments(**given: str) -> str:
            address: str = (await dask.start(given))["address"]
            await dask.stop()
            return address

        local = f"127.0.0.1:{DASHBOARD_PORT}"
        assert await arguments() == repr([("dashboard", False), ("dashboard_address", local), ("host", "127.0.0.1")])
        assert await arguments(host="lab") == repr([("host", "lab")])
        assert await arguments(dashboard_address=":0") == repr([("dashboard_address", ":0"), ("host", "127.0.0.1")])

    with_scheduler(script)


@pytest.mark.usefixtures("fake")
def test_failed_start_is_explained_and_a_later_one_succeeds() -> None:
    async def script(dask: DaskScheduler) -> None:
        refused = await dask.start({"ip": "*"})
        assert (refused["status"], refused["ename"]) == ("error", "TypeError")
        assert "unexpected argument 'ip'" in refused["evalue"]
        assert (await dask.start({"protocol": "crash"}))["ename"] == "RuntimeError"
        fine = await dask.start({})
        assert fine["status"] == "ok"
        os.kill(fine["port"], signal.SIGKILL)
        await dask._ended.wait()
        again = await dask.start({})
        assert again["port"] != fine["port"]
        assert runs(again["port"])

    with_scheduler(script)


def test_reply_names_missing_distributed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "distributed.py").write_text("raise ModuleNotFoundError(\"No module named 'distributed'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    async def script(dask: DaskScheduler) -> None:
        refused = await dask.start({})
        assert refused["ename"] == "ModuleNotFoundError"
        assert "distributed" in refused["evalue"]

    with_scheduler(script)


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        ({}, "127.0.0.1"),
        ({"client_ip": "10.0.0.1", "engine_ip": "10.0.0.1"}, "10.0.0.1"),
        ({"client_ip": "0.0.0.0", "engine_ip": "0.0.0.0"}, None),
        ({"engine_ip": "*"}, None),
        ({"engine_ip": "10.0.0.1"}, None),
        ({"engine_ip": "/a/path", "engine_transport": "ipc"}, "127.0.0.1"),
    ],
)
def test_default_address_is_the_controllers(settings: dict[str, Any], host: str | None) -> None:
    assert IppConfig(profile_dir="/", **settings).dask_host() == host


@pytest.mark.skipif(not importlib.util.find_spec("ipyparallel"), reason="needs ipyparallel")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.usefixtures("fake")
def test_scheduler_started_by_a_client_ends_with_the_controller() -> None:
    with running_controller() as running, client(running) as connected:

        def ask(kind: str, **content: Any) -> dict[str, Any]:
            reply = connected._send_recv(connected._query_stream, f"{kind}_request", content)
            assert reply["msg_type"] == f"{kind}_reply"
            inside: dict[str, Any] = reply["content"]
            return inside

        started = ask("become_dask", scheduler_args={})
        assert started["status"] == "ok"
        assert runs(started["port"])
        assert ask("become_dask")["port"] == started["port"]
        assert ask("stop_distributed") == {"status": "ok"}
        assert not runs(started["port"])
        last = ask("become_dask")["port"]
    assert not runs(last)
