"""ipyparallel's Slurm launchers with this controller, on a real Slurm (`nox -s slurm`)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ipyparallel.local_slurm import missing, slurm

ipp = pytest.importorskip("ipyparallel")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
]
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def running_slurm() -> Iterator[dict[str, str]]:
    with slurm() as environment:
        yield environment


@pytest.fixture
def profiles(running_slurm: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for profiles; the launchers find Slurm in the environment."""
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, running_slurm[name])
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))  # engines import this module
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jobs() -> list[str]:
    """Return the names of the jobs that wait or run."""
    done = subprocess.run(["squeue", "-h", "-t", "PD,R", "-o", "%j"], capture_output=True, text=True, check=True)
    return sorted(done.stdout.split())


def wait_until_no_jobs() -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while jobs():
        assert time.monotonic() < deadline, jobs()


def job_of_this_process() -> str | None:
    return os.environ.get("SLURM_JOB_ID")


def cluster(**options: Any) -> Any:
    return ipp.Cluster(n=3, log_level=40, **options)


def fast_heartbeats(home: Path) -> None:
    (home / "profile_default").mkdir()
    (home / "profile_default" / "ipcontroller_config.py").write_text("c.HeartMonitor.period = 200\n")


def test_slurm_engines_with_a_local_controller(profiles: Path) -> None:
    fast_heartbeats(profiles)
    with cluster(controller="trio", engines="slurm") as rc:
        (job,) = jobs()
        assert job.startswith("ipengine")
        ids = rc[:].apply_sync(job_of_this_process)
        assert len(ids) == 3
        assert None not in ids
        assert rc.load_balanced_view().map_sync(lambda x: x * x, range(50)) == [x * x for x in range(50)]
        assert rc.broadcast_view().apply_sync(lambda: 7) == [7, 7, 7]
        before, pids = set(rc.ids), set(rc[:].apply_sync(os.getpid))
        rc.cluster.restart_engines_sync()
        deadline = time.monotonic() + TIMEOUT_S
        while before & set(rc.ids) or len(rc.ids) < 3:
            assert time.monotonic() < deadline
        assert not pids & set(rc[:].apply_sync(os.getpid))
    wait_until_no_jobs()


def test_controller_and_engines_are_slurm_jobs(profiles: Path) -> None:
    from traitlets.config import Config

    config = Config()
    config.SlurmControllerLauncher.controller_cmd = [sys.executable, "-m", "trio_sched", "ipcontroller"]
    with cluster(controller="slurm", engines="slurm", config=config, controller_ip="0.0.0.0") as rc:
        assert [name.partition("-")[0] for name in jobs()] == ["ipcontroller", "ipengine"]
        assert len(set(rc[:].apply_sync(os.getpid))) == 3
        assert rc.hub_history() == rc.history
    wait_until_no_jobs()


def test_r20_cancelled_job_fails_its_tasks(profiles: Path) -> None:
    """The client gets an EngineError for each task."""
    fast_heartbeats(profiles)
    with cluster(controller="trio", engines="slurm") as rc:
        sleepers = rc.load_balanced_view().map_async(time.sleep, [60] * 3, ordered=False)
        deadline = time.monotonic() + TIMEOUT_S
        while sum(rc.queue_status()[engine]["tasks"] for engine in rc.ids) < 3:
            assert time.monotonic() < deadline
        subprocess.run(["scancel", "-n", *{*jobs()}], check=True)
        with pytest.raises((ipp.RemoteError, ipp.error.CompositeError)) as caught:
            sleepers.get(TIMEOUT_S)
        assert "EngineError" in repr(caught.value) + str(caught.value)
