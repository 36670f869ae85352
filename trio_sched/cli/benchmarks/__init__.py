"""Measurements of `trio-sched bench`.

    calls.py         the functions that benchmark tasks run
    measurements.py  measurements of a scheduler, taken by a client
    processes.py     schedulers and engines that a measurement starts, and the CPU time and memory of processes

Comparisons with other systems and measurements of single parts are in the project's tests/benchmarks.
"""

from __future__ import annotations
