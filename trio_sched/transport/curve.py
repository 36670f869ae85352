"""CURVE keys and ZAP replies: authentication of TCP peers. TCP without CURVE is refused.

The scheduler has a key pair, and each role has one (in its connection file). A ZAP handler admits the public keys of
the two roles and no others. ZAP fails closed: a router whose handler does not run admits no connection. This module
computes the replies; `ZmqSocket.authenticate` is the task of the handler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import zmq
from msgspec import Struct

from trio_sched.errors import ConfigError
from trio_sched.transport.connection_info import ROLES, ConnectionInfo, Role

ZAP_ADDRESS = "inproc://zeromq.zap.01"
ZAP_VERSION = b"1.0"
ZAP_OK, ZAP_REFUSED = b"200", b"400"
ZAP_DOMAIN = "trio_sched"
#: The prefix that a router with keys adds to a routing id, by the role that the key of the connection proves. Peers can
#: choose their routing ids. Without the prefix, a peer could take the id, and so the session, of a peer of another role
#: that has just disconnected.
MARKS: dict[str, bytes] = {role: role[:1].encode("ascii") for role in ROLES}
_ROLE_OF_MARK: dict[bytes, Role] = {MARKS[role]: role for role in ROLES}


class KeyPair(Struct, frozen=True):
    """A CURVE key pair as Z85 text."""

    public: str
    secret: str

    def __repr__(self) -> str:
        """Omit the secret."""
        return f"KeyPair(public={self.public!r})"


class ServerKeys(Struct, frozen=True):
    """The keys of a router: its own pair, and the public key that it admits for each role."""

    own: KeyPair
    allowed: dict[Role, str]


class Keys(Struct, frozen=True):
    """All keys of one scheduler: its own pair and the pair of each role."""

    server: KeyPair
    roles: dict[Role, KeyPair]

    def for_server(self) -> ServerKeys:
        """Return the keys for the router."""
        return ServerKeys(self.server, {role: pair.public for role, pair in self.roles.items()})


def new_keys(roles: Sequence[Role] = ROLES) -> Keys:
    """Generate new keys.

    :raises ConfigError: the installed libzmq has no CURVE.
    """
    if not zmq.has("curve"):
        raise ConfigError("the installed libzmq has no CURVE, which TCP needs; install another pyzmq")
    return Keys(_pair(), {role: _pair() for role in roles})


def _pair() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode("ascii"), secret.decode("ascii"))


def set_server_options(socket: zmq.Socket[bytes], keys: ServerKeys) -> None:
    """Set the CURVE options of a router before it is bound. The ZAP handler must be bound on the same context."""
    socket.curve_server = True
    socket.curve_secretkey = keys.own.secret.encode("ascii")
    socket.curve_publickey = keys.own.public.encode("ascii")
    socket.zap_domain = ZAP_DOMAIN.encode("ascii")
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def set_client_options(socket: zmq.Socket[bytes], connection: ConnectionInfo) -> None:
    """Set the CURVE options of a dealer before it connects, if the connection has keys.

    :raises ConfigError: the address is TCP and the connection has no keys, or its keys are not valid.
    """
    if not connection.server_key:
        if connection.address.startswith("tcp://"):
            raise ConfigError(f"the connection to {connection.address} has no keys; TCP without CURVE is refused")
        return
    try:
        socket.curve_serverkey = connection.server_key.encode("ascii")
        socket.curve_publickey = connection.public_key.encode("ascii")
        socket.curve_secretkey = connection.secret_key.encode("ascii")
    except (zmq.ZMQError, UnicodeEncodeError) as error:
        raise ConfigError(f"the keys of the connection to {connection.address} are not CURVE keys ({error})") from None


def zap_reply(request: Sequence[bytes], roles: Mapping[bytes, Role]) -> list[bytes]:
    """Return the reply to a ZAP request, both without the envelope. `roles` is by public key as 32 raw bytes.

    Request: version, request id, domain, address, identity, mechanism, credentials. Reply: version, request id, status
    code, status text, user id, metadata.
    """
    request_id = request[1] if len(request) > 1 else b""
    if len(request) != 7 or request[0] != ZAP_VERSION:
        return [ZAP_VERSION, request_id, ZAP_REFUSED, b"not a ZAP 1.0 CURVE request", b"", b""]
    role = roles.get(request[6]) if request[5] == b"CURVE" and request[2] == ZAP_DOMAIN.encode("ascii") else None
    if role is None:
        return [ZAP_VERSION, request_id, ZAP_REFUSED, b"unknown key", b"", b""]
    return [ZAP_VERSION, request_id, ZAP_OK, b"OK", role.encode("ascii"), b""]


def role_of(peer: bytes) -> Role:
    """Return the role that the mark of a routing id stands for. `peer` is as received from a router with keys."""
    return _ROLE_OF_MARK[peer[:1]]


def roles_by_key(keys: ServerKeys) -> dict[bytes, Role]:
    """Return the role of each public key, as raw bytes like in ZAP requests."""
    from zmq.utils import z85

    return {z85.decode(public): role for role, public in keys.allowed.items()}
