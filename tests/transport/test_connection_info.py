"""Connection files: only their owner can read them, and every error names the remedy."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trio_sched.errors import ConfigError, ConnectionFileError, NoSchedulerError
from trio_sched.transport import connection_info as files
from trio_sched.transport.connection_info import ConnectionInfo

HERE = os.uname().nodename


def pair(name: str = "alpha", **changes: Any) -> tuple[ConnectionInfo, ConnectionInfo]:
    """Return a client's and an engine's connection to a running scheduler, which is this process."""
    common: dict[str, Any] = {
        "address": "tcp://127.0.0.1:1",
        "token": "secret",
        "scheduler": f"{name}-1",
        "pid": os.getpid(),
        "host": HERE,
    }
    common |= changes
    return ConnectionInfo(name, "client", **common), ConnectionInfo(name, "engine", **common)


def ended_pid() -> int:
    """Return the id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_connection_files_are_read_back_and_have_mode_0600(runtime_dir: Path) -> None:
    client, engine = pair(server_key="k", websocket="wss://x")
    paths = files.write_connection_files(client, engine)
    assert [files.read_connection_file(path) for path in paths] == [client, engine]
    assert [path.name for path in paths] == ["alpha-client.json", "alpha-engine.json"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}
    assert sorted(path.name for path in runtime_dir.iterdir()) == ["alpha-client.json", "alpha-engine.json"]


def test_writing_replaces_the_former_files(runtime_dir: Path) -> None:
    files.write_connection_files(*pair(token="first"))
    path, _ = files.write_connection_files(*pair(token="second"))
    assert files.read_connection_file(path).token == "second"


def test_the_repr_omits_secrets() -> None:
    client, _ = pair(token="hush", secret_key="hush")
    assert "hush" not in repr(client)


def test_unknown_fields_of_a_later_version_are_ignored() -> None:
    text = '{"name": "a", "role": "client", "address": "ipc:///x", "token": "t", "colour": "blue"}'
    assert files.from_json(text) == ConnectionInfo("a", "client", "ipc:///x", "t")


def test_from_json_inverts_to_json() -> None:
    client, _ = pair()
    assert files.from_json(files.to_json(client)) == client


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": 1}', '{"name": "a", "role": "king"}', "\xff"])
def test_the_error_of_a_malformed_file_names_the_file(runtime_dir: Path, text: str) -> None:
    path = runtime_dir / "x.json"
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o600)
    with pytest.raises(ConnectionFileError, match=r"x\.json is not a connection file"):
        files.read_connection_file(path)


def test_a_missing_file_is_an_error(runtime_dir: Path) -> None:
    with pytest.raises(ConnectionFileError, match="no connection file"):
        files.read_connection_file(runtime_dir / "none.json")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o606])
def test_a_file_that_others_can_read_is_refused(runtime_dir: Path, mode: int) -> None:
    path, _ = files.write_connection_files(*pair())
    path.chmod(mode)
    with pytest.raises(ConnectionFileError, match="chmod 600"):
        files.read_connection_file(path)


def test_a_directory_is_not_a_connection_file(runtime_dir: Path) -> None:
    with pytest.raises(ConnectionFileError, match="it is a directory, not a regular file"):
        files.read_connection_file(runtime_dir)


def test_the_runtime_directory_is_created_with_mode_0700(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(files.ENV_DIRECTORY, str(runtime_dir / "new" / "er"))
    assert stat.S_IMODE(files.runtime_dir().stat().st_mode) == 0o700


def test_the_runtime_directory_defaults_to_xdg_then_to_the_temporary_directory(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(files.ENV_DIRECTORY)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_dir))
    assert files.runtime_dir() == runtime_dir / "trio_sched"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(runtime_dir))
    assert files.runtime_dir() == runtime_dir / f"trio_sched-{os.getuid()}"


