"""`trio-sched ipcontroller`: a controller for ipyparallel's clients and engines, started as ipcontroller is.

Options are ipcontroller's, read by `ipyparallel.options` and not by typer: `--x=y`, `--x y` and `--Class.trait=y` are
one language with the profile's configuration file. Signals end it at once: clients' tasks are not waited for.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from trio_sched.ipyparallel.settings import Told
    from trio_sched.server.config import Config
    from trio_sched.server.hub import Front

OPTIONS = """Options, as ipcontroller has them (--x=y or --x y, --Class.trait=y for all of ipcontroller's that mean
something here; the profile's ipcontroller_config.py says the same as c.Class.trait = y):

\b
--profile NAME, --profile-dir PATH, --ipython-dir PATH   where connection files go
--cluster-id ID       part of their names
--init                write a configuration file to fill in
--config PATH         one more configuration file
--ip ADDRESS          where to listen [127.0.0.1]; --location NAME: what others call this machine
--transport tcp|ipc
--port N, --ports 10101-10120   which ports; else any that are free
--ssh, --enginessh USER@HOST    through which clients, engines tunnel
--reuse               keep key and ports of the last run
--ping MS             between heartbeats [3000]
--scheme NAME         leastload, lru, plainrandom, twobin, weighted or pure
--hwm N               most tasks outstanding on an engine [1]; 0: no limit
--dictdb, --sqlitedb, --nodb    where records of tasks are kept [--dictdb]
--enable-curve, --no-curve      encrypt all connections [when a port is open to other machines]
--other-users         without CURVE, let other users of this machine connect [only the own user and root]
--keyfile PATH, --secure, --no-secure   with what messages are signed [a new key]
--log-level LEVEL, --debug, --quiet, --log-to-file, --clean-logs
--work-dir PATH
--native NAME         also serve trio_sched's own clients and engines, under this name
"""
Options = Annotated[
    list[str] | None, typer.Argument(metavar="--x=y", help="As ipcontroller's; see below.", show_default=False)
]
_LOG = re.compile(r"ipcontroller-.*\.(log|err|out)")


def ipcontroller(arguments: Options = None) -> None:
    """Run the controller for ipyparallel's clients and engines: in place of ipcontroller."""
    arguments = arguments or []
    if "--version" in arguments:
        from importlib.metadata import version

        typer.echo(version("trio_sched"))
        return
    if "--help-all" in arguments:
        typer.echo(OPTIONS.replace("\b\n", ""))
        return
    import trio

    from trio_sched.ipyparallel.settings import prepare, told

    wanted = told(arguments, os.environ)
    profile_dir = Path(wanted.config.profile_dir)
    prepare(profile_dir, init=wanted.init)
    if wanted.work_dir:
        os.chdir(Path(wanted.work_dir).expanduser())
    _open_logs(wanted, profile_dir / "log")
    trio.run(_run, wanted)


async def _run(wanted: Told) -> None:
    import trio

    from trio_sched.cli.hosting import Stopper, prepare_process
    from trio_sched.cli.watching import told_to_stop
    from trio_sched.logs import get_logger
    from trio_sched.server.serve import serve

    log = get_logger(__name__)
    for warning in wanted.warnings:
        log.warning(warning)
    prepare_process()
    config, fronts = _server(wanted)
    stop = Stopper()
    async with told_to_stop(stop), trio.open_nursery() as nursery:
        running = await nursery.start(serve, config, fronts)
        stop.target(running.stop)


def _server(wanted: Told) -> tuple[Config, list[Front]]:
    """The server's settings and its ways in."""
    from trio_sched.ipyparallel.front import IpyparallelFront

    front = IpyparallelFront(wanted.config)
    if not wanted.native:
        directory = str(wanted.config.security_dir)  # nothing of ours goes there: nobody can connect natively
        return wanted.config.for_server(runtime_dir=directory, log_level=wanted.log_level), [front]
    from trio_sched.server.native import NativeFront

    config = wanted.config.for_server(name=wanted.native, log_level=wanted.log_level)
    return config, [front, NativeFront(config)]


def _open_logs(wanted: Told, directory: Path) -> None:
    """Logs to standard error, or into the profile's log directory."""
    from trio_sched.cli.logs import configure_logs

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
