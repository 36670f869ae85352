"""The drop-in controller side by side with ipyparallel's own, on the same traffic.

A raw client and raw engines that answer at once speak ipyparallel's wire with signed messages of seven frames, so that
what is measured is the controller: its CPU time a task, over all of its processes, records off.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from trio_sched.cli.benchmarks.tables import Row, Table
from trio_sched.errors import NoSchedulerError
from trio_sched.transport.zmq_peer import Peer, Peers
from trio_sched.wire.jupyter import Codec, split
from trio_sched.wire.native import Frame

OURS, STOCK = "trio_sched", "ipyparallel"
CONTROLLERS = {
    OURS: (sys.executable, "-m", "trio_sched", "ipcontroller"),
    STOCK: (sys.executable, "-m", "ipyparallel.controller"),
}
ENGINES = 4
START_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 60.0
WINDOW = 500
"""Tasks under way at once where it is the cost of a task that counts, and not the length of the queue."""
PAYLOAD = b"x" * 500


def controllers() -> list[str]:
    """Those that can be measured here."""
    return [OURS, STOCK] if importlib.util.find_spec("ipyparallel") else [OURS]


@contextmanager
def controller(which: str, *arguments: str) -> Iterator[tuple[int, Path]]:
    """A controller with a profile of its own: its process id, and the connection file of clients."""
    with tempfile.TemporaryDirectory(prefix="ipp-") as profile:
        command = [*CONTROLLERS[which], f"--profile-dir={profile}", "--nodb", "--log-level=40", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            path = Path(profile, "security", "ipcontroller-client.json")
            until = time.monotonic() + START_TIMEOUT_S
            while not (path.exists() and path.with_name("ipcontroller-engine.json").exists()):
                if process.poll() is not None or time.monotonic() > until:
                    raise NoSchedulerError(f"the controller to measure did not come up: {' '.join(command)}")
                time.sleep(0.01)
            time.sleep(0.0 if which == OURS else 2.0)  # stock writes its files before its schedulers listen
            yield process.pid, path
        finally:
            _end(process)


def _end(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(10.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def engines(client_file: Path, processes: int, each: int = 1) -> Iterator[None]:
    """So many engine processes, with so many engines each."""
    path = str(client_file.with_name("ipcontroller-engine.json"))
    command = [sys.executable, "-m", "trio_sched.cli.benchmarks.ipp_engines", path, str(each)]
    with ExitStack() as stack:
        for _ in range(processes):
            stack.callback(_end, subprocess.Popen(command, stdout=subprocess.DEVNULL))
        yield


def cpu_s(pid: int) -> float:
    """What a controller has cost so far, with all of its processes."""
    import psutil

    parent = psutil.Process(pid)
    return sum(sum(process.cpu_times()[:2]) for process in [parent, *parent.children(recursive=True)])


class Client:
    """A client that says what ipyparallel's says, and nothing more."""

    def __init__(self, peers: Peers, path: Path) -> None:
        inside = json.loads(path.read_text(encoding="utf-8"))
        self._codec = Codec(inside["key"].encode(), inside["signature_scheme"])
        self._tasks = self._connect(peers, inside, "task")
        self._registration = self._connect(peers, inside, "registration")

    @staticmethod
    def _connect(peers: Peers, inside: dict[str, Any], channel: str) -> Peer:
        return peers.connect("dealer", f"{inside['interface']}:{inside[channel]}")

    def wait_for_engines(self, count: int) -> list[str]:
        """Ask until so many are registered; their uuids."""
        until = time.monotonic() + ANSWER_TIMEOUT_S
        while time.monotonic() < until:
            self._registration.send(self._codec.message("connection_request", {}))
            reply = self._registration.receive(ANSWER_TIMEOUT_S)
            if reply is not None:
                uuids = list(split(reply).content["engines"].values())
                if len(uuids) >= count:
                    return uuids
            time.sleep(0.02)
        raise NoSchedulerError(f"{count} engines did not register in {ANSWER_TIMEOUT_S:.0f} s")

    def requests(self, count: int, chain: bool = False) -> list[list[Frame]]:
        """Tasks, signed and ready to be sent; in a chain each waits for the one before."""
        made: list[list[Frame]] = []
        metadata: dict[str, Any] = {"after": [], "follow": [], "targets": [], "retries": 0, "timeout": None}
        for _ in range(count):
            header = self._codec.header("apply_request")
            made.append(self._codec.message("apply_request", {}, header=header, metadata=metadata, buffers=[PAYLOAD]))
            if chain:
                after = {"dependencies": [header["msg_id"]], "all": True, "success": True, "failure": False}
                metadata = {**metadata, "after": after}
        return made

    def run(self, requests: Sequence[Sequence[Frame]], window: int) -> float:
        """Send them, so many under way at once, and wait for all replies. Returns the seconds that it took."""
        started = time.perf_counter()
        sent = got = 0
        while got < len(requests):
            while sent < len(requests) and sent - got < window:
                self._tasks.send(requests[sent])
                sent += 1
            reply = self._tasks.receive(ANSWER_TIMEOUT_S)
            if reply is None:
                raise NoSchedulerError(f"{len(requests) - got} of {len(requests)} tasks were not answered")
            got += 1 + len(self._tasks.drain())
        return time.perf_counter() - started


