"""Options of ipcontroller from command line, files and environment, and the settings that result."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from trio_sched.cli.ipcontroller import OPTIONS
from trio_sched.errors import ConfigError
from trio_sched.ipyparallel.options import ALIASES, FLAGS
from trio_sched.ipyparallel.settings import SETTINGS, ControllerOptions, read_options


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Reads options as a controller does whose home directory belongs to the test."""

    def read(*arguments: str, config: str | None = None, **environ: str) -> ControllerOptions:
        if config is not None:
            profile = tmp_path / ".ipython" / "profile_default"
            profile.mkdir(parents=True, exist_ok=True)
            (profile / "ipcontroller_config.py").write_text(config, encoding="utf-8")
        return read_options(arguments, environ, tmp_path)

    return read


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--cluster-id=a1"], "cluster_id", "a1"),
        (["--cluster-id", "a1"], "cluster_id", "a1"),
        (["--cluster_id=a1"], "cluster_id", "a1"),
        (["--ip=0.0.0.0"], "engine_ip", "0.0.0.0"),
        (["--IPController.ip=*"], "client_ip", "*"),
        (["--HubFactory.ip=*"], "client_ip", "*"),
        (["--IPController.client_ip", "10.0.0.1"], "client_ip", "10.0.0.1"),
        (["--location=front.example"], "location", "front.example"),
        (["--ssh=me@gate"], "ssh_server", "me@gate"),
        (["--enginessh=me@gate"], "engine_ssh_server", "me@gate"),
        (["--port=10101"], "registration_port", 10101),
        (["--ports=10101-10103,10110"], "ports", (10101, 10102, 10103, 10110)),
        (["--IPController.engine_ports=[1, 2]"], "engine_ports", (1, 2)),
        (["--ping=250"], "ping_ms", 250),
        (["--HeartMonitor.period=200"], "ping_ms", 200),
        (["--HeartMonitor.max_heartmonitor_misses=3"], "missed_pings", 3),
        (["--scheme=pure"], "scheme", "pure"),
        (["--hwm=0"], "hwm", 0),
        (["--reuse"], "reuse", True),
        (["--reuse=False"], "reuse", False),
        (["--reuse", "true"], "reuse", True),
        (["--IPController.reuse_files=True"], "reuse", True),
        (["--nodb"], "database", "nodb"),
        (["--dictdb"], "database", "dictdb"),
        (["--sqlitedb"], "database", "sqlitedb"),
        (["--IPController.db_class=ipyparallel.controller.sqlitedb.SQLiteDB"], "database", "sqlitedb"),
        (["--IPController.db_class=NoDB"], "database", "nodb"),
        (["--sqlitedb", "--SQLiteDB.filename=x.db"], "database_options", {"filename": "x.db"}),
        (["--DictDB.record_limit=5", "--SQLiteDB.filename=x.db"], "database_options", {"record_limit": 5}),
        (["--enable-curve"], "curve", True),
        (["--IPController.enable_curve=True"], "curve", True),
        (["--IPController.broadcast_scheduler_depth=2"], "broadcast_leaves", 4),
        (["--no-secure"], "key", ""),
        (["--secure"], "key", None),
        (["--Session.key=b'secret'"], "key", "secret"),
        (["--Session.signature_scheme=hmac-sha512"], "signature_scheme", "hmac-sha512"),
        (["--hwm=1", "--hwm=5"], "hwm", 5),
    ],
)
def test_option_sets_its_field(read: Any, arguments: list[str], field: str, value: Any) -> None:
    result = read(*arguments)
    assert getattr(result.config, field) == value
    assert not result.warnings


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--log-level=10"], "log_level", "debug"),
        (["--log-level", "WARN"], "log_level", "warning"),
        (["--log-level=critical"], "log_level", "critical"),
        (["--log-level=35"], "log_level", "warning"),
        (["--debug"], "log_level", "debug"),
        (["--quiet"], "log_level", "critical"),
        (["--log-to-file"], "log_to_file", True),
        (["--log-to-file=True"], "log_to_file", True),
        (["--log-to-file", "False"], "log_to_file", False),
        (["--clean-logs"], "clean_logs", True),
        (["--init"], "init", True),
        (["--work-dir=/tmp"], "work_dir", "/tmp"),
        (["--native=lab"], "native", "lab"),
    ],
)
def test_process_option_sets_its_field(read: Any, arguments: list[str], field: str, value: Any) -> None:
    result = read(*arguments)
    assert getattr(result, field) == value
    assert not result.warnings


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--color=red"], "--color=red"),
        (["--color", "red", "--hwm=2"], "--color red"),
        (["--IPController.color=red"], "IPController.color"),
        (["--Nothing.color", "red"], "Nothing.color"),
        (["red"], "red"),
        (["--hwm=2", "--ip"], "--ip"),
        (["--restore"], "restore_engines"),
        (["--mongodb"], "MongoDB"),
        (["--Session.packer=pickle"], "Session.packer"),
        (["--log-url=tcp://127.0.0.1:9"], "log_url"),
    ],
)
def test_unknown_option_is_named_in_one_warning(read: Any, arguments: list[str], named: str) -> None:
    result = read(*arguments)
    (warning,) = result.warnings
    assert named in warning
    if "--hwm=2" in arguments:
        assert result.config.hwm == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--ping=often"], "HeartMonitor.period = 'often'"),
        (["--hwm=-1"], "hwm = -1"),
        (["--scheme=best"], "scheme = 'best'"),
        (["--ports=1-x"], "IPController.ports"),
        (["--ports=70000"], "70000"),
        (["--reuse=perhaps", "--IPController.reuse_files=perhaps"], "reuse_files = 'perhaps'"),
        (["--keyfile=/no/such/file"], "Session.keyfile"),
        (["--transport=pigeon"], "pigeon"),
        (["--log-level=loud"], "log_level = 'loud'"),
        (["--IPController.db_class=Redis"], "db_class = 'Redis'"),
        (["--cluster-id=a/b"], "cluster_id"),
    ],
)
def test_invalid_value_is_named_in_the_error(read: Any, arguments: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        read(*arguments)


# ---- configuration files --------------------------------------------------------------------------------------------


def test_configuration_file_of_the_profile_is_executed(read: Any) -> None:
    result = read(
        config=(
            "c = get_config()\n"
            "c.HeartMonitor.period = 200\n"
            "c.IPController.ports.extend([1, 2])\n"
            "c.IPController.ports.append(3)\n"
            "c['TaskScheduler']['hwm'] = 7\n"
            "c.Session.key = b'secret'\n"
            "c.IPControllerApp.reuse_files = True\n"
            "assert 'TaskScheduler' in c and 'hwm' in c.TaskScheduler and 'ip' not in c.IPController\n"
            "c.merge({'IPController': {'location': 'here'}})\n"
            "class SQLiteDB: pass\n"
            "c.IPController.db_class = SQLiteDB\n"
            "c.IPController.mux = (21, 22)\n"
            "c.IPController.hb = (31, 32)\n"
        )
    )
    config = result.config
    assert not result.warnings
    assert (config.ping_ms, config.ports, config.hwm, config.key) == (200, (1, 2, 3), 7, "secret")
    assert (config.reuse, config.location, config.database) == (True, "here", "sqlitedb")
    assert (config.client_ports, config.engine_ports) == ((21,), (22, 31, 32))


def test_c_is_defined_without_get_config(read: Any) -> None:
    assert read(config="c.HeartMonitor.period = 200").config.ping_ms == 200


def test_unknown_trait_in_a_file_is_named(read: Any) -> None:
    (warning,) = read(config="c.Kitchen.sink = 1\nc.HeartMonitor.debug = True\n").warnings
    assert "Kitchen.sink" in warning
    assert "ipcontroller_config.py" in warning


@pytest.mark.parametrize(
    ("line", "named"),
    [("1/0", "ZeroDivisionError"), ("import no_such_module", "no_such_module"), ("exit(3)", "SystemExit")],
)
def test_error_in_a_file_is_a_warning_with_its_line(read: Any, line: str, named: str) -> None:
    result = read(config=f"c.TaskScheduler.hwm = 3\n{line}\nc.TaskScheduler.hwm = 4\n")
    (warning,) = result.warnings
    assert named in warning
    assert "line 2" in warning
    assert result.config.hwm == 3
    (warning,) = read(config="this file is not Python").warnings
    assert "SyntaxError" in warning


def test_options_override_files_and_files_the_environment(read: Any) -> None:
    file = "c.IPController.cluster_id = 'file'\nc.Session.key = b'file'\nc.TaskScheduler.hwm = 3\n"
    config = read("--hwm=5", config=file, IPP_CLUSTER_ID="env", IPP_SESSION_KEY="env").config
    assert (config.hwm, config.cluster_id, config.key) == (5, "file", "file")
    config = read(config="", IPP_CLUSTER_ID="env", IPP_SESSION_KEY="env", IPP_ENABLE_CURVE="1").config
    assert (config.cluster_id, config.key, config.curve) == ("env", "env", True)


def test_subconfig_json_and_extra_files_are_read(read: Any, tmp_path: Path) -> None:
    profile = tmp_path / ".ipython" / "profile_default"
    profile.mkdir(parents=True)
    (profile / "common.py").write_text("c.TaskScheduler.hwm = 9\n", encoding="utf-8")
    (profile / "ipcontroller_config.json").write_text('{"HeartMonitor": {"period": 123}}', encoding="utf-8")
    more = tmp_path / "more.py"
    more.write_text("c.IPController.location = 'more'\n", encoding="utf-8")
    config = read(f"--config={more}", config="load_subconfig('common.py')\n").config
    assert (config.hwm, config.ping_ms, config.location) == (9, 123, "more")


# ---- directories ----------------------------------------------------------------------------------------------------
# ----------------------------------------------------------------------------------------------------------


def test_profile_directory_is_found(read: Any, tmp_path: Path) -> None:
    home = tmp_path / ".ipython"
    assert read().config.profile_dir == str(home / "profile_default")
    assert read("--profile=lab").config.profile_dir == str(home / "profile_lab")
    assert read("--profile-dir=/srv/lab").config.profile_dir == "/srv/lab"
    assert read(IPYTHONDIR="/srv/ipy").config.profile_dir == "/srv/ipy/profile_default"
    assert read("--ipython-dir=/srv/x", IPYTHONDIR="/srv/ipy").config.profile_dir == "/srv/x/profile_default"
    assert read("--profile=lab", IPP_PROFILE_DIR="/srv/p").config.profile_dir == "/srv/p"


def test_ipc_sockets_are_in_the_profile(read: Any, tmp_path: Path) -> None:
    config = read("--transport=ipc").config
    assert config.interface("client").startswith(f"ipc://{tmp_path}")
    assert config.interface("client") != config.interface("engine")


def test_help_names_every_option() -> None:
    named = set(re.findall(r"--([a-z][a-z-]+)", OPTIONS))
    undocumented = {"log-url", "ident", "user", "usethreads", "mongodb", "restore"}
    assert set(ALIASES) | set(FLAGS) == named | undocumented
    assert {path for path in ALIASES.values() if path not in SETTINGS} == {
        "IPController.log_url",
        "Session.session",
        "Session.username",
    }
