"""Connection files: how clients and engines find a scheduler, and prove that they may talk to it.

A scheduler named NAME writes two files into the user's runtime directory, NAME-client.json and NAME-engine.json: its
address, the token of the role, and over TCP the CURVE keys of the role. Whoever can read a file has its role, so the
directory has mode 0700 and the files 0600, and a file that others could read, or have put there, is refused rather than
used (private.py). Files appear by rename, never half written. One whose scheduler is gone is *stale*: a search skips it
and names it in the error.

Imports little: every worker reads one at its start.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from trio_sched.errors import ConfigError, ConnectionFileError, NoSchedulerError
from trio_sched.transport.private import names_in, private_directory, read_private, require_private, require_safe_way

Role: TypeAlias = Literal["client", "engine"]
ROLES: tuple[Role, ...] = ("client", "engine")
ENV_DIRECTORY = "TRIO_SCHED_RUNTIME_DIR"
ENV_CONNECTION = "TRIO_SCHED_CONNECTION"
ENV_ENGINE_OF = "TRIO_SCHED_ENGINE_OF"
"""In a worker and in what its tasks start: "NAME" or "NAME on HOST", the scheduler whose tasks run here."""
MAX_IPC_PATH_BYTES = 103
"""Longest path of a Unix socket that both Linux (107) and macOS (103) take."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class Connection(Struct, frozen=True, omit_defaults=True):
    """What one role needs to reach one scheduler; the content of a connection file.

    `address` is "ipc:///path.sock" or "tcp://host:port"; `token` proves the role; `scheduler` is the instance's id, new
    at each start; `pid` and `host` tell whether it still runs. Over TCP the three keys are CURVE keys in Z85 text.
    `websocket` is the address of the WebSocket front, if there is one.
    """

    name: str
    role: Role
    address: str
    token: str
    scheduler: str = ""
    pid: int = 0
    host: str = ""
    server_key: str = ""
    public_key: str = ""
    secret_key: str = ""
    websocket: str = ""

    def __repr__(self) -> str:
        """Without the secrets, which must not get into logs and tracebacks."""
        return f"Connection(name={self.name!r}, role={self.role!r}, address={self.address!r}, pid={self.pid})"


def to_json(connection: Connection) -> str:
    """The content of a connection file."""
    return msgspec.json.format(msgspec.json.encode(connection), indent=2).decode()


def from_json(text: str | bytes, *, source: str = "the connection") -> Connection:
    """The inverse of `to_json`.

    :raises ConnectionFileError: it is not what a scheduler writes; `source` says in the message where it came from.
    """
    try:
        return msgspec.json.decode(text, type=Connection)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConnectionFileError(
            f"{source} is not a connection file of trio_sched ({error}); restart the scheduler to have it written anew"
        ) from None


# ---- the directory --------------------------------------------------------------------------------------------------


def host_name() -> str:
    """The name by which this machine is told from others in connection files and greetings."""
    if hasattr(os, "uname"):
        return os.uname().nodename
    import platform  # costs some milliseconds

    return platform.node()


def runtime_dir() -> Path:
    """The directory of this user's connection files and sockets, made (mode 0700) if it is not there.

    $TRIO_SCHED_RUNTIME_DIR, else $XDG_RUNTIME_DIR/trio_sched, else <temporary directory>/trio_sched-<uid>.

    :raises ConfigError: it is a link, belongs to another user, is open to others, or cannot be made; or another user
        could exchange a directory on the way to it.
    """
    directory = _made_runtime_path()
    require_private(directory)
    return directory


@contextmanager
def _opened(directory: Path | None) -> Iterator[tuple[Path, int]]:
    """A private directory, default the runtime directory: its path and a descriptor of it. Errors as `runtime_dir`."""
    directory = directory or _made_runtime_path()
    with private_directory(directory) as descriptor:
        yield directory, descriptor


def _made_runtime_path() -> Path:
    directory = _runtime_path()
    require_safe_way(directory)  # before anything is made in a directory of another user
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the runtime directory {directory}: {error}; set {ENV_DIRECTORY}") from error
    return directory


