"""Scratch directories: private temporary directories that are removed also when their owner is killed.

The owner holds a lock (flock) on a file in its directory. The kernel releases the lock when the last process that holds
it ends, for any reason. The next `ScratchDirectory` of the same prefix and user removes the directories whose lock is
free. A directory without a lock file is kept: it is being created, or its file system does not support locks.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from trio_sched.errors import ConfigError
from trio_sched.transport.private_files import open_private_directory

LOCK_NAME = "lock"


class ScratchDirectory:
    """A new directory of mode 0700, removed by `remove`, at the end of a `with` block, or after the owner has ended."""

    def __init__(self, prefix: str) -> None:
        """Create the directory, and remove those of processes that have ended.

        :raises OSError: the directory cannot be created.
        """
        remove_abandoned(prefix)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        #: Descriptor of the locked file, to be inherited by processes that use the directory too; -1: no lock.
        self.lock = _create_lock(self.path)

    def remove(self) -> None:
        """Remove the directory and its content."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Close the lock without removing the directory, as for a forked child, which must not hold the lock."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1

    def __enter__(self) -> ScratchDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()


def _create_lock(directory: Path) -> int:
    """Create the lock file of a directory. It is locked before it gets its name, so it is never found unlocked."""
    import fcntl

    draft = directory / f".{LOCK_NAME}"
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        draft.rename(directory / LOCK_NAME)
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor


def remove_abandoned(prefix: str) -> None:
    """Remove the scratch directories of this user whose owners have ended."""
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError, ConfigError), open_private_directory(path) as descriptor:
            _remove_if_free(path, descriptor)


def _remove_if_free(path: Path, directory: int) -> None:
    """Remove a directory whose lock is free.

    :raises OSError: the lock file does not exist, or a process holds the lock.
    """
    import fcntl

    lock = os.open(LOCK_NAME, os.O_RDWR | os.O_NOFOLLOW, dir_fd=directory)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
