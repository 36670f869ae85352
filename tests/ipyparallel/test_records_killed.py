"""Records after a controller was killed, and after the next one has opened them."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.ipyparallel.controller_fixture import TIMEOUT_S, client
from tests.ipyparallel.test_ipcontroller import READY, controller, read_log

ipp = pytest.importorskip("ipyparallel")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
CALLS = 200
OPTIONS = ("--sqlitedb", "--ping=250")


@contextmanager
def engine(home: Path) -> Iterator[None]:
    """Run a real engine of the profile's controller; the controller may end before it."""
    path = home / "profile_default" / "security" / "ipcontroller-engine.json"
    command = [sys.executable, "-W", "ignore", "-m", "ipyparallel.engine", f"--file={path}"]
    environment = {**os.environ, "IPYTHONDIR": str(home)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # also its nanny
        process.wait()


def client_file(home: Path) -> str:
    return str(home / "profile_default" / "security" / "ipcontroller-client.json")


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline


def in_file(home: Path) -> set[str]:
    """Read the ids of the requests in the file of records."""
    with closing(sqlite3.connect(home / "profile_default" / "tasks.db")) as db:
        return {row[0] for row in db.execute("select msg_id from trio_sched_tasks")}


def killed_with_work(home: Path) -> tuple[list[str], str, str]:
    """Run a controller until it has answered many calls and has two unfinished ones, and kill it.

    Returns the ids of the answered calls, of the running one, and of the waiting one.
    """
    with controller(home, *OPTIONS) as process:
        read_log(process, READY)
        with engine(home), client(client_file(home), 1) as rc:
            balanced = rc.load_balanced_view()
            calls = [balanced.apply(pow, 2, number) for number in range(CALLS)]
            calls += [rc[0].apply(pow, 3, number) for number in range(CALLS // 10)]
            calls.append(rc.broadcast_view().apply(os.getpid))
            for call in calls:
                call.get(TIMEOUT_S)
            running, waiting = balanced.apply(time.sleep, 600), balanced.apply(pow, 2, 1000)
            wait_until(lambda: rc.queue_status()["unassigned"] == 1)
            process.send_signal(signal.SIGKILL)
            process.wait()
            return [msg_id for call in calls for msg_id in call.msg_ids], running.msg_ids[0], waiting.msg_ids[0]


def test_relayed_requests_survive_a_kill_and_lost_ones_can_be_resubmitted(tmp_path: Path) -> None:
    answered, running, waiting = killed_with_work(tmp_path)
    assert not {*answered, running, waiting} - in_file(tmp_path)
    with controller(tmp_path, *OPTIONS) as process:
        read_log(process, READY)
        with engine(tmp_path), client(client_file(tmp_path), 1) as rc:
            for msg_id in (running, waiting):
                with pytest.raises(ipp.RemoteError, match="ended before the task did") as caught:
                    rc.get_result(msg_id).get(TIMEOUT_S)
                assert caught.value.ename == "EngineError"
            assert rc.db_query({"completed": None}) == []
            assert rc.queue_status(verbose=True) == {0: {"queue": [], "completed": [], "tasks": []}, "unassigned": []}
            assert rc.resubmit(waiting).get(TIMEOUT_S) == [2**1000]
            rc.purge_everything()
            assert rc.hub_history() == []
