"""`trio-sched engine`: engines on this machine for a scheduler that runs here or elsewhere."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trio_sched.cli.options import Lifeline, LogFormat, LogLevel, Resources, Slots, Where, Workers, amounts

if TYPE_CHECKING:
    import trio

    from trio_sched.engine.nanny import Nanny
    from trio_sched.transport.connection import Connection

Hwm = Annotated[
    int | None,
    typer.Option(min=0, help="Most tasks in hand for each slot. Default: as the scheduler says.", show_default=False),
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
    """Run engines in the foreground, until Ctrl-C, SIGTERM, or the scheduler shuts down.

    They reconnect by themselves, and go on working meanwhile. A scheduler that does not answer is waited for as long
    as its connection file is there.
    """
    told: dict[str, Any] = {"slots": slots, "hwm": hwm, "resources": amounts(resource), "name": name}
    import trio

    from trio_sched.cli.logs import configure_logs
    from trio_sched.engine.machine import cores
    from trio_sched.transport.connection import ENV_CONNECTION, find
    from trio_sched.transport.connection_limits import raise_descriptor_limit

    configure_logs(log_level, log_format)
    raise_descriptor_limit()  # each worker takes some
    told["where"] = connection or os.environ.get(ENV_CONNECTION)  # where to look should the scheduler be restarted
    told["workers"] = cores() if engines is None else engines
    told["start_timeout_s"] = None  # a scheduler that is suspended may yet go on
    reason = trio.run(_work, find(connection, "engine"), told, lifeline)
    typer.echo(f"ended: {reason}")


async def _work(connection: Connection, told: dict[str, Any], lifeline: bool) -> str:
    """A nanny until it is told to stop, or its scheduler shuts down; returns why it ended."""
    import trio

    from trio_sched.cli.hosting import Stopper
    from trio_sched.cli.watching import told_to_stop
    from trio_sched.engine.nanny import run_nanny

    reason = ""

    async def work(*, task_status: trio.TaskStatus[Nanny]) -> None:
        nonlocal reason
        reason = await run_nanny(connection, task_status=task_status, **told)

    def give_up(why: str) -> None:
        nonlocal reason
        reason = why
        nursery.cancel_scope.cancel()

    stop = Stopper()
    async with told_to_stop(stop, lifeline=lifeline), trio.open_nursery() as nursery:
        stop.target(give_up)  # as long as we wait for the scheduler
        nanny = await nursery.start(work)
        stop.target(nanny.stop)
        typer.echo(f"{told['workers']} engines for {connection.name} at {connection.address}")
    return reason
