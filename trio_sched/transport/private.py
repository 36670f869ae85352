"""Directories and files that only this user can have made: opened once, checked on the descriptor, used through it.

A path can name one thing when it is checked and another when it is opened: whoever may write to a directory on the
way can exchange a link or a name in between. A descriptor cannot. Every check here is made on what was opened, files of
a runtime directory are opened relative to its descriptor, and links in it are not followed.

Imports little: every worker reads a connection file at its start.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trio_sched.errors import ConfigError, ConnectionFileError

MAX_FILE_BYTES = 64 << 10
"""Largest connection file that is read; one has less than 1 KiB."""
OTHERS = stat.S_IRWXG | stat.S_IRWXO
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has none of these three
_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
_NO_BLOCK = getattr(os, "O_NONBLOCK", 0)
_IS_LINK = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)
"""What systems answer to O_NOFOLLOW where a link is."""


@contextmanager
def private_directory(path: Path) -> Iterator[int]:
    """A descriptor of the directory `path` for the block.

    :raises ConfigError: it is not a directory, is a link, belongs to another user or is open to others, or lies in a
        directory in which another user could exchange it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | _DIRECTORY | _NO_FOLLOW)
    except OSError as error:
        if error.errno in _IS_LINK and path.is_symlink():
            raise ConfigError(f"the directory {path} is a symbolic link; name the directory itself") from None
        if error.errno == errno.ENOTDIR:
            raise ConfigError(f"{path} is not a directory") from None
        raise ConfigError(f"cannot use the directory {path}: {error}") from error
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise ConfigError(f"the directory {path} belongs to user {found.st_uid}, not to us ({os.geteuid()})")
        if found.st_mode & OTHERS:
            raise ConfigError(f"the directory {path} is open to other users; chmod 700 {path}")
        _require_safe_parents(path)
        yield descriptor
    finally:
        os.close(descriptor)


def require_private(path: Path) -> None:
    """:raises ConfigError: as `private_directory`."""
    with private_directory(path):
        pass


def _require_safe_parents(path: Path) -> None:
    """Sockets can be reached by path only, so nobody else may be able to rename a directory on the way to them."""
    for parent in Path(os.path.realpath(path)).parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise ConfigError(
                f"the directory {path} is in {parent}, where every user can rename it (no sticky bit); "
                f"chmod o-w {parent}, or choose another directory"
            )


def names_in(directory: int, suffix: str) -> list[str]:
    """The names in an open directory that end in `suffix` and are not hidden, sorted."""
    return sorted(name for name in os.listdir(directory) if name.endswith(suffix) and not name.startswith("."))


def read_private(path: Path, directory: int | None = None) -> bytes:
    """The content of the file `path`; with a `directory` (a descriptor), of the file of that name in it.

    A path that the user named may be a symbolic link or lie behind some: what counts is the file that was opened. In
    an open directory a link is refused. Never blocks: only a regular file is read, and no more than `MAX_FILE_BYTES`.

    :raises ConnectionFileError: it is missing, not a regular file, too large, belongs to another user or is open to
        others.
    """
    flags = os.O_RDONLY | _NO_BLOCK  # a FIFO without a writer would block the open
    try:
        if directory is None:
            descriptor = os.open(path, flags)
        else:
            descriptor = os.open(path.name, flags | _NO_FOLLOW, dir_fd=directory)
    except FileNotFoundError:
        raise ConnectionFileError(f"there is no connection file {path}; is the scheduler running?") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK) and directory is not None:
            raise ConnectionFileError(f"the connection file {path} is a symbolic link; remove it") from None
        raise ConnectionFileError(f"cannot read the connection file {path}: {error.strerror}") from error
    try:
        _check_file(path, os.fstat(descriptor))
        text = _read(descriptor)
    except OSError as error:
        raise ConnectionFileError(f"cannot read the connection file {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if len(text) > MAX_FILE_BYTES:
        raise _too_large(path)
    return text


def _read(descriptor: int) -> bytes:
    """Up to one byte more than allowed."""
    parts, left = [], MAX_FILE_BYTES + 1
    while left and (part := os.read(descriptor, left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _check_file(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConnectionFileError(f"{path} is not a connection file: it is {_kind(found.st_mode)}, not a regular file")
    if found.st_uid != os.geteuid():
        raise ConnectionFileError(
            f"the connection file {path} belongs to user {found.st_uid}, not to us ({os.geteuid()}), and could lead to "
            "that user's scheduler; copy it to a file of our own (mode 600) if that is wanted"
        )
    if found.st_mode & OTHERS:
        raise ConnectionFileError(
            f"the connection file {path} holds secrets and is open to other users "
            f"(mode {stat.S_IMODE(found.st_mode):o}); "
            f"chmod 600 {path}, and restart the scheduler if somebody may have read it"
        )
    if found.st_size > MAX_FILE_BYTES:
        raise _too_large(path)


def _too_large(path: Path) -> ConnectionFileError:
    return ConnectionFileError(f"{path} is not a connection file: it is larger than {MAX_FILE_BYTES} bytes")


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISCHR, "a device"))
    return next((name for holds, name in kinds if holds(mode)), "a special file")
