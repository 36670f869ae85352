"""What a nanny tells its worker, as lines of JSON on its standard input: first `Start`, then `News` and `Moved`.

The pipe is the worker's lifeline as well: its end means that the nanny is gone, and the worker ends too. Secrets
travel here, since everybody on the machine can read a process's arguments, and its environment would be handed on to
what tasks start.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from msgspec import Struct

from trio_sched.transport.connection import Connection


class Start(Struct, tag="start", omit_defaults=True):
    """How to begin. `board` and `faults` are files to write to; `nanny`: News of it will come, wait for them before
    the hello. `client_file`: the path by which a `Client()` inside of a task finds this scheduler; "": not known.
    """

    connection: Connection
    name: str = ""
    slots: int = 1
    hwm: int | None = None
    resources: dict[str, float] = {}
    board: str = ""
    faults: str = ""
    nanny: bool = False
    client_file: str = ""


class News(Struct, tag="news"):
    """The nanny has a session with this scheduler instance: say so in the hello, and its beats count for you."""

    nanny: int
    scheduler: str


class Moved(Struct, tag="moved"):
    """The scheduler was restarted: it is to be reached, and convinced, like this."""

    connection: Connection


Order: TypeAlias = Start | News | Moved
_decoder = msgspec.json.Decoder(Order)
decode = _decoder.decode


def encode(order: Order) -> bytes:
    """One line."""
    return msgspec.json.encode(order) + b"\n"
