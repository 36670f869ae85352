"""The scheduler's settings as options: one table, the same for `run`, `up` and `serve`.

Values come from the defaults, the TOML file, the environment and the options; later sources override earlier ones, so
an option without a value is not passed on. The table repeats the names of `server.config.Config`, because the import
of that module would make `--help` slow; a test compares the two.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from trio_sched.server.config import Config


class Setting(NamedTuple):
    """A setting as an option."""

    #: Name in `Config` and in the TOML file.
    name: str
    type: Any
    #: Help text, with the default in brackets if it is a number or a word.
    help: str
    #: Flag, if it is not `--` and the name.
    flag: str = ""
    #: Values for shell completion.
    choices: tuple[str, ...] = ()

    @property
    def option(self) -> str:
        """The flag on the command line."""
        return self.flag or "--" + self.name.replace("_", "-")


SCHEMES = ("leastload", "lru", "plainrandom", "twobin", "weighted", "pure")
LEVELS = ("debug", "info", "warning", "error", "critical")
FORMATS = ("console", "json")
SETTINGS = (
    Setting("name", str, "Name of the scheduler, its connection files and its local socket. [default]"),
    Setting("address", str, "ipc:///path or tcp://host:port (port 0: any). Default: a local socket.", "--bind"),
    Setting("runtime_dir", str, "Directory of the connection files and the local socket."),
    Setting(
        "advertised_host", str, "Host in connection files when the address is a wildcard. Default: the host's name."
    ),
    Setting("scheme", str, f"Scheme that chooses the engine of a task: {', '.join(SCHEMES)}.", choices=SCHEMES),
    Setting("hwm", int, "High-water mark: most tasks outstanding on an engine, times its slots; 0: no limit. [10]"),
    Setting("grace_s", float, "Seconds that the tasks of a lost engine wait for its return. [5]"),
    Setting("keep_finished", int, "Finished tasks that the scheduler remembers. [100000]"),
    Setting("keep_results_s", float, "Seconds that the results of a disconnected client are kept. [3600]"),
    Setting(
        "keep_idle_s",
        float,
        "Seconds that a disconnected client without unfinished tasks and unread results is kept. [10]",
    ),
    Setting("shutdown_grace_s", float, "Seconds that running tasks may continue during a shutdown. [10]"),
    Setting("seed", int, "Seed of the random schemes. Default: from the operating system."),
    Setting("websocket_port", int, "Port for WebSocket clients; 0: any port. Default: no WebSocket."),
    Setting("websocket_host", str, "Address to listen at for WebSocket clients. [127.0.0.1]"),
    Setting(
        "websocket_token",
        str,
        "Token that WebSocket clients send. Default: a new one, in the connection file.",
    ),
    Setting("websocket_origins", list[str], "Origin of pages that may connect; can be repeated.", "--websocket-origin"),
    Setting("websocket_certificate", str, "Certificate file, for TLS."),
    Setting("websocket_key", str, "Key file of the certificate."),
    Setting("websocket_max_message_bytes", int, "Largest message of a WebSocket client. [4 MiB]"),
    Setting("websocket_hello_bytes", int, "Largest hello (the first message) of a WebSocket client. [16 KiB]"),
    Setting("websocket_hello_s", float, "Seconds that a WebSocket client may take to send its hello. [5]"),
    Setting("websocket_frames_per_s", int, "Frames per second that are read from a WebSocket client. [5000]"),
    Setting("websocket_bytes_per_s", int, "Bytes per second that are read from a WebSocket client. [32 MiB]"),
    Setting("websocket_unfinished_bytes", int, "Bytes of incomplete messages of all WebSocket clients. [64 MiB]"),
    Setting("websocket_handshakes_per_s", int, "WebSocket handshakes per second without the token. [50]"),
    Setting("log_level", str, f"Lowest level that is logged: {', '.join(LEVELS)}.", choices=LEVELS),
    Setting("log_format", str, "Format of the logs: console or json.", choices=FORMATS),
    Setting("heartbeat_s", float, "Seconds between heartbeats. [2]"),
    Setting("missed_heartbeats", int, "Missed heartbeats after which a peer counts as disconnected. [5]"),
    Setting("credit", int, "Unanswered submissions of a client. [20000]"),
    Setting("gather_s", float, "Seconds that a result may wait to share a message with later ones. [0.001]"),
    Setting("window_bytes", int, "Unacknowledged bytes that are sent to a peer. [32 MiB]"),
    Setting("client_bytes", int, "Bytes held for the calls of a client, and for its unread results. [1 GiB]"),
    Setting("total_bytes", int, "The same for all clients together. Default: a quarter of the memory."),
    Setting("max_message_bytes", int, "Largest message. [1 GiB]"),
    Setting("max_tasks_per_message", int, "Most tasks in a message. [10000]"),
    Setting("max_dependencies", int, "Most dependencies of a task. [100000]"),
    Setting("max_targets", int, "Most engines that a task names as targets. [1000]"),
    Setting("max_clients", int, "Most clients at a time. [1000]"),
    Setting("max_admins", int, "Most commands (status, stop, ...) at a time, which do not count as clients. [16]"),
    Setting("max_engines", int, "Most engines at a time. [100000]"),
    Setting("max_connections", int, "Most connections at a time; 0: three quarters of the descriptor limit. [0]"),
    Setting("max_connections_per_address", int, "Most connections of a remote address; 0: half of all. [0]"),
    Setting("handshake_s", float, "Seconds that a ZeroMQ or WebSocket handshake may take. [5]"),
    Setting("submissions_per_turn", int, "Submissions that a turn takes before it looks for results again. [256]"),
)


def load_config(file: Path | None, given: dict[str, Any], **defaults: Any) -> Config:
    """Return the settings from the options `given`, the environment and the file, in order of precedence.

    `defaults` replace the scheduler's own defaults.

    :raises ConfigError: a setting is unknown or has a wrong value; the message names it.
    """
    import os

    from msgspec.structs import replace

    from trio_sched.server.config import Config, load

    config = load(file, os.environ, given)
    usual = Config()
    unset = {
        name: value
        for name, value in defaults.items()
        if name not in given and getattr(config, name) == getattr(usual, name)
    }
    return replace(config, **unset) if unset else config


def with_settings(**defaults: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a command: add an option for each setting, and pass the settings as the argument `config`.

    `defaults` are the command's defaults, where they differ from the scheduler's; a callable is called for the value.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a command in a function whose signature has all options, because typer reads options from there."""
        signature = inspect.signature(command, eval_str=True, locals={"Config": object})

        @functools.wraps(command)
        def wrapper(**given: Any) -> Any:
            file = given.pop("config_file")
            settings = {setting.name: given.pop(setting.name) for setting in SETTINGS}
            settings = {name: value for name, value in settings.items() if value is not None and value != []}
            usual = {name: value() if callable(value) else value for name, value in defaults.items()}
            return command(config=load_config(file, settings, **usual), **given)

        parameters = [parameter for name, parameter in signature.parameters.items() if name != "config"]
        wrapper.__signature__ = inspect.Signature([*parameters, *_options()])  # type: ignore[attr-defined]  # for typer
        wrapper.__annotations__ = {name: hint for name, hint in command.__annotations__.items() if name != "config"}
        return wrapper

    return decorate


def _options() -> list[inspect.Parameter]:
    keyword = inspect.Parameter.KEYWORD_ONLY
    file = typer.Option("--config", "-c", metavar="FILE", help="TOML file with settings.")
    found = [inspect.Parameter("config_file", keyword, default=None, annotation=Annotated[Path | None, file])]
    for setting in SETTINGS:
        option = typer.Option(
            setting.option,
            help=setting.help,
            show_default=False,
            autocompletion=_completion(setting.choices),
        )
        found.append(
            inspect.Parameter(setting.name, keyword, default=None, annotation=Annotated[setting.type | None, option])
        )
    return found


def _completion(choices: tuple[str, ...]) -> Callable[[str], list[str]] | None:
    """Return a function that completes one of the choices in a shell; None without choices."""
    return (lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]) if choices else None
