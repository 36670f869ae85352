"""Diagnosis of an address that does not answer, for the error messages of clients, engines and commands.

All functions block, for a limited time. Asynchronous callers use a thread.
"""

from __future__ import annotations

import socket
import threading

#: Time limit of one step.
PROBE_S = 1.0
#: Time limit of a diagnosis. Name servers may take half a minute to answer.
DIAGNOSIS_S = 3.0
_ADVICE = (
    "The address comes from the connection file; behind a wildcard such as tcp://0.0.0.0:7077 a scheduler puts the "
    "name of its host there, or the value of --advertised-host"
)
_FULL = (
    ": it runs, but closes new connections, because it has max_connections, or max_connections_per_address from here "
    "(see trio-sched status)"
)


def describe_unanswered(address: str, timeout_s: float = DIAGNOSIS_S) -> str:
    """Try to connect to a scheduler that does not answer. Return the result and the remedy, to follow "did not answer".

    Empty: a local connection is accepted and stays open, so the scheduler is busy or stopped. Takes at most `timeout_s`
    seconds.
    """
    if address.startswith("ipc://"):
        return _probe_path(address.removeprefix("ipc://"))
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    found: list[str] = []
    probe = threading.Thread(target=lambda: found.append(_probe_host(host.strip("[]"), port)), daemon=True)
    probe.start()
    probe.join(timeout_s)
    return (
        found[0] if found else f": the host {host!r} could not be resolved or reached within {timeout_s:g} s. {_ADVICE}"
    )


def resolution_error(host: str) -> str:
    """Return why the host name cannot be resolved on this machine; "" if it can."""
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def _probe_path(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(path)
            return "" if _stays_open(probe) else _FULL
        except TimeoutError:
            return ""
        except (ConnectionRefusedError, FileNotFoundError):
            return ": nothing listens there"
        except (ConnectionError, BlockingIOError):  # not accepted
            return _FULL
        except OSError as error:
            return f": it cannot be reached ({error.strerror or error})"


def _probe_host(host: str, port: str) -> str:
    if problem := resolution_error(host):
        return (
            f": the host {host!r} could not be resolved here ({problem}). {_ADVICE}: start the scheduler with an "
            "--advertised-host that is known here, or make this one known (DNS, /etc/hosts)"
        )
    try:
        with socket.create_connection((host, int(port)), PROBE_S) as probe:
            if not _stays_open(probe):
                return _FULL
    except (OSError, ValueError, OverflowError) as error:
        what = "nothing listens there" if isinstance(error, ConnectionRefusedError) else "it cannot be reached"
        return (
            f": {what}; the host {host!r} could not be reached at port {port} "
            f"({getattr(error, 'strerror', None) or error}). {_ADVICE}: is the scheduler running, does it have that "
            "address, and does a firewall block it?"
        )
    return (
        f": something listens at port {port} of {host!r}; the scheduler is busy or stopped, or the file is that of a "
        "former one, since keys are new at each start: copy it again"
    )


def _stays_open(probe: socket.socket) -> bool:
    """Whether the peer keeps a new connection open for `PROBE_S` seconds."""
    probe.settimeout(PROBE_S)
    try:
        while probe.recv(1024):
            pass
    except TimeoutError:
        return True
    except (ConnectionError, BlockingIOError):
        pass
    return False
