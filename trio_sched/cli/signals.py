"""Requests to stop a command: signals, and the end of standard input (the lifeline).

The first signal requests a clean end; the second one raises KeyboardInterrupt. A process that holds the other end of
the lifeline needs no signal: the lifeline ends when that process exits, for any reason.
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
async def handle_stop_requests(stop: Callable[[str], None], *, lifeline: bool = False) -> AsyncIterator[None]:
    """Call `stop` with a reason at each request within the block: a signal's name, or that standard input ended."""
    async with trio.open_nursery() as nursery:
        await nursery.start(stop_on_signals, stop, _stop_signals())
        if lifeline:
            nursery.start_soon(_stop_at_end_of_input, stop)
        yield
        nursery.cancel_scope.cancel()


def _stop_signals() -> list[signal.Signals]:
    """Return the signals that request a stop. SIGHUP, which a closing terminal sends, is one unless it is ignored."""
    signals = [signal.SIGINT, signal.SIGTERM]
    hangup: signal.Signals | None = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:  # nohup ignores it
        signals.append(hangup)
    return signals


async def _stop_at_end_of_input(stop: Callable[[str], None]) -> None:
    """Read standard input to its end, then call `stop`.

    A thread reads, which works with any kind of input. It reads the descriptor, because sys.stdin has a lock that an
    abandoned thread would still hold when the interpreter exits.
    """
    while await trio.to_thread.run_sync(os.read, 0, LIFELINE_BYTES, abandon_on_cancel=True):
        pass
    stop("standard input ended")
