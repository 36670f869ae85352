"""The process of a Dask scheduler: `python -m trio_sched.ipyparallel.dask_scheduler`, started by dask.py.

It reads the scheduler's arguments from standard input as one line of JSON, and answers on standard output with one line
of JSON: the scheduler's addresses, or the exception. It runs until a Dask client shuts the scheduler down, or standard
input ends, which is when the controller ends.
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
        threading.Thread(target=_cancel_at_end_of_input, args=(loop, finished), daemon=True).start()
        await asyncio.wait([finished])


def _cancel_at_end_of_input(loop: asyncio.AbstractEventLoop, finished: asyncio.Task[None]) -> None:
    """Cancel `finished` when standard input ends."""
    sys.stdin.read()
    loop.call_soon_threadsafe(finished.cancel)


def _answer(answers: TextIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


def main() -> None:
    """Run a Dask scheduler."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the controller, too, which then ends
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # keeps other output out of the answers
    try:
        asyncio.run(_serve(json.loads(sys.stdin.readline()), answers))
    except Exception as error:
        _answer(answers, {"ename": type(error).__name__, "evalue": str(error)})
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
