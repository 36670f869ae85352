"""Replaces ipyparallel's controller with the one of trio_sched, and changes nothing else.

ipyparallel starts each controller as a process `python -m ipyparallel.controller ARGUMENTS`. With this directory in
PYTHONPATH that process becomes `python -m trio_sched ipcontroller ARGUMENTS`, with the same process number, environment
and file descriptors, before it imports ipyparallel. Only `--version` is answered by ipyparallel's controller.
"""

import os
import sys

if sys.orig_argv[1:3] == ["-m", "ipyparallel.controller"] and "--version" not in sys.orig_argv:
    os.execv(sys.executable, [sys.executable, "-m", "trio_sched", "ipcontroller", *sys.orig_argv[3:]])
