"""What we make of what ipcontroller's users write: our own settings, and what the process itself is told.

Later ones win: environment < the profile's configuration file < command line. A value that cannot be is an error that
names where it came from; what is known but means nothing here (threads instead of processes: there is one process) is
passed over in silence; what we cannot do is a warning that says what happens instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct

from trio_sched.errors import ConfigError
from trio_sched.ipyparallel import options
from trio_sched.ipyparallel.config import DATABASES, IppConfig
from trio_sched.ipyparallel.options import Given, boolean, number, ports, text, whole

CONFIG_FILE = "ipcontroller_config"
DEFAULT_PROFILE = "default"


class Setting(NamedTuple):
    """What a trait is to us: how its value is read, and the fields that it sets."""

    read: Callable[[Any], Any]
    fields: tuple[str, ...]


def _leaves(value: Any) -> int:
    return 1 << whole(value)


def _keyfile(value: Any) -> str:
    path = Path(text(value)).expanduser()
    try:
        return path.read_bytes().decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the key file cannot be read: {error}") from None


def _key(value: Any) -> str | None:
    return None if value is None else text(value)


def _level(value: Any) -> str:
    """Python's numbers and names of levels."""
    names = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "critical"}
    if isinstance(value, str) and value.lower() in (*names.values(), "warn", "fatal"):
        return {"warn": "warning", "fatal": "critical"}.get(value.lower(), value.lower())
    return names[min(max(whole(value) // 10, 1), 5) * 10]


def _database(value: Any) -> str:
    """By the class's name, whole or short, or the class itself."""
    name = value if isinstance(value, str) else getattr(value, "__name__", "")
    short = str(name).rpartition(".")[2].lower()
    if short not in (*DATABASES, "mongodb"):
        raise ValueError(f"it must be one of {', '.join(DATABASES)}")
    return short


SETTINGS: dict[str, Setting] = {
    "IPController.cluster_id": Setting(text, ("cluster_id",)),
    "IPController.location": Setting(text, ("location",)),
    "IPController.ssh_server": Setting(text, ("ssh_server",)),
    "IPController.engine_ssh_server": Setting(text, ("engine_ssh_server",)),
    "IPController.ip": Setting(text, ("client_ip", "engine_ip")),
    "IPController.client_ip": Setting(text, ("client_ip",)),
    "IPController.engine_ip": Setting(text, ("engine_ip",)),
    "IPController.transport": Setting(text, ("client_transport", "engine_transport")),
    "IPController.client_transport": Setting(text, ("client_transport",)),
    "IPController.engine_transport": Setting(text, ("engine_transport",)),
    "IPController.regport": Setting(whole, ("registration_port",)),
    "IPController.ports": Setting(ports, ("ports",)),
    "IPController.client_ports": Setting(ports, ("client_ports",)),
    "IPController.engine_ports": Setting(ports, ("engine_ports",)),
    "IPController.reuse_files": Setting(boolean, ("reuse",)),
    "IPController.enable_curve": Setting(boolean, ("curve",)),
    "IPController.curve_publickey": Setting(text, ("curve_publickey",)),
    "IPController.curve_secretkey": Setting(text, ("curve_secretkey",)),
    "IPController.db_class": Setting(_database, ("database",)),
    "IPController.registration_timeout": Setting(number, ("registration_timeout_s",)),
    "IPController.broadcast_scheduler_depth": Setting(_leaves, ("broadcast_leaves",)),
    "HeartMonitor.period": Setting(whole, ("ping_ms",)),
    "HeartMonitor.max_heartmonitor_misses": Setting(whole, ("missed_pings",)),
    "TaskScheduler.scheme_name": Setting(text, ("scheme",)),
    "TaskScheduler.hwm": Setting(whole, ("hwm",)),
    "Session.key": Setting(_key, ("key",)),
    "Session.keyfile": Setting(_keyfile, ("key",)),
    "Session.signature_scheme": Setting(text, ("signature_scheme",)),
    "DictDB.record_limit": Setting(whole, ("dictdb.record_limit",)),
    "DictDB.size_limit": Setting(whole, ("dictdb.size_limit_bytes",)),
    "DictDB.cull_fraction": Setting(number, ("dictdb.cull_fraction",)),
    "SQLiteDB.filename": Setting(text, ("sqlitedb.filename",)),
    "SQLiteDB.location": Setting(text, ("sqlitedb.location",)),
    "SQLiteDB.table": Setting(text, ("sqlitedb.table",)),
    # of the process
    "ProfileDir.location": Setting(text, ("profile_dir",)),
    "IPController.profile": Setting(text, (".profile",)),
    "IPController.ipython_dir": Setting(text, (".ipython_dir",)),
    "IPController.log_level": Setting(_level, (".log_level",)),
    "IPController.log_to_file": Setting(boolean, (".log_to_file",)),
    "IPController.clean_logs": Setting(boolean, (".clean_logs",)),
    "IPController.work_dir": Setting(text, (".work_dir",)),
    "IPController.extra_config_file": Setting(text, (".config_file",)),
    "IPController.copy_config_files": Setting(boolean, (".init",)),
    "TrioSched.other_users": Setting(boolean, ("other_users",)),
    "TrioSched.max_subscriptions": Setting(whole, ("max_subscriptions",)),
    "TrioSched.max_message_bytes": Setting(whole, ("max_message_bytes",)),
    "TrioSched.native": Setting(text, (".native",)),
    "TrioSched.max_connections": Setting(whole, ("max_connections",)),
    "TrioSched.max_connections_per_address": Setting(whole, ("max_connections_per_address",)),
}
"""Fields with a dot in front are the process's, with a database's name in front that database's."""

_PAIRS = {"mux", "task", "control", "iopub", "hb"}
_MEANINGLESS = {
    *(f"IPController.{name}" for name in (
        "use_threads", "monitor_ip", "monitor_transport", "mon_port", "log_format", "log_datefmt", "logging_config",
        "show_config", "show_config_json", "verbose_crash", "overwrite", "auto_create", "add_ipython_dir_to_sys_path",
        "notifier_port",
    )),
    "HeartMonitor.debug", "Session.session", "Session.username", "Session.debug",
}  # fmt: skip
_INSTEAD = {
    "IPController.restore_engines": "engines are not restored: key and ports stay the same, engines start anew",
    "IPController.client_json_file": "connection files have the usual names",
    "IPController.engine_json_file": "connection files have the usual names",
    "IPController.log_url": "logs go to standard error, or to a file with --log-to-file",
}


class Told(Struct, kw_only=True):
    """Everything that a controller is told."""

    config: IppConfig
    log_level: str = "info"
    log_to_file: bool = False
    clean_logs: bool = False
    work_dir: str = ""
    init: bool = False
    native: str = ""
    """Under this name the scheduler serves native clients and engines, too; empty: it does not."""
    warnings: list[str] = []


def told(arguments: Sequence[str], environ: Mapping[str, str], home: Path | None = None) -> Told:
    """Everything together: the environment, the profile's configuration files, the command line.

    :raises ConfigError: a value cannot be; the message names the option, the value and what would do.
    """
    by_environment = options.from_environment(environ)
    by_options, warnings = options.from_command_line(arguments)
    first = _fields([*by_environment, *by_options], [])
    ipython_dir = Path(first.get(".ipython_dir") or (home or Path.home()) / ".ipython").expanduser()
    location = first.get("profile_dir") or ipython_dir / f"profile_{first.get('.profile') or DEFAULT_PROFILE}"
    profile_dir = Path(location).expanduser().absolute()
    by_files: list[Given] = []
    files = [profile_dir / f"{CONFIG_FILE}.json", profile_dir / f"{CONFIG_FILE}.py"]
    if first.get(".config_file"):
        files.append(Path(first[".config_file"]).expanduser().absolute())
    for path in files:
        given, complaints = options.from_file(path)
        by_files += given
        warnings += complaints
    fields = _fields([*by_environment, *by_files, *by_options], warnings)
    fields["profile_dir"] = str(profile_dir)
    process = {name[1:]: fields.pop(name) for name in list(fields) if name.startswith(".")}
    for name in ("profile", "ipython_dir", "config_file"):
        process.pop(name, None)
    return Told(config=_config(fields, warnings), warnings=warnings, **process)


def _config(fields: dict[str, Any], warnings: list[str]) -> IppConfig:
    """The controller's own settings."""
    of_databases = {name: fields.pop(name) for name in list(fields) if "." in name}
    if fields.get("database") == "mongodb":
        warnings.append("MongoDB is not available here; records are kept in SQLite instead")
        fields["database"] = "sqlitedb"
    database = fields.get("database", DATABASES[0])
    prefix = f"{database}."
    chosen = {name.removeprefix(prefix): value for name, value in of_databases.items() if name.startswith(prefix)}
    for name in ("client_transport", "engine_transport"):
        if fields.get(name, "tcp") not in ("tcp", "ipc"):
            raise ConfigError(f"{name} = {fields[name]!r}: it must be tcp or ipc")
    if "ipc" in (fields.get("client_transport"), fields.get("engine_transport")):
        for side in ("client", "engine"):
            if fields.get(f"{side}_transport") == "ipc":  # a path then: sockets are named PATH-1, PATH-2, ...
                fields.setdefault(f"{side}_ip", os.path.join(fields["profile_dir"], "security", f"{side}-ipc"))
    return IppConfig(**fields, database_options=chosen)


def _fields(given: Sequence[Given], warnings: list[str]) -> dict[str, Any]:
    """Our fields, from what was given, the later the stronger."""
    fields: dict[str, Any] = {}
    for one in given:
        section, _, trait = one.name.partition(".")
        setting = SETTINGS.get(one.name)
        if setting is not None:
            try:
                value = setting.read(one.value)
            except (ValueError, SyntaxError, TypeError) as error:
                raise ConfigError(f"{one.name} = {one.value!r} (from {one.source}): {error}") from None
            for field in setting.fields:
                fields[field] = value
        elif section == options.APPLICATION and trait in _PAIRS:
            _add_pair(fields, trait, ports(one.value))
        elif one.name in ("Session.packer", "Session.unpacker"):
            if "json" not in str(one.value):
                warnings.append(f"{one.name} = {one.value!r} (from {one.source}): messages are JSON here all the same")
        elif one.name in _INSTEAD:
            warnings.append(f"{one.name} (from {one.source}): {_INSTEAD[one.name]}")
        elif one.name not in _MEANINGLESS:
            warnings.append(f"{one.name} (from {one.source}) is not known here and is ignored")
    return fields


def _add_pair(fields: dict[str, Any], trait: str, pair: tuple[int, ...]) -> None:
    """The two ports of a channel, as they were given before there were pools."""
    client, engine = ((), pair) if trait == "hb" else (pair[:1], pair[1:])
    fields["client_ports"] = (*fields.get("client_ports", ()), *client)
    fields["engine_ports"] = (*fields.get("engine_ports", ()), *engine)


_PRIVATE = 0o700


def prepare(profile_dir: Path, *, init: bool) -> None:
    """The profile's directories, and with `init` a configuration file to fill in.

    :raises ConfigError: they cannot be made.
    """
    try:
        for name, mode in (("", 0o755), ("security", _PRIVATE), ("log", 0o755), ("pid", _PRIVATE)):
            directory = profile_dir / name
            directory.mkdir(mode=mode, parents=True, exist_ok=True)
            if mode == _PRIVATE and directory.stat().st_uid == os.geteuid():
                directory.chmod(mode)  # as ipyparallel does: its launchers may have made it, with the user's umask
        path = profile_dir / f"{CONFIG_FILE}.py"
        if init and not path.exists():
            path.write_text(_TEMPLATE, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the profile directory {profile_dir} cannot be used: {error.strerror}") from None


_TEMPLATE = """\
# Configuration of the controller; what stands here is the default.

c = get_config()  # noqa

# c.IPController.ip = "127.0.0.1"
# c.IPController.location = ""
# c.IPController.ports = "10101-10120"
# c.IPController.reuse_files = False
# c.IPController.db_class = "dictdb"
# c.IPController.enable_curve = False  # when no port is open to other machines; else True
# c.TrioSched.other_users = False
# c.TrioSched.max_subscriptions = 1000
# c.HeartMonitor.period = 3000
# c.HeartMonitor.max_heartmonitor_misses = 10
# c.TaskScheduler.scheme_name = "leastload"
# c.TaskScheduler.hwm = 1
"""
