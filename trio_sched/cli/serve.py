"""`trio-sched serve` and `trio-sched up`: a scheduler in the foreground, alone or with engines on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_sched.cli.options import Lifeline, Resources, Slots, Workers, parse_resources
from trio_sched.cli.settings import with_settings

if TYPE_CHECKING:
    from trio_sched.server.config import Config


@with_settings()
def serve(config: Config, *, lifeline: Lifeline = False) -> None:
    """Run a scheduler in the foreground.

    It runs until Ctrl-C, SIGTERM or `trio-sched stop`. An option overrides an environment variable (TRIO_SCHED_HWM,
    ...), which overrides the TOML file.
    """
    from trio_sched.cli.local_cluster import run_in_foreground

    run_in_foreground(config, lifeline=lifeline)


@with_settings()
def up(
    config: Config, *, engines: Workers = None, slots: Slots = 1, resource: Resources = None, lifeline: Lifeline = False
) -> None:
    """Run a scheduler and engines in the foreground.

    They run until Ctrl-C, SIGTERM or `trio-sched stop`. An option overrides an environment variable (TRIO_SCHED_HWM,
    ...), which overrides the TOML file.
    """
    resources = parse_resources(resource)
    from trio_sched.cli.local_cluster import EngineProcesses, run_in_foreground
    from trio_sched.engine.host import cores

    processes = EngineProcesses(cores() if engines is None else engines, slots, resources)
    run_in_foreground(config, processes, lifeline=lifeline)
