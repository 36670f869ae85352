"""Measurements of this machine: processors, memory in use, out-of-memory kills.

A container sees the whole machine in most places; its own limits are in the files of its control group (cgroup, of
which there are two versions). A value that cannot be read counts as no limit, or as nothing in use.
"""

from __future__ import annotations

import math
import os
from pathlib import Path


def oom_kills() -> tuple[int, int]:
    """The kernel's counts of out-of-memory kills, in (this cgroup, the machine); 0 where they cannot be read."""
    return _counter(_cgroup_file("memory.events", "memory.oom_control")), _counter(Path("/proc/vmstat"))


def memory_used() -> float:
    """The share of memory in use, of the machine or of this cgroup, whichever is larger."""
    import psutil

    host = float(psutil.virtual_memory().percent) / 100
    limit = _number(_cgroup_file("memory.max", "memory.limit_in_bytes"))
    used = _number(_cgroup_file("memory.current", "memory.usage_in_bytes"))
    return max(host, used / limit if limit else 0.0)


def rss_bytes(pid: int) -> int:
    """The resident memory of a process; 0 if the process does not exist."""
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _cgroup_file(v2: str, v1: str) -> Path:
    """The file of this process's cgroup, named `v2` or `v1` by the cgroup version.

    Inside a container the root of the file system is the container's cgroup.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    root = Path("/sys/fs/cgroup")
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            return _first_that_exists(root / path.lstrip("/") / v2, root / v2)
        if "memory" in controllers.split(","):
            return _first_that_exists(root / "memory" / path.lstrip("/") / v1, root / "memory" / v1)
    return root / v2


def _first_that_exists(first: Path, second: Path) -> Path:
    return first if first.exists() else second


def _counter(path: Path) -> int:
    """The value of the line "oom_kill N" in a file."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except (OSError, ValueError):
        return 0
    return 0


def _number(path: Path) -> int:
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() and int(text) < 1 << 60 else 0  # "max", or v1's huge number: no limit


def cores() -> int:
    """The number of processors that this process may use, limited by its affinity and by the time of its cgroup."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, max(1, math.ceil(_cpu_quota() or count)))


def _cpu_quota() -> float:
    """The limit of the cgroup's processor time, in processors; 0: no limit."""
    try:
        quota, period = _cgroup_file("cpu.max", "").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such file, version 1, or "max 100000"
        return 0.0
