"""The identity of a scheduler: its instance, its secrets, where it listens, and the contents of its connection files.

A new instance has new secrets, so that a peer of a former instance is refused and not mistaken for a peer of this one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from trio_sched.errors import ConfigError
from trio_sched.server.config import Config
from trio_sched.transport.connection_info import ConnectionInfo, Role, host_name, ipc_address, runtime_dir
from trio_sched.transport.curve import Keys, new_keys
from trio_sched.transport.private_files import require_private_directory, require_safe_path

_TOKEN_BYTES = 32
_WILDCARDS = ("0.0.0.0", "*", "[::]")


class Identity(Struct, frozen=True):
    """The facts that are fixed before a front listens."""

    name: str
    instance: str
    #: The configured address of the native front; "": a local socket in `directory`.
    address: str
    directory: Path
    tokens: dict[Role, str]
    #: The CURVE keys; None on a local socket, which the mode of the directory protects.
    keys: Keys | None

    def __repr__(self) -> str:
        """Return a text without the secrets."""
        return f"Identity(name={self.name!r}, instance={self.instance!r}, address={self.address!r})"

    def native_address(self) -> str:
        """Return the address at which the native front listens.

        :raises ConfigError: the path of the local socket is too long.
        """
        return self.address or ipc_address(self.name, self.directory)


def new_identity(config: Config) -> Identity:
    """Return an identity with new secrets.

    :raises ConfigError: the runtime directory cannot be used.
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
    require_safe_path(directory)  # before anything is made in a directory of another user
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"runtime_dir = {config.runtime_dir!r}: it cannot be made: {error.strerror}") from None
    require_private_directory(directory)
    return directory


def connections(
    identity: Identity, config: Config, addresses: Mapping[str, str]
) -> tuple[ConnectionInfo, ConnectionInfo]:
    """Return the contents of the connection files of clients and of engines.

    :param addresses: where the fronts listen, by name.
    """
    return _connection(identity, config, "client", addresses), _connection(identity, config, "engine", addresses)


def _connection(identity: Identity, config: Config, role: Role, addresses: Mapping[str, str]) -> ConnectionInfo:
    host = host_name()
    keys = identity.keys
    return ConnectionInfo(
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
    """Return the address for other hosts to connect to: a wildcard is replaced by the host."""
    for wildcard in _WILDCARDS:
        prefix = f"tcp://{wildcard}:"
        if address.startswith(prefix):
            return f"tcp://{host}:{address.removeprefix(prefix)}"
    return address
