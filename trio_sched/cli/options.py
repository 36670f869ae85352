"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

ONLOOKER = "trio-sched"
"""As what the commands introduce themselves to a scheduler."""


def complete_names(incomplete: str) -> list[str]:
    """For shell completion: the names of the schedulers that have connection files here."""
    try:
        from trio_sched.transport.connection import runtime_dir

        files = sorted(runtime_dir().glob("*-client.json"))
    except Exception:  # completion never fails: it has nothing to offer then
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
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Workers = Annotated[
    int | None,
    typer.Option(
        "-n", "--engines", min=0, metavar="N", help="How many engines. Default: one per core.", show_default=False
    ),
]
Slots = Annotated[int, typer.Option(min=1, metavar="N", help="Tasks that each engine runs at once, in threads.")]
Resources = Annotated[
    list[str] | None,
    typer.Option(
        "--resource", metavar="NAME=AMOUNT", help="What each engine offers: gpu=1. Can be repeated.", show_default=False
    ),
]
Lifeline = Annotated[bool, typer.Option("--lifeline", help="Shut down when standard input ends.")]
LogLevel = Annotated[str, typer.Option(help="debug, info, warning, error, critical.")]
LogFormat = Annotated[str, typer.Option(help="console or json.")]


def amounts(given: list[str] | None) -> dict[str, float]:
    """["gpu=1"] -> {"gpu": 1.0}; a name alone counts one."""
    found: dict[str, float] = {}
    for text in given or []:
        name, _, amount = text.partition("=")
        try:
            found[name] = float(amount or 1)
        except ValueError:
            found[name] = 0.0
        if not name or not 0 < found[name] < float("inf"):
            raise typer.BadParameter(f"{text!r} is no amount above 0 by name, such as gpu=1", param_hint="--resource")
    return found
