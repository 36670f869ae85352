"""`trio-sched run SCRIPT`: a scheduler and engines for the duration of one script.

The script starts as soon as the scheduler listens, while the engines are still starting: the imports of the script take
about as long. The script finds the scheduler by $TRIO_SCHED_CONNECTION.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from trio_sched.cli.options import Resources, Slots, Workers, parse_resources
from trio_sched.cli.settings import with_settings

if TYPE_CHECKING:
    import trio

    from trio_sched.cli.local_cluster import EngineProcesses
    from trio_sched.server.config import Config

#: Seconds for which tasks may continue after the script: no client waits for their results.
GRACE_S = 0.5
Script = Annotated[str, typer.Argument(metavar="SCRIPT", help="Python file.", show_default=False)]
Arguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="ARGS", help="Arguments of the script, including its options.", show_default=False),
]


def _default_name() -> str:
    return f"run-{os.getpid()}"


@with_settings(name=_default_name, log_level="warning", shutdown_grace_s=GRACE_S)
def run(
    config: Config,
    script: Script,
    arguments: Arguments = None,
    *,
    engines: Workers = None,
    slots: Slots = 1,
    resource: Resources = None,
) -> None:
    """Run a script with a scheduler and engines of its own.

    The scheduler and the engines stop when the script ends. The exit code is that of the script.
    """
    from trio_sched.errors import TrioSchedError

    if not os.path.isfile(script):
        problem = "is a directory" if os.path.isdir(script) else "does not exist"
        raise TrioSchedError(f"the script {script} {problem}")
    resources = parse_resources(resource)
    import trio

    from trio_sched.cli.local_cluster import EngineProcesses
    from trio_sched.cli.log_setup import configure_logs
    from trio_sched.engine.host import cores

    configure_logs(config.log_level, config.log_format)
    processes = EngineProcesses(cores() if engines is None else engines, slots, resources, GRACE_S)
    code = trio.run(_run, config, processes, [sys.executable, script, *(arguments or [])])
    raise typer.Exit(code)


async def _run(config: Config, engines: EngineProcesses, command: list[str]) -> int:
    """Run the command with a scheduler and engines; return its exit code.

    A signal is forwarded to the script, which decides what to do; the scheduler stops when the script has ended.
    """
    import trio

    from trio_sched.cli.local_cluster import connection_file, run_cluster
    from trio_sched.cli.signals import handle_stop_requests

    script: trio.Process | None = None

    def forward(reason: str) -> None:
        if script is None or (reason == "SIGINT" and _terminal_signals_script()):
            return
        script.send_signal(signal.Signals[reason])

    async with handle_stop_requests(forward), run_cluster(config, engines) as running:
        environment = {**os.environ, "TRIO_SCHED_CONNECTION": str(connection_file(config, running.name, "client"))}
        script = await trio.lowlevel.open_process(command, env=environment)
        try:
            code = await script.wait()
        finally:
            if script.returncode is None:  # the second signal raised KeyboardInterrupt
                script.kill()
        running.stop("the script has ended")
    return 128 - code if code < 0 else code


def _terminal_signals_script() -> bool:
    """Whether Ctrl-C reaches the script without this process.

    A terminal sends it to every process of its foreground group, wherever the standard input comes from.
    """
    if sys.platform == "win32":
        return True
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:  # no terminal
        return False
    try:
        return os.getpgrp() == os.tcgetpgrp(terminal)
    except OSError:  # the terminal was closed
        return False
    finally:
        os.close(terminal)
