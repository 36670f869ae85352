"""The launchers that ipyparallel finds under the name "trio".

    ipcluster start -n 4 --controller=trio        ipp.Cluster(n=4, controller="trio")

This is the only module here that imports ipyparallel, and only ipyparallel imports it. The controller is a local
process, like ipyparallel's own, so that ipyparallel starts, stops, finds and cleans up both in the same way. The
options of launchers (profile, cluster id, key) are environment variables. Engines are ipyparallel's own, from any
launcher.
"""

from __future__ import annotations

import sys

from ipyparallel.cluster.launcher import LocalControllerLauncher, LocalEngineSetLauncher
from traitlets import List

COMMAND = (sys.executable, "-m", "trio_sched", "ipcontroller")


class TrioControllerLauncher(LocalControllerLauncher):  # type: ignore[misc]  # ipyparallel has no types
    """Starts trio_sched's controller as a local process."""

    controller_cmd = List(list(COMMAND), config=True, help="Command that starts trio_sched's controller.")


class TrioEngineSetLauncher(LocalEngineSetLauncher):  # type: ignore[misc]  # ipyparallel has no types
    """Starts ipyparallel's own engines as local processes."""
