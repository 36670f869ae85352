"""`trio-sched explain`, `cancel` and `stop`: query and control a running scheduler."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from trio_sched.cli.options import Json, Where

_MESSAGE_ID = re.compile(r"[0-9a-fA-F-]{32,36}(_\d+)*")


def explain(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK", help="Id of the task, such as 3-17, or a message id of ipyparallel.", show_default=False
        ),
    ],
    connection: Where = None,
    story: Annotated[bool, typer.Option("--story", help="Also show the events of the task, in order.")] = False,
    as_json: Json = False,
) -> None:
    """Show why a task is not running now."""
    from trio_sched.cli.admin_client import AdminClient
    from trio_sched.errors import TrioSchedError

    # ipyparallel's id of a task is a session of 32 hexadecimal digits, perhaps with dashes, followed by counters.
    task_id = task if _MESSAGE_ID.fullmatch(task) else _parse_task_id(task)
    with AdminClient(connection) as scheduler:
        explanation = scheduler.query("explain", task_id)
        events = scheduler.query("story", task_id)
    if not events:
        raise TrioSchedError(explanation)
    if as_json:
        import json

        entries = [{"ago_s": ago_s, "what": what} for ago_s, what in events]
        typer.echo(json.dumps({"task": task, "explain": explanation, "story": entries}))
        return
    typer.echo(f"{task}: {explanation}")
    for ago_s, what in events if story else ():
        typer.echo(f"  {ago_s:10.3f} s ago  {what}")


def cancel(
    tasks: Annotated[
        list[str], typer.Argument(metavar="TASK...", help="Ids of the tasks, such as 3-17.", show_default=False)
    ],
    connection: Where = None,
) -> None:
    """Cancel tasks of any client.

    Waiting tasks end at once, running tasks when their engine answers.
    """
    from trio_sched.cli.admin_client import AdminClient
    from trio_sched.errors import TrioSchedError

    task_ids = [_parse_task_id(task) for task in tasks]
    with AdminClient(connection) as scheduler:
        for task_id in task_ids:  # an unknown task is an error before any task is cancelled
            if not scheduler.query("story", task_id):
                raise TrioSchedError(scheduler.query("explain", task_id))
        scheduler.cancel(task_ids)
        for task, task_id in zip(tasks, task_ids, strict=True):
            typer.echo(f"{task}: {scheduler.query('explain', task_id)}")


def stop(connection: Where = None) -> None:
    """Shut down a scheduler and the engines that it started."""
    from trio_sched.cli.admin_client import AdminClient

    with AdminClient(connection) as scheduler:
        scheduler.stop("stopped from the command line")
        typer.echo(f"{scheduler.connection.name} shuts down")


def _parse_task_id(text: str) -> int:
    """Parse a task id such as "3-17".

    :raises ConfigError: `text` does not have that form.
    """
    from trio_sched.client.options import task_number
    from trio_sched.errors import ConfigError

    try:
        return task_number(text)
    except ValueError:
        message = f"task: {text!r} is not a task id; `future.task_id` shows one, such as 3-17"
        raise ConfigError(message) from None
