"""Connection files: the address and the credentials that a client or an engine needs to connect to a scheduler.

A scheduler named NAME writes two files into the user's runtime directory, NAME-client.json and NAME-engine.json. Each
contains the scheduler's address, the token of the role, and for TCP the CURVE keys of the role. A process that can read
a file has its role. So the directory has mode 0700 and the files 0600, and a file that other users can read, or may
have written, is refused (private_files.py). A file is written under another name and then renamed, so it is never
incomplete. A file whose scheduler has ended is *stale*: a search skips it and names it in the error.

Every worker imports this module when it starts, so it imports little.
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
from trio_sched.transport.private_files import (
    list_names,
    open_private_directory,
    read_private_file,
    require_private_directory,
    require_safe_path,
)

Role: TypeAlias = Literal["client", "engine"]
ROLES: tuple[Role, ...] = ("client", "engine")
ENV_DIRECTORY = "TRIO_SCHED_RUNTIME_DIR"
ENV_CONNECTION = "TRIO_SCHED_CONNECTION"
#: Set in a worker and in the processes that its tasks start: "NAME" or "NAME on HOST", the scheduler of the worker.
ENV_ENGINE_OF = "TRIO_SCHED_ENGINE_OF"
#: Longest path of a Unix socket that Linux (107) and macOS (103) accept.
MAX_IPC_PATH_BYTES = 103
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class ConnectionInfo(Struct, frozen=True, omit_defaults=True):
    """The data that one role needs to connect to one scheduler; the content of a connection file.

    `address` is "ipc:///path.sock" or "tcp://host:port". `token` proves the role. `scheduler` is the id of the
    instance, new at each start. `pid` and `host` show whether it still runs. For TCP the three keys are CURVE keys in
    Z85 text. `websocket` is the URL of the WebSocket front; empty: the scheduler has none.
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
        """Omit the secrets, which must not appear in logs and tracebacks."""
        return f"ConnectionInfo(name={self.name!r}, role={self.role!r}, address={self.address!r}, pid={self.pid})"


def to_json(connection: ConnectionInfo) -> str:
    """Return the content of a connection file."""
    return msgspec.json.format(msgspec.json.encode(connection), indent=2).decode()


def from_json(text: str | bytes, *, source: str = "the connection") -> ConnectionInfo:
    """Parse the content of a connection file.

    :raises ConnectionFileError: the text is not valid; the message begins with `source`.
    """
    try:
        return msgspec.json.decode(text, type=ConnectionInfo)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConnectionFileError(
            f"{source} is not a connection file of trio_sched ({error}); restart the scheduler, which writes a new one"
        ) from None


# ---- the directory --------------------------------------------------------------------------------------------------


def host_name() -> str:
    """Return the name of this machine, as in connection files and hellos."""
    if hasattr(os, "uname"):
        return os.uname().nodename
    import platform  # costs a few milliseconds

    return platform.node()


def runtime_dir() -> Path:
    """Return the directory of this user's connection files and sockets. It is created (mode 0700) if it does not exist.

    It is $TRIO_SCHED_RUNTIME_DIR, else $XDG_RUNTIME_DIR/trio_sched, else <temporary directory>/trio_sched-<uid>.

    :raises ConfigError: it is a symbolic link, belongs to another user, is open to other users, or cannot be created;
        or another user could replace a directory of its path.
    """
    directory = _create_runtime_path()
    require_private_directory(directory)
    return directory


@contextmanager
def _opened(directory: Path | None) -> Iterator[tuple[Path, int]]:
    """Yield the path and a descriptor of a private directory; None: the runtime directory. Raises as `runtime_dir`."""
    directory = directory or _create_runtime_path()
    with open_private_directory(directory) as descriptor:
        yield directory, descriptor


def _create_runtime_path() -> Path:
    directory = _runtime_path()
    require_safe_path(directory)  # before a directory is created in one of another user
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create the runtime directory {directory}: {error}; set {ENV_DIRECTORY}") from error
    return directory


