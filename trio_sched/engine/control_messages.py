"""Messages from a nanny to its worker: lines of JSON on standard input, first `StartWorker`, then any of the others.

End of file on the pipe means that the nanny has exited; the worker then exits too. Secrets travel through the pipe
because every user of the machine can read a process's arguments, and tasks pass the environment on to their children.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from msgspec import Struct

from trio_sched.transport.connection_info import ConnectionInfo


class StartWorker(Struct, tag="start", omit_defaults=True):
    """The options of a worker."""

    connection: ConnectionInfo
    name: str = ""
    slots: int = 1
    hwm: int | None = None
    resources: dict[str, float] = {}
    #: Path of the file that `WorkerStatus` maps; "": none.
    status_path: str = ""
    #: Path of the file for faulthandler's output; "": standard error.
    faults: str = ""
    #: Whether the worker has a nanny: the worker waits for `NannyJoined` before it sends its hello.
    nanny: bool = False
    #: Path by which a `Client()` inside a task finds this scheduler; "": unknown.
    client_file: str = ""


class NannyJoined(Struct, tag="news"):
    """The nanny has a session with this scheduler instance.

    The worker's hello names that session, and the nanny's heartbeats then count for the worker.
    """

    nanny: int
    scheduler: str


class SchedulerMoved(Struct, tag="moved"):
    """The scheduler was restarted and has another address or token."""

    connection: ConnectionInfo


ControlMessage: TypeAlias = StartWorker | NannyJoined | SchedulerMoved
_decoder = msgspec.json.Decoder(ControlMessage)
#: Decode one line. :raises msgspec.DecodeError: the line is not a control message.
decode = _decoder.decode


def encode(message: ControlMessage) -> bytes:
    """Encode as one line."""
    return msgspec.json.encode(message) + b"\n"
