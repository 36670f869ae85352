"""Shared memory in which a worker records its state for its nanny, to be read after the worker's death (R20).

The record has the running tasks (the death counts only for these), the engine's session and scheduler instance, and
whether the worker was ending on request. A "started" message for each task would cost a wake-up; a store into mapped
memory costs 40 ns and survives any exit of the process. The layout is 8-byte words in the byte order of the machine:

    0  state     1  scheduler instance (hashed)     2  engine session     3  whether a task ever began
    4 and on: the task that each slot runs, or 0

A task stays recorded after its end until its result was sent or the next task begins. Otherwise a task that closes the
worker's descriptors, so that no result can be sent, would never count as the cause and would be retried without end.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path

#: States of a worker: not welcomed yet; an engine of a scheduler; ending on request, so that its exit is not a failure.
STARTING, JOINED, LEAVING = range(3)
_STATE, _INSTANCE, _SESSION, _BEGAN, _SLOTS = range(5)
_WORD_BYTES = 8


def hash_instance(scheduler: str) -> int:
    """Hash a scheduler's instance id into one word; 0 for an empty id."""
    if not scheduler:
        return 0
    return int.from_bytes(hashlib.blake2b(scheduler.encode(), digest_size=_WORD_BYTES).digest(), "big")


class WorkerStatus:
    """The mapped words. The worker writes them, its nanny reads them and resets them for the next worker."""

    def __init__(self, path: Path | None, slots: int, *, create: bool = False) -> None:
        """Map the file at `path`.

        :param path: None: memory of this process only, for a worker without a nanny.
        :param create: make the file; it must not exist yet.
        """
        size = (_SLOTS + slots) * _WORD_BYTES
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
        self._running = self._words[_SLOTS:]

    # ---- written by the worker --------------------------------------------------------------------------------------

    def mark_joined(self, scheduler: str, session: int) -> None:
        """Record the scheduler instance and the engine's session with it."""
        self._words[_INSTANCE] = hash_instance(scheduler)
        self._words[_SESSION] = session
        if self.state == STARTING:
            self._words[_STATE] = JOINED

    def mark_leaving(self) -> None:
        """Record that the worker ends on request."""
        self._words[_STATE] = LEAVING

    def begin_task(self, slot: int, task: int) -> None:
        """Record the task, a full id, that the slot runs."""
        self._running[slot] = task
        self._words[_BEGAN] = 1

    def clear_slot(self, slot: int) -> None:
        """Record that the slot runs nothing and that its last result was sent."""
        self._running[slot] = 0

    def clear_slots(self) -> None:
        """Record the same of all slots."""
        for slot in range(len(self._running)):
            self._running[slot] = 0

    # ---- read by the nanny ------------------------------------------------------------------------------------------

    @property
    def state(self) -> int:
        """`STARTING`, `JOINED` or `LEAVING`."""
        return self._words[_STATE]

    @property
    def has_begun_a_task(self) -> bool:
        """Whether the worker ever began a task."""
        return bool(self._words[_BEGAN])

    def session_with(self, scheduler: str) -> int:
        """The engine's session with this scheduler instance; 0: the engine has none."""
        return self._words[_SESSION] if self._words[_INSTANCE] == hash_instance(scheduler) else 0

    def running_tasks(self) -> list[int]:
        """Full ids of the tasks that run, and of ended ones whose results were not sent yet."""
        return [task for task in self._running if task]

    def reset(self) -> None:
        """Clear everything, for the next worker."""
        for index in range(len(self._words)):
            self._words[index] = 0

    def close(self) -> None:
        """Unmap the memory."""
        self._running.release()
        self._words.release()
        self._map.close()
