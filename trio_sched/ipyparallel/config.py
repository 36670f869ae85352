"""The settings of the drop-in controller. What ipcontroller calls them is the command line's business."""

from __future__ import annotations

import math
import platform
import secrets
from pathlib import Path
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from trio_sched.errors import ConfigError
from trio_sched.server.config import SCHEMES, Config
from trio_sched.transport.zmq_admission import is_local

Side: TypeAlias = Literal["client", "engine"]
SIDES: tuple[Side, Side] = ("client", "engine")
Database: TypeAlias = Literal["dictdb", "sqlitedb", "nodb"]
DATABASES = ("dictdb", "sqlitedb", "nodb")
_HIGHEST_PORT = 65535


class IppConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings, with ipcontroller's defaults where it has them."""

    profile_dir: str
    """Connection files go into its `security`, the database and logs beside that."""
    cluster_id: str = ""
    # where to listen
    client_ip: str = "127.0.0.1"
    """Of the sockets for clients; a path prefix with transport ipc."""
    engine_ip: str = "127.0.0.1"
    client_transport: Literal["tcp", "ipc"] = "tcp"
    engine_transport: Literal["tcp", "ipc"] = "tcp"
    location: str = platform.node()
    """What connection files call this machine, for peers on others."""
    registration_port: int = 0
    """0: from the pools, or any."""
    ports: tuple[int, ...] = ()
    """Pools of ports; when one is used up, any port."""
    client_ports: tuple[int, ...] = ()
    engine_ports: tuple[int, ...] = ()
    ssh_server: str = ""
    """Through which clients tunnel."""
    engine_ssh_server: str = ""
    reuse: bool = False
    """Keep key and ports of the connection files that are there, and leave them there at the end."""
    # who may connect
    key: str | None = None
    """With which messages are signed; None: a new one, empty: unsigned."""
    signature_scheme: str = "hmac-sha256"
    curve: bool | None = None
    """None: if a socket listens on more than this machine's own addresses, and no ssh tunnel is configured."""
    curve_publickey: str = ""
    """Empty, with CURVE: a new pair."""
    curve_secretkey: str = ""
    other_users: bool = False
    """Without CURVE, whether other users of this machine than the controller's and root may connect."""
    max_message_bytes: int = 0
    """The largest frame; 0: no limit."""
    max_connections: int = 0
    """Connections to all ports at once; 0: as many as the descriptor limit allows. An engine takes several."""
    max_connections_per_address: int = 0
    """Of one remote address; 0: half of `max_connections`."""
    max_subscriptions: int = 1000
    """What one connection may subscribe to, and take back, at a port that publishes; one that does more is reset."""
    # engines
    ping_ms: int = 3000
    missed_pings: int = 10
    """An engine that misses one more is gone."""
    registration_timeout_s: float = 0.0
    """How long a registered engine may take until its heart beats; 0: as ipcontroller has it."""
    # tasks
    scheme: str = "leastload"
    hwm: int = 1
    total_bytes: int | None = None
    """Bytes of unfinished tasks that are held; a task beyond that is refused. None: a quarter of the memory."""
    broadcast_leaves: int = 2
    """Ports for the broadcast view's engines (there is one socket behind them)."""
    # records
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
        """Where the connection files are."""
        return Path(self.profile_dir) / "security"

    def interface(self, side: Side) -> str:
        """Transport and address, to which a port is added."""
        if side == "client":
            return f"{self.client_transport}://{self.client_ip}"
        return f"{self.engine_transport}://{self.engine_ip}"

    def dask_host(self) -> str | None:
        """The address that a Dask scheduler binds, when a client asks for one and names none; None: all.

        Clients and engines reach it where they reach this controller: at its address, if there is only one.
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
        """Whether a socket listens on more than this machine's own addresses."""
        return not all(is_local(address_of(self.interface(side), 0)) for side in SIDES)

    @property
    def uses_curve(self) -> bool:
        """Whether connections are encrypted: as `curve` says, or by default.

        ipyparallel's clients and engines do not do CURVE through a tunnel of their own.
        """
        if self.curve is None:
            return self.is_remote and not self.ssh_server and not self.engine_ssh_server
        return self.curve

    def patience_s(self) -> float:
        """How long a registered engine may take until its heart beats."""
        return self.registration_timeout_s or max(30.0, self.ping_ms / 100)

    def for_server(self, **settings: Any) -> Config:
        """The server's settings with which this front behaves as ipcontroller does; `settings` come on top."""
        own = {"scheme": self.scheme, "hwm": self.hwm, "shutdown_grace_s": 0.0}
        limits = {
            "max_connections": self.max_connections,
            "max_connections_per_address": self.max_connections_per_address,
        }
        return Config(**{**own, **limits, **settings})


def new_key() -> str:
    """A key to sign with."""
    return secrets.token_hex(32)


def address_of(interface: str, port: int) -> str:
    """The address of a port, as peers build it from the connection file; so even with ipc, where it is a file."""
    return f"{interface}:{port}"


def is_wildcard(interface: str) -> bool:
    """Whether a socket there listens on all addresses of this machine."""
    return interface in ("tcp://*", "tcp://0.0.0.0", "tcp://[::]")
