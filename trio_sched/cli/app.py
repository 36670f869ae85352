"""The commands together, and the report of errors: one line on standard error, and an exit code.

Exit codes: 0 success, 1 failure, 2 wrong usage or a wrong setting, 130 interrupted. `run` exits with the code of its
script. TRIO_SCHED_DEBUG=1 shows the traceback of an error.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from trio_sched.cli import bench, control, engine, ipcontroller, run, serve, status
from trio_sched.errors import ConfigError, TrioSchedError

USAGE, FAILURE, INTERRUPTED = 2, 1, 130
PROGRAM = "trio-sched"

app = typer.Typer(name=PROGRAM, pretty_exceptions_enable=False, rich_markup_mode=None)
_command = app.command
_command("run", context_settings={"allow_interspersed_args": False})(run.run)
_command("up")(serve.up)
_command("serve")(serve.serve)
_command("engine")(engine.engine)
_command("ipcontroller", context_settings={"ignore_unknown_options": True}, epilog=ipcontroller.OPTIONS)(
    ipcontroller.ipcontroller
)
_command("status")(status.status)
_command("explain")(control.explain)
_command("cancel")(control.cancel)
_command("stop")(control.stop)
_command("bench")(bench.bench)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"{PROGRAM} {version('trio_sched')}")
        raise typer.Exit


@app.callback(epilog="TRIO_SCHED_DEBUG=1 shows the traceback of an error.")
def _trio_sched(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Run Python calls on many engines."""


# Usage errors are classes of click, or of the copy of click inside newer versions of typer.
_UsageError: Any = typer.BadParameter.__mro__[2]


def run_command_line(arguments: list[str] | None = None) -> int:
    """Run one command, report its error if it fails, and return the exit code."""
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
    """Print the error in one line, and return the exit code for it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, BaseExceptionGroup):
        error = _most_important(error)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):  # the reader of the output (head, less) has exited
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
        message = f"{type(error).__name__}: {error} (a bug in trio_sched; TRIO_SCHED_DEBUG=1 shows the traceback)"
    typer.echo(f"{PROGRAM}: error: {' '.join(message.split())}", err=True)
    return code


def _most_important(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return an interruption among the errors of a group, else the first TrioSchedError, else the first error."""
    errors: list[BaseException] = []
    groups: list[BaseException] = [group]
    while groups:
        error = groups.pop(0)
        if isinstance(error, BaseExceptionGroup):
            groups.extend(error.exceptions)
        else:
            errors.append(error)
    for kind in (KeyboardInterrupt, TrioSchedError, BaseException):
        for error in errors:
            if isinstance(error, kind):
                return error
    return group
