"""`trio-sched ipcontroller` as a process: its files, its logs, its end; and its start by ipyparallel."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 60
COMMAND = (sys.executable, "-m", "trio_sched", "ipcontroller")


def read_log(process: subprocess.Popen[bytes], pattern: str) -> str:
    """Read standard error until it matches a pattern. Returns what was read."""
    assert process.stderr is not None
    lines = b""
    deadline = time.monotonic() + TIMEOUT_S
    while not re.search(pattern.encode(), lines):
        ready, _, _ = select.select([process.stderr], [], [], deadline - time.monotonic())
        more = os.read(process.stderr.fileno(), 65536) if ready else b""
        assert more, f"no {pattern!r} in {lines.decode()!r}"
        lines += more
    return lines.decode()


def wait_for_end(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Wait for the end of the process. Returns its exit code and the rest of standard error."""
    _, errors = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, errors.decode()


@contextmanager
def controller(ipython_dir: Path, *arguments: str, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a controller whose IPython directory belongs to the test."""
    environment = {**os.environ, "IPYTHONDIR": str(ipython_dir), "NO_COLOR": "1", **environ}
    process = subprocess.Popen([*COMMAND, *arguments], env=environment, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


#: Logged when the controller is ready.
READY = "-engine.json"


def test_connection_files_are_private_and_removed_at_the_end(tmp_path: Path) -> None:
    security = tmp_path / "profile_lab" / "security"
    security.mkdir(parents=True)  # as ipyparallel's launchers create it, with the user's umask
    security.chmod(0o755)
    with controller(tmp_path, "--profile=lab", "--cluster-id=a", "--location=here", "--ping=250") as process:
        read_log(process, READY)
        assert files(security) == ["ipcontroller-a-client.json", "ipcontroller-a-engine.json"]
        for path in security.iterdir():
            assert path.stat().st_mode & 0o777 == 0o600
            inside = json.loads(path.read_text())
            assert inside["location"] == "here"
            assert inside["interface"] == "tcp://127.0.0.1"
        assert security.stat().st_mode & 0o777 == 0o700
        process.send_signal(signal.SIGTERM)
        code, errors = wait_for_end(process)
        assert code == 0
        assert "Traceback" not in errors
        assert files(security) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_controller_before_launchers_kill_it(tmp_path: Path, number: signal.Signals) -> None:
    with controller(tmp_path) as process:
        read_log(process, READY)
        since = time.monotonic()
        process.send_signal(number)
        code, _ = wait_for_end(process)
        assert code == 0
        assert time.monotonic() - since < 5  # launchers kill it after 5 s


def test_reuse_keeps_files_keys_and_ports(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        with controller(tmp_path, "--reuse") as process:
            read_log(process, READY)
            process.terminate()
            assert wait_for_end(process)[0] == 0
        seen.append((tmp_path / "profile_default" / "security" / "ipcontroller-client.json").read_text())
    assert json.loads(seen[0]) == json.loads(seen[1])


def test_environment_of_launchers_is_used(tmp_path: Path) -> None:
    profile = tmp_path / "somewhere"
    with controller(
        tmp_path / "unused", IPP_PROFILE_DIR=str(profile), IPP_CLUSTER_ID="b", IPP_SESSION_KEY="sesame"
    ) as process:
        read_log(process, READY)
        inside = json.loads((profile / "security" / "ipcontroller-b-client.json").read_text())
        assert inside["key"] == "sesame"
    with controller(tmp_path, IPP_PROFILE_DIR=str(profile), IPP_ENABLE_CURVE="1") as process:
        read_log(process, READY)
        inside = json.loads((profile / "security" / "ipcontroller-client.json").read_text())
        assert inside["key"] == ""
        assert len(inside["curve_serverkey"]) == 40


def test_configuration_file_is_used_and_unknown_options_are_named_once(tmp_path: Path) -> None:
    profile = tmp_path / "profile_default"
    profile.mkdir()
    (profile / "ipcontroller_config.py").write_text("c.TaskScheduler.scheme_name = 'pure'\nc.Kitchen.sink = 1\n")
    with controller(tmp_path, "--color=red") as process:
        lines = read_log(process, READY)
        assert lines.count("--color=red") == 1
        assert lines.count("Kitchen.sink") == 1
        inside = json.loads((profile / "security" / "ipcontroller-client.json").read_text())
        assert inside["task_scheme"] == "pure"


def test_logs_go_to_a_file_and_old_ones_are_removed(tmp_path: Path) -> None:
    logs = tmp_path / "profile_default" / "log"
    logs.mkdir(parents=True)
    (logs / "ipcontroller-old.log").write_text("old")
    (logs / "ipengine-1.log").write_text("not ours")
    with controller(tmp_path, "--log-to-file", "--clean-logs", "--cluster-id=c", "--debug") as process:
        read_log(process, "Sending logs to")
        log = logs / f"ipcontroller-c-{process.pid}.log"
        deadline = time.monotonic() + TIMEOUT_S
        while "engine.json" not in (log.read_text() if log.exists() else ""):
            assert time.monotonic() < deadline
        assert files(logs) == [log.name, "ipengine-1.log"]


def test_port_of_a_pool_is_used(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    with controller(tmp_path, f"--ports={free}") as process:
        read_log(process, READY)
        text = (tmp_path / "profile_default" / "security" / "ipcontroller-engine.json").read_text()
        assert str(free) in text


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["--hwm=many"], 2, "TaskScheduler.hwm = 'many'"),
        (["--ip=1.2.3.4.5"], 2, "1.2.3.4.5"),
        (["--profile-dir=/proc/nothing"], 2, "/proc/nothing"),
    ],
)
def test_invalid_option_is_an_error_without_traceback(
    tmp_path: Path, arguments: Sequence[str], code: int, named: str
) -> None:
    with controller(tmp_path, *arguments) as process:
        got, errors = wait_for_end(process)
        assert named in errors
        assert "Traceback" not in errors
        assert got == code


def test_help_version_and_configuration_template(tmp_path: Path) -> None:
    for option, wanted in (("--help", "--sqlitedb"), ("--help-all", "--sqlitedb"), ("--version", ".")):
        done = subprocess.run([*COMMAND, option], capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.returncode == 0
        assert wanted in done.stdout
    with controller(tmp_path, "--init") as process:
        read_log(process, READY)
    assert "c = get_config()" in (tmp_path / "profile_default" / "ipcontroller_config.py").read_text()


def test_native_name_makes_the_scheduler_reachable(tmp_path: Path, runtime_dir: Path) -> None:
    with controller(tmp_path, "--native=lab") as process:
        read_log(process, "listening")
        status = subprocess.run(
            [sys.executable, "-m", "trio_sched", "status", "-C", "lab", "--json"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert status.returncode == 0, status.stderr
        assert '"lab"' in status.stdout
    with controller(tmp_path) as process:
        read_log(process, READY)
        assert not [name for name in files(runtime_dir) if "default" in name]


# ---- started by ipyparallel -----------------------------------------------------------------------------------------


@pytest.fixture
def ipp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("ipyparallel")
    from importlib.metadata import entry_points

    if "trio" not in entry_points(group="ipyparallel.controller_launchers").names:
        pytest.skip("trio_sched was installed before it had launchers")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    profile = tmp_path / "profile_default"
    profile.mkdir()
    (profile / "ipcontroller_config.py").write_text("c.HeartMonitor.period = 200\n")
    return module


def cluster_list() -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "ipyparallel.cluster", "list", "-o", "json"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")


@quiet
def test_cluster_starts_restarts_and_stops_the_controller(ipp: Any, tmp_path: Path) -> None:
    security = tmp_path / "profile_default" / "security"
    with ipp.Cluster(n=2, controller="trio", engines="trio", log_level=40) as rc:
        cluster = rc.cluster
        pid = cluster.controller.process.pid
        assert "trio_sched" in " ".join(cluster.controller.process.cmdline())
        before = rc[:].apply_sync(os.getpid)
        assert len(set(before)) == 2
        assert rc.load_balanced_view().map_sync(lambda x: x * x, range(20)) == [x * x for x in range(20)]
        cluster.restart_engines_sync()
        rc.wait_for_engines(2, timeout=TIMEOUT_S, interactive=False)
        after = rc[:].apply_sync(os.getpid)
        assert not set(before) & set(after)
        assert [one["cluster"]["cluster_id"] for one in cluster_list()] == [cluster.cluster_id]
        again = ipp.Cluster.from_file(cluster.cluster_file)
        assert again.controller.process.pid == pid
    assert not Path(f"/proc/{pid}/cmdline").exists() or b"ipcontroller" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert files(security) == []


@quiet
def test_ipcluster_starts_and_stops_the_controller(ipp: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "ipyparallel.cluster"]
    start = subprocess.run(
        [*command, "start", "-n", "2", "--controller=trio", "--daemonize"], timeout=TIMEOUT_S, capture_output=True
    )
    assert start.returncode == 0, start.stderr.decode()
    try:
        cluster = ipp.Cluster.from_file(log_level=40)
        with cluster.connect_client_sync() as rc:
            rc.wait_for_engines(2, timeout=TIMEOUT_S, interactive=False)
            assert rc[:].apply_sync(lambda: 7) == [7, 7]
    finally:
        subprocess.run([*command, "stop"], timeout=TIMEOUT_S, check=True, capture_output=True)
    deadline = time.monotonic() + TIMEOUT_S
    while cluster_list():
        assert time.monotonic() < deadline
    assert files(tmp_path / "profile_default" / "security") == []


@quiet
def test_launchers_are_found_by_name_and_only_they_import_ipyparallel(ipp: Any, tmp_path: Path) -> None:
    from ipyparallel.cluster.launcher import abbreviate_launcher_class, find_launcher_class

    for kind in ("controller", "engine"):
        assert abbreviate_launcher_class(find_launcher_class("trio", kind)) == "trio"
    (tmp_path / "profile_default" / "ipcluster_config.py").write_text('c.Cluster.controller_launcher_class = "trio"\n')
    assert ipp.Cluster(log_level=40).controller_launcher_class is find_launcher_class("trio", "controller")
    script = "import sys, trio_sched.ipyparallel.front, trio_sched.cli.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"ipyparallel", "traitlets", "IPython"} & {name.split(".")[0] for name in done.stdout.split()}
