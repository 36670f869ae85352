"""`trio-sched engine`: engines on this machine, for a scheduler on this or another machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from trio_sched.cli.options import Lifeline, LogFormat, LogLevel, Resources, Slots, Where, Workers, parse_resources

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import trio

    from trio_sched.engine.nanny import Nanny

Hwm = Annotated[
    int | None,
    typer.Option(
        min=0, help="High-water mark of each slot; 0: no limit. Default: the scheduler's.", show_default=False
    ),
]
Name = Annotated[
    str, typer.Option(help="Name of these engines in `status`. Default: host and process.", show_default=False)
]


def engine(
    connection: Where = None,
    engines: Workers = None,
    slots: Slots = 1,
    hwm: Hwm = None,
    resource: Resources = None,
    name: Name = "",
    lifeline: Lifeline = False,
    log_level: LogLevel = "info",
    log_format: LogFormat = "console",
) -> None:
    """Run engines in the foreground.

    They run until Ctrl-C, SIGTERM, or a shutdown of the scheduler. After a lost connection they reconnect, and tasks
    continue meanwhile. If the scheduler does not answer, the engines wait as long as its connection file exists.
    """
    resources = parse_resources(resource)
    from functools import partial

    import trio

    from trio_sched.cli.log_setup import configure_logs
    from trio_sched.engine.host import cores
    from trio_sched.engine.nanny import run_nanny
    from trio_sched.transport.connection_info import ENV_CONNECTION, find_connection
    from trio_sched.transport.connection_limits import raise_descriptor_limit

    configure_logs(log_level, log_format)
    raise_descriptor_limit()  # each worker uses some
    found = find_connection(connection, "engine")
    workers = cores() if engines is None else engines
    nanny = partial(
        run_nanny,
        found,
        workers=workers,
        slots=slots,
        hwm=hwm,
        resources=resources,
        name=name,
        where=connection or os.environ.get(ENV_CONNECTION),  # to find the scheduler again after its restart
        start_timeout_s=None,  # a suspended scheduler may resume
    )
    started = f"{workers} engines for {found.name} at {found.address}"
    typer.echo(f"ended: {trio.run(_run, nanny, started, lifeline)}")


async def _run(run_nanny: Callable[..., Awaitable[str]], started: str, lifeline: bool) -> str:
    """Run a nanny until a request to stop, or until its scheduler shuts down; return the reason."""
    import trio

    from trio_sched.cli.signals import handle_stop_requests

    reason = ""
    nanny: Nanny | None = None
    scope = trio.CancelScope()

    def stop(why: str) -> None:
        nonlocal reason
        if nanny is not None:
            nanny.stop(why)
        else:  # the scheduler has not answered yet
            reason = why
            scope.cancel()

    async def run(*, task_status: trio.TaskStatus[Nanny]) -> None:
        nonlocal reason
        reason = await run_nanny(task_status=task_status)

    async with handle_stop_requests(stop, lifeline=lifeline):
        with scope:
            async with trio.open_nursery() as nursery:
                nanny = await nursery.start(run)
                typer.echo(started)
    return reason
