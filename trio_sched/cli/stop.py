"""`trio-sched stop`: shut a scheduler down, as SIGTERM would."""

from __future__ import annotations

import typer

from trio_sched.cli.options import Where


def stop(connection: Where = None) -> None:
    """Shut a scheduler down, and the engines that it brought."""
    from trio_sched.cli.asking import Conversation

    with Conversation(connection) as scheduler:
        scheduler.stop("stopped from the command line")
        typer.echo(f"{scheduler.connection.name} shuts down")
