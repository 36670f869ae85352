"""`trio-sched run SCRIPT`: a scheduler and engines for the time of one script.

Everything starts at once: the script's own interpreter and imports take as long as the scheduler and the engines
do. The script finds them by TRIO_SCHED_CONNECTION, and `run` exits as the script does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trio_sched.cli.options import Resources, Slots, Workers, amounts
from trio_sched.cli.settings import with_settings

if TYPE_CHECKING:
    import trio

    from trio_sched.cli.hosting import Engines
    from trio_sched.server.config import Config

GRACE_S = 0.5
"""How long what the script left running may go on: nobody is there for its results."""
Script = Annotated[str, typer.Argument(metavar="SCRIPT", help="A Python file.", show_default=False)]
Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="ARGS", help="Its arguments, options and all.", show_default=False)
]


def _own_name() -> str:
    return f"run-{os.getpid()}"


@with_settings(name=_own_name, log_level="warning", shutdown_grace_s=GRACE_S)
def run(
    config: Config,
    script: Script,
    arguments: Arguments = None,
    *,
    engines: Workers = None,
    slots: Slots = 1,
    resource: Resources = None,
) -> None:
    """Bring up a scheduler and engines, run a script against them, and take all down; exit as the script does."""
    from trio_sched.errors import TrioSchedError

    if not os.path.isfile(script):
        what = "is a directory" if os.path.isdir(script) else "does not exist"
        raise TrioSchedError(f"the script {script} {what}")
    offered = amounts(resource)
    import trio

    from trio_sched.cli.hosting import Engines
    from trio_sched.cli.logs import configure_logs
    from trio_sched.engine.machine import cores

    configure_logs(config.log_level, config.log_format)
    asked = Engines(cores() if engines is None else engines, slots, None, offered, GRACE_S)
    code = trio.run(_run, config, asked, [sys.executable, script, *(arguments or [])])
    raise typer.Exit(code)


async def _run(config: Config, engines: Engines, command: list[str]) -> int:
    """Everything up, the script to its end, everything down: the script's exit code."""
    import trio

    from trio_sched.cli.hosting import hosted
    from trio_sched.cli.watching import told_to_stop

    stop = ScriptStopper()
    async with told_to_stop(stop), hosted(config, engines) as running:
        environment = {**os.environ, "TRIO_SCHED_CONNECTION": str(_client_file(config, running.name))}
        stop.process = await trio.lowlevel.open_process(command, env=environment)
        try:
            code = await stop.process.wait()
        finally:
            if stop.process.returncode is None:  # we were interrupted twice
                stop.process.kill()
        running.stop("the script has ended")
    return 128 - code if code < 0 else code


def _client_file(config: Config, name: str) -> Path:
    """The connection file for the script: a path, for the name would do only in the usual directory."""
    from trio_sched.transport.connection import connection_path

    directory = Path(config.runtime_dir).expanduser().absolute() if config.runtime_dir else None
    return connection_path(name, "client", directory)


class ScriptStopper:
    """A signal is the script's: it decides what to do, and we go when it has ended."""

    def __init__(self) -> None:
        self.process: trio.Process | None = None

    def __call__(self, reason: str) -> None:
        import signal

        if self.process is None or (reason == "SIGINT" and _terminal_told_it_too()):
            return
        self.process.send_signal(signal.Signals[reason])


def _terminal_told_it_too() -> bool:
    """Whether we run in the foreground of a terminal, whatever our standard input is: Ctrl-C there goes to every
    process of the group."""
    if sys.platform == "win32":
        return True
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:  # none
        return False
    try:
        return os.getpgrp() == os.tcgetpgrp(terminal)
    except OSError:  # it is gone
        return False
    finally:
        os.close(terminal)