def _runtime_path() -> Path:
    if chosen := os.environ.get(ENV_DIRECTORY):
        return Path(chosen)
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(session) / "trio_sched"
    import tempfile  # costs 3 ms, which most workers save

    return Path(tempfile.gettempdir()) / f"trio_sched-{os.getuid()}"


def ipc_address(name: str, directory: Path | None = None) -> str:
    """Return the address of the local socket of the scheduler `name`.

    :raises ConfigError: the name is not allowed in a file name, or the path is too long for a Unix socket.
    """
    path = str(((directory or runtime_dir()) / f"{_check_name(name)}.sock").absolute())
    if len(os.fsencode(path)) > MAX_IPC_PATH_BYTES:
        raise ConfigError(
            f"the path {path} is longer than the {MAX_IPC_PATH_BYTES} bytes of a Unix socket; "
            f"set {ENV_DIRECTORY} to a shorter one"
        )
    return f"ipc://{path}"


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name: {name!r} must be letters, digits, '_', '-' and '.', and not begin with '-' or '.'")
    return name


# ---- writing --------------------------------------------------------------------------------------------------------


def connection_path(name: str, role: Role, directory: Path | None = None) -> Path:
    """Return the path of the connection file of a role, whether or not the file exists."""
    return (directory or runtime_dir()) / f"{_check_name(name)}-{role}.json"


def write_connection_files(
    client: ConnectionInfo, engine: ConnectionInfo, directory: Path | None = None
) -> tuple[Path, Path]:
    """Write both files, and replace those of a former scheduler of that name. Return their paths."""
    with _opened(directory) as (path, descriptor):
        return _write(client, path, descriptor), _write(engine, path, descriptor)


