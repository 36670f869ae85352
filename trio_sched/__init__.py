"""trio_sched: a task scheduler for Python work on one machine or many.

    with trio_sched.Client() as client:                 # finds the running scheduler; Client(engines=4) starts one
        future = client.submit(fit, data, depth=3)      # concurrent.futures.Executor, exactly

A map of the package:

    errors.py    every error, under one root
    logs.py      log events with fields, as records of `logging`
    core/        the scheduling rules: pure and synchronous; events and times in, effects out
    wire/        conversion of bytes to messages and back, and of Python objects to bytes and back
    transport/   the only modules that touch sockets; connection files
    server/      the scheduler process: sockets to events, one actor that owns the state, effects to sockets
    web/         the WebSocket front
    ipyparallel/ the front for ipyparallel's clients and engines
    client/      Client (blocking) and open_client (trio, asyncio), on one session without sockets
    engine/      the worker, which runs calls, and the nanny, which starts and watches the workers of a host
    testing/     fakes and a simulator, for the tests of this package and of its users
    cli/         the command line

Names are imported at their first use (PEP 562): a worker does not load the client, and a process without asynchronous
code does not load trio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trio_sched.client.aio import AsyncClient, open_client
    from trio_sched.client.async_future import AsyncFuture
    from trio_sched.client.blocking import Client, current_client
    from trio_sched.client.conditions import depend, require
    from trio_sched.client.future import Future
    from trio_sched.client.group import AsyncTaskGroup
    from trio_sched.client.waiting import as_completed, wait
    from trio_sched.errors import (
        AddressInUseError,
        CallError,
        ConfigError,
        ConnectionFileError,
        EngineError,
        ImpossibleDependency,
        InvalidDependency,
        NoSchedulerError,
        RemoteTraceback,
        ResultError,
        SchedulerClosed,
        SchedulerError,
        SubmissionRefused,
        SubmitError,
        TaskCancelled,
        TaskError,
        TaskTimeout,
        TrioSchedError,
        UnmetDependency,
        VersionMismatch,
        WireError,
    )

__version__ = "0.1.0"

__all__ = [
    "AddressInUseError",
    "AsyncClient",
    "AsyncFuture",
    "AsyncTaskGroup",
    "CallError",
    "Client",
    "ConfigError",
    "ConnectionFileError",
    "EngineError",
    "Future",
    "ImpossibleDependency",
    "InvalidDependency",
    "NoSchedulerError",
    "RemoteTraceback",
    "ResultError",
    "SchedulerClosed",
    "SchedulerError",
    "SubmissionRefused",
    "SubmitError",
    "TaskCancelled",
    "TaskError",
    "TaskTimeout",
    "TrioSchedError",
    "UnmetDependency",
    "VersionMismatch",
    "WireError",
    "__version__",
    "as_completed",
    "current_client",
    "depend",
    "open_client",
    "require",
    "wait",
]

#: The module of each public name; all other names are in errors.
_HOMES = {
    "AsyncClient": "client.aio",
    "AsyncFuture": "client.async_future",
    "AsyncTaskGroup": "client.group",
    "Client": "client.blocking",
    "Future": "client.future",
    "as_completed": "client.waiting",
    "current_client": "client.blocking",
    "depend": "client.conditions",
    "open_client": "client.aio",
    "require": "client.conditions",
    "wait": "client.waiting",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
