"""A guard for tests: the state of the server changes only in the actor's step.

While the guard is on, a write to the state of sessions, of connections or of the core outside of `Actor.step` raises
`StateGuardError`: setting an attribute that has a value, and changing a container that an object of the state holds.
Each change of the state of a task is checked against the table of transitions, too. `open_harness` switches the guard
on. Production code does not import it, so the guard costs nothing there.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import wraps
from typing import Any

from msgspec import Struct

from trio_sched import core
from trio_sched.core.records import CheckedTask
from trio_sched.core.scheduler import Scheduler
from trio_sched.errors import TrioSchedError
from trio_sched.server.actor import Actor
from trio_sched.server.auditor import SessionAudit
from trio_sched.server.budget import ByteBudget
from trio_sched.server.client_messages import ClientMessages
from trio_sched.server.outbox import Outbox
from trio_sched.server.peer_connection import PeerConnection
from trio_sched.server.serve import Server
from trio_sched.server.session_manager import SessionManager
from trio_sched.server.sessions import FunctionCache, Session, Sessions
from trio_sched.server.shutdown import Shutdown

_SERVER_STATE = (
    Session, Sessions, FunctionCache, ByteBudget, Outbox, ClientMessages, SessionManager, SessionAudit, Shutdown,
)  # fmt: skip
_MUTATORS = (
    "__delitem__", "__iadd__", "__iand__", "__ior__", "__isub__", "__ixor__", "__setitem__", "add", "append",
    "appendleft", "clear", "discard", "extend", "extendleft", "insert", "move_to_end", "pop", "popitem", "popleft",
    "remove", "reverse", "rotate", "setdefault", "sort", "subtract", "update",
)  # fmt: skip


class StateGuardError(TrioSchedError, AssertionError):
    """State of the server was changed outside of the actor's step."""


class StateGuard:
    """Whether the guard is on, whether a step is under way, and what was found."""

    def __init__(self) -> None:
        self.is_on = False
        self.steps = 0
        #: What was changed outside of a step. The server survives the exception (R33), so the guard raises it again.
        self.violations: list[str] = []

    def check(self, what: str) -> None:
        """Raise StateGuardError unless a step is under way."""
        if self.is_on and not self.steps:
            self.violations.append(what)
            raise StateGuardError(f"{what} was changed outside of the actor's step")

    def within_step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with writes allowed while it runs."""

        @wraps(function)
        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            self.steps += 1
            try:
                return function(*arguments, **keywords)
            finally:
                self.steps -= 1

        return wrapper


_guard = StateGuard()


def _guarded_container(kind: type) -> type:
    """Return a subclass whose mutating methods ask the guard first."""

    def mutator(name: str) -> Callable[..., Any]:
        method = getattr(kind, name)

        def wrapper(self: Any, *arguments: Any, **keywords: Any) -> Any:
            _guard.check(f"a {kind.__name__} of the state")
            return method(self, *arguments, **keywords)

        return wrapper

    methods = {name: mutator(name) for name in _MUTATORS if hasattr(kind, name)}
    return type(f"Guarded{kind.__name__.capitalize()}", (kind,), methods)


_CONTAINERS: dict[type, type] = {
    kind: _guarded_container(kind) for kind in (dict, list, set, deque, OrderedDict, Counter)
}
_GUARDED = tuple(_CONTAINERS.values())


def _guarded_setattr(kind: type, only: Container[str] | None = None) -> Callable[[Any, str, Any], None]:
    """Return a `__setattr__` for the class that asks the guard first; only about the attributes `only`, if given.

    It replaces the containers of an object by guarded copies: those that the constructor sets, and in the server those
    that replace a guarded one. The core shares some of its later lists with local variables.
    """
    original: Any = kind.__setattr__
    replaces_later = kind in _SERVER_STATE

    def setattr_(self: Any, name: str, value: Any) -> None:
        if only is None or name in only:
            former = getattr(self, name, self)  # a method or a class default does not count
            if former is not self and not callable(former):
                _guard.check(f"{type(self).__name__}.{name}")
            is_replaced = former is self or (replaces_later and isinstance(former, _GUARDED))
            container = _CONTAINERS.get(type(value))
            if container is not None and is_replaced:
                with writes_allowed():
                    value = container(value)
        original(self, name, value)

    return setattr_


@contextmanager
def writes_allowed() -> Iterator[None]:
    """Allow writes, as in a step; for a test's own look into the state, which may drop stale entries of queues."""
    _guard.steps += 1
    try:
        yield
    finally:
        _guard.steps -= 1


def _state_classes() -> Iterator[type]:
    """Yield the classes whose objects are state: those of the server, and every class of the core with attributes."""
    yield from _SERVER_STATE
    for module in pkgutil.iter_modules(core.__path__, f"{core.__name__}."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            is_record = issubclass(kind, Struct) and not kind.__struct_config__.frozen
            if kind.__module__ == module.name and (is_record or not issubclass(kind, (Struct, Enum, BaseException))):
                yield kind


@contextmanager
def guarded_state() -> Iterator[StateGuard]:
    """Switch the guard on.

    :raises StateGuardError: at the end, if state was changed outside of a step and the exception was caught on its way.
    """
    if _guard.is_on:
        yield _guard
        return
    replaced: list[tuple[type, str, Any]] = []

    def replace(kind: type, name: str, value: Any) -> None:
        replaced.append((kind, name, kind.__dict__.get(name)))
        setattr(kind, name, value)

    for kind in set(_state_classes()):
        replace(kind, "__setattr__", _guarded_setattr(kind))
    replace(PeerConnection, "__setattr__", _guarded_setattr(PeerConnection, PeerConnection.__slots__))
    replace(Scheduler, "task_type", CheckedTask)
    for kind, name in ((Actor, "step"), (Actor, "finish"), (Server, "__init__")):
        replace(kind, name, _guard.within_step(getattr(kind, name)))
    _guard.is_on = True
    _guard.violations = []
    try:
        yield _guard
    finally:
        _guard.is_on = False
        for kind, name, value in reversed(replaced):
            if value is None:
                delattr(kind, name)
            else:
                setattr(kind, name, value)
    if _guard.violations:
        raise StateGuardError(f"changed outside of the actor's step: {', '.join(sorted(set(_guard.violations)))}")
