"""The client of the task that runs: one for each worker process, of the worker's own scheduler."""

from __future__ import annotations

import os
import threading

from trio_sched.client.blocking import Client
from trio_sched.errors import NoSchedulerError, VersionMismatch
from trio_sched.transport.connection import ENV_ENGINE_OF, Connection, find

_lock = threading.Lock()
_current: Client | None = None


def current_client() -> Client:
    """Inside of a task: a client of the scheduler that runs the task.

    All tasks of a worker share it. It is made by the first call, and again when it was shut down, when the scheduler
    was restarted, and in a process that a task forked; it is closed when the worker ends. Tasks that were submitted
    through it go on then. A task that waits for another one keeps its engine busy meanwhile.

    :raises NoSchedulerError: this is not a task, nor a process that a task started; or the scheduler does not answer;
        or the machine of the engine has no connection file for clients (the message says which one to copy).
    """
    global _current
    if ENV_ENGINE_OF not in os.environ:
        raise NoSchedulerError("current_client() is for code that runs in a task; elsewhere use Client()")
    with _lock:
        connection = find(None, "client")
        if _current is None or not _is_usable(_current, connection):
            former, _current = _current, None
            if former is not None and former._line.pid == os.getpid():
                former.shutdown(wait=False)
            _current = Client(connection, name="a task")
        return _current


def _is_usable(client: Client, connection: Connection) -> bool:
    line = client._line
    trouble = line.lookout.trouble
    return line.connection == connection and line.pid == os.getpid() and isinstance(trouble, VersionMismatch | None)


def _renew_lock() -> None:
    """In a forked child, where the thread that held it is not."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
