"""`trio-sched ipcontroller`: a controller for ipyparallel's clients and engines, with the options of ipcontroller.

`ipyparallel.options` reads the options, not typer: `--x=y`, `--x y` and `--Class.trait=y` set the same names as the
profile's configuration file. A signal stops the controller at once, without a wait for running tasks.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from trio_sched.ipyparallel.settings import ControllerOptions
    from trio_sched.server.config import Config
    from trio_sched.server.ingress import Front

OPTIONS = """Options of ipcontroller, as --x=y or --x y. Other options are written --Class.trait=y; in the profile's
ipcontroller_config.py they are c.Class.trait = y:

\b
--profile NAME, --profile-dir PATH, --ipython-dir PATH   directory of the connection files
--cluster-id ID       part of the names of connection files
--init                write a commented configuration file
--config PATH         an additional configuration file
--ip ADDRESS          where to listen [127.0.0.1]
--location NAME       name of this machine in connection files
--transport tcp|ipc
--port N, --ports 10101-10120   ports to listen at [any free ports]
--ssh, --enginessh USER@HOST    host of the tunnels of clients, engines
--reuse               keep the key and the ports of the last run
--ping MS             milliseconds between heartbeats [3000]
--scheme NAME         leastload, lru, plainrandom, twobin, weighted or pure
--hwm N               most tasks outstanding on an engine [1]; 0: no limit
--dictdb, --sqlitedb, --nodb    storage of task records [--dictdb]
--enable-curve, --no-curve      encrypt all connections [when a port is open to other machines]
--other-users         without CURVE, let other users of this machine connect [only this user and root]
--keyfile PATH, --secure, --no-secure   key that signs messages [a new key]
--log-level LEVEL, --debug, --quiet, --log-to-file, --clean-logs
--work-dir PATH
--native NAME         also serve clients and engines of trio_sched, under this name
"""
Options = Annotated[
    list[str] | None,
    typer.Argument(metavar="--x=y", help="Options of ipcontroller, as listed below.", show_default=False),
]
_LOG = re.compile(r"ipcontroller-.*\.(log|err|out)")


def ipcontroller(arguments: Options = None) -> None:
    """Run a controller for ipyparallel's clients and engines."""
    arguments = arguments or []
    if "--version" in arguments:
        from importlib.metadata import version

        typer.echo(version("trio_sched"))
        return
    if "--help-all" in arguments:
        typer.echo(OPTIONS.replace("\b\n", ""))
        return
    import trio

    from trio_sched.ipyparallel.settings import prepare, read_options

    wanted = read_options(arguments, os.environ)
    profile_dir = Path(wanted.config.profile_dir)
    prepare(profile_dir, init=wanted.init)
    if wanted.work_dir:
        os.chdir(Path(wanted.work_dir).expanduser())
    _open_logs(wanted, profile_dir / "log")
    trio.run(_run, wanted)


async def _run(wanted: ControllerOptions) -> None:
    from trio_sched.cli.local_cluster import run_cluster, stop_on_request
    from trio_sched.logs import get_logger

    log = get_logger(__name__)
    for warning in wanted.warnings:
        log.warning(warning)
    config, fronts = _config_and_fronts(wanted)
    async with stop_on_request(run_cluster(config, fronts=fronts)):
        pass


def _config_and_fronts(wanted: ControllerOptions) -> tuple[Config, list[Front]]:
    """Return the settings and the fronts of the scheduler."""
    from trio_sched.ipyparallel.front import IpyparallelFront

    front = IpyparallelFront(wanted.config)
    if not wanted.native:
        directory = str(wanted.config.security_dir)  # no native front: no connection file is written there
        return wanted.config.for_server(runtime_dir=directory, log_level=wanted.log_level), [front]
    from trio_sched.server.native import NativeFront

    config = wanted.config.for_server(name=wanted.native, log_level=wanted.log_level)
    return config, [front, NativeFront(config)]


def _open_logs(wanted: ControllerOptions, directory: Path) -> None:
    """Send logs to standard error, or to a file in the profile's log directory."""
    from trio_sched.cli.log_setup import configure_logs

    if wanted.clean_logs:
        for path in directory.iterdir():
            if _LOG.fullmatch(path.name):
                path.unlink(missing_ok=True)
    if not wanted.log_to_file:
        configure_logs(wanted.log_level)
        return
    path = directory / f"ipcontroller-{wanted.config.cluster_id}-{os.getpid()}.log"
    typer.echo(f"Sending logs to {path}", err=True)
    configure_logs(wanted.log_level, file=path.open("w", encoding="utf-8", buffering=1))
