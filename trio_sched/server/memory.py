"""The memory of this process and of its machine."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
#: At this many dropped messages in a heartbeat period, a burst of them has begun and not yet ended.
BURST_DROPS = 8
#: The assumed memory of a machine whose memory cannot be read.
_UNKNOWN_BYTES = 4 << 30


def memory_bytes() -> int:
    """Return the memory of this machine, or of the control group of this process, in bytes."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        physical = _UNKNOWN_BYTES
    try:
        return min(physical, int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return physical


def _find_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library
        return None
    return trim


_trim = _find_trim()


def return_free_memory() -> None:
    """Return freed memory to the operating system. glibc keeps free memory between blocks that are in use; this takes
    milliseconds for each gigabyte."""
    if _trim is not None:
        _trim(0)


class BurstTrim:
    """Returns free memory after dropped messages and reset connections: in the first period without any, and when a
    burst of them has subsided.

    Memory that an attacker made libzmq and the readers allocate is free when the attacker's connections have ended, but
    `ByteBudget`, which counts payloads, does not see it.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._since_trim = 0

    def check(self, dropped: int) -> None:
        """Compare the count of all dropped messages with that of the last period; called once in a heartbeat period."""
        fresh = dropped - self._seen
        self._seen = dropped
        self._since_trim += fresh
        if (fresh == 0 < self._since_trim) or self._since_trim >= BURST_DROPS > fresh:
            self._since_trim = 0
            return_free_memory()
