"""The process of a Dask scheduler: `python -m trio_sched.ipyparallel.dask_scheduler`, started by dask.py.

Reads the scheduler's arguments from standard input as one line of JSON, answers on standard output with one line of
JSON (its addresses, or the exception), and runs until a Dask client shuts it down, or standard input ends: it cannot
outlive the controller.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from typing import Any, TextIO


async def _serve(arguments: dict[str, Any], answers: TextIO) -> None:
    from distributed import Scheduler

    async with Scheduler(**arguments) as scheduler:
        addresses = {name: getattr(scheduler, name) for name in ("ip", "address", "port")}
        _answer(answers, addresses)
        finished, loop = asyncio.create_task(scheduler.finished()), asyncio.get_running_loop()
        threading.Thread(target=_wait_for_end, args=(loop, finished), daemon=True).start()
        await asyncio.wait([finished])


def _wait_for_end(loop: asyncio.AbstractEventLoop, finished: asyncio.Task[None]) -> None:
    """Cancel `finished` when standard input ends."""
    sys.stdin.read()
    loop.call_soon_threadsafe(finished.cancel)


def _answer(answers: TextIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


def main() -> None:
    """Run a Dask scheduler."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the controller gets it, too, and ends
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed is not an answer
    try:
        asyncio.run(_serve(json.loads(sys.stdin.readline()), answers))
    except Exception as error:
        _answer(answers, {"ename": type(error).__name__, "evalue": str(error)})
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
