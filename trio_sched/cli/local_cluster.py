"""A scheduler in this process, with or without engines: the common part of `run`, `up`, `serve` and `ipcontroller`."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import trio
import typer

from trio_sched.cli.log_setup import configure_logs
from trio_sched.cli.signals import handle_stop_requests
from trio_sched.server.native import NativeFront
from trio_sched.server.serve import Running, serve
from trio_sched.transport.connection_info import connection_path
from trio_sched.transport.connection_limits import raise_descriptor_limit

if TYPE_CHECKING:
    from trio_sched.server.config import Config
    from trio_sched.server.ingress import Front
    from trio_sched.transport.connection_info import ConnectionInfo


#: A scheduler makes many objects and few cycles. With Python's own thresholds the collector traverses all waiting tasks
#: again and again. A command changes the thresholds of its process; `serve` as a library function leaves them alone.
COLLECTOR_THRESHOLDS = (50_000, 20, 50)
#: Seconds for which connecting clients wait for the engines that start together with the scheduler.
ENGINES_START_S = 10.0


class EngineProcesses(NamedTuple):
    """The engines that start together with a scheduler: their number, and the arguments of `run_nanny` for them."""

    workers: int
    slots: int = 1
    resources: dict[str, float] | None = None
    grace_s: float = 5.0


def fronts_for(config: Config) -> Sequence[Front]:
    """Return the fronts that the settings enable: the native one, and WebSocket."""
    fronts: list[Front] = [NativeFront(config)]
    if config.websocket_port is not None:
        from trio_sched.web.front import WebSocketFront

        fronts.append(WebSocketFront(config))
    return fronts


def connection_file(config: Config, name: str, role: Literal["client", "engine"]) -> Path:
    """Return the path of the connection file that a scheduler with these settings writes for a role."""
    directory = Path(config.runtime_dir).expanduser().absolute() if config.runtime_dir else None
    return connection_path(name, role, directory)


@asynccontextmanager
async def run_cluster(
    config: Config, engines: EngineProcesses | None = None, fronts: Sequence[Front] | None = None
) -> AsyncIterator[Running]:
    """Run a scheduler, and engines if there are any, within the block.

    The end of the block waits until the scheduler has stopped, which the caller requests by `Running.stop`. `fronts`
    default to those that the settings enable.
    """
    _prepare_process()
    async with trio.open_nursery() as nursery:
        nanny_scope, expecting_scope = trio.CancelScope(), trio.CancelScope()

        async def scheduler(*, task_status: trio.TaskStatus[Running]) -> None:
            await serve(config, fronts_for(config) if fronts is None else fronts, task_status=task_status)
            nanny_scope.cancel()  # the scheduler may have stopped before it sent the nanny a welcome
            expecting_scope.cancel()

        async def nanny(engines: EngineProcesses) -> None:
            with nanny_scope:
                await _run_engines(config, running.engine_connection, engines)

        async def stop_expecting() -> None:
            with expecting_scope:
                await trio.sleep(ENGINES_START_S)
                running.expect_engines(0)

        running: Running = await nursery.start(scheduler)
        if engines and engines.workers:
            running.expect_engines(engines.workers)
            nursery.start_soon(stop_expecting)
            nursery.start_soon(nanny, engines)
        yield running


async def _run_engines(config: Config, connection: ConnectionInfo, engines: EngineProcesses) -> None:
    from trio_sched.engine.nanny import run_nanny

    await run_nanny(
        connection,
        workers=engines.workers,
        slots=engines.slots,
        resources=engines.resources,
        grace_s=engines.grace_s,
        where=connection_file(config, connection.name, "engine") if config.runtime_dir else None,
    )


def _prepare_process() -> None:
    """Raise the limit of file descriptors, and make the garbage collector suit a scheduler."""
    raise_descriptor_limit()
    gc.collect()
    gc.freeze()  # imported modules stay alive
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


@asynccontextmanager
async def stop_on_request(
    cluster: AbstractAsyncContextManager[Running], *, lifeline: bool = False
) -> AsyncIterator[Running]:
    """Run a cluster within the block, and stop its scheduler on request; a request during the start is kept."""
    reasons: list[str] = []
    running: Running | None = None

    def stop(reason: str) -> None:
        reasons.append(reason)
        if running is not None:
            running.stop(reason)

    async with handle_stop_requests(stop, lifeline=lifeline), cluster as scheduler:
        running = scheduler
        if reasons:
            running.stop(reasons[0])
        yield running


def run_in_foreground(config: Config, engines: EngineProcesses | None = None, *, lifeline: bool = False) -> None:
    """Run a scheduler, and engines if there are any, until a request to stop."""
    configure_logs(config.log_level, config.log_format)
    trio.run(_run_in_foreground, config, engines, lifeline)


async def _run_in_foreground(config: Config, engines: EngineProcesses | None, lifeline: bool) -> None:
    async with stop_on_request(run_cluster(config, engines), lifeline=lifeline) as running:
        count = engines.workers if engines else 0
        engines_text = f"{count} engine{'s' * (count != 1)}" if count else "no engines yet"
        typer.echo(f"{running.name} is up at {running.connection.address}, {engines_text}")