def _runtime_path() -> Path:
    if chosen := os.environ.get(ENV_DIRECTORY):
        return Path(chosen)
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(session) / "trio_sched"
    import tempfile  # only here: it costs 3 ms that a worker need not pay

    return Path(tempfile.gettempdir()) / f"trio_sched-{os.getuid()}"


def ipc_address(name: str, directory: Path | None = None) -> str:
    """The address of the local socket of the scheduler `name`.

    :raises ConfigError: the name cannot be a file name, or the path is too long for a Unix socket.
    """
    path = str(((directory or runtime_dir()) / f"{_checked(name)}.sock").absolute())
    if len(os.fsencode(path)) > MAX_IPC_PATH_BYTES:
        raise ConfigError(
            f"the path {path} is longer than the {MAX_IPC_PATH_BYTES} bytes of a Unix socket; "
            f"set {ENV_DIRECTORY} to a shorter one"
        )
    return f"ipc://{path}"


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name: {name!r} must be letters, digits, '_', '-' and '.', and not begin with '-' or '.'")
    return name


# ---- writing --------------------------------------------------------------------------------------------------------


def connection_path(name: str, role: Role, directory: Path | None = None) -> Path:
    """Where the file of that role of the scheduler `name` is, or would be."""
    return (directory or runtime_dir()) / f"{_checked(name)}-{role}.json"


def write_connection_files(client: Connection, engine: Connection, directory: Path | None = None) -> tuple[Path, Path]:
    """Write both files, replacing what a former scheduler of that name left. Returns (client's, engine's)."""
    with _opened(directory) as (path, descriptor):
        return _write(client, path, descriptor), _write(engine, path, descriptor)


