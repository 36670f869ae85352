"""The parameters that `Client` and `open_client` share: one definition of their names, types, defaults and checks."""

from __future__ import annotations

import functools
import inspect
import numbers
import os
import platform
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeAlias, TypeVar, get_args

from trio_sched.transport.connection_info import ConnectionInfo
from trio_sched.wire import native
from trio_sched.wire.hello import build_hello
from trio_sched.wire.ranges import LENGTHS, MAX_PATH_CHARACTERS, RANGES, check_length

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
Reconnect: TypeAlias = Literal["never", "same-name"]

#: The names that other pools give to `engines`.
POOL_WORDS = ("max_workers", "n_workers", "num_workers", "workers", "processes", "n_jobs")


@dataclass(frozen=True)
class ClientSettings:
    """The parameters of a client.

    :raises TypeError: `where` has a wrong type, or parameters contradict each other.
    :raises ValueError: a value is not valid; the message names the parameter.
    """

    #: The name of a running scheduler, the path of its connection file, or its connection. None:
    #: $TRIO_SCHED_CONNECTION, else the only scheduler of this user.
    where: str | Path | ConnectionInfo | None = None
    _: KW_ONLY
    #: Start a local cluster with this number of engines, which ends with the client.
    engines: int | None = None
    #: The local cluster's setting: tasks that an engine holds ahead.
    hwm: int | None = None
    #: The local cluster's setting: how it picks an engine for a task.
    scheme: str | None = None
    #: The client's name in status and dashboards.
    name: str = ""
    #: The client's fair share, relative to other clients (R15).
    weight: float = 1.0
    #: Whether the client's tasks are cancelled when it leaves or is lost.
    cancel_on_leave: bool = False
    #: Seconds to wait for the scheduler's answer, and for the engines of a local cluster to join.
    connect_timeout: float = 10.0
    #: Seconds without a message from the scheduler after which it counts as ended.
    reconnect_s: float = 60.0
    #: "same-name": connect to the next scheduler of the same name or file when this one has ended.
    reconnect: Reconnect = "never"

    def __post_init__(self) -> None:
        for name in ("connect_timeout", "reconnect_s"):
            seconds: Any = getattr(self, name)
            is_number = isinstance(seconds, numbers.Real) and not isinstance(seconds, bool)
            if not is_number or not seconds >= 0:
                raise ValueError(f"{name}={seconds!r}: must be a number of seconds, 0 or more")
        if self.engines is None and (self.hwm is not None or self.scheme is not None):
            raise TypeError("hwm and scheme are settings of a local cluster: Client(engines=N, ...)")
        if self.engines is not None and self.where is not None:
            raise TypeError("Client(where, engines=N): either a running scheduler, or a local cluster")
        if self.reconnect not in get_args(Reconnect):
            choices = " or ".join(map(repr, get_args(Reconnect)))
            raise ValueError(f"reconnect={self.reconnect!r}: must be {choices}")
        if self.engines is not None and self.reconnect != "never":
            raise TypeError('Client(engines=N, reconnect="same-name"): a local cluster is never restarted')

    def make_hello(self, connection: ConnectionInfo) -> native.Hello:
        """Build the client's first message. Engines run its tasks in this process's directory and with its `sys.path`,
        where these exist there and their names are valid UTF-8.

        :raises ValueError: the name or the weight is not valid.
        """
        if not isinstance(self.name, str):
            raise ValueError(f"name={self.name!r}: must be text")
        if not isinstance(self.weight, numbers.Real) or self.weight not in RANGES["weight"]:
            raise ValueError(f"weight={self.weight!r}: must be a number {RANGES['weight']}")
        check_length("name", native.sendable(self.name))
        try:
            cwd = os.getcwd()
        except OSError:  # the directory was removed
            cwd = ""
        return build_hello(
            "client",
            connection.token,
            host=platform.node(),
            name=self.name,
            weight=float(self.weight),
            cwd=cwd if _is_sendable(cwd) and len(cwd) <= LENGTHS["cwd"] else "",
            path=_cut_path([path for entry in sys.path if _is_sendable(path := entry or cwd)]),
            cancel_on_leave=bool(self.cancel_on_leave),
        )


def _cut_path(path: list[str]) -> list[str]:
    """Return the first entries of `sys.path` that fit into a Hello. Warns when entries are left out."""
    characters = 0
    for count, entry in enumerate(path):
        characters += len(entry)
        if count == LENGTHS["path"] or characters > MAX_PATH_CHARACTERS:
            warnings.warn(
                f"sys.path has {len(path):,} entries, too many or too long to be sent: engines get the first {count:,}",
                stacklevel=5,  # the caller of `Client`
            )
            return path[:count]
    return path


def _is_sendable(path: object) -> bool:
    """Whether an entry of `sys.path` is text in valid UTF-8. Python ignores entries that are not text."""
    return isinstance(path, str) and native.sendable(path) == path


# ---- functions that take them as parameters -------------------------------------------------------------------------


def _settings_function(
    _parameters: Callable[P, ClientSettings],
) -> Callable[[Callable[[ClientSettings], R]], Callable[P, R]]:
    def decorate(function: Callable[[ClientSettings], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(_parse(function.__name__, args, kwargs))

        _show_parameters(wrapper)
        return wrapper

    return decorate


def _settings_constructor(
    _parameters: Callable[P, ClientSettings],
) -> Callable[[Callable[[S, ClientSettings], None]], Callable[Concatenate[S, P], None]]:
    def decorate(init: Callable[[S, ClientSettings], None]) -> Callable[Concatenate[S, P], None]:
        @functools.wraps(init)
        def wrapper(self: S, /, *args: P.args, **kwargs: P.kwargs) -> None:
            init(self, _parse(type(self).__name__, args, kwargs))

        _show_parameters(wrapper, inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY))
        return wrapper

    return decorate


#: Decorate a function of one `ClientSettings`: the result has the fields as its parameters, also for type checkers and
#: in `help()`.
takes_settings = _settings_function(ClientSettings)
#: Decorate an `__init__` with one `ClientSettings` likewise.
init_takes_settings = _settings_constructor(ClientSettings)


def _show_parameters(wrapper: Any, *first: inspect.Parameter) -> None:
    """Give a wrapper the signature that `help()` shows."""
    shown = inspect.signature(ClientSettings)
    result = inspect.signature(wrapper).return_annotation
    wrapper.__signature__ = shown.replace(parameters=[*first, *shown.parameters.values()], return_annotation=result)


def _parse(maker: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ClientSettings:
    """Check the arguments of `Client` or `open_client` (the `maker`), with hints for users of other pools.

    :raises TypeError: an argument has a wrong name or type.
    """
    known = [field.name for field in fields(ClientSettings)]
    for word, value in kwargs.items():
        if word in POOL_WORDS:
            count = value if type(value) is int else "N"
            raise TypeError(
                f"{maker}() has no {word}; to start a local cluster with {count} engines write {maker}(engines={count})"
            )
        if word not in known:
            raise TypeError(f"{maker}() has no argument {word!r}; it has {', '.join(known)}")
    where = args[0] if args else kwargs.get("where")
    if isinstance(where, int):
        raise TypeError(
            f"{maker}({where}): the first argument names a running scheduler; to start a local cluster with {where} "
            f"engines write {maker}(engines={where})"
        )
    if where is not None and not isinstance(where, (str, Path, ConnectionInfo)):
        raise TypeError(
            f"{maker}({where!r}): the first argument names a running scheduler: its name, or the path of its "
            "connection file"
        )
    return ClientSettings(*args, **kwargs)
