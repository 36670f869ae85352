"""Options of ipcontroller from three sources: the command line, configuration files, and the environment.

    --ip=0.0.0.0    --ip 0.0.0.0    --IPController.ip=0.0.0.0    c.IPController.ip = "0.0.0.0"    IPP_PROFILE_DIR=...

This module only lists the options, by ipyparallel's names of class and trait; settings.py maps them to settings. An
unknown option is named in a warning and ignored.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

APPLICATION = "IPController"
#: Names of the application's class, its base classes and its former names: a trait of any of them is the application's.
APPLICATIONS = {
    APPLICATION, "HubFactory", "IPControllerApp", "BaseParallelApplication", "BaseIPythonApplication", "Application",
}  # fmt: skip

#: Traits by short name, for options that take a value.
ALIASES = {
    "ssh": "IPController.ssh_server",
    "enginessh": "IPController.engine_ssh_server",
    "location": "IPController.location",
    "ip": "IPController.ip",
    "transport": "IPController.transport",
    "port": "IPController.regport",
    "ports": "IPController.ports",
    "ping": "HeartMonitor.period",
    "scheme": "TaskScheduler.scheme_name",
    "hwm": "TaskScheduler.hwm",
    "log-level": "IPController.log_level",
    "profile-dir": "ProfileDir.location",
    "profile": "IPController.profile",
    "ipython-dir": "IPController.ipython_dir",
    "config": "IPController.extra_config_file",
    "work-dir": "IPController.work_dir",
    "log-to-file": "IPController.log_to_file",
    "clean-logs": "IPController.clean_logs",
    "log-url": "IPController.log_url",
    "cluster-id": "IPController.cluster_id",
    "enable-curve": "IPController.enable_curve",
    "ident": "Session.session",
    "user": "Session.username",
    "keyfile": "Session.keyfile",
    "native": "TrioSched.native",
}

#: Traits and values by short name, for options without a value.
FLAGS: dict[str, tuple[tuple[str, Any], ...]] = {
    "debug": (("IPController.log_level", 10),),
    "quiet": (("IPController.log_level", 50),),
    "init": (("IPController.copy_config_files", True),),
    "reuse": (("IPController.reuse_files", True),),
    "restore": (("IPController.reuse_files", True), ("IPController.restore_engines", True)),
    "log-to-file": (("IPController.log_to_file", True),),
    "clean-logs": (("IPController.clean_logs", True),),
    "enable-curve": (("IPController.enable_curve", True),),
    "usethreads": (("IPController.use_threads", True),),
    "dictdb": (("IPController.db_class", "dictdb"),),
    "sqlitedb": (("IPController.db_class", "sqlitedb"),),
    "mongodb": (("IPController.db_class", "mongodb"),),
    "nodb": (("IPController.db_class", "nodb"),),
    "secure": (("Session.key", None),),
    "no-curve": (("IPController.enable_curve", False),),
    "other-users": (("TrioSched.other_users", True),),
    "no-secure": (("Session.key", ""),),
}
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class RawOption(NamedTuple):
    """One option, with the value as it was written."""

    #: Class and trait, with the present name of the class: "IPController.ip".
    name: str
    #: Text from a command line; any object from a configuration file.
    value: Any
    #: The option, file or variable, for messages.
    source: str


def canonical(name: str) -> str:
    """Return class and trait with the present name of the class."""
    section, _, trait = name.rpartition(".")
    return f"{APPLICATION}.{trait}" if section in APPLICATIONS else name


# ---- the command line -----------------------------------------------------------------------------------------------


def from_command_line(arguments: Sequence[str]) -> tuple[list[RawOption], list[str]]:
    """Parse command line arguments. Returns the options, and warnings about arguments that are ignored."""
    options: list[RawOption] = []
    warnings: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.lstrip("-").partition("=")
        short = name.replace("_", "-")
        if not argument.startswith("-") and not (equals and "." in name):
            warnings.append(f"the argument {argument!r} is not known here and is ignored")
        elif short in FLAGS and not equals and not _is_boolean_next(short, rest):
            options += [RawOption(path, flag_value, f"--{name}") for path, flag_value in FLAGS[short]]
        elif short in FLAGS and short not in ALIASES:
            if _BOOLEANS.get((value if equals else rest.pop(0)).lower(), False):
                options += [RawOption(path, flag_value, f"--{name}") for path, flag_value in FLAGS[short]]
        elif short in ALIASES or "." in name:
            path = ALIASES.get(short) or canonical(name)
            if not equals:
                if not rest:
                    warnings.append(f"the option --{name} needs a value and is ignored")
                    continue
                value = rest.pop(0)
            options.append(RawOption(path, value, f"--{name}"))
        else:
            if not equals and rest and not rest[0].startswith("-"):
                argument += f" {rest.pop(0)}"  # most likely its value
            warnings.append(f"the option {argument!r} is not known here and is ignored")
    return options, warnings


def _is_boolean_next(name: str, rest: Sequence[str]) -> bool:
    """Return whether the argument after a flag is its value: `--reuse True`."""
    return bool(rest) and rest[0].lower() in ("true", "false") and name in FLAGS


# ---- configuration files --------------------------------------------------------------------------------------------


class LazyList(list[Any]):
    """The value of a trait that a file extends before it sets it: `c.IPController.ports.append(10101)`."""

    def prepend(self, values: Sequence[Any]) -> None:
        self[:0] = values

    def update(self, values: Any) -> None:
        self.extend(values)

    add = list.append


class ConfigSection:
    """The object `c.IPController` of a configuration file."""

    def __init__(self) -> None:
        object.__setattr__(self, "_traits", {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._traits.setdefault(name, LazyList())

    def __setattr__(self, name: str, value: Any) -> None:
        self._traits[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self._traits

    def update(self, traits: Mapping[str, Any]) -> None:
        """Set several traits."""
        self._traits.update(traits)

    __getitem__ = __getattr__
    __setitem__ = __setattr__


class ConfigRoot:
    """The object `c` of a configuration file. A section is created when it is first used."""

    def __init__(self) -> None:
        object.__setattr__(self, "_sections", {})

    def __getattr__(self, name: str) -> ConfigSection:
        if name.startswith("__"):
            raise AttributeError(name)
        section: ConfigSection = self._sections.setdefault(name, ConfigSection())
        return section

    def __setattr__(self, name: str, value: Any) -> None:
        getattr(self, name).update(value._traits if isinstance(value, ConfigSection) else value)

    def __contains__(self, name: str) -> bool:
        return name in self._sections

    def merge(self, other: Mapping[str, Mapping[str, Any]]) -> None:
        """Set traits of several sections."""
        for name, traits in other.items():
            getattr(self, name).update(traits)

    __getitem__ = __getattr__
    __setitem__ = __setattr__
    update = merge

    def traits(self) -> Iterator[tuple[str, Any]]:
        """Yield class and trait, and value, of each trait that was set."""
        for section, content in self._sections.items():
            for trait, value in content._traits.items():
                if not (isinstance(value, LazyList) and not value):
                    yield f"{section}.{trait}", value


def from_file(path: Path) -> tuple[list[RawOption], list[str]]:
    """Read a configuration file: Python, which is executed, or JSON. A missing file sets nothing.

    Returns the options, and warnings. An error in the file is a warning; traits that were set before it count.
    """
    root = ConfigRoot()
    warnings: list[str] = []
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return [], []
    except (OSError, UnicodeDecodeError) as error:
        return [], [f"the configuration file {path} cannot be read: {error}"]
    try:
        if path.suffix == ".json":
            root.merge({name: traits for name, traits in json.loads(text).items() if isinstance(traits, dict)})
        else:
            _execute(path, text, root)
    except BaseException as error:  # the file may also call sys.exit()
        if isinstance(error, KeyboardInterrupt):
            raise
        warnings.append(
            f"the configuration file {path} failed{_error_line(path, error)}: {type(error).__name__}: {error}"
        )
    return [RawOption(canonical(name), value, str(path)) for name, value in root.traits()], warnings


def _execute(path: Path, text: str, root: ConfigRoot) -> None:
    def load_subconfig(name: str, profile: str | None = None) -> None:
        other = path.parent / name if profile is None else path.parent.parent / f"profile_{profile}" / name
        _execute(other, other.read_text(encoding="utf-8"), root)

    namespace = {
        "c": root,
        "get_config": lambda: root,
        "load_subconfig": load_subconfig,
        "__file__": str(path),
        "__name__": "ipcontroller_config",
    }
    exec(compile(text, str(path), "exec"), namespace)


def _error_line(path: Path, error: BaseException) -> str:
    """Return where in the file the error was raised, as " in line N"; empty if that is not known."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" in line {line}" if line else ""


