"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

#: The name under which commands connect to a scheduler as an administrator.
ADMIN_NAME = "trio-sched"


def complete_names(incomplete: str) -> list[str]:
    """Return the names of the schedulers with connection files here, for shell completion."""
    try:
        from trio_sched.transport.connection_info import runtime_dir

        files = sorted(runtime_dir().glob("*-client.json"))
    except Exception:  # an error would end up in the user's prompt
        return []
    return [name for file in files if (name := file.name.removesuffix("-client.json")).startswith(incomplete)]


Where = Annotated[
    str | None,
    typer.Option(
        "--connection",
        "-C",
        metavar="NAME|FILE",
        help="Name or connection file of the scheduler. Default: $TRIO_SCHED_CONNECTION, else the only one that runs.",
        autocompletion=complete_names,
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Workers = Annotated[
    int | None,
    typer.Option(
        "-n", "--engines", min=0, metavar="N", help="Number of engines. Default: one per core.", show_default=False
    ),
]
Slots = Annotated[int, typer.Option(min=1, metavar="N", help="Tasks that each engine runs at a time, in threads.")]
Resources = Annotated[
    list[str] | None,
    typer.Option(
        "--resource",
        metavar="NAME=AMOUNT",
        help="Resource of each engine, such as gpu=1; can be repeated.",
        show_default=False,
    ),
]
Lifeline = Annotated[bool, typer.Option("--lifeline", help="Shut down when standard input ends.")]
LogLevel = Annotated[str, typer.Option(help="Lowest level that is logged: debug, info, warning, error, critical.")]
LogFormat = Annotated[str, typer.Option(help="Format of the logs: console or json.")]


def parse_resources(texts: list[str] | None) -> dict[str, float]:
    """Parse the values of `--resource`: ["gpu=1"] -> {"gpu": 1.0}. The amount of a name alone is 1.

    :raises BadParameter: a value has no name, or its amount is not a finite number above 0.
    """
    resources: dict[str, float] = {}
    for text in texts or []:
        name, _, amount = text.partition("=")
        try:
            resources[name] = float(amount or 1)
        except ValueError:
            resources[name] = 0.0
        if not name or not 0 < resources[name] < float("inf"):
            message = f"{text!r} is not a name with an amount above 0, such as gpu=1"
            raise typer.BadParameter(message, param_hint="--resource")
    return resources
