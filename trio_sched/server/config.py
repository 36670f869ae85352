"""The settings of a scheduler, and where they come from: defaults < TOML file < environment < options.

A setting is written `name = value` in the file (in a table, `[websocket]` with `port`, it is `websocket_port`),
`TRIO_SCHED_NAME` in the environment. Every value is checked here, once; a wrong value raises a `ConfigError` that names
the setting, the value, its source and the allowed values. Other environment variables with that prefix are ignored,
because clients and engines have variables of their own.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_type_hints

import msgspec
from msgspec import Struct

from trio_sched.core.scheduler import Settings
from trio_sched.errors import ConfigError
from trio_sched.wire.ranges import RANGES

ENV_PREFIX = "TRIO_SCHED_"
SCHEMES = ("leastload", "lru", "plainrandom", "twobin", "weighted", "pure")
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LOG_FORMATS = ("console", "json")
#: The largest number of bytes, seconds or peers.
MAX_SETTING = 1e12
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error", "critical"]
LogFormat: TypeAlias = Literal["console", "json"]


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """All settings, with their defaults. `load` makes one from all sources; `Config(hwm=1)` is checked, too."""

    #: The name of the connection files and of the local socket.
    name: str = "default"
    #: "ipc:///path", "tcp://host:port" (port 0: any); empty: a local socket in the runtime directory.
    address: str = ""
    #: The host in connection files when the address is a wildcard such as tcp://0.0.0.0:7000; empty: the host name.
    advertised_host: str = ""
    #: The directory of connection files and the local socket; empty: $XDG_RUNTIME_DIR/trio_sched or its like.
    runtime_dir: str = ""
    # the rules
    scheme: str = "leastload"
    hwm: int = 10
    grace_s: float = 5.0
    keep_finished: int = 100_000
    #: How long the session of a disconnected client is kept.
    keep_results_s: float = 3600.0
    #: The same without unfinished tasks and unread results: the session can be renewed when the client reconnects.
    keep_idle_s: float = 10.0
    #: The seed of the schemes that draw engines at random; None: from the operating system.
    seed: int | None = None
    # peers
    heartbeat_s: float = 2.0
    #: Heartbeat periods without a message after which a peer counts as disconnected.
    missed_heartbeats: int = 5
    #: The most unanswered submissions of one client.
    credit: int = 20_000
    #: The longest time that a result waits for others, to be sent together with them.
    gather_s: float = 0.001
    #: The most unacknowledged bytes sent to one peer.
    window_bytes: int = 32 << 20
    #: Bytes held in memory for one client: of its calls, and as many of its unread results.
    client_bytes: int = 1 << 30
    #: The same for all clients together; None: a quarter of the memory.
    total_bytes: int | None = None
    # limits
    max_message_bytes: int = 1 << 30
    max_tasks_per_message: int = 10_000
    max_dependencies: int = 100_000
    max_targets: int = 1_000
    #: At the limit, sessions of disconnected clients without tasks and results are closed for new clients.
    max_clients: int = 1_000
    #: Sessions of commands such as status and stop, which submit nothing, in addition to the clients.
    max_admins: int = 16
    max_engines: int = 100_000
    #: Connections of all kinds at once, before any handshake; 0: three quarters of the descriptor limit, which
    #: is an upper bound in any case.
    max_connections: int = 0
    #: Connections from one remote address (an IPv6 network of 64 bits); 0: half of `max_connections`. Loopback and
    #: local sockets are not counted by address.
    max_connections_per_address: int = 0
    #: How long the ZeroMQ handshake of a connection may take.
    handshake_s: float = 5.0
    submissions_per_turn: int = 256
    #: How long running tasks may continue when the scheduler shuts down.
    shutdown_grace_s: float = 10.0
    # the WebSocket front
    #: None: no WebSocket; 0: any port.
    websocket_port: int | None = None
    websocket_host: str = "127.0.0.1"
    #: Empty: a new token at each start, written to the connection file.
    websocket_token: str = ""
    #: Origins of pages that may connect. A program that sends no origin may always connect.
    websocket_origins: tuple[str, ...] = ()
    websocket_certificate: str = ""
    websocket_key: str = ""
    websocket_max_message_bytes: int = 4 << 20
    #: The largest first message of a connection, its Hello.
    websocket_hello_bytes: int = 16 << 10
    #: How long a connection may take until its Hello is accepted.
    websocket_hello_s: float = 5.0
    #: Of one connection; a connection that sends faster is read more slowly.
    websocket_frames_per_s: int = 5_000
    websocket_bytes_per_s: int = 32 << 20
    #: Bytes of incomplete messages, over all connections.
    websocket_unfinished_bytes: int = 64 << 20
    websocket_handshakes_per_s: int = 50
    # logging
    log_level: str = "info"
    log_format: str = "console"

    def __post_init__(self) -> None:
        for setting, rule in RULES.items():
            value = getattr(self, setting)
            if not rule.holds(value):
                raise _wrong(setting, value, "", rule.wanted)

    def settings(self) -> Settings:
        """Return the settings of the core."""
        return Settings(
            scheme=self.scheme,  # type: ignore[arg-type]  # one of SCHEMES, as checked
            hwm=self.hwm,
            grace_s=self.grace_s,
            keep_finished=self.keep_finished,
            max_dependencies=self.max_dependencies,
            max_targets=self.max_targets,
        )


class Rule(NamedTuple):
    """A condition on a value, and its description."""

    holds: Callable[[Any], bool]
    wanted: str


def _at_least(minimum: float, note: str = "", maximum: float = MAX_SETTING) -> Rule:
    return Rule(
        lambda value: minimum <= value <= maximum,
        f"it must be at least {minimum:g}{note}, and at most {maximum:,.15g}",
    )


def _one_of(choices: tuple[str, ...]) -> Rule:
    return Rule(lambda value: value in choices, f"it must be one of {', '.join(choices)}")


def _is_address(value: str) -> bool:
    if value.startswith("tcp://"):
        return re.fullmatch(r"tcp://(\S+):(\d+|\*)", value) is not None
    return not value or value.startswith("ipc:///")


#: The rule of each setting; a setting without a rule only has a type.
RULES: dict[str, Rule] = {
    "name": Rule(
        lambda value: re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", value) is not None,
        "it must be letters, digits, '_', '-' and '.', and not begin with '-' or '.'",
    ),
    "address": Rule(_is_address, 'it must be "ipc:///path" or "tcp://host:port" (port 0: any), or empty'),
    "scheme": _one_of(SCHEMES),
    "hwm": _at_least(0, " (0: no limit)", RANGES["hwm"].maximum),
    "grace_s": _at_least(0, " (0: none)"),
    "keep_finished": _at_least(0),
    "keep_results_s": _at_least(0),
    "keep_idle_s": _at_least(0),
    "heartbeat_s": _at_least(0.001),
    "missed_heartbeats": _at_least(2),
    "credit": _at_least(1),
    "gather_s": Rule(lambda value: 0 <= value <= 1, "it must be from 0 to 1"),
    "window_bytes": _at_least(1 << 10),
    "client_bytes": _at_least(1 << 16),
    "total_bytes": Rule(lambda value: value is None or value >= 1 << 20, "it must be at least 1048576"),
    "max_message_bytes": _at_least(1 << 16),
    "max_tasks_per_message": _at_least(1),
    "max_dependencies": _at_least(1),
    "max_targets": _at_least(1),
    "max_clients": _at_least(1),
    "max_admins": _at_least(1),
    "max_engines": _at_least(1),
    "max_connections": _at_least(0, " (0: as many as the descriptor limit allows)"),
    "max_connections_per_address": _at_least(0, " (0: half of max_connections)"),
    "handshake_s": Rule(lambda value: 0.001 <= value <= 3600, "it must be from 0.001 to 3600"),
    "submissions_per_turn": _at_least(1),
    "shutdown_grace_s": _at_least(0),
    "websocket_port": Rule(lambda value: value is None or 0 <= value < 1 << 16, "it must be from 0 (any) to 65535"),
    "websocket_max_message_bytes": _at_least(1 << 12),
    "websocket_hello_bytes": _at_least(1 << 10),
    "websocket_hello_s": _at_least(0.1),
    "websocket_frames_per_s": _at_least(10),
    "websocket_bytes_per_s": _at_least(1 << 16),
    "websocket_unfinished_bytes": _at_least(1 << 16),
    "websocket_handshakes_per_s": _at_least(1),
    "log_level": _one_of(LOG_LEVELS),
    "log_format": _one_of(LOG_FORMATS),
}


def _wrong(setting: str, value: object, source: str, wanted: str) -> ConfigError:
    return ConfigError(f"{setting} = {value!r}{f' ({source})' if source else ''}: {wanted}")


def load(
    file: str | Path | None = None, environ: Mapping[str, str] | None = None, options: Mapping[str, Any] | None = None
) -> Config:
    """Return the settings from a TOML file, the environment (such as `os.environ`) and explicit options. An option with
    the value None counts as not given.

    :raises ConfigError: a setting is wrong or unknown; the message names it, its value, its source and what is allowed.
    """
    values: dict[str, tuple[Any, str]] = {}
    if file is not None:
        path = Path(file).expanduser()
        values.update((name, (value, f"from {path}")) for name, value in _read(path).items())
    for name in Config.__struct_fields__:
        text = (environ or {}).get(ENV_PREFIX + name.upper())
        if text:
            values[name] = (text, f"from {ENV_PREFIX}{name.upper()}")
    for name, value in (options or {}).items():
        if value is not None:
            values[name] = (value, "given as an option")
    return Config(**{name: _checked(name, value, source) for name, (value, source) in values.items()})


def _read(path: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the settings in {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from None
    return _flat(tables, "")


def _flat(table: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        name = prefix + key.replace("-", "_")
        flat.update(_flat(value, name + "_") if isinstance(value, dict) else {name: value})
    return flat


def _checked(name: str, value: Any, source: str) -> Any:
    """Return the value in the type of its setting; from the environment it comes as text."""
    if name not in Config.__struct_fields__:
        raise ConfigError(f"{name} ({source}) is not a setting; the settings are {', '.join(Config.__struct_fields__)}")
    wanted = get_type_hints(Config)[name]
    textual = source.startswith(f"from {ENV_PREFIX}")
    given = value
    if textual and wanted == tuple[str, ...]:
        given = [part.strip() for part in value.split(",") if part.strip()]
    try:
        converted = msgspec.convert(given, wanted, strict=not textual)
    except msgspec.ValidationError as error:
        raise _wrong(name, value, source, f"it must be {_in_words(wanted)} ({error})") from None
    rule = RULES.get(name)
    if rule is not None and not rule.holds(converted):
        raise _wrong(name, value, source, rule.wanted)
    return converted


def _in_words(type_: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "text", tuple[str, ...]: "a list of texts"}
    return words.get(type_, "a whole number")