# ---- the environment ------------------------------------------------------------------------------------------------

#: Traits by environment variable, which launchers set. IPP_CURVE_SERVERKEY is for engines and clients.
VARIABLES = {
    "IPP_PROFILE_DIR": "ProfileDir.location",
    "IPP_CLUSTER_ID": "IPController.cluster_id",
    "IPP_SESSION_KEY": "Session.key",
    "IPP_ENABLE_CURVE": "IPController.enable_curve",
    "IPP_CURVE_PUBLICKEY": "IPController.curve_publickey",
    "IPP_CURVE_SECRETKEY": "IPController.curve_secretkey",
    "IPYTHONDIR": "IPController.ipython_dir",
}


def from_environment(environ: Mapping[str, str]) -> list[RawOption]:
    """Return the options in environment variables; empty variables are ignored."""
    return [RawOption(path, environ[name], name) for name, path in VARIABLES.items() if environ.get(name)]


# ---- values ---------------------------------------------------------------------------------------------------------
# Each function converts the raw value of an option. :raises ValueError: it is of another type; the message names that.


def text(value: Any) -> str:
    """Convert to text. Bytes are decoded, also in the notation of Python (b'...')."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, str) and len(value) > 2 and value[0] == "b" and value[1] == value[-1] and value[1] in "'\"":
        return text(ast.literal_eval(value))
    if isinstance(value, (str, Path)):
        return str(value)
    raise ValueError("it must be text")


def whole(value: Any) -> int:
    """Convert to a whole number."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("it must be a whole number")
    return int(value)


def number(value: Any) -> float:
    """Convert to a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("it must be a number")
    return float(value)


def boolean(value: Any) -> bool:
    """Convert to True or False."""
    if isinstance(value, (bool, int)):
        return bool(value)
    if isinstance(value, str) and value.lower() in _BOOLEANS:
        return _BOOLEANS[value.lower()]
    raise ValueError("it must be True or False")


def ports(value: Any) -> tuple[int, ...]:
    """Convert to a pool of ports: a number, a range "10101-10120", several with commas, or a list of these."""
    if isinstance(value, int):
        return (value,)
    if isinstance(value, str):
        found: list[int] = []
        for part in value.strip("[]() ").split(","):
            low, dash, high = part.strip().strip("'\"").partition("-")
            found += range(int(low), int(high) + 1) if dash else [int(low)] if low else []
        return tuple(found)
    return tuple(port for one in value for port in ports(one))
