"""A worker process: `python -m trio_sched.engine.worker [CONNECTION_FILE]`; without the file, orders come on stdin.

A plain loop with nothing between it and the scheduler, that starts fast: it imports neither an event loop nor
cloudpickle, numpy or anything else that a task may never need. It ends by itself when the scheduler closes, when its
nanny is gone (its lifeline, the standard input, ends), or on SIGTERM, in each case after the task that runs, except
that without a nanny nobody would watch that task: then at once.
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
from typing import Any, TypeAlias

from trio_sched.engine import board as boards
from trio_sched.engine import orders
from trio_sched.engine.board import Board
from trio_sched.engine.capture import Capture
from trio_sched.engine.link import Link, say
from trio_sched.engine.orders import Start
from trio_sched.engine.pool import PoolLoop
from trio_sched.engine.runner import Runner
from trio_sched.engine.single import SingleLoop
from trio_sched.transport.connection import ENV_CONNECTION, ENV_ENGINE_OF, client_file_of, read_connection_file
from trio_sched.transport.zmq_blocking import BlockingDealer

Loop: TypeAlias = SingleLoop | PoolLoop
PATIENCE_S = 1.0
"""How long a worker that ends waits for the scheduler to count its last results."""
NEWS_PATIENCE_S = 2.0
"""How long a worker waits at its start to hear of its nanny's session, before it says hello and beats for itself."""


def main() -> None:
    """Run until told to end."""
    lines: Iterator[bytes] = iter(())
    if len(sys.argv) > 1:
        connection = read_connection_file(sys.argv[1])
        start = Start(connection, client_file=str(client_file_of(connection, Path(sys.argv[1]))))
    else:
        lines = read_lines(_take_stdin())
        first = orders.decode(next(lines))
        if not isinstance(first, Start):
            raise SystemExit("the first line on standard input must be a start order")
        start = first
    run(start, lines)


def run(start: Start, lines: Iterator[bytes]) -> None:
    """Be the worker of `start`; `lines` are further orders of the nanny."""
    faults = _report_faults(start.faults)
    _tell_tasks(start)
    board = Board(Path(start.board) if start.board else None, start.slots)
    runner = Runner()
    link = Link(start, runner, board, BlockingDealer)
    capture = Capture(start.slots)
    loop: Loop
    if start.slots == 1:
        loop = SingleLoop(link, runner, capture, board)
    else:
        loop = PoolLoop(link, runner, capture, board, start.resources)
    _handle_signals(loop)
    os.register_at_fork(after_in_child=lambda: _in_forked_child(capture, runner))
    if start.nanny:
        heard = threading.Event()
        threading.Thread(
            target=_follow_nanny, args=(lines, link, loop, heard), name="trio_sched lifeline", daemon=True
        ).start()
        heard.wait(NEWS_PATIENCE_S)
    capture.install()
    loop.run()
    board.state = boards.LEAVING
    link.bye(PATIENCE_S)
    del faults  # open until here
    _exit()


def _tell_tasks(start: Start) -> None:
    """A `Client()` inside of a task, or of what it starts, is one of this scheduler. The environment holds no secret:
    it names a file, which only this user can read, and which a scheduler that is restarted writes again."""
    connection = start.connection
    os.environ[ENV_ENGINE_OF] = f"{connection.name} on {connection.host}" if connection.host else connection.name
    if start.client_file:
        os.environ[ENV_CONNECTION] = start.client_file


def _follow_nanny(lines: Iterator[bytes], link: Link, loop: Loop, heard: threading.Event) -> None:
    """Thread: take the nanny's orders; when they end, so do we, whatever runs."""
    for line in lines:
        order = orders.decode(line)
        if not isinstance(order, Start):
            link.post(order)
            heard.set()
    loop.abandon("its nanny is gone", PATIENCE_S)
    os._exit(1)


def _take_stdin() -> int:
    """The descriptor of the nanny's pipe, out of the reach of tasks: their standard input is empty."""
    pipe = os.dup(0)  # not inherited by child processes
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return pipe


def read_lines(descriptor: int) -> Iterator[bytes]:
    """The lines that come from a pipe, until its end."""
    rest = b""
    while data := os.read(descriptor, 65536):
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


def _report_faults(path: str) -> Any:
    """On a crash write where Python was: to the nanny's file, so that the cause of death can name it."""
    file = open(path, "w") if path else sys.stderr  # noqa: SIM115  # for as long as we live
    with contextlib.suppress(ValueError, OSError):  # a standard error without descriptor
        faulthandler.enable(file, all_threads=False)
    return file


def _handle_signals(loop: Loop) -> None:
    """SIGTERM: end after the running task. SIGINT: an interrupt of the running task, or nothing."""
    signal.signal(signal.SIGTERM, lambda number, frame: loop.leave("it was asked to end (SIGTERM)"))
    signal.signal(signal.SIGINT, lambda number, frame: loop.interrupt())


def _in_forked_child(capture: Capture, runner: Runner) -> None:
    """A process that a task forked is no worker: signals end it (multiprocessing counts on that), what it prints is
    printed, where it crashes is nobody's cause of death, and it ends where the task does."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.disable()
    runner.forked = True
    for output in capture.outputs:
        output.open = False


def _exit() -> None:
    """End the process in order, except that threads which tasks left behind are not waited for."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # the nanny sees the exit code, the user this line
        say(f"could not go on: {type(error).__name__}: {error}")
        raise
