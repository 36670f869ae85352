"""`trio-sched explain TASK`: why a task is not running now, and with `--story` what happened to it."""

from __future__ import annotations

from typing import Annotated

import typer

from trio_sched.cli.options import Json, Where


def explain(
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="Its id: such as 3-17, or ipyparallel's.", show_default=False)
    ],
    connection: Where = None,
    story: Annotated[bool, typer.Option("--story", help="Also what happened to it, in order.")] = False,
    as_json: Json = False,
) -> None:
    """Say why a task is not running now, in words."""
    from trio_sched.cli.asking import Conversation, is_message_id, parse_id
    from trio_sched.errors import TrioSchedError

    number = task if is_message_id(task) else parse_id(task)
    with Conversation(connection) as scheduler:
        why = scheduler.query("explain", number)
        happened = scheduler.query("story", number)
    if not happened:
        raise TrioSchedError(why)
    if as_json:
        import json

        typer.echo(
            json.dumps(
                {"task": task, "explain": why, "story": [{"ago_s": ago, "what": what} for ago, what in happened]}
            )
        )
        return
    typer.echo(f"{task}: {why}")
    for ago_s, what in happened if story else ():
        typer.echo(f"  {ago_s:10.3f} s ago  {what}")
