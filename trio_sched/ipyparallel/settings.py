"""The settings of a controller from ipcontroller's options: those of the front, and those of the process.

Later sources override earlier ones: environment < the profile's configuration file < command line. An invalid value is
an error that names its source. An option that has no meaning here (threads instead of processes: there is one process)
is ignored without a warning. An option that is not supported is a warning, which names what happens instead.
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
from trio_sched.ipyparallel.options import RawOption, boolean, number, ports, text, whole

CONFIG_FILE = "ipcontroller_config"
DEFAULT_PROFILE = "default"


class IppSetting(NamedTuple):
    """How a trait is converted, and the fields that it sets."""

    convert: Callable[[Any], Any]
    #: Names of `IppConfig`; with a leading dot, names of the process's options; with the name of a database and a dot,
    #: of that database's options.
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
    """Convert a level of `logging`, by number or name, to its lower-case name."""
    names = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "critical"}
    if isinstance(value, str) and value.lower() in (*names.values(), "warn", "fatal"):
        return {"warn": "warning", "fatal": "critical"}.get(value.lower(), value.lower())
    return names[min(max(whole(value) // 10, 1), 5) * 10]


def _database(value: Any) -> str:
    """Convert the class of a database, its name or its qualified name to the short name in lower case."""
    name = value if isinstance(value, str) else getattr(value, "__name__", "")
    short = str(name).rpartition(".")[2].lower()
    if short not in (*DATABASES, "mongodb"):
        raise ValueError(f"it must be one of {', '.join(DATABASES)}")
    return short


SETTINGS: dict[str, IppSetting] = {
    "IPController.cluster_id": IppSetting(text, ("cluster_id",)),
    "IPController.location": IppSetting(text, ("location",)),
    "IPController.ssh_server": IppSetting(text, ("ssh_server",)),
    "IPController.engine_ssh_server": IppSetting(text, ("engine_ssh_server",)),
    "IPController.ip": IppSetting(text, ("client_ip", "engine_ip")),
    "IPController.client_ip": IppSetting(text, ("client_ip",)),
    "IPController.engine_ip": IppSetting(text, ("engine_ip",)),
    "IPController.transport": IppSetting(text, ("client_transport", "engine_transport")),
    "IPController.client_transport": IppSetting(text, ("client_transport",)),
    "IPController.engine_transport": IppSetting(text, ("engine_transport",)),
    "IPController.regport": IppSetting(whole, ("registration_port",)),
    "IPController.ports": IppSetting(ports, ("ports",)),
    "IPController.client_ports": IppSetting(ports, ("client_ports",)),
    "IPController.engine_ports": IppSetting(ports, ("engine_ports",)),
    "IPController.reuse_files": IppSetting(boolean, ("reuse",)),
    "IPController.enable_curve": IppSetting(boolean, ("curve",)),
    "IPController.curve_publickey": IppSetting(text, ("curve_publickey",)),
    "IPController.curve_secretkey": IppSetting(text, ("curve_secretkey",)),
    "IPController.db_class": IppSetting(_database, ("database",)),
    "IPController.registration_timeout": IppSetting(number, ("registration_timeout_s",)),
    "IPController.broadcast_scheduler_depth": IppSetting(_leaves, ("broadcast_leaves",)),
    "HeartMonitor.period": IppSetting(whole, ("ping_ms",)),
    "HeartMonitor.max_heartmonitor_misses": IppSetting(whole, ("missed_pings",)),
    "TaskScheduler.scheme_name": IppSetting(text, ("scheme",)),
    "TaskScheduler.hwm": IppSetting(whole, ("hwm",)),
    "Session.key": IppSetting(_key, ("key",)),
    "Session.keyfile": IppSetting(_keyfile, ("key",)),
    "Session.signature_scheme": IppSetting(text, ("signature_scheme",)),
    "DictDB.record_limit": IppSetting(whole, ("dictdb.record_limit",)),
    "DictDB.size_limit": IppSetting(whole, ("dictdb.size_limit_bytes",)),
    "DictDB.cull_fraction": IppSetting(number, ("dictdb.cull_fraction",)),
    "SQLiteDB.filename": IppSetting(text, ("sqlitedb.filename",)),
    "SQLiteDB.location": IppSetting(text, ("sqlitedb.location",)),
    "SQLiteDB.table": IppSetting(text, ("sqlitedb.table",)),
    # of the process
    "ProfileDir.location": IppSetting(text, ("profile_dir",)),
    "IPController.profile": IppSetting(text, (".profile",)),
    "IPController.ipython_dir": IppSetting(text, (".ipython_dir",)),
    "IPController.log_level": IppSetting(_level, (".log_level",)),
    "IPController.log_to_file": IppSetting(boolean, (".log_to_file",)),
    "IPController.clean_logs": IppSetting(boolean, (".clean_logs",)),
    "IPController.work_dir": IppSetting(text, (".work_dir",)),
    "IPController.extra_config_file": IppSetting(text, (".config_file",)),
    "IPController.copy_config_files": IppSetting(boolean, (".init",)),
    "TrioSched.other_users": IppSetting(boolean, ("other_users",)),
    "TrioSched.max_subscriptions": IppSetting(whole, ("max_subscriptions",)),
    "TrioSched.max_message_bytes": IppSetting(whole, ("max_message_bytes",)),
    "TrioSched.native": IppSetting(text, (".native",)),
    "TrioSched.max_connections": IppSetting(whole, ("max_connections",)),
    "TrioSched.max_connections_per_address": IppSetting(whole, ("max_connections_per_address",)),
}

#: Traits with the ports of one channel, for clients and for engines.
_PORT_PAIRS = {"mux", "task", "control", "iopub", "hb"}
#: Traits that are ignored without a warning.
_IGNORED = {
    *(f"IPController.{name}" for name in (
        "use_threads", "monitor_ip", "monitor_transport", "mon_port", "log_format", "log_datefmt", "logging_config",
        "show_config", "show_config_json", "verbose_crash", "overwrite", "auto_create", "add_ipython_dir_to_sys_path",
        "notifier_port",
    )),
    "HeartMonitor.debug", "Session.session", "Session.username", "Session.debug",
}  # fmt: skip
#: Traits that are not supported, and what happens instead.
_UNSUPPORTED = {
    "IPController.restore_engines": "engines are not restored: start them again; key and ports stay the same",
    "IPController.client_json_file": "connection files have the usual names",
    "IPController.engine_json_file": "connection files have the usual names",
    "IPController.log_url": "logs go to standard error, or to a file with --log-to-file",
}


class ControllerOptions(Struct, kw_only=True):
    """All options of a controller: the settings of the front and of the process."""

    config: IppConfig
    log_level: str = "info"
    log_to_file: bool = False
    clean_logs: bool = False
    work_dir: str = ""
    #: Write a configuration file to fill in.
    init: bool = False
    #: The name under which the scheduler also serves native clients and engines; empty: it serves none.
    native: str = ""
    #: Options that are unknown or not supported.
    warnings: list[str] = []


def read_options(arguments: Sequence[str], environ: Mapping[str, str], home: Path | None = None) -> ControllerOptions:
    """Read the options of a controller from the environment, the profile's configuration files and the command line.

    :param home: the directory with the default IPython directory; None: the user's home directory.
    :raises ConfigError: a value is invalid; the message names the option, the value and valid values.
    """
    by_environment = options.from_environment(environ)
    by_options, warnings = options.from_command_line(arguments)
    first = _fields([*by_environment, *by_options], [])
    ipython_dir = Path(first.get(".ipython_dir") or (home or Path.home()) / ".ipython").expanduser()
    location = first.get("profile_dir") or ipython_dir / f"profile_{first.get('.profile') or DEFAULT_PROFILE}"
    profile_dir = Path(location).expanduser().absolute()
    by_files: list[RawOption] = []
    files = [profile_dir / f"{CONFIG_FILE}.json", profile_dir / f"{CONFIG_FILE}.py"]
    if first.get(".config_file"):
        files.append(Path(first[".config_file"]).expanduser().absolute())
    for path in files:
        file_options, file_warnings = options.from_file(path)
        by_files += file_options
        warnings += file_warnings
    fields = _fields([*by_environment, *by_files, *by_options], warnings)
    fields["profile_dir"] = str(profile_dir)
    process = {name[1:]: fields.pop(name) for name in list(fields) if name.startswith(".")}
    for name in ("profile", "ipython_dir", "config_file"):
        process.pop(name, None)
    return ControllerOptions(config=_config(fields, warnings), warnings=warnings, **process)


def _config(fields: dict[str, Any], warnings: list[str]) -> IppConfig:
    """Make the settings of the front from its fields.

    :raises ConfigError: a value is out of its range.
    """
    database_fields = {name: fields.pop(name) for name in list(fields) if "." in name}
    if fields.get("database") == "mongodb":
        warnings.append("MongoDB is not available here; records are kept in SQLite instead")
        fields["database"] = "sqlitedb"
    database = fields.get("database", DATABASES[0])
    prefix = f"{database}."
    chosen = {name.removeprefix(prefix): value for name, value in database_fields.items() if name.startswith(prefix)}
    for name in ("client_transport", "engine_transport"):
        if fields.get(name, "tcp") not in ("tcp", "ipc"):
            raise ConfigError(f"{name} = {fields[name]!r}: it must be tcp or ipc")
    if "ipc" in (fields.get("client_transport"), fields.get("engine_transport")):
        for side in ("client", "engine"):
            if fields.get(f"{side}_transport") == "ipc":  # the address is a path: sockets are PATH:1, PATH:2, ...
                fields.setdefault(f"{side}_ip", os.path.join(fields["profile_dir"], "security", f"{side}-ipc"))
    return IppConfig(**fields, database_options=chosen)


def _fields(raw_options: Sequence[RawOption], warnings: list[str]) -> dict[str, Any]:
    """Convert options to fields; later options override earlier ones. Adds to `warnings`.

    :raises ConfigError: a value is invalid.
    """
    fields: dict[str, Any] = {}
    for one in raw_options:
        section, _, trait = one.name.partition(".")
        setting = SETTINGS.get(one.name)
        if setting is not None:
            try:
                value = setting.convert(one.value)
            except (ValueError, SyntaxError, TypeError) as error:
                raise ConfigError(f"{one.name} = {one.value!r} (from {one.source}): {error}") from None
            for field in setting.fields:
                fields[field] = value
        elif section == options.APPLICATION and trait in _PORT_PAIRS:
            _add_pair(fields, trait, ports(one.value))
        elif one.name in ("Session.packer", "Session.unpacker"):
            if "json" not in str(one.value):
                warnings.append(f"{one.name} = {one.value!r} (from {one.source}): messages are JSON here")
        elif one.name in _UNSUPPORTED:
            warnings.append(f"{one.name} (from {one.source}): {_UNSUPPORTED[one.name]}")
        elif one.name not in _IGNORED:
            warnings.append(f"{one.name} (from {one.source}) is not known here and is ignored")
    return fields


def _add_pair(fields: dict[str, Any], trait: str, pair: tuple[int, ...]) -> None:
    """Add the two ports of a channel, an option that is older than pools, to the pools."""
    client, engine = ((), pair) if trait == "hb" else (pair[:1], pair[1:])
    fields["client_ports"] = (*fields.get("client_ports", ()), *client)
    fields["engine_ports"] = (*fields.get("engine_ports", ()), *engine)


_PRIVATE_MODE = 0o700


def prepare(profile_dir: Path, *, init: bool) -> None:
    """Create the profile's directories, and with `init` a configuration file to fill in.

    :raises ConfigError: they cannot be created.
    """
    try:
        for name, mode in (("", 0o755), ("security", _PRIVATE_MODE), ("log", 0o755), ("pid", _PRIVATE_MODE)):
            directory = profile_dir / name
            directory.mkdir(mode=mode, parents=True, exist_ok=True)
            if mode == _PRIVATE_MODE and directory.stat().st_uid == os.geteuid():
                directory.chmod(mode)  # as ipyparallel does: its launchers may have created it with the user's umask
        path = profile_dir / f"{CONFIG_FILE}.py"
        if init and not path.exists():
            path.write_text(_TEMPLATE, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the profile directory {profile_dir} cannot be used: {error.strerror}") from None


_TEMPLATE = """\
# Configuration of the controller; the values here are the defaults.

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
