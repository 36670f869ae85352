"""Scratch directories: removed when their owner has ended for any reason; other directories are kept."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from trio_sched.transport.scratch import LOCK_NAME, ScratchDirectory, remove_abandoned

PREFIX = "trio_sched-test-"


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def abandoned_directory(temporary: Path) -> Path:
    code = "import os, sys; from trio_sched.transport.scratch import *; d = ScratchDirectory(sys.argv[1])\n"
    code += "(d.path / 'inside').mkdir(); print(d.path, flush=True); os.kill(os.getpid(), 9)"
    environment = {**os.environ, "TMPDIR": str(temporary)}
    done = subprocess.run([sys.executable, "-c", code, PREFIX], env=environment, stdout=subprocess.PIPE, text=True)
    return Path(done.stdout.strip())


def test_a_scratch_directory_is_private_and_removed_at_the_end(temporary: Path) -> None:
    with ScratchDirectory(PREFIX) as scratch:
        assert scratch.path.parent == temporary
        assert stat.S_IMODE(scratch.path.stat().st_mode) == 0o700
        (scratch.path / "file").touch()
        remove_abandoned(PREFIX)
        with ScratchDirectory(PREFIX) as another:
            assert another.path != scratch.path
        assert (scratch.path / "file").exists()
    assert not list(temporary.iterdir())


def test_the_directory_of_a_killed_process_is_removed_by_the_next_one(temporary: Path) -> None:
    left = abandoned_directory(temporary)
    assert (left / "inside").is_dir()
    with ScratchDirectory(PREFIX) as scratch:
        assert list(temporary.iterdir()) == [scratch.path]


def test_an_inherited_lock_keeps_the_directory(temporary: Path) -> None:
    scratch = ScratchDirectory(PREFIX)
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[scratch.lock]) as process:
        scratch.release()
        remove_abandoned(PREFIX)
        assert scratch.path.exists()
        process.communicate()
    remove_abandoned(PREFIX)
    assert not scratch.path.exists()


def test_links_unlocked_and_shared_directories_are_kept(temporary: Path) -> None:
    left = abandoned_directory(temporary)
    link, unlocked, shared = (temporary / f"{PREFIX}{name}" for name in ("link", "unlocked", "shared"))
    kept = temporary / "elsewhere"
    left.rename(kept)
    link.symlink_to(kept)
    unlocked.mkdir(mode=0o700)
    shared.mkdir()
    shared.chmod(0o755)
    (shared / LOCK_NAME).touch()
    remove_abandoned(PREFIX)
    assert {path.name for path in temporary.iterdir()} == {path.name for path in (link, unlocked, shared, kept)}
    assert (kept / "inside").is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a directory of another user")
def test_directories_of_other_users_are_kept(temporary: Path) -> None:
    left = abandoned_directory(temporary)
    os.chown(left, 12345, 12345)
    remove_abandoned(PREFIX)
    assert (left / "inside").is_dir()
