"""The connection files, where clients and engines look for them: ipcontroller-client.json and -engine.json in the
profile's `security`, with the cluster's id between if it has one.

They hold the key, so they are ours alone from the first byte, and files that are not are not read
(transport/private.py). They appear by a rename when every socket is bound: a peer that finds one can connect.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trio_sched.errors import ConfigError, ConnectionFileError
from trio_sched.ipyparallel.config import IppConfig, Side
from trio_sched.logs import get_logger
from trio_sched.transport.private import read_private
from trio_sched.wire.jupyter import Codec

log = get_logger(__name__)
_SHARED = ("key", "registration", "pack", "unpack", "signature_scheme")
"""What both files must say alike."""


def path_of(config: IppConfig, side: Side) -> Path:
    """Where the file for clients, or that for engines, is."""
    middle = f"-{config.cluster_id}" if config.cluster_id else ""
    return config.security_dir / f"ipcontroller{middle}-{side}.json"


def contents(
    config: IppConfig, side: Side, ports: Mapping[str, int | list[int]], codec: Codec, server_key: str | None
) -> dict[str, Any]:
    """What the file of one side says."""
    inside: dict[str, Any] = {
        "ssh": config.ssh_server if side == "client" else config.engine_ssh_server,
        "interface": config.interface(side),
        **ports,
        "key": codec.key.decode(),
        "curve_serverkey": server_key,
        "location": config.location,
        "pack": "json",
        "unpack": "json",
        "signature_scheme": codec.scheme,
    }
    if side == "client":
        inside["task_scheme"] = config.scheme
    return inside


def write(path: Path, inside: Mapping[str, Any]) -> None:
    """Put a file in its place, complete and private.

    :raises ConfigError: the directory cannot be written to.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(inside, file, indent=2)
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        raise ConfigError(f"cannot write the connection file {path}: {error.strerror}") from None


def remove(path: Path, inside: Mapping[str, Any]) -> None:
    """Remove a file of ours, unless another controller has put its own there."""
    with contextlib.suppress(OSError, ValueError, ConnectionFileError):
        if json.loads(read_private(path)) == json.loads(json.dumps(inside)):
            path.unlink()


def read_former(config: IppConfig) -> dict[Side, dict[str, Any]]:
    """Key and ports of a former run, from its connection files. Empty if they are missing or unusable: malformed, or
    not private to this user, so that another user may have written them or knows the key."""
    former: dict[Side, dict[str, Any]] = {}
    sides: tuple[Side, Side] = ("client", "engine")
    for side in sides:
        path = path_of(config, side)
        if not os.path.lexists(path):
            return {}
        try:
            inside = json.loads(read_private(path))
            if not isinstance(inside, dict) or not all(name in inside for name in _SHARED):
                raise ValueError("it lacks entries")
        except (ConnectionFileError, ValueError) as error:
            log.warning(
                "not using the former connection file; key and ports are new", path=str(path), reason=str(error)
            )
            return {}
        former[side] = inside
    if any(former["client"][name] != former["engine"][name] for name in _SHARED):
        log.warning("cannot use the former connection files: they differ", directory=str(config.security_dir))
        return {}
    return former
