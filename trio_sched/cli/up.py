"""`trio-sched up`: a scheduler and engines on this machine, in one process and its workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_sched.cli.options import Lifeline, Resources, Slots, Workers, amounts
from trio_sched.cli.settings import with_settings

if TYPE_CHECKING:
    from trio_sched.server.config import Config


@with_settings()
def up(
    config: Config, *, engines: Workers = None, slots: Slots = 1, resource: Resources = None, lifeline: Lifeline = False
) -> None:
    """Run a scheduler and engines in the foreground, until Ctrl-C, SIGTERM or `trio-sched stop`.

    Settings come from options, environment variables (TRIO_SCHED_HWM, ...) and a TOML file, in this order.
    """
    offered = amounts(resource)
    from trio_sched.cli.hosting import Engines, host
    from trio_sched.engine.machine import cores

    host(config, Engines(cores() if engines is None else engines, slots, None, offered), lifeline=lifeline)
