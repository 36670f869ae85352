"""Puts our controller in the place of ipyparallel's own, and changes nothing else.

Every way of ipyparallel to start a controller ends in `python -m ipyparallel.controller ARGUMENTS`, in a process of its
own. With this directory in PYTHONPATH that process becomes `python -m trio_sched ipcontroller ARGUMENTS`: with the
same process number, environment and file descriptors, before anything of ipyparallel is imported. Only the question
for its version is left to ipyparallel's controller.
"""

import os
import sys

if sys.orig_argv[1:3] == ["-m", "ipyparallel.controller"] and "--version" not in sys.orig_argv:
    os.execv(sys.executable, [sys.executable, "-m", "trio_sched", "ipcontroller", *sys.orig_argv[3:]])
