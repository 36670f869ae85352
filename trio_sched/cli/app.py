"""The commands put together, and how they fail: one clear line on standard error, and an exit code. Never a traceback.

0: done. 1: it failed. 2: wrong usage, or a wrong setting. 130: interrupted. `run` exits as its script does.
TRIO_SCHED_DEBUG=1 shows the traceback of an error after all, for whoever looks for a bug in trio_sched.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from trio_sched.cli import bench, cancel, engine, explain, ipcontroller, run, serve, status, stop, up
from trio_sched.errors import ConfigError, TrioSchedError

USAGE, FAILURE, INTERRUPTED = 2, 1, 130
PROGRAM = "trio-sched"

app = typer.Typer(name=PROGRAM, pretty_exceptions_enable=False, rich_markup_mode=None)
_command = app.command
_command("run", context_settings={"allow_interspersed_args": False})(run.run)
_command("up")(up.up)
_command("serve")(serve.serve)
_command("engine")(engine.engine)
_command("ipcontroller", context_settings={"ignore_unknown_options": True}, epilog=ipcontroller.OPTIONS)(
    ipcontroller.ipcontroller
)
_command("status")(status.status)
_command("explain")(explain.explain)
_command("cancel")(cancel.cancel)
_command("stop")(stop.stop)
_command("bench")(bench.bench)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"{PROGRAM} {version('trio_sched')}")
        raise typer.Exit


@app.callback(epilog="TRIO_SCHED_DEBUG=1 shows the traceback of an error.")
def _trio_sched(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Run Python calls on many engines: a task scheduler, its engines, and a look at what they do."""


# Usage errors are click's, which newer versions of typer carry within themselves; this is the class in either place.
_UsageError: Any = typer.BadParameter.__mro__[2]


def run_command_line(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; errors are reported here and nowhere else."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(arguments or ["--help"], prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:
        if isinstance(error, SystemExit) or os.environ.get("TRIO_SCHED_DEBUG"):
            raise
        return _report(error)
    return code if isinstance(code, int) else 0


def _report(error: BaseException) -> int:
    """Say in one line what went wrong, and return the exit code for it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, BaseExceptionGroup):
        error = _worst(error)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):  # the reader (head, less) had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    code = FAILURE
    if isinstance(error, _UsageError):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else PROGRAM
        message, code = f"{error.format_message()} (see {command} --help)", USAGE
    elif isinstance(error, ConfigError):
        message, code = str(error), USAGE
    elif isinstance(error, (TrioSchedError, OSError)):
        message = str(error)
    else:
        message = f"{type(error).__name__}: {error} (a bug in trio_sched; TRIO_SCHED_DEBUG=1 shows where)"
    typer.echo(f"{PROGRAM}: error: {' '.join(message.split())}", err=True)
    return code


def _worst(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of several errors at once the one that tells most: an interruption, else the first of ours, else the first."""
    flat: list[BaseException] = []
    groups: list[BaseException] = [group]
    while groups:
        one = groups.pop(0)
        if isinstance(one, BaseExceptionGroup):
            groups.extend(one.exceptions)
        else:
            flat.append(one)
    for kind in (KeyboardInterrupt, TrioSchedError, BaseException):
        for one in flat:
            if isinstance(one, kind):
                return one
    return group
