"""The scheduler's settings as options of a command: one table, the same for `run`, `up` and `serve`.

An option that is not given is not passed on, so that the TOML file and the environment have their say: defaults <
file < environment < options. The table repeats the names of `server.config.Config`, because importing that would
cost `--help` its speed; a test holds the two equal.
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
    """One setting: its name in Config and the TOML file, its type as an option, what it is for, and its flag if it has
    another name there.
    """

    name: str
    type: Any
    help: str
    flag: str = ""
    choices: tuple[str, ...] = ()

    @property
    def option(self) -> str:
        """As it is written on the command line."""
        return self.flag or "--" + self.name.replace("_", "-")


SCHEMES = ("leastload", "lru", "plainrandom", "twobin", "weighted", "pure")
SETTINGS = (
    Setting("name", str, "Name of the scheduler: of its connection files and its local socket. [default]"),
    Setting("address", str, "ipc:///path or tcp://host:port (port 0: any). Default: a local socket.", "--bind"),
    Setting("runtime_dir", str, "Where the connection files and the local socket are."),
    Setting("advertised_host", str, "What others reach us by, behind a wildcard address. Default: the host's name."),
    Setting("scheme", str, f"How engines are chosen: {', '.join(SCHEMES)}.", "", SCHEMES),
    Setting("hwm", int, "Most tasks outstanding on an engine, times its slots; 0: no limit. [10]"),
    Setting("grace_s", float, "Seconds that a lost engine's tasks are kept for it. [5]"),
    Setting("keep_finished", int, "Ended tasks that are remembered. [100000]"),
    Setting("keep_results_s", float, "Seconds that the results of a client that is away are kept. [3600]"),
    Setting("keep_idle_s", float, "Seconds that a client that is away is kept if nothing of it is left. [10]"),
    Setting("shutdown_grace_s", float, "Seconds that running tasks may go on at a shutdown. [10]"),
    Setting("seed", int, "Seed of the schemes that draw. Default: from the operating system."),
    Setting("websocket_port", int, "Listen for WebSocket clients; 0: any port. Default: do not."),
    Setting("websocket_host", str, "Where. [127.0.0.1]"),
    Setting("websocket_token", str, "What they must show. Default: a new one, in the connection file."),
    Setting(
        "websocket_origins",
        list[str],
        "Pages that may connect; can be repeated. Default: none.",
        "--websocket-origin",
    ),
    Setting("websocket_certificate", str, "Certificate file: TLS."),
    Setting("websocket_key", str, "Key file of the certificate."),
    Setting("websocket_max_message_bytes", int, "Largest message of a WebSocket client. [4 MiB]"),
    Setting("websocket_hello_bytes", int, "Largest first message of a WebSocket client, its hello. [16 KiB]"),
    Setting("websocket_hello_s", float, "Seconds after which it must have said hello. [5]"),
    Setting("websocket_frames_per_s", int, "Frames of one WebSocket client that are read in a second. [5000]"),
    Setting("websocket_bytes_per_s", int, "Bytes of one WebSocket client that are read in a second. [32 MiB]"),
    Setting("websocket_unfinished_bytes", int, "Unfinished messages of all WebSocket clients. [64 MiB]"),
    Setting("websocket_handshakes_per_s", int, "WebSocket handshakes in a second that show no token. [50]"),
    Setting(
        "log_level",
        str,
        "debug, info, warning, error, critical.",
        "",
        ("debug", "info", "warning", "error", "critical"),
    ),
    Setting("log_format", str, "console or json.", "", ("console", "json")),
    Setting("heartbeat_s", float, "Seconds between heartbeats. [2]"),
    Setting("missed_heartbeats", int, "After so many without a word a peer is away. [5]"),
    Setting("credit", int, "Unanswered submissions of one client. [20000]"),
    Setting("gather_s", float, "Longest that a result waits for others to travel with. [0.001]"),
    Setting("window_bytes", int, "Unacknowledged bytes under way to one peer. [32 MiB]"),
    Setting("client_bytes", int, "Bytes held of one client's calls, and of its unread results. [1 GiB]"),
    Setting("total_bytes", int, "The same of all clients together. Default: a quarter of the memory."),
    Setting("max_message_bytes", int, "Largest message. [1 GiB]"),
    Setting("max_tasks_per_message", int, "Most tasks in one message. [10000]"),
    Setting("max_dependencies", int, "Most tasks that one task depends on. [100000]"),
    Setting("max_targets", int, "Most engines that one task names as targets. [1000]"),
    Setting("max_clients", int, "Most clients at once. [1000]"),
    Setting("max_admins", int, "Most commands (status, stop, ...) at once, beside the clients. [16]"),
    Setting("max_engines", int, "Most engines at once. [100000]"),
    Setting("max_connections", int, "Most connections at once; 0: three quarters of the descriptor limit. [0]"),
    Setting("max_connections_per_address", int, "Most connections of one remote address; 0: half of all. [0]"),
    Setting("handshake_s", float, "Seconds that the handshake of a connection may take, ZeroMQ or WebSocket. [5]"),
    Setting("submissions_per_turn", int, "Submissions taken between two looks at results. [256]"),
)


def load_config(file: Path | None, given: dict[str, Any], **defaults: Any) -> Config:
    """The settings from the options given, the environment and the file, in this order; `defaults` stand for what none
    of them says.

    :raises ConfigError: one of them is wrong; the message names it.
    """
    import os

    from msgspec.structs import replace

    from trio_sched.server.config import Config, load

    config = load(file, os.environ, given)
    usual = Config()
    unsaid = {
        name: value
        for name, value in defaults.items()
        if name not in given and getattr(config, name) == getattr(usual, name)
    }
    return replace(config, **unsaid) if unsaid else config


def with_settings(**defaults: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command an option for each setting; it gets its Config as the argument `config`.

    `defaults` are the command's own, where they differ from the scheduler's; a callable is called for its value.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        """Typer reads options from a signature, so the command gets one with all of them."""
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
    file = typer.Option("--config", "-c", metavar="FILE", help="A TOML file with settings.")
    found = [inspect.Parameter("config_file", keyword, default=None, annotation=Annotated[Path | None, file])]
    for setting in SETTINGS:
        option = typer.Option(
            setting.option,
            help=setting.help,
            show_default=False,
            autocompletion=_one_of(setting.choices),
        )
        found.append(
            inspect.Parameter(setting.name, keyword, default=None, annotation=Annotated[setting.type | None, option])
        )
    return found


def _one_of(choices: tuple[str, ...]) -> Callable[[str], list[str]] | None:
    """For shell completion."""
    if not choices:
        return None

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete
