"""The memory of this process and of its machine."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
BURST_DROPS = 8
"""With so many dropped messages in a round of the auditor a burst is under way."""
_UNKNOWN_BYTES = 4 << 30
"""What a machine is taken to have that does not say."""


def memory_bytes() -> int:
    """The memory of this machine, or of the control group that this process is in."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        physical = _UNKNOWN_BYTES
    try:
        return min(physical, int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # there is none, or it is "max"
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
    """Give memory that was freed back to the operating system: glibc keeps what lies between blocks in use. Takes
    milliseconds for each gigabyte."""
    if _trim is not None:
        _trim(0)


class BurstTrim:
    """Returns free memory after dropped messages and reset connections: in the first round without any, and when a
    burst of them has given way to a few.

    What an attacker made libzmq and the readers allocate is free when its connections have ended, but the payloads that
    `ByteBudget` counts tell nothing of it.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._since_trim = 0

    def check(self, dropped: int) -> None:
        """Once in a round of the auditor, with the count of everything that was dropped so far."""
        fresh = dropped - self._seen
        self._seen = dropped
        self._since_trim += fresh
        if (fresh == 0 < self._since_trim) or self._since_trim >= BURST_DROPS > fresh:
            self._since_trim = 0
            return_free_memory()
