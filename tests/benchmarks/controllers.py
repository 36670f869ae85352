"""The drop-in controller and ipyparallel's own, compared on the same traffic.

    python -m tests.benchmarks.controllers --hwm 1,10

A raw client and raw engines, which answer at once, exchange signed messages of seven frames, so that the measurement
shows the controller: its CPU time a task, summed over its processes, with records off.
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
from typing import Annotated, Any

import typer

from tests.zmq_peers import Peer, Peers
from trio_sched.cli.bench import parse_numbers
from trio_sched.cli.tables import Row, Table, as_json, print_tables
from trio_sched.errors import NoSchedulerError
from trio_sched.wire.jupyter import Codec, split
from trio_sched.wire.native import Frame

ROOT = Path(__file__).resolve().parents[2]
DROP_IN, STOCK = "trio_sched", "ipyparallel"
CONTROLLERS = {
    DROP_IN: (sys.executable, "-m", "trio_sched", "ipcontroller"),
    STOCK: (sys.executable, "-m", "ipyparallel.controller"),
}
ENGINES = 4
START_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 60.0
#: Unanswered tasks at a time, where the cost of a task is measured and not the length of the queue.
WINDOW = 500
PAYLOAD = b"x" * 500


def controllers() -> list[str]:
    """Return the controllers that are installed here."""
    return [DROP_IN, STOCK] if importlib.util.find_spec("ipyparallel") else [DROP_IN]


@contextmanager
def controller(which: str, *arguments: str) -> Iterator[tuple[int, Path]]:
    """Run a controller with a temporary profile within the block.

    Yield its process id and the clients' connection file.

    :raises NoSchedulerError: the controller exited, or wrote no connection files within 30 s.
    """
    with tempfile.TemporaryDirectory(prefix="ipp-") as profile:
        command = [*CONTROLLERS[which], f"--profile-dir={profile}", "--nodb", "--log-level=40", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            path = Path(profile, "security", "ipcontroller-client.json")
            deadline = time.monotonic() + START_TIMEOUT_S
            while not (path.exists() and path.with_name("ipcontroller-engine.json").exists()):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise NoSchedulerError(f"the controller to measure did not start: {' '.join(command)}")
                time.sleep(0.01)
            time.sleep(0.0 if which == DROP_IN else 2.0)  # ipyparallel writes its files before its schedulers listen
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
    """Run engine processes within the block, with `each` engines in each of them."""
    path = str(client_file.with_name("ipcontroller-engine.json"))
    command = [sys.executable, "-m", "tests.benchmarks.raw_engines", path, str(each)]
    with ExitStack() as stack:
        for _ in range(processes):
            stack.callback(_end, subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL))
        yield


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a controller has used so far, summed over its processes."""
    import psutil

    parent = psutil.Process(pid)
    return sum(sum(process.cpu_times()[:2]) for process in [parent, *parent.children(recursive=True)])


class RawClient:
    """A client that sends the messages of ipyparallel's client, without its bookkeeping."""

    def __init__(self, peers: Peers, path: Path) -> None:
        info = json.loads(path.read_text(encoding="utf-8"))
        self._codec = Codec(info["key"].encode(), info["signature_scheme"])
        self._tasks = self._connect(peers, info, "task")
        self._registration = self._connect(peers, info, "registration")

    @staticmethod
    def _connect(peers: Peers, info: dict[str, Any], channel: str) -> Peer:
        return peers.connect("dealer", f"{info['interface']}:{info[channel]}")

    def wait_for_engines(self, count: int) -> list[str]:
        """Query the controller until `count` engines are registered; return their uuids.

        :raises NoSchedulerError: fewer have registered within 60 s.
        """
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while time.monotonic() < deadline:
            self._registration.send(self._codec.message("connection_request", {}))
            reply = self._registration.receive(ANSWER_TIMEOUT_S)
            if reply is not None:
                uuids = list(split(reply).content["engines"].values())
                if len(uuids) >= count:
                    return uuids
            time.sleep(0.02)
        raise NoSchedulerError(f"{count} engines did not register in {ANSWER_TIMEOUT_S:.0f} s")

    def requests(self, count: int, chain: bool = False) -> list[list[Frame]]:
        """Make signed requests. In a chain each task depends on the previous one."""
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
        """Send the requests, at most `window` of them unanswered, and wait for all replies; return the seconds taken.

        :raises NoSchedulerError: no reply arrived for 60 s.
        """
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
    """Measure independent tasks with a bounded window, 8,000 tasks queued at once, and a chain of 2,000 tasks."""
    with (
        controller(which, f"--hwm={hwm}", f"--scheme={scheme}") as (pid, path),
        engines(path, ENGINES),
        Peers() as peers,
    ):
        client = RawClient(peers, path)
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
    """Measure how long `count` engines take to register, until a client knows all of them."""
    with controller(which) as (pid, path), Peers() as peers:
        client = RawClient(peers, path)
        before, started = cpu_s(pid), time.perf_counter()
        with engines(path, processes, count // processes):
            client.wait_for_engines(count // processes * processes)
            joined_s = time.perf_counter() - started
            row: Row = {"controller": which, "engines": count, "all joined s": joined_s}
            row["controller s"] = cpu_s(pid) - before
            row["tasks/s"] = 4 * count / client.run(client.requests(4 * count), 4 * count)
            return row


def measure(tasks: int, marks: Sequence[int], joining: int, versus: Sequence[str]) -> list[Table]:
    """Measure all controllers of `versus`, alternating."""
    rows = [measure_tasks(which, mark, tasks) for mark in marks for which in versus]
    for row in rows:
        stock = next((other for other in rows if other["controller"] == STOCK and other["hwm"] == row["hwm"]), None)
        row["stock to this"] = stock["us a task"] / row["us a task"] if stock else None
    note = f"raw client, {ENGINES} raw engines, signed messages; us: CPU of all of the controller's processes"
    joins = [measure_joining(which, joining) for which in versus]
    return [Table("ipyparallel tasks", note, rows), Table("ipyparallel engines", "from their start", joins)]


def main(
    hwm: Annotated[Any, typer.Option(parser=parse_numbers, metavar="N,...", help="High-water marks.")] = "1,10",
    tasks: Annotated[int, typer.Option(min=100, help="Tasks of one measurement.")] = 20_000,
    joining: Annotated[int, typer.Option(min=4, help="Engines that register at once.")] = 500,
    json: Annotated[bool, typer.Option(help="Machine-readable output.")] = False,
) -> None:
    """Measure the drop-in controller, and ipyparallel's own where it is installed."""
    tables = measure(tasks, hwm, joining, controllers())
    typer.echo(as_json(tables)) if json else print_tables(tables)


if __name__ == "__main__":
    typer.run(main)
