"""The connection files, where clients and engines find them: ipcontroller-client.json and ipcontroller-engine.json in
the profile's `security` directory; with a cluster id, ipcontroller-ID-client.json and ipcontroller-ID-engine.json.

The files contain the key, so they are created with access for their owner only, and former files that others can
access are not read (transport/private_files.py). A file appears by a rename after every socket is bound: a peer that
finds one can connect.
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
from trio_sched.ipyparallel.config import SIDES, IppConfig, Side
from trio_sched.logs import get_logger
from trio_sched.transport.private_files import read_private_file
from trio_sched.wire.jupyter import Codec

log = get_logger(__name__)
#: The entries that must be equal in both files.
_SHARED = ("key", "registration", "pack", "unpack", "signature_scheme")


def path_of(config: IppConfig, side: Side) -> Path:
    """Return the path of the connection file for clients or for engines."""
    middle = f"-{config.cluster_id}" if config.cluster_id else ""
    return config.security_dir / f"ipcontroller{middle}-{side}.json"


def content_of(
    config: IppConfig, side: Side, ports: Mapping[str, int | list[int]], codec: Codec, server_key: str | None
) -> dict[str, Any]:
    """Return the content of the connection file of one side.

    :param server_key: the public CURVE key of the sockets; None: no CURVE.
    """
    content: dict[str, Any] = {
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
        content["task_scheme"] = config.scheme
    return content


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file with access for its owner only; it appears complete.

    :raises ConfigError: the directory cannot be written to.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=2)
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        raise ConfigError(f"cannot write the connection file {path}: {error.strerror}") from None


def remove(path: Path, content: Mapping[str, Any]) -> None:
    """Remove a file if it has this content: another controller may have replaced it."""
    with contextlib.suppress(OSError, ValueError, ConnectionFileError):
        if json.loads(read_private_file(path)) == json.loads(json.dumps(content)):
            path.unlink()


def read_former(config: IppConfig) -> dict[Side, dict[str, Any]]:
    """Read the connection files of a former run, with its key and ports.

    Returns an empty dict if a file is missing or unusable: malformed, or accessible to other users, who may have
    written it or know the key.
    """
    former: dict[Side, dict[str, Any]] = {}
    for side in SIDES:
        path = path_of(config, side)
        if not os.path.lexists(path):
            return {}
        try:
            content = json.loads(read_private_file(path))
            if not isinstance(content, dict) or not all(name in content for name in _SHARED):
                raise ValueError(f"it must be a dictionary with {', '.join(_SHARED)}")
        except (ConnectionFileError, ValueError) as error:
            log.warning(
                "not using the former connection file; key and ports are new", path=str(path), reason=str(error)
            )
            return {}
        former[side] = content
    if any(former["client"][name] != former["engine"][name] for name in _SHARED):
        log.warning("cannot use the former connection files: they differ", directory=str(config.security_dir))
        return {}
    return former
