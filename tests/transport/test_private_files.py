"""Protection of runtime directories and connection files against other users of the machine.

Every check is made on the opened file or directory. In the race tests, another process replaces what a path names, by a
valid and an invalid target in turn, as fast as it can. A check by path, followed by a use of the path, fails such a
test within seconds.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trio_sched.errors import ConfigError, ConnectionFileError, NoSchedulerError
from trio_sched.server.config import Config
from trio_sched.server.identity import new_identity
from trio_sched.transport import connection_info as files
from trio_sched.transport import private_files as checks
from trio_sched.transport.connection_info import ConnectionInfo
from trio_sched.transport.private_files import (
    MAX_FILE_BYTES,
    open_private_directory,
    read_private_file,
    require_safe_path,
)

#: Enough for a check by path to fail several times.
SEARCHES = 2_000


def write_file(directory: Path, token: str) -> Path:
    """Write a client's connection file of the running scheduler "default", which is this process."""
    connection = ConnectionInfo(
        "default", "client", "tcp://127.0.0.1:1", token, pid=os.getpid(), host=os.uname().nodename
    )
    path = directory / "default-client.json"
    path.write_text(files.to_json(connection))
    path.chmod(0o600)
    return path


def make_private(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path


# ---- directories ----------------------------------------------------------------------------------------------------


def test_a_runtime_directory_that_is_a_link_is_refused(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(make_private(runtime_dir / "real"), "t")
    (runtime_dir / "link").symlink_to(runtime_dir / "real")
    monkeypatch.setenv(files.ENV_DIRECTORY, str(runtime_dir / "link"))
    with pytest.raises(ConfigError, match="is a symbolic link; name the directory itself"):
        files.find_connection(None, "client")
    with pytest.raises(ConfigError, match="is a symbolic link"):
        files.runtime_dir()


def test_a_directory_that_the_user_names_may_be_a_link(runtime_dir: Path) -> None:
    write_file(make_private(runtime_dir / "real"), "t")
    (runtime_dir / "link").symlink_to(runtime_dir / "real")
    assert files.find_connection(runtime_dir / "link", "client").token == "t"


def test_a_directory_below_a_world_writable_one_is_refused(runtime_dir: Path) -> None:
    shared = make_private(runtime_dir / "shared")
    path = make_private(shared / "run")
    shared.chmod(0o777)
    with pytest.raises(ConfigError, match=r"every user can rename it \(no sticky bit\)"), open_private_directory(path):
        pass
    shared.chmod(0o1777)
    with open_private_directory(path):
        pass


#: A user and a group other than those of this process.
OTHER = 1_000_003


def stat_of(mode: int, user: int | None = None, group: int | None = None, kind: int = stat.S_IFDIR) -> os.stat_result:
    """Return the status of a directory (or a link). Default: the user and the primary group of this process."""
    user = os.geteuid() if user is None else user
    group = os.getegid() if group is None else group
    return os.stat_result((kind | mode, 1, 1, 1, user, group, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (stat_of(0o755), ""),
        (stat_of(0o755, 0, 0), ""),
        (stat_of(0o1777, 0, 0), ""),
        (stat_of(0o1775, 0, OTHER), ""),
        (stat_of(0o777, kind=stat.S_IFLNK), ""),
        (stat_of(0o755, OTHER), f"belongs to user {OTHER}, not to user"),
        (stat_of(0o1777, OTHER), f"belongs to user {OTHER}, not to user"),
        (stat_of(0o777, OTHER, kind=stat.S_IFLNK), f"belongs to user {OTHER}, not to user"),
        (stat_of(0o777), "every user can rename it"),
        (stat_of(0o775, group=OTHER), f"the group {OTHER} can rename it"),
    ],
)
def test_a_directory_that_another_user_could_replace_is_reported(found: os.stat_result, reason: str) -> None:
    weakness = checks._weakness(Path("/somewhere"), found)
    assert reason in weakness
    assert bool(reason) == bool(weakness)


@pytest.mark.parametrize(
    ("name", "members", "allowed"),
    [("me", [], True), ("me", ["me"], True), ("me", ["me", "you"], False), ("users", [], False)],
)
def test_only_the_private_group_may_write(
    monkeypatch: pytest.MonkeyPatch, name: str, members: list[str], allowed: bool
) -> None:
    import grp
    import pwd

    user = ("me", "x", os.geteuid(), os.getegid(), "", "/", "/bin/sh")
    monkeypatch.setattr(pwd, "getpwuid", lambda _number: pwd.struct_passwd(user))
    monkeypatch.setattr(grp, "getgrgid", lambda number: grp.struct_group((name, "x", number, members)))
    assert (checks._weakness(Path("/somewhere"), stat_of(0o775)) == "") == allowed
    monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    assert "belongs to user" in checks._weakness(Path("/somewhere"), stat_of(0o775, user=1)), "only of this user"


def test_system_directories_are_trusted_where_root_has_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_unmapped_user", lambda: OTHER)
    assert checks._weakness(Path("/tmp"), stat_of(0o1777, OTHER)) == ""
    assert "every user" in checks._weakness(Path("/tmp"), stat_of(0o777, OTHER))
    assert "belongs to user" in checks._weakness(Path("/tmp/some"), stat_of(0o755, OTHER))


def test_the_lookup_steps_are_every_directory_and_link(runtime_dir: Path) -> None:
    root = Path(os.path.realpath(runtime_dir))
    (root / "a" / "b").mkdir(parents=True)
    (root / "c").mkdir()
    (root / "c" / "link").symlink_to("../a/../a/b")
    (root / "absolute").symlink_to(root / "c" / "link")
    below = [place for place, _ in checks._lookup_steps(root / "absolute" / "run" / "later") if root in place.parents]
    seen = ["absolute", "c", "c/link", "a", "a", "a/b"]
    assert below == [root / name for name in seen]
    (root / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match="levels of symbolic links"):
        require_safe_path(root / "loop" / "run")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize("by", ["owner", "group", "link"])
def test_a_directory_in_a_replaceable_one_is_refused(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """The check comes before a directory is created in one of the other user."""
    parent = make_private(runtime_dir / "parent")
    place = parent
    parent.chmod(0o755)
    if by == "owner":
        os.chown(parent, OTHER, OTHER)
        reason = f"{parent} is part of its path and belongs to user {OTHER}"
    elif by == "group":
        os.chown(parent, 0, OTHER)
        parent.chmod(0o775)
        reason = f"where the group {OTHER} can rename it"
    else:
        place = runtime_dir / "link"
        place.symlink_to(parent)
        os.chown(place, OTHER, OTHER, follow_symlinks=False)
        reason = f"{place} is part of its path and belongs to user {OTHER}"
    monkeypatch.setenv(files.ENV_DIRECTORY, str(place / "run"))
    with pytest.raises(ConfigError, match=reason):
        files.runtime_dir()
    with pytest.raises(ConfigError, match=reason):
        new_identity(Config(runtime_dir=str(place / "run")))
    assert not (parent / "run").exists()
    make_private(parent / "run")
    with pytest.raises(ConfigError, match=reason):
        files.runtime_dir()
    with pytest.raises(ConfigError, match=reason):
        files.find_connection(None, "client")


# ---- files ----------------------------------------------------------------------------------------------------------


def test_a_file_that_the_user_names_may_be_a_link_to_a_private_file(runtime_dir: Path) -> None:
    (runtime_dir / "link.json").symlink_to(write_file(runtime_dir, "t"))
    assert files.find_connection(str(runtime_dir / "link.json"), "client").token == "t"


def test_in_a_runtime_directory_links_are_not_followed(runtime_dir: Path) -> None:
    path = write_file(runtime_dir, "t")
    path.rename(runtime_dir / "real")
    path.symlink_to(runtime_dir / "real")
    with pytest.raises(ConnectionFileError, match="is a symbolic link; remove it"):
        files.find_connection("default", "client")
    with pytest.raises(NoSchedulerError, match="is a symbolic link"):
        files.find_connection(None, "client")


def test_a_file_of_another_user_is_refused(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_file(runtime_dir, "t")
    us = os.geteuid()
    monkeypatch.setattr("os.geteuid", lambda: us + 1)
    with pytest.raises(ConnectionFileError, match=f"belongs to user {us}, not to user {us + 1}"):
        files.find_connection(path, "client")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_root_reads_only_its_own_files(runtime_dir: Path) -> None:
    path = write_file(runtime_dir, "t")
    os.chown(path, 65534, 65534)
    for where in (str(path), "default"):
        with pytest.raises(ConnectionFileError, match="belongs to user 65534"):
            files.find_connection(where, "client")
    with pytest.raises(NoSchedulerError, match="belongs to user 65534"):
        files.find_connection(None, "client")


def test_a_fifo_does_not_block_the_search(runtime_dir: Path) -> None:
    os.mkfifo(runtime_dir / "default-client.json", 0o600)
    for where in (str(runtime_dir / "default-client.json"), "default"):
        with pytest.raises(ConnectionFileError, match="it is a FIFO, not a regular file"):
            files.find_connection(where, "client")
    with pytest.raises(NoSchedulerError, match="it is a FIFO"):
        files.find_connection(None, "client")


def test_a_device_is_not_a_connection_file() -> None:
    with pytest.raises(ConnectionFileError, match="it is a device, not a regular file"):
        read_private_file(Path(os.devnull))


def test_a_file_that_is_too_large_is_not_read(runtime_dir: Path) -> None:
    path = write_file(runtime_dir, "t")
    with path.open("ab") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(ConnectionFileError, match=f"larger than {MAX_FILE_BYTES} bytes"):
        read_private_file(path)


def test_a_draft_that_is_a_link_is_replaced(runtime_dir: Path) -> None:
    target = runtime_dir / "target"
    target.touch()
    (runtime_dir / f".default-client.json.{os.getpid()}").symlink_to(target)
    client = ConnectionInfo("default", "client", "tcp://127.0.0.1:1", "t")
    files.write_connection_files(client, ConnectionInfo("default", "engine", "tcp://127.0.0.1:1", "t"))
    assert target.read_text() == ""
    assert files.read_connection_file(runtime_dir / "default-client.json") == client


# ---- races ----------------------------------------------------------------------------------------------------------

REPLACE_SCRIPT = """
import os, sys
good, evil, place, how = sys.argv[1:]
print(flush=True)
while True:
    for target in (good, evil):
        if how == "link":
            os.symlink(target, place + ".new")
            os.rename(place + ".new", place)
        else:
            os.rename(target, place)
            os.rename(place, target)
"""


@contextmanager
def replaced_in_turn(good: Path, evil: Path, place: Path, how: str) -> Iterator[None]:
    """Run a process in the block that makes `place` name `good` and `evil` in turn."""
    command = [sys.executable, "-S", "-c", REPLACE_SCRIPT, str(good), str(evil), str(place), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
            assert process.poll() is None, "the process that replaces the target has failed"
        finally:
            process.kill()


def find_tokens() -> set[str]:
    found = set()
    for _ in range(SEARCHES):
        try:
            found.add(files.find_connection(None, "client").token)
        except (ConfigError, ConnectionFileError, NoSchedulerError):
            continue
    return found


@pytest.mark.parametrize("how", ["link", "rename"])
def test_a_directory_that_is_replaced_during_a_search_is_not_used(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The invalid directory is open to others, as one of another user could be."""
    write_file(good := make_private(runtime_dir / "good"), "good")
    write_file(evil := make_private(runtime_dir / "evil"), "evil")
    evil.chmod(0o755)
    place = runtime_dir / "run"
    monkeypatch.setenv(files.ENV_DIRECTORY, str(place))
    monkeypatch.setattr(
        Path, "mkdir", lambda *_args, **_more: None
    )  # it would create a directory while the path is empty
    with replaced_in_turn(good, evil, place, how):
        assert "evil" not in find_tokens()


def test_a_file_that_is_replaced_during_a_search_is_not_used(runtime_dir: Path) -> None:
    """The invalid target is a symbolic link to a file in another directory."""
    other = make_private(runtime_dir / "elsewhere")
    good = write_file(runtime_dir, "good").rename(runtime_dir / "good")
    write_file(other, "evil").rename(other / "evil")
    evil = runtime_dir / "evil"
    evil.symlink_to(other / "evil")
    with replaced_in_turn(good, evil, runtime_dir / "default-client.json", "rename"):
        assert "evil" not in find_tokens()
