"""How ipyparallel starts us: the launchers that it finds under the name "trio".

    ipcluster start -n 4 --controller=trio        ipp.Cluster(n=4, controller="trio")

The one module here that imports ipyparallel, and it is imported by ipyparallel only. The controller is a process like
its own, so that starting, stopping, finding it again and cleaning up are ipyparallel's; what launchers say (profile,
cluster id, key) is in the environment. Engines are ipyparallel's own, from any launcher.
"""

from __future__ import annotations

import sys

from ipyparallel.cluster.launcher import LocalControllerLauncher, LocalEngineSetLauncher
from traitlets import List

COMMAND = (sys.executable, "-m", "trio_sched", "ipcontroller")


class TrioControllerLauncher(LocalControllerLauncher):  # type: ignore[misc]  # ipyparallel has no types
    """trio_sched's controller as a local process."""

    controller_cmd = List(list(COMMAND), config=True, help="Command that starts trio_sched's controller.")


class TrioEngineSetLauncher(LocalEngineSetLauncher):  # type: ignore[misc]
    """ipyparallel's own engines as local processes."""
