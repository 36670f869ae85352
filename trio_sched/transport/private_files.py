"""Directories and files that only this user can have created: opened once, checked by descriptor, used by descriptor.

Between the check of a path and its use, another user that may write to a directory of the path can replace a link or a
name in it. A descriptor cannot be replaced. So every check is made on the opened descriptor, files of a runtime
directory are opened relative to the descriptor of the directory, and symbolic links in it are not followed.

A socket is connected by its path, without a descriptor. Hence every directory and symbolic link in the path of a
runtime directory must be one that only this user and root can replace (`require_safe_path`).

Every worker reads a connection file when it starts, so this module imports little.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trio_sched.errors import ConfigError, ConnectionFileError

#: Largest connection file that is read. A connection file has less than 1 KiB.
MAX_FILE_BYTES = 64 << 10
OTHERS = stat.S_IRWXG | stat.S_IRWXO
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has none of these three
_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
_NO_BLOCK = getattr(os, "O_NONBLOCK", 0)
#: Errors of an open with O_NOFOLLOW where the path is a symbolic link.
_IS_LINK = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)
_ROOT = 0
#: Number of symbolic links that are followed in one path, as in Linux.
_MAX_LINKS = 40
#: Directories that only root can have created, on every system.
_SYSTEM_DIRECTORIES = frozenset(
    map(Path, ("/", "/dev", "/dev/shm", "/home", "/run", "/run/user", "/tmp", "/var", "/var/run", "/var/tmp"))
)


@contextmanager
def open_private_directory(path: Path) -> Iterator[int]:
    """Open a directory for the block, and yield its descriptor.

    :raises ConfigError: the path is not a directory, is a symbolic link, belongs to another user, is open to other
        users, or another user could replace it.
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
            raise ConfigError(f"the directory {path} belongs to user {found.st_uid}, not to user {os.geteuid()}")
        if found.st_mode & OTHERS:
            raise ConfigError(f"the directory {path} is open to other users; chmod 700 {path}")
        require_safe_path(path)
        yield descriptor
    finally:
        os.close(descriptor)


def require_private_directory(path: Path) -> None:
    """Check a directory.

    :raises ConfigError: as `open_private_directory`.
    """
    with open_private_directory(path):
        pass


def require_safe_path(path: Path) -> None:
    """Check that only this user and root can change what `path` leads to. Missing parts of the path are not checked.

    Every directory above it, and every symbolic link that its lookup follows, must belong to this user or root. A
    directory that other users may write to needs the sticky bit, as /tmp has it. Exempt is a directory of this user
    that only the user's private group may write to, as a umask of 002 creates it.

    :raises ConfigError: another user can; the message names the directory or link, and the remedy.
    """
    try:
        for entry, found in _lookup_steps(path):
            if weakness := _weakness(entry, found):
                raise ConfigError(f"the directory {path} cannot be used: {weakness}")
    except OSError as error:
        raise ConfigError(f"cannot use the directory {path}: {error}") from error