def _write(connection: ConnectionInfo, directory: Path, descriptor: int) -> Path:
    path = connection_path(connection.name, connection.role, directory)
    draft = f".{path.name}.{os.getpid()}"
    with suppress(FileNotFoundError):
        os.unlink(draft, dir_fd=descriptor)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=descriptor), "wb") as file:
        file.write(to_json(connection).encode() + b"\n")
    os.rename(draft, path.name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
    return path


def remove_connection_files(client: ConnectionInfo, engine: ConnectionInfo, directory: Path | None = None) -> None:
    """Remove both files, unless they belong to another scheduler of the same name by now."""
    with _opened(directory) as (where, descriptor):
        for connection in (client, engine):
            path = connection_path(connection.name, connection.role, where)
            with suppress(ConnectionFileError, FileNotFoundError):
                if read_connection_file(path, descriptor).scheduler == connection.scheduler:
                    os.unlink(path.name, dir_fd=descriptor)


# ---- reading --------------------------------------------------------------------------------------------------------


def read_connection_file(path: str | Path, directory: int | None = None) -> ConnectionInfo:
    """Read a connection file; with `directory` (a descriptor), the file of that name in it.

    :raises ConnectionFileError: the file is missing, malformed, not a regular file, another user's, or open to others.
    """
    path = Path(path).expanduser()
    return from_json(read_private_file(path, directory), source=str(path))


def is_stale(connection: ConnectionInfo) -> bool:
    """Whether the scheduler has ended: it ran on this host, and its process or its local socket no longer exists."""
    if connection.host != host_name():
        return False
    if connection.address.startswith("ipc://") and not os.path.exists(connection.address.removeprefix("ipc://")):
        return True
    return connection.pid > 0 and not _is_running(connection.pid)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# ---- finding --------------------------------------------------------------------------------------------------------


_ADDRESS = re.compile(r"\w+://.*|[\w.-]+:\d+")


def find_connection(where: str | Path | None, role: Role) -> ConnectionInfo:
    """Find the connection of a running scheduler for `role`.

    `where` is a path or a name; None: $TRIO_SCHED_CONNECTION, else the only scheduler that runs. A string with a slash,
    or that ends in ".json", is a path. The path of a directory means the only scheduler in it.

    :raises NoSchedulerError: no scheduler was found, or several; the message lists their names.
    :raises ConnectionFileError: the named file cannot be used.
    :raises ConfigError: the directory to search cannot be trusted.
    """
    if where is None:
        where = os.environ.get(ENV_CONNECTION) or None
        if where is not None and role == "client" and ENV_ENGINE_OF in os.environ:
            _require_client_file(Path(where))
    if where is None:
        return _find_only_one(None, role)
    if isinstance(where, str) and _ADDRESS.fullmatch(where):
        raise ConnectionFileError(
            f"{where!r} is an address, which does not do without the keys of the scheduler there; copy its connection "
            f"file NAME-{role}.json to here, and give the path of that"
        )
    if isinstance(where, Path) or "/" in where or where.endswith(".json"):
        path = Path(where).expanduser()
        return _find_only_one(Path(os.path.realpath(path)), role) if path.is_dir() else _read_path(path, role)
    return _find_by_name(where, role)


def client_file_of(connection: ConnectionInfo, where: str | Path | None = None) -> Path:
    """Return the path of the client's connection file of a scheduler on this machine.

    Searched are the directory of the engine's file `where` (if it is a path), that of the local socket, and the runtime
    directory. If no file exists, the first path is returned.
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
    """Check that a task, or a process that it started, can be a client.

    :raises NoSchedulerError: the file does not exist.
    """
    if not path.exists():
        raise NoSchedulerError(
            f"this runs on an engine of the scheduler {os.environ[ENV_ENGINE_OF]}, but its connection file for "
            f"clients, {path}, is not on this machine (or the scheduler has shut down). To allow tasks here to be "
            f"clients, copy {path.name} from the scheduler's machine to there, with mode 0600; "
            "a client cannot use the key of an engine"
        )


def _read_path(path: Path, role: Role) -> ConnectionInfo:
    connection = read_connection_file(path)
    if connection.role != role:
        raise ConnectionFileError(
            f"{path} is the connection file for the role {connection.role!r}, but {role!r} is needed; "
            f"take {connection.name}-{role}.json"
        )
    if is_stale(connection):
        raise ConnectionFileError(
            f"the connection file {path} is stale: its scheduler (process {connection.pid}) is gone; start a new one"
        )
    return connection


def _find_by_name(name: str, role: Role) -> ConnectionInfo:
    with _opened(None) as (directory, descriptor):
        path = connection_path(name, role, directory)
        if path.name not in list_names(descriptor, path.name):
            running, _ = _list_running(directory, descriptor, role)
            raise NoSchedulerError(f"no scheduler named {name!r} in {directory}; running there: {_names(running)}")
        connection = _read_running(path, descriptor, role)
    if connection is None:
        raise NoSchedulerError(f"the scheduler {name!r} is gone and left {path} behind; start a new one")
    return connection


def _read_running(path: Path, directory: int, role: Role) -> ConnectionInfo | None:
    connection = read_connection_file(path, directory)
    return None if is_stale(connection) or connection.role != role else connection


def _list_running(directory: Path, descriptor: int, role: Role) -> tuple[list[ConnectionInfo], list[str]]:
    """Return the connections of running schedulers, and for each unusable file the reason."""
    running: list[ConnectionInfo] = []
    unusable: list[str] = []
    for name in list_names(descriptor, f"-{role}.json"):
        path = directory / name
        try:
            connection = _read_running(path, descriptor, role)
        except ConnectionFileError as error:
            unusable.append(str(error))
            continue
        if connection is None:
            unusable.append(f"{path} is stale")
        else:
            running.append(connection)
    return running, unusable


def _find_only_one(where: Path | None, role: Role) -> ConnectionInfo:
    with _opened(where) as (directory, descriptor):
        running, unusable = _list_running(directory, descriptor, role)
    if len(running) == 1:
        return running[0]
    if running:
        raise NoSchedulerError(
            f"{len(running)} schedulers run: {_names(running)}; name one of them, or set {ENV_CONNECTION}"
        )
    left_behind = f" ({'; '.join(unusable)})" if unusable else ""
    raise NoSchedulerError(f"no scheduler runs in {directory}{left_behind}; start one with: trio-sched up")


def _names(running: list[ConnectionInfo]) -> str:
    return ", ".join(connection.name for connection in running) or "none"
