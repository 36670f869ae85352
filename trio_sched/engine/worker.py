"""A worker process: `python -m trio_sched.engine.worker [CONNECTION_FILE]`, with control messages on stdin otherwise.

A plain loop with nothing between it and the scheduler, which starts fast: it imports neither an event loop nor
cloudpickle, numpy or anything else that a task may never need. The worker exits when the scheduler closes or on
SIGTERM, after the tasks that run. When its nanny exits (its standard input ends), it exits at once, because without a
nanny nothing would supervise the tasks that run.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trio_sched.engine import control_messages
from trio_sched.engine.capture import Capture
from trio_sched.engine.control_messages import StartWorker
from trio_sched.engine.loop import WorkerLoop
from trio_sched.engine.pool import PoolLoop
from trio_sched.engine.runner import CallRunner
from trio_sched.engine.scheduler_connection import SchedulerConnection, log_to_stderr
from trio_sched.engine.single import SingleLoop
from trio_sched.engine.worker_status import WorkerStatus
from trio_sched.transport.connection_info import ENV_CONNECTION, ENV_ENGINE_OF, client_file_of, read_connection_file
from trio_sched.transport.zmq_blocking import BlockingDealer

#: How long a worker that ends waits for the scheduler to acknowledge its last results.
CLOSE_TIMEOUT_S = 1.0
#: How long a worker that starts waits for its nanny's session before it sends its hello and its own heartbeats.
NANNY_TIMEOUT_S = 2.0


def main() -> None:
    """Run a worker until it receives a request to end."""
    lines: Iterator[bytes] = iter(())
    if len(sys.argv) > 1:
        connection_info = read_connection_file(sys.argv[1])
        start = StartWorker(connection_info, client_file=str(client_file_of(connection_info, Path(sys.argv[1]))))
    else:
        lines = read_lines(_take_stdin())
        first = control_messages.decode(next(lines))
        if not isinstance(first, StartWorker):
            raise SystemExit("the first line on standard input must be a start message")
        start = first
    run(start, lines)


def run(start: StartWorker, lines: Iterator[bytes]) -> None:
    """Run a worker with the options of `start`; exits the process.

    :param lines: further control messages of the nanny.
    """
    faults = _enable_faulthandler(start.faults)
    _set_environment(start)
    status = WorkerStatus(Path(start.status_path) if start.status_path else None, start.slots)
    runner = CallRunner()
    connection = SchedulerConnection(start, runner, status, BlockingDealer)
    capture = Capture(start.slots)
    loop: WorkerLoop
    if start.slots == 1:
        loop = SingleLoop(connection, runner, capture, status)
    else:
        loop = PoolLoop(connection, runner, capture, status, start.resources)
    _handle_signals(loop)
    os.register_at_fork(after_in_child=lambda: _enter_forked_child(capture, runner))
    if start.nanny:
        received = threading.Event()
        threading.Thread(
            target=_read_control_messages,
            args=(lines, connection, loop, received),
            name="trio_sched control messages",
            daemon=True,
        ).start()
        received.wait(NANNY_TIMEOUT_S)
    capture.install()
    loop.run()
    status.mark_leaving()
    connection.close(CLOSE_TIMEOUT_S)
    del faults  # open until here
    _exit()


def _set_environment(start: StartWorker) -> None:
    """Let a `Client()` inside a task, or in a child process of one, find this scheduler.

    The environment holds no secret: it names a file that only this user can read, and that a restarted scheduler writes
    again.
    """
    info = start.connection
    os.environ[ENV_ENGINE_OF] = f"{info.name} on {info.host}" if info.host else info.name
    if start.client_file:
        os.environ[ENV_CONNECTION] = start.client_file


def _read_control_messages(
    lines: Iterator[bytes], connection: SchedulerConnection, loop: WorkerLoop, received: threading.Event
) -> None:
    """Post the nanny's control messages, in a thread; at their end, exit whatever runs."""
    for line in lines:
        message = control_messages.decode(line)
        if not isinstance(message, StartWorker):
            connection.post(message)
            received.set()
    loop.abandon("its nanny has exited", CLOSE_TIMEOUT_S)
    os._exit(1)


def _take_stdin() -> int:
    """The descriptor of the nanny's pipe, moved out of the reach of tasks, whose standard input is empty."""
    pipe = os.dup(0)  # not inherited by child processes
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return pipe


def read_lines(descriptor: int) -> Iterator[bytes]:
    """Read lines from a descriptor until its end."""
    rest = b""
    while data := os.read(descriptor, 65536):
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


def _enable_faulthandler(path: str) -> Any:
    """Write the Python stack of a crash to the nanny's file, or to standard error without one; returns the file."""
    file = open(path, "w") if path else sys.stderr  # noqa: SIM115  # open until the process ends
    with contextlib.suppress(ValueError, OSError):  # standard error without a descriptor
        faulthandler.enable(file, all_threads=False)
    return file


def _handle_signals(loop: WorkerLoop) -> None:
    """SIGTERM: end after the running task. SIGINT: interrupt the running task; between tasks, do nothing."""
    signal.signal(signal.SIGTERM, lambda number, frame: loop.leave("it was asked to end (SIGTERM)"))
    signal.signal(signal.SIGINT, lambda number, frame: loop.interrupt())


def _enter_forked_child(capture: Capture, runner: CallRunner) -> None:
    """Make a process that a task forked an ordinary process.

    Signals end it (multiprocessing relies on that), its output is not captured, its crash is not reported as the
    worker's, and it exits where the task ends.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.disable()
    runner.enter_forked_child()
    capture.discard()


def _exit() -> None:
    """Exit in order, but without waiting for threads that tasks have left."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # the nanny gets the exit code, the user this line
        log_to_stderr(f"failed: {type(error).__name__}: {error}")
        raise
