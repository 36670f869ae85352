"""A scheduler inside this process, with engines or without: what `run`, `up` and `serve` have in common."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import trio
import typer

from trio_sched.cli.logs import configure_logs
from trio_sched.cli.watching import told_to_stop
from trio_sched.server.native import NativeFront
from trio_sched.server.serve import Running, serve
from trio_sched.transport.connection_limits import raise_descriptor_limit

if TYPE_CHECKING:
    from trio_sched.server.config import Config
    from trio_sched.server.hub import Front
    from trio_sched.transport.connection import Connection


COLLECTOR_THRESHOLDS = (50_000, 20, 50)
"""A scheduler makes many objects and few cycles: with the usual thresholds the collector walks all waiting tasks again
and again. A process of our own may say so; `serve` inside somebody else's program leaves the collector alone.
"""

ENGINES_START_S = 10.0
"""How long clients that connect wait for engines that were started with the scheduler."""


class Engines(NamedTuple):
    """How many engines, and what each of them is told: the arguments of `run_nanny`."""

    workers: int
    slots: int = 1
    hwm: int | None = None
    resources: dict[str, float] | None = None
    grace_s: float = 5.0


def fronts_for(config: Config) -> Sequence[Front]:
    """The ways in that the settings ask for."""
    fronts: list[Front] = [NativeFront(config)]
    if config.websocket_port is not None:
        from trio_sched.web.front import WebSocketFront

        fronts.append(WebSocketFront(config))
    return fronts


def prepare_process() -> None:
    """What a scheduler may ask of a process of its own: all the file descriptors it can have, a calm collector."""
    raise_descriptor_limit()
    gc.collect()
    gc.freeze()  # what was imported stays
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


@asynccontextmanager
async def hosted(config: Config, engines: Engines | None) -> AsyncIterator[Running]:
    """A scheduler, and engines if asked for. Leaving the block waits until something has stopped the scheduler."""
    prepare_process()
    async with trio.open_nursery() as nursery:
        nanny_scope, expecting_scope = trio.CancelScope(), trio.CancelScope()

        async def scheduler(*, task_status: trio.TaskStatus[Running]) -> None:
            await serve(config, fronts_for(config), task_status=task_status)
            nanny_scope.cancel()  # it may not even have been welcomed yet
            expecting_scope.cancel()

        async def nanny(connection: Connection, told: Engines) -> None:
            from trio_sched.engine.nanny import run_nanny

            where = _engine_file(config, connection) if config.runtime_dir else None
            with nanny_scope:
                await run_nanny(connection, where=where, **told._asdict())

        async def stop_expecting() -> None:
            with expecting_scope:
                await trio.sleep(ENGINES_START_S)
                running.expect_engines(0)

        running: Running = await nursery.start(scheduler)
        if engines and engines.workers:
            running.expect_engines(engines.workers)
            nursery.start_soon(stop_expecting)
            nursery.start_soon(nanny, running.engine_connection, engines)
        yield running


def _engine_file(config: Config, connection: Connection) -> Path:
    """Where the engines' connection file is, in a directory that is not the usual one."""
    from trio_sched.transport.connection import connection_path

    return connection_path(connection.name, "engine", Path(config.runtime_dir).expanduser().absolute())


def host(config: Config, engines: Engines | None = None, *, lifeline: bool = False) -> None:
    """A scheduler, and engines if asked for, in the foreground until told to stop."""
    configure_logs(config.log_level, config.log_format)
    trio.run(_host, config, engines, lifeline)


async def _host(config: Config, engines: Engines | None, lifeline: bool) -> None:
    stop = Stopper()
    async with told_to_stop(stop, lifeline=lifeline), hosted(config, engines) as running:
        stop.target(running.stop)
        number = engines.workers if engines else 0
        which = f"{number} engine{'s' * (number != 1)}" if number else "no engines yet"
        typer.echo(f"{running.name} is up at {running.connection.address}, {which}")


class Stopper:
    """What a signal calls, also while there is nothing to stop yet."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._stop: Callable[[str], None] | None = None

    def __call__(self, reason: str) -> None:
        self._reason = self._reason or reason
        if self._stop is not None:
            self._stop(reason)

    def target(self, stop: Callable[[str], None]) -> None:
        """What to stop is there now; stopped at once if that was asked for meanwhile."""
        self._stop = stop
        if self._reason is not None:
            stop(self._reason)