def _lookup_steps(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield each directory in which a part of `path` is looked up, and each symbolic link that is followed, from root.

    In this order no other user can interfere with the check: a directory is checked before its entries are read.
    """
    path = path.absolute()
    here = Path(path.anchor)
    yield here, os.lstat(here)
    parts = list(reversed(path.parts[1:]))
    links = 0
    while parts:
        part = parts.pop()
        if part == os.pardir:
            here = here.parent
            continue
        entry = here / part
        try:
            found = os.lstat(entry)
        except FileNotFoundError:
            return
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(entry))
            yield entry, found
            target = Path(os.readlink(entry))
            if target.is_absolute():
                here = Path(target.anchor)
            parts += reversed(target.parts[1:] if target.is_absolute() else target.parts)
        elif parts:
            yield entry, found
            here = entry


def _weakness(entry: Path, found: os.stat_result) -> str:
    """Return why another user could replace an entry of a directory, or a link, and the remedy; "": no one can."""
    this_user = os.geteuid()
    if found.st_uid not in (this_user, _ROOT) and not (
        entry in _SYSTEM_DIRECTORIES and found.st_uid == _unmapped_user()
    ):
        return (
            f"{entry} is part of its path and belongs to user {found.st_uid}, not to user {this_user} or root, so that "
            "user can replace it; set TRIO_SCHED_RUNTIME_DIR to a directory inside a directory of yours"
        )
    if stat.S_ISLNK(found.st_mode) or found.st_mode & stat.S_ISVTX:
        return ""
    owner = f"{entry} (of user {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o})"
    advice = f"of {entry}, or set TRIO_SCHED_RUNTIME_DIR to another directory"
    if found.st_mode & stat.S_IWOTH:
        return f"it is in {owner}, where every user can rename it (no sticky bit); chmod o-w or +t {advice}"
    if found.st_mode & stat.S_IWGRP and not (found.st_uid == this_user and _is_private_group(found.st_gid)):
        return (
            f"it is in {owner}, where the group {found.st_gid} can rename it (no sticky bit); chmod g-w or +t {advice}"
        )
    return ""


def _unmapped_user() -> int | None:
    """Return the user id that stands for root and other users in a user namespace that does not map them.

    Containers that users start have such namespaces. None: root has its own id here.
    """
    try:
        with open("/proc/self/uid_map") as mapped, open("/proc/sys/kernel/overflowuid") as overflow:
            is_mapped = any(int(line.split()[1]) == _ROOT for line in mapped)
            return None if is_mapped else int(overflow.read())
    except OSError:  # not Linux
        return None


def _is_private_group(group_id: int) -> bool:
    """Whether a group is the primary group of this user and has no other members.

    It must have the name of the user, or its number where users have no names, as in some containers.
    """
    if group_id != os.getegid():
        return False
    import grp  # not on Windows
    import pwd

    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
        group = grp.getgrgid(group_id)
    except KeyError:
        return group_id == os.geteuid()
    return group.gr_name == user and set(group.gr_mem) <= {user}


def list_names(directory: int, suffix: str) -> list[str]:
    """Return the names in an open directory that end in `suffix` and are not hidden, sorted."""
    return sorted(name for name in os.listdir(directory) if name.endswith(suffix) and not name.startswith("."))


def read_private_file(path: Path, directory: int | None = None) -> bytes:
    """Read the file `path`; with `directory` (a descriptor), the file of that name in it.

    A path that the user named may contain symbolic links, because the opened file is checked. In an open directory, a
    symbolic link is refused. Never blocks: only a regular file is read, and at most `MAX_FILE_BYTES`.

    :raises ConnectionFileError: the file is missing, not a regular file, too large, belongs to another user or is open
        to other users.
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
    """Read up to one byte more than allowed."""
    parts, left = [], MAX_FILE_BYTES + 1
    while left and (part := os.read(descriptor, left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _check_file(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConnectionFileError(
            f"{path} is not a connection file: it is {_file_kind(found.st_mode)}, not a regular file"
        )
    if found.st_uid != os.geteuid():
        raise ConnectionFileError(
            f"the connection file {path} belongs to user {found.st_uid}, not to user {os.geteuid()}, and could lead to "
            "a scheduler of that user; copy it to a file of yours (mode 600) if that is wanted"
        )
    if found.st_mode & OTHERS:
        raise ConnectionFileError(
            f"the connection file {path} holds secrets and is open to other users "
            f"(mode {stat.S_IMODE(found.st_mode):o}); "
            f"chmod 600 {path}, and restart the scheduler if another user may have read it"
        )
    if found.st_size > MAX_FILE_BYTES:
        raise _too_large(path)


def _too_large(path: Path) -> ConnectionFileError:
    return ConnectionFileError(f"{path} is not a connection file: it is larger than {MAX_FILE_BYTES} bytes")


def _file_kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISCHR, "a device"))
    return next((name for holds, name in kinds if holds(mode)), "a special file")
