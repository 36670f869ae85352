"""`trio-sched serve`: a scheduler alone; engines come from `trio-sched engine`, here or on other machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_sched.cli.options import Lifeline
from trio_sched.cli.settings import with_settings

if TYPE_CHECKING:
    from trio_sched.server.config import Config


@with_settings()
def serve(config: Config, *, lifeline: Lifeline = False) -> None:
    """Run a scheduler in the foreground, until Ctrl-C, SIGTERM or `trio-sched stop`.

    Settings come from options, environment variables (TRIO_SCHED_HWM, ...) and a TOML file, in this order.
    """
    from trio_sched.cli.hosting import host

    host(config, lifeline=lifeline)
