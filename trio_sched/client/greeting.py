"""What a client says about itself when it connects, and whether engines can read what it pickles."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence

from trio_sched.transport.connection import Connection
from trio_sched.wire import native


def hello(connection: Connection, *, name: str, weight: float, cancel_on_leave: bool) -> native.Hello:
    """The first message. Engines run our tasks in our directory and with our sys.path, where they exist."""
    try:
        cwd = os.getcwd()
    except OSError:  # it was removed
        cwd = ""
    return native.Hello(
        role="client",
        token=connection.token,
        name=name,
        host=platform.node(),
        pid=os.getpid(),
        python=platform.python_version(),
        weight=weight,
        cwd=cwd,
        path=[entry or cwd for entry in sys.path],
        cancel_on_leave=cancel_on_leave,
    )


def version_problem(ours: str, theirs: Sequence[str]) -> tuple[str, str]:
    """(why nothing can be submitted, what to warn of); empty: nothing. `theirs`: the Python versions of the engines.

    Pickled functions hold bytecode, which differs between minor versions, so an engine of another one cannot run them.
    """
    if not theirs:
        return "", ""
    minor = _minor(ours)
    same = [version for version in theirs if _minor(version) == minor]
    if not same:
        return (
            f"this is Python {ours}, but the engines run Python {', '.join(sorted(set(theirs)))}, which cannot read "
            f"calls pickled here; start engines with Python {minor}",
            "",
        )
    if len(same) < len(theirs):
        others = ", ".join(sorted(set(theirs) - set(same)))
        return "", f"this is Python {ours}, but some engines run Python {others}; tasks that land there will fail"
    if different := sorted(set(same) - {ours}):
        return "", f"this is Python {ours}, but engines run Python {', '.join(different)}"
    return "", ""


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
