"""Turning newcomers away from a local socket without accepting them.

libzmq accepts whoever connects to its socket and cannot be told to pause; over ipc it aborts the process when no
descriptor is left. While the gate is closed another socket is at the path: those who connect to it wait in its queue
(or are told to try again, when that is full) and are closed a moment later, by `turn_away`. Connections that were
accepted before are not concerned. Peers of ours try again by themselves.
"""

from __future__ import annotations

import contextlib
import os
import socket as sockets
import sys

QUEUE = 16
"""Newcomers that wait at a closed gate."""


class LocalGate:
    """The gate of one ipc address. Used by one thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._aside = f"{path}~"
        """Where libzmq's socket is while the gate is closed."""
        self._decoy: sockets.socket | None = None

    @property
    def is_closed(self) -> bool:
        """Whether newcomers are turned away."""
        return self._decoy is not None

    def close(self) -> None:
        """Let nobody in any more; does nothing where that is not possible."""
        if self._decoy is not None or sys.platform == "win32":
            return
        new = f"{self._path}^"
        decoy = sockets.socket(sockets.AF_UNIX)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
            decoy.bind(new)
            decoy.setblocking(False)
            decoy.listen(QUEUE)
            os.rename(self._path, self._aside)
            os.rename(new, self._path)
        except OSError:
            decoy.close()
            with contextlib.suppress(OSError):
                os.unlink(new)
            return
        self._decoy = decoy

    def turn_away(self) -> None:
        """Close the connections of those who wait."""
        if self._decoy is None:
            return
        with contextlib.suppress(OSError):  # nobody waits any more
            for _ in range(QUEUE):
                self._decoy.accept()[0].close()

    def open(self) -> None:
        """Let newcomers in again."""
        if self._decoy is None:
            return
        with contextlib.suppress(OSError):
            os.rename(self._aside, self._path)
        self._decoy.close()
        self._decoy = None

    def remove(self) -> None:
        """libzmq's socket is closed: leave nothing of ours behind. The path itself belongs to whoever bound it."""
        if self._decoy is not None:
            self._decoy.close()
            self._decoy = None
            with contextlib.suppress(OSError):
                os.unlink(self._aside)