def test_a_runtime_directory_open_to_others_is_refused(runtime_dir: Path) -> None:
    runtime_dir.chmod(0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        files.runtime_dir()
    with pytest.raises(ConfigError, match="chmod 700"):
        files.write_connection_files(*pair(), runtime_dir)


def test_a_runtime_directory_of_another_user_is_refused(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match="belongs to user"):
        files.runtime_dir()


def test_a_runtime_directory_that_is_a_file_is_refused(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (runtime_dir / "file").touch()
    monkeypatch.setenv(files.ENV_DIRECTORY, str(runtime_dir / "file"))
    with pytest.raises(ConfigError, match="cannot create"):
        files.runtime_dir()


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "a b", "a\n"])
def test_a_name_must_be_valid_in_a_file_name(runtime_dir: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        files.connection_path(name, "client")


def test_the_error_of_a_too_long_ipc_path_names_the_setting(runtime_dir: Path) -> None:
    assert files.ipc_address("a") == f"ipc://{runtime_dir}/a.sock"
    with pytest.raises(ConfigError, match=files.ENV_DIRECTORY):
        files.ipc_address("a" * 100)


# ---- finding --------------------------------------------------------------------------------------------------------


def test_the_only_scheduler_is_found(runtime_dir: Path) -> None:
    client, engine = pair()
    files.write_connection_files(client, engine)
    assert files.find_connection(None, "client") == client
    assert files.find_connection(None, "engine") == engine
    assert files.find_connection(runtime_dir, "engine") == engine


def test_a_scheduler_is_found_by_name_and_by_path(runtime_dir: Path) -> None:
    client, engine = pair()
    path, _ = files.write_connection_files(client, engine)
    files.write_connection_files(*pair("beta"))
    assert files.find_connection("alpha", "client") == client
    assert files.find_connection(path, "client") == client
    assert files.find_connection(str(path), "client") == client


def test_a_scheduler_is_found_by_the_environment_variable(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, engine = pair()
    _, path = files.write_connection_files(client, engine)
    files.write_connection_files(*pair("beta"))
    monkeypatch.setenv(files.ENV_CONNECTION, "alpha")
    assert files.find_connection(None, "client") == client
    monkeypatch.setenv(files.ENV_CONNECTION, str(path))
    assert files.find_connection(None, "engine") == engine


def test_no_scheduler_is_an_error(runtime_dir: Path) -> None:
    with pytest.raises(NoSchedulerError, match="no scheduler runs"):
        files.find_connection(None, "client")
    with pytest.raises(NoSchedulerError, match=r"'alpha'.*running there: none"):
        files.find_connection("alpha", "client")


def test_several_schedulers_are_an_error_that_lists_them(runtime_dir: Path) -> None:
    files.write_connection_files(*pair("alpha"))
    files.write_connection_files(*pair("beta"))
    with pytest.raises(NoSchedulerError, match="2 schedulers run: alpha, beta"):
        files.find_connection(None, "client")
    with pytest.raises(NoSchedulerError, match=r"'gamma'.*alpha, beta"):
        files.find_connection("gamma", "client")


def test_a_stale_file_is_skipped_and_named(runtime_dir: Path) -> None:
    path, _ = files.write_connection_files(*pair("dead", pid=ended_pid()))
    with pytest.raises(NoSchedulerError, match=r"dead-client\.json is stale"):
        files.find_connection(None, "client")
    with pytest.raises(NoSchedulerError, match="'dead' is gone"):
        files.find_connection("dead", "client")
    with pytest.raises(ConnectionFileError, match="is stale"):
        files.find_connection(path, "client")
    client, engine = pair("alive")
    files.write_connection_files(client, engine)
    assert files.find_connection(None, "client") == client


def test_a_file_without_its_local_socket_is_stale(runtime_dir: Path) -> None:
    assert files.is_stale(pair(address=f"ipc://{runtime_dir}/none.sock")[0])


def test_a_file_of_another_host_is_not_stale(runtime_dir: Path) -> None:
    assert not files.is_stale(pair(host="elsewhere", pid=ended_pid())[0])


def test_a_file_open_to_others_is_skipped_and_named(runtime_dir: Path) -> None:
    path, _ = files.write_connection_files(*pair())
    path.chmod(0o644)
    with pytest.raises(NoSchedulerError, match="chmod 600"):
        files.find_connection(None, "client")


def test_the_file_of_the_other_role_is_refused(runtime_dir: Path) -> None:
    path, _ = files.write_connection_files(*pair())
    with pytest.raises(ConnectionFileError, match=r"take alpha-engine\.json"):
        files.find_connection(path, "engine")


def test_files_of_a_successor_are_not_removed(runtime_dir: Path) -> None:
    first, second = pair(scheduler="1"), pair(scheduler="2")
    files.write_connection_files(*first)
    files.write_connection_files(*second)
    files.remove_connection_files(*first)
    assert files.find_connection("alpha", "client") == second[0]
    files.remove_connection_files(*second)
    files.remove_connection_files(*second)
    assert list(runtime_dir.iterdir()) == []


def test_the_clients_file_is_searched_in_three_directories(runtime_dir: Path, tmp_path: Path) -> None:
    _, engine = pair()
    copy = tmp_path / "copied.json"
    assert files.client_file_of(engine) == files.client_file_of(engine, "alpha") == runtime_dir / "alpha-client.json"
    assert files.client_file_of(engine, copy) == files.client_file_of(engine, str(tmp_path))
    assert files.client_file_of(engine, copy) == tmp_path / "alpha-client.json"  # the first path, if no file exists
    local = pair(address=f"ipc://{tmp_path}/alpha.sock")[1]
    assert files.client_file_of(local) == tmp_path / "alpha-client.json"
    files.write_connection_files(*pair())
    assert files.client_file_of(local, copy) == runtime_dir / "alpha-client.json"
    (tmp_path / "alpha-client.json").touch()
    assert files.client_file_of(local) == files.client_file_of(engine, copy) == tmp_path / "alpha-client.json"
