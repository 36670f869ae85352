"""ipyparallel's MPI launcher with this controller: the engines are one MPI world (`nox -s mpi`)."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

ipp = pytest.importorskip("ipyparallel")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("mpiexec") is None, reason="no mpiexec: apt-get install openmpi-bin"),
    pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="mpi4py is not installed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
]


def world() -> tuple[int, int]:
    from mpi4py import MPI

    return MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()


def test_engines_are_one_mpi_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("OMPI_MCA_rmaps_base_oversubscribe", "1")  # there may be more engines than cores
    if os.geteuid() == 0:
        monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
        monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    with ipp.Cluster(n=3, controller="trio", engines="mpi", log_level=40) as rc:
        assert sorted(rc[:].apply_sync(world)) == [(0, 3), (1, 3), (2, 3)]
        assert rc.load_balanced_view().map_sync(abs, range(-20, 0)) == list(range(20, 0, -1))
