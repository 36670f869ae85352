"""trio_sched: a task scheduler for Python work on one machine or many.

    with trio_sched.Client() as client:                 # finds the running scheduler; Client(engines=4) brings one
        future = client.submit(fit, data, depth=3)      # concurrent.futures.Executor, exactly

A map of the package:

    errors.py    every error, under one root
    core/        the scheduling rules: pure, synchronous, fed with events and time, answering with effects
    wire/        bytes to messages and back; Python objects to bytes and back
    transport/   the only files that touch sockets; connection files
    server/      the scheduler process: sockets to events, one actor that owns the state, effects to sockets
    web/         the WebSocket front
    client/      Client (blocking) and open_client (trio, asyncio), on one protocol core without sockets
    engine/      the worker, which runs calls, and the nanny, which looks after the workers of a machine
    testing/     fakes and a simulator, for our tests and yours
    cli/         the command line

Names are imported when they are first used (PEP 562): a worker must not pay for the client, nor anybody for trio who
does not use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trio_sched.client.aio import AsyncClient, open_client
    from trio_sched.client.async_future import AsyncFuture
    from trio_sched.client.blocking import Client, current_client
    from trio_sched.client.functional import depend, require
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

_HOMES = {
    "AsyncClient": "client.aio",
    "AsyncFuture": "client.async_future",
    "AsyncTaskGroup": "client.group",
    "Client": "client.blocking",
    "Future": "client.future",
    "as_completed": "client.waiting",
    "current_client": "client.blocking",
    "depend": "client.functional",
    "open_client": "client.aio",
    "require": "client.functional",
    "wait": "client.waiting",
}
"""Where a public name lives; those that are not here, in errors."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
