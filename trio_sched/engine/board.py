"""The board: a small file in shared memory on which a worker notes what its nanny must know when it is dead (R20).

Which tasks it was running (so that only those are blamed), which engine it was to which scheduler, and whether it
meant to end. A "started" message for each task would cost a wake-up; a store into mapped memory costs 40 ns and
survives any death of the process. The layout is 8-byte words of this machine's byte order, since both sides share a
machine:

    0  state     1  scheduler instance (hashed)     2  engine session     3  whether it ever began a task
    4 and on: the task that each slot runs, or 0
"""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path

STARTING, JOINED, LEAVING = range(3)
"""States: not welcomed yet; at work; ending because it was told to, so that its exit is no death."""
_STATE, _INSTANCE, _SESSION, _WORKED, _SLOTS = range(5)
_WORD = 8


def hashed(scheduler: str) -> int:
    """A scheduler instance's id as a word; 0 for none."""
    if not scheduler:
        return 0
    return int.from_bytes(hashlib.blake2b(scheduler.encode(), digest_size=_WORD).digest(), "big")


class Board:
    """The words, mapped. `path` None: memory of our own, for a worker without a nanny."""

    def __init__(self, path: Path | None, slots: int, *, create: bool = False) -> None:
        size = (_SLOTS + slots) * _WORD
        if path is None:
            self._map = mmap.mmap(-1, size)
        else:
            descriptor = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
            try:
                if create:
                    os.ftruncate(descriptor, size)
                self._map = mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
        self._words = memoryview(self._map).cast("Q")
        self.running = self._words[_SLOTS:]
        """By slot, the full id of the task that runs; 0: none."""

    @property
    def state(self) -> int:
        return self._words[_STATE]

    @state.setter
    def state(self, state: int) -> None:
        self._words[_STATE] = state

    def joined(self, scheduler: str, session: int) -> None:
        """Worker: note which engine we are, and to whom."""
        self._words[_INSTANCE] = hashed(scheduler)
        self._words[_SESSION] = session
        if self.state == STARTING:
            self.state = JOINED

    def session_with(self, scheduler: str) -> int:
        """Nanny: the engine's session with this scheduler instance; 0: it has none."""
        return self._words[_SESSION] if self._words[_INSTANCE] == hashed(scheduler) else 0

    def begin(self, slot: int, task: int) -> None:
        """Worker: this slot runs this task now."""
        self.running[slot] = task
        self._words[_WORKED] = 1

    @property
    def worked(self) -> bool:
        """Whether any task was begun."""
        return bool(self._words[_WORKED])

    def tasks(self) -> list[int]:
        """The full ids of the tasks that run."""
        return [task for task in self.running if task]

    def clear(self) -> None:
        """Nanny: make it new for the next worker."""
        for index in range(len(self._words)):
            self._words[index] = 0

    def close(self) -> None:
        """Unmap it."""
        self.running.release()
        self._words.release()
        self._map.close()