def _write(connection: Connection, directory: Path, descriptor: int) -> Path:
    path = connection_path(connection.name, connection.role, directory)
    draft = f".{path.name}.{os.getpid()}"
    with suppress(FileNotFoundError):
        os.unlink(draft, dir_fd=descriptor)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=descriptor), "wb") as file:
        file.write(to_json(connection).encode() + b"\n")
    os.rename(draft, path.name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
    return path


def remove_connection_files(client: Connection, engine: Connection, directory: Path | None = None) -> None:
    """Remove both files, unless another scheduler has taken the name meanwhile."""
    with _opened(directory) as (where, descriptor):
        for connection in (client, engine):
            path = connection_path(connection.name, connection.role, where)
            with suppress(ConnectionFileError, FileNotFoundError):
                if read_connection_file(path, descriptor).scheduler == connection.scheduler:
                    os.unlink(path.name, dir_fd=descriptor)


# ---- reading --------------------------------------------------------------------------------------------------------


def read_connection_file(path: str | Path, directory: int | None = None) -> Connection:
    """The connection in `path`; with a `directory` (a descriptor), in the file of that name in it.

    :raises ConnectionFileError: it is missing, malformed, no regular file, another user's, or readable by others.
    """
    path = Path(path).expanduser()
    return from_json(read_private(path, directory), source=str(path))


def is_stale(connection: Connection) -> bool:
    """Whether its scheduler is gone: it ran on this host, and its process or its local socket is no more."""
    if connection.host != host_name():
        return False
    if connection.address.startswith("ipc://") and not os.path.exists(connection.address.removeprefix("ipc://")):
        return True
    return connection.pid > 0 and not _alive(connection.pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# ---- finding --------------------------------------------------------------------------------------------------------


_ADDRESS = re.compile(r"\w+://.*|[\w.-]+:\d+")


def find(where: str | Path | None, role: Role) -> Connection:
    """The connection for `role`, from a path or a name; None: from $TRIO_SCHED_CONNECTION, else the only scheduler that
    runs.

    Anything with a slash, or that ends in ".json", is a path; a path to a directory means the only one in it.

    :raises NoSchedulerError: none was found, or several among which to choose; the message lists their names.
    :raises ConnectionFileError: the file that was named cannot be used.
    :raises ConfigError: the directory to look in may be somebody else's.
    """
    if where is None:
        where = os.environ.get(ENV_CONNECTION) or None
        if where is not None and role == "client" and ENV_ENGINE_OF in os.environ:
            _require_client_file(Path(where))
    if where is None:
        return _the_only_one(None, role)
    if isinstance(where, str) and _ADDRESS.fullmatch(where):
        raise ConnectionFileError(
            f"{where!r} is an address, which does not do without the keys of the scheduler there; copy its connection "
            f"file NAME-{role}.json to here, and give the path of that"
        )
    if isinstance(where, Path) or "/" in where or where.endswith(".json"):
        path = Path(where).expanduser()
        return _the_only_one(Path(os.path.realpath(path)), role) if path.is_dir() else _from_path(path, role)
    return _by_name(where, role)


def client_file_of(connection: Connection, where: str | Path | None = None) -> Path:
    """Where, on this machine, the client's connection file of that scheduler is or should be: beside the engine's file
    `where` (a path, or a name), else beside the local socket, else in the runtime directory; the first that is there.
    """
    directories: list[Path] = []
    if where is not None and (isinstance(where, Path) or "/" in where or where.endswith(".json")):
        path = Path(where).expanduser().absolute()
        directories.append(path if path.is_dir() else path.parent)
    if connection.address.startswith("ipc://"):
        directories.append(Path(connection.address.removeprefix("ipc://")).parent)
    directories.append(_runtime_path().absolute())
    paths = [connection_path(connection.name, "client", directory) for directory in directories]
    return next((path for path in paths if path.exists()), paths[0])


def _require_client_file(path: Path) -> None:
    """:raises NoSchedulerError: a task, or what it started, cannot be a client, because the file is not there."""
    if not path.exists():
        raise NoSchedulerError(
            f"this runs on an engine of the scheduler {os.environ[ENV_ENGINE_OF]}, but its connection file for "
            f"clients, {path}, is not on this machine (or the scheduler has shut down). So that tasks here can be "
            f"clients, copy {path.name} from the scheduler's machine to there, with mode 0600; "
            "an engine's key does not pass as a client"
        )


def _from_path(path: Path, role: Role) -> Connection:
    connection = read_connection_file(path)
    if connection.role != role:
        raise ConnectionFileError(
            f"{path} is the connection file for the role {connection.role!r}, but {role!r} is needed; "
            f"take {connection.name}-{role}.json"
        )
    if is_stale(connection):
        raise ConnectionFileError(
            f"the connection file {path} is stale: its scheduler (process {connection.pid}) is gone; start one anew"
        )
    return connection


def _by_name(name: str, role: Role) -> Connection:
    with _opened(None) as (directory, descriptor):
        path = connection_path(name, role, directory)
        if path.name not in names_in(descriptor, path.name):
            running, _ = _look(directory, descriptor, role)
            raise NoSchedulerError(f"no scheduler named {name!r} in {directory}; running there: {_names(running)}")
        connection = _running_or_none(path, descriptor, role)
    if connection is None:
        raise NoSchedulerError(f"the scheduler {name!r} is gone and left {path} behind; start one anew")
    return connection


def _running_or_none(path: Path, directory: int, role: Role) -> Connection | None:
    connection = read_connection_file(path, directory)
    return None if is_stale(connection) or connection.role != role else connection


def _look(directory: Path, descriptor: int, role: Role) -> tuple[list[Connection], list[str]]:
    """(those that run, the files that cannot be used and why)."""
    running: list[Connection] = []
    unusable: list[str] = []
    for name in names_in(descriptor, f"-{role}.json"):
        path = directory / name
        try:
            connection = _running_or_none(path, descriptor, role)
        except ConnectionFileError as error:
            unusable.append(str(error))
            continue
        if connection is None:
            unusable.append(f"{path} is stale")
        else:
            running.append(connection)
    return running, unusable


def _the_only_one(where: Path | None, role: Role) -> Connection:
    with _opened(where) as (directory, descriptor):
        running, unusable = _look(directory, descriptor, role)
    if len(running) == 1:
        return running[0]
    if running:
        raise NoSchedulerError(
            f"{len(running)} schedulers run: {_names(running)}; name one of them, or set {ENV_CONNECTION}"
        )
    left_behind = f" ({'; '.join(unusable)})" if unusable else ""
    raise NoSchedulerError(f"no scheduler runs in {directory}{left_behind}; start one with: trio-sched up")


def _names(running: list[Connection]) -> str:
    return ", ".join(connection.name for connection in running) or "none"
