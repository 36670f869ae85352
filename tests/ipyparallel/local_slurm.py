"""A real Slurm on this machine for the time of a test: munged, slurmctld and slurmd in a temporary directory.

Debian's packages slurm-wlm and munge are enough; the system need not configure or start them. slurmd must be root to
start jobs. The node has more processors in its configuration than in reality, so that a few engines always fit.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TIMEOUT_S = 60
CPUS = 8
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "sinfo")
_SBIN = "/usr/sbin:/sbin"
_CONF = """\
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=3
MinJobAge=10
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Return why Slurm cannot run here; empty if it can."""
    path = os.environ["PATH"] + os.pathsep + _SBIN
    absent = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "slurmd must be root"


@contextmanager
def slurm() -> Iterator[dict[str, str]]:
    """Run a Slurm that accepts jobs. Yields the environment in which its commands find it."""
    directory = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    daemons: list[subprocess.Popen[bytes]] = []
    environment = {
        **os.environ,
        "PATH": os.environ["PATH"] + os.pathsep + _SBIN,
        "SLURM_CONF": str(directory / "slurm.conf"),
    }
    try:
        _configure(directory)
        for command in (
            ("munged", "--foreground", "--force", *_munge_options(directory)),
            ("slurmctld", "-D", "-i"),
            ("slurmd", "-D"),
        ):
            with (directory / f"{command[0]}.out").open("wb") as output:
                daemons.append(
                    subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
                )
            if command[0] == "munged":
                _wait_until((directory / "munge.socket").exists, directory)
        _wait_until(lambda: _node_is_idle(environment), directory)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _configure(directory: Path) -> None:
    for name in ("state", "spool"):
        (directory / name).mkdir(mode=0o755)
    key = directory / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    (directory / "cgroup.conf").write_text("CgroupPlugin=autodetect\n")
    values = {
        "host": socket.gethostname().partition(".")[0],
        "controller_port": _free_port(),
        "node_port": _free_port(),
        "directory": directory,
        "cpus": CPUS,
    }
    (directory / "slurm.conf").write_text(_CONF.format_map(values))


def _munge_options(directory: Path) -> Iterator[str]:
    for option, name in (
        ("socket", "munge.socket"),
        ("key-file", "munge.key"),
        ("pid-file", "munged.pid"),
        ("log-file", "munged.log"),
        ("seed-file", "munged.seed"),
    ):
        yield f"--{option}={directory / name}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _node_is_idle(environment: dict[str, str]) -> bool:
    done = subprocess.run(["sinfo", "-h", "-o", "%t"], env=environment, capture_output=True, text=True)
    return done.stdout.strip() == "idle"


def _wait_until(condition: Callable[[], bool], directory: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(directory.glob("*.[lo]*")))
            raise TimeoutError(f"Slurm did not start\n{logs}")
        time.sleep(0.1)
