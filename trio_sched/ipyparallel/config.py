"""The settings of the drop-in controller. settings.py maps ipcontroller's names to them."""

from __future__ import annotations

import math
import platform
import secrets
from pathlib import Path
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from trio_sched.errors import ConfigError
from trio_sched.server.config import SCHEMES, Config
from trio_sched.transport.zmq_admission import is_local_address

Side: TypeAlias = Literal["client", "engine"]
SIDES: tuple[Side, Side] = ("client", "engine")
Database: TypeAlias = Literal["dictdb", "sqlitedb", "nodb"]
DATABASES = ("dictdb", "sqlitedb", "nodb")
_HIGHEST_PORT = 65535


class IppConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings, with ipcontroller's defaults where it has them.

    :raises ConfigError: a value is out of its range; the message names the setting, the value and the range.
    """

    #: Connection files are in its `security` directory, logs in `log`, the database in the directory itself.
    profile_dir: str
    cluster_id: str = ""
    # ---- addresses and ports ----
    #: The address of the sockets for clients; with transport ipc a prefix of paths.
    client_ip: str = "127.0.0.1"
    engine_ip: str = "127.0.0.1"
    client_transport: Literal["tcp", "ipc"] = "tcp"
    engine_transport: Literal["tcp", "ipc"] = "tcp"
    #: The name of this machine in connection files, for peers on other machines.
    location: str = platform.node()
    #: 0: a port of a pool, or any.
    registration_port: int = 0
    #: Pools of ports, for both sides and for each. When a pool is used up, any port is taken.
    ports: tuple[int, ...] = ()
    client_ports: tuple[int, ...] = ()
    engine_ports: tuple[int, ...] = ()
    #: USER@HOST through which clients tunnel.
    ssh_server: str = ""
    engine_ssh_server: str = ""
    #: Take key and ports from existing connection files, and do not remove them at the end.
    reuse: bool = False
    # ---- authentication and limits ----
    #: The key that signs messages; None: a new one; empty: messages are not signed.
    key: str | None = None
    signature_scheme: str = "hmac-sha256"
    #: None: CURVE if a socket listens on other addresses than this machine's own, and no ssh tunnel is configured.
    curve: bool | None = None
    #: Empty, with CURVE: a new pair.
    curve_publickey: str = ""
    curve_secretkey: str = ""
    #: Without CURVE: whether users of this machine other than the controller's and root may connect.
    other_users: bool = False
    #: The size of the largest frame; 0: no limit.
    max_message_bytes: int = 0
    #: Connections to all ports; 0: as many as the descriptor limit allows. An engine has several.
    max_connections: int = 0
    #: Connections from one remote address; 0: half of `max_connections`.
    max_connections_per_address: int = 0
    #: Subscriptions, and ends of subscriptions, of one connection to a port that publishes; with more it is reset.
    max_subscriptions: int = 1000
    # ---- engines ----
    ping_ms: int = 3000
    #: Pings in a row that an engine may miss; one that misses more is removed.
    missed_pings: int = 10
    #: Time from a registration request to the first pong; 0: as ipcontroller has it.
    registration_timeout_s: float = 0.0
    # ---- tasks ----
    scheme: str = "leastload"
    hwm: int = 1
    #: Bytes of unfinished tasks; a task beyond the limit is refused. None: a quarter of the memory.
    total_bytes: int | None = None
    #: Ports of the engines' broadcast socket.
    broadcast_leaves: int = 2
    # ---- records ----
    database: Database = "dictdb"
    database_options: dict[str, Any] = {}

    def __post_init__(self) -> None:
        for wrong, setting, wanted in (
            (self.scheme not in SCHEMES, "scheme", f"it must be one of {', '.join(SCHEMES)}"),
            (self.hwm < 0, "hwm", "it must be at least 0 (0: no limit)"),
            (self.total_bytes is not None and self.total_bytes < 1, "total_bytes", "it must be at least 1"),
            (self.ping_ms < 1, "ping_ms", "it must be at least 1"),
            (self.missed_pings < 0, "missed_pings", "it must be at least 0"),
            (not 0 <= self.registration_timeout_s < math.inf, "registration_timeout_s", "it must be at least 0"),
            (self.broadcast_leaves < 1, "broadcast_leaves", "it must be at least 1"),
            (self.max_connections < 0, "max_connections", "it must be at least 0 (0: as many as descriptors allow)"),
            (self.max_connections_per_address < 0, "max_connections_per_address", "it must be at least 0 (0: half)"),
            (self.max_subscriptions < 1, "max_subscriptions", "it must be at least 1"),
            (self.max_message_bytes < 0, "max_message_bytes", "it must be at least 0 (0: no limit)"),
            (bool(self.curve_publickey) != bool(self.curve_secretkey), "curve_publickey", "give both keys or neither"),
            ("/" in self.cluster_id or "\0" in self.cluster_id, "cluster_id", "it becomes part of a file name"),
        ):
            if wrong:
                raise ConfigError(f"{setting} = {getattr(self, setting)!r}: {wanted}")
        for port in (self.registration_port, *self.ports, *self.client_ports, *self.engine_ports):
            if not 0 <= port <= _HIGHEST_PORT:
                raise ConfigError(f"port {port}: it must be from 1 to {_HIGHEST_PORT}")

    @property
    def security_dir(self) -> Path:
        """The directory of the connection files."""
        return Path(self.profile_dir) / "security"

    def interface(self, side: Side) -> str:
        """Return transport and address of one side, such as "tcp://127.0.0.1", without a port."""
        if side == "client":
            return f"{self.client_transport}://{self.client_ip}"
        return f"{self.engine_transport}://{self.engine_ip}"

    def dask_host(self) -> str | None:
        """Return the address that a Dask scheduler binds if its client names none; None: all addresses.

        Clients and engines can reach it at the address of this controller, if both use the same one.
        """
        hosts = {
            address if transport == "tcp" else "127.0.0.1"
            for address, transport in (
                (self.client_ip, self.client_transport),
                (self.engine_ip, self.engine_transport),
            )
        }
        return None if len(hosts) > 1 or hosts & {"0.0.0.0", "*", "::"} else hosts.pop()

    @property
    def is_remote(self) -> bool:
        """Whether a socket accepts connections from other machines."""
        return not all(is_local_address(address_of(self.interface(side), 0)) for side in SIDES)

    @property
    def uses_curve(self) -> bool:
        """Whether connections are encrypted: the value of `curve`, or its default.

        ipyparallel's clients and engines do not support CURVE through their own ssh tunnel.
        """
        if self.curve is None:
            return self.is_remote and not self.ssh_server and not self.engine_ssh_server
        return self.curve

    def effective_registration_timeout_s(self) -> float:
        """Return the time from a registration request to the first pong, after which the registration is given up."""
        return self.registration_timeout_s or max(30.0, self.ping_ms / 100)

    def for_server(self, **settings: Any) -> Config:
        """Return the settings of the server that make this front behave as ipcontroller; `settings` override them."""
        own = {"scheme": self.scheme, "hwm": self.hwm, "shutdown_grace_s": 0.0}
        limits = {
            "max_connections": self.max_connections,
            "max_connections_per_address": self.max_connections_per_address,
        }
        return Config(**{**own, **limits, **settings})


def new_key() -> str:
    """Return a random key for signing."""
    return secrets.token_hex(32)


def address_of(interface: str, port: int) -> str:
    """Return the address of a port, as peers build it from the connection file. With ipc the address is a path."""
    return f"{interface}:{port}"


def is_wildcard(interface: str) -> bool:
    """Return whether a socket there listens on all addresses of this machine."""
    return interface in ("tcp://*", "tcp://0.0.0.0", "tcp://[::]")
