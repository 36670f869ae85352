"""`trio-sched cancel TASK...`: cancel tasks of any client."""

from __future__ import annotations

from typing import Annotated

import typer

from trio_sched.cli.options import Where


def cancel(
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="Their ids, such as 3-17.", show_default=False)],
    connection: Where = None,
) -> None:
    """Cancel tasks: waiting ones end at once, running ones when their engine answers."""
    from trio_sched.cli.asking import Conversation, parse_id
    from trio_sched.errors import TrioSchedError

    numbers = [parse_id(task) for task in tasks]
    with Conversation(connection) as scheduler:
        for number in numbers:  # one that is not known is an error before any is cancelled
            if not scheduler.query("story", number):
                raise TrioSchedError(scheduler.query("explain", number))
        scheduler.cancel(numbers)
        for task, number in zip(tasks, numbers, strict=True):
            typer.echo(f"{task}: {scheduler.query('explain', number)}")
