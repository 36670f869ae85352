"""The first message of a connection: the identity of this process, the session to resume, and what its role adds."""

from __future__ import annotations

import os
import sys
from typing import Literal, NamedTuple, TypedDict, Unpack

from trio_sched.wire.native import Hello, sendable
from trio_sched.wire.ranges import LENGTHS


class SessionKey(NamedTuple):
    """Names a session of one scheduler instance, and proves that the peer owns it."""

    #: The session's number. 0: the peer has no session yet.
    number: int = 0
    secret: str = ""
    #: The instance id of the scheduler, as its `Welcome` gave it.
    scheduler: str = ""


NO_SESSION = SessionKey()


class RoleFields(TypedDict, total=False):
    """The fields of `Hello` that one role or another adds; absent ones keep the default of `Hello`."""

    # client
    received: int
    accepted: int
    admin: bool
    weight: float
    cwd: str
    path: list[str]
    cancel_on_leave: bool
    # engine
    nanny: int
    slots: int
    hwm: int | None
    resources: dict[str, float]
    holding: list[int]


def build_hello(
    role: Literal["client", "engine", "nanny"],
    token: str,
    *,
    host: str,
    name: str = "",
    session: SessionKey = NO_SESSION,
    **fields: Unpack[RoleFields],
) -> Hello:
    """Build the `Hello` of this process.

    :param token: the role's token from the connection file.
    :param host: the name of this machine; characters that UTF-8 cannot hold are escaped, and a long name is cut.
    :param name: the peer's name, for people; escaped likewise.
    :param session: the session to resume.
    """
    return Hello(
        role=role,
        token=token,
        session=session.number,
        secret=session.secret,
        scheduler=session.scheduler,
        name=sendable(name),
        host=sendable(host)[: LENGTHS["host"]],
        pid=os.getpid(),
        python=sys.version.split()[0],
        **fields,
    )
