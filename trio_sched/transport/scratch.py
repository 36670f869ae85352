"""Scratch directories: private directories in the directory for temporary files, which do not outlive their owner.

The owner holds a lock (flock) on a file in its directory. The kernel releases it when the last process that holds it
ends, however it ends. Whoever makes the next scratch directory removes those of the same prefix and user whose lock is
free. A directory without a lock file is left alone: it is being made, or the file system knows no locks.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from trio_sched.errors import ConfigError
from trio_sched.transport.private import private_directory

LOCK_NAME = "lock"


class ScratchDirectory:
    """A new directory of mode 0700, removed by `remove`, at the end of its `with` block, or after its owner's death."""

    def __init__(self, prefix: str) -> None:
        """Make one, and remove those that dead processes left behind. Raises OSError when it cannot be made."""
        sweep(prefix)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        self.lock = _lock(self.path)
        """Descriptor of the locked file, to be passed on to processes that use the directory as well; -1: there is no
        lock."""

    def remove(self) -> None:
        """Remove the directory with everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Close the lock without removing the directory: for a forked child, which is not to hold it."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1

    def __enter__(self) -> ScratchDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()


def _lock(directory: Path) -> int:
    """Make the lock file of a directory. It appears by rename, and locked: a sweep never finds it free."""
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


def sweep(prefix: str) -> None:
    """Remove the scratch directories of this user whose owners are dead. What belongs to others is not touched."""
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError, ConfigError), private_directory(path) as descriptor:
            _remove_if_free(path, descriptor)


def _remove_if_free(path: Path, directory: int) -> None:
    """:raises OSError: there is no lock file, or somebody holds the lock."""
    import fcntl

    lock = os.open(LOCK_NAME, os.O_RDWR | os.O_NOFOLLOW, dir_fd=directory)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