def measure_tasks(which: str, hwm: int, tasks: int, scheme: str = "leastload") -> Row:
    """Independent tasks, a bounded number under way; the same with 8,000 queued at once; a chain of 2,000."""
    with (
        controller(which, f"--hwm={hwm}", f"--scheme={scheme}") as (pid, path),
        engines(path, ENGINES),
        Peers() as peers,
    ):
        client = Client(peers, path)
        client.wait_for_engines(ENGINES)
        client.run(client.requests(tasks // 10), WINDOW)
        row: Row = {"controller": which, "hwm": hwm}
        for name, count, window, chain in (
            ("", tasks, WINDOW, False),
            ("8,000 queued ", 8_000, 8_000, False),
            ("chain ", 2_000, 2_000, True),
        ):
            if chain and which == STOCK:
                count = 500
            requests = client.requests(count, chain)
            before = cpu_s(pid)
            took_s = client.run(requests, window)
            row[f"{name}us a task"] = 1e6 * (cpu_s(pid) - before) / count
            row[f"{name}tasks/s"] = count / took_s
        return row


def measure_joining(which: str, count: int, processes: int = 4) -> Row:
    """Many engines at once, until a client knows all of them; and one more."""
    with controller(which) as (pid, path), Peers() as peers:
        client = Client(peers, path)
        before, started = cpu_s(pid), time.perf_counter()
        with engines(path, processes, count // processes):
            client.wait_for_engines(count // processes * processes)
            joined_s = time.perf_counter() - started
            row: Row = {"controller": which, "engines": count, "all joined s": joined_s}
            row["controller s"] = cpu_s(pid) - before
            row["tasks/s"] = 4 * count / client.run(client.requests(4 * count), 4 * count)
            return row


def measure(tasks: int, marks: Sequence[int], joining: int, versus: Sequence[str]) -> list[Table]:
    """All tables, the controllers in turn."""
    rows = [measure_tasks(which, mark, tasks) for mark in marks for which in versus]
    for row in rows:
        stock = next((one for one in rows if one["controller"] == STOCK and one["hwm"] == row["hwm"]), None)
        row["stock to this"] = stock["us a task"] / row["us a task"] if stock else None
    note = f"raw client, {ENGINES} raw engines, signed messages; us: CPU of all of the controller's processes"
    joins = [measure_joining(which, joining) for which in versus]
    return [Table("ipyparallel tasks", note, rows), Table("ipyparallel engines", "from their start", joins)]
