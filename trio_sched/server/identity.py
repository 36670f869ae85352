"""Who this scheduler is: its instance, its secrets, where it listens; and what it tells the world in connection files.

A new instance has new secrets: a peer of a former one is refused rather than mistaken for one of ours.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from trio_sched.errors import ConfigError
from trio_sched.server.config import Config
from trio_sched.transport.connection import Connection, Role, host_name, ipc_address, runtime_dir
from trio_sched.transport.curve import Keys, new_keys
from trio_sched.transport.private import require_private, require_safe_way

_TOKEN_BYTES = 32
_WILDCARDS = ("0.0.0.0", "*", "[::]")


class Identity(Struct, frozen=True):
    """What is fixed before anybody listens."""

    name: str
    instance: str
    address: str
    """Where the native front is told to listen; "": a local socket in `directory`."""
    directory: Path
    tokens: dict[Role, str]
    keys: Keys | None
    """CURVE keys; None on a local socket, which the directory protects."""

    def __repr__(self) -> str:
        """Without the secrets."""
        return f"Identity(name={self.name!r}, instance={self.instance!r}, address={self.address!r})"

    def native_address(self) -> str:
        """Where the native front listens.

        :raises ConfigError: the path of the local socket is too long.
        """
        return self.address or ipc_address(self.name, self.directory)


def new_identity(config: Config) -> Identity:
    """Fresh secrets.

    :raises ConfigError: the runtime directory will not do.
    """
    directory = _directory(config)
    tokens: dict[Role, str] = {role: secrets.token_hex(_TOKEN_BYTES) for role in ("client", "engine")}
    if config.websocket_token:
        tokens["client"] = config.websocket_token
    keys = new_keys() if config.address.startswith("tcp://") else None
    return Identity(config.name, secrets.token_hex(8), config.address, directory, tokens, keys)


def _directory(config: Config) -> Path:
    if not config.runtime_dir:
        return runtime_dir()
    directory = Path(config.runtime_dir).expanduser().absolute()
    require_safe_way(directory)  # before anything is made in a directory of another user
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"runtime_dir = {config.runtime_dir!r}: it cannot be made: {error.strerror}") from None
    require_private(directory)
    return directory


def connections(identity: Identity, config: Config, addresses: Mapping[str, str]) -> tuple[Connection, Connection]:
    """What the connection files of clients and of engines say, once the fronts listen at these addresses."""
    return _connection(identity, config, "client", addresses), _connection(identity, config, "engine", addresses)


def _connection(identity: Identity, config: Config, role: Role, addresses: Mapping[str, str]) -> Connection:
    host = host_name()
    keys = identity.keys
    return Connection(
        name=identity.name,
        role=role,
        address=_reachable(addresses.get("native", ""), config.advertised_host or host),
        token=identity.tokens[role],
        scheduler=identity.instance,
        pid=os.getpid(),
        host=host,
        server_key=keys.server.public if keys else "",
        public_key=keys.roles[role].public if keys else "",
        secret_key=keys.roles[role].secret if keys else "",
        websocket=addresses.get("websocket", "") if role == "client" else "",
    )


def _reachable(address: str, host: str) -> str:
    """An address that others can connect to: a wildcard is no place."""
    for wildcard in _WILDCARDS:
        prefix = f"tcp://{wildcard}:"
        if address.startswith(prefix):
            return f"tcp://{host}:{address.removeprefix(prefix)}"
    return address
