"""When to stop: the first signal asks for a clean end, the second one interrupts (`server.serve.stop_on_signals`).

With a lifeline the end of standard input counts as a signal, too: whoever held its other end is gone, in whatever
way.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from trio_sched.server.serve import stop_on_signals

LIFELINE_BYTES = 4096


@asynccontextmanager
async def told_to_stop(stop: Callable[[str], None], *, lifeline: bool = False) -> AsyncIterator[None]:
    """Within the block a signal, or the end of the lifeline, calls `stop`; leaving the block ends the watch."""
    async with trio.open_nursery() as nursery:
        await nursery.start(stop_on_signals, stop, _signals())
        if lifeline:
            nursery.start_soon(_stop_at_end_of_input, stop)
        yield
        nursery.cancel_scope.cancel()


def _signals() -> list[signal.Signals]:
    """Those that ask us to go; a terminal that closes, too, unless nohup said otherwise."""
    wanted = [signal.SIGINT, signal.SIGTERM]
    hangup: signal.Signals | None = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        wanted.append(hangup)
    return wanted


async def _stop_at_end_of_input(stop: Callable[[str], None]) -> None:
    """Read by a thread, which works with any kind of input; and not through sys.stdin, whose lock the abandoned thread
    would hold when the interpreter ends.
    """
    while await trio.to_thread.run_sync(os.read, 0, LIFELINE_BYTES, abandon_on_cancel=True):
        pass
    stop("standard input ended")
