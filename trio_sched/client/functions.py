"""Functions and their digests: pickled once where that is safe, anew where something captured may have changed.

A function travels once per session and is named by its digest afterwards, so `submit` needs the digest of the function
*as it is now*. Pickling costs 5 us for a function that can be imported and hundreds for one that cannot (it takes along
its code, its closure and the globals that it names). So what was pickled is remembered for each function object, with a
list of *watches*: each cell, global, default and attribute that went into the bytes, with the object found there; and
the modules whose stamps went along (`wire.source_stamps`), none of which may have been loaded again. While every watch
still finds the very same object, and these objects cannot change inside (numbers, strings, modules, importable things,
other watched functions), the bytes are still right. A function that captures anything else, a list or an array for
example, is pickled at each submit: then the digest tells whether it changed.

Nobody may watch for ever: a function that was garbage collected, and of which no task is unfinished, is dropped, here
and on the engines.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from trio_sched.client.functional import Dependent
from trio_sched.wire import payload, source_stamps

_ATOMS = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
_MISSING = object()
_OF_EVERY_CLASS = frozenset(vars(type("Empty", (), {}))) | {"__annotations__", "__qualname__"}
"""Attributes that say nothing about what a class does, and that Python puts into each."""


class Function:
    """A pickled function, and who still needs it.

    `submitted` and `ended` count its tasks; `sent`: the scheduler has it; `kept`: how many function objects, which may
    be submitted again, it stands for.
    """

    __slots__ = ("data", "digest", "ended", "kept", "sent", "submitted")

    def __init__(self, digest: bytes, data: bytes) -> None:
        self.digest = digest
        self.data = data
        self.sent = False
        self.submitted = 0
        self.ended = 0
        self.kept = 0


Watch = tuple[Callable[[], Any], Any]
"""(how to look, what was found when the function was pickled)."""


class Functions:
    """The functions of one client: by digest, and by function object where that is safe.

    `of` may be called from any thread; the rest belongs to the session. `unneeded` holds those to look at for dropping.
    """

    def __init__(self) -> None:
        self.by_digest: dict[bytes, Function] = {}
        self.unneeded: deque[Function] = deque()
        self._by_object: dict[int, tuple[Callable[[], Any], Function, list[Watch]]] = {}
        self._changing = threading.Lock()
        self._gone: deque[tuple[int, Any]] = deque()
        """Written by the garbage collector, at any time and in any thread, so that it needs no lock."""

    def of(self, function: Callable[..., Any]) -> Function:
        """The pickled form of `function` as it is now, with the stamps of the user's own modules that it needs.

        Raises whatever the pickling raises.
        """
        known = self._by_object.get(id(function))
        if known is not None:
            reference, record, watches = known
            if reference() is function and all(
                look() == found if type(found) is int else look() is found for look, found in watches
            ):
                return record
        watches_now = _watches(function)
        pickled, same_sources = source_stamps.seal(payload.dump_function(function))
        record = self.named(pickled)
        if watches_now is not None and same_sources is not None:
            watches_now.append((same_sources, True))
        with self._changing:
            self._forget(id(function))
            if watches_now is not None:
                self._remember(function, record, watches_now)
        if not record.submitted:
            self.unneeded.append(record)  # for the case that it never will be
        return record

    def named(self, data: bytes) -> Function:
        """The record for these pickled bytes."""
        digest = payload.digest(data)
        return self.by_digest.get(digest) or self.by_digest.setdefault(digest, Function(digest, data))

    def task_ended(self, function: Function | None) -> None:
        """A task that was submitted with this function has ended."""
        if function is not None:
            function.ended += 1
            if not function.kept and function.submitted == function.ended:
                self.unneeded.append(function)

    def drop_unneeded(self) -> list[bytes]:
        """Forget those that nobody needs; returns the digests of those that the scheduler has."""
        if not self.unneeded and not self._gone:
            return []
        with self._changing:
            while self._gone:
                key, reference = self._gone.popleft()
                entry = self._by_object.get(key)
                if entry is not None and entry[0] is reference:
                    self._forget(key)
        dropped = []
        while self.unneeded:
            record = self.unneeded.popleft()
            if record.kept or record.submitted != record.ended or self.by_digest.get(record.digest) is not record:
                continue  # the end of its last task, or of its last function object, brings it here again
            del self.by_digest[record.digest]
            if record.sent:
                record.sent = False
                dropped.append(record.digest)
        return dropped

    def _remember(self, function: Callable[..., Any], record: Function, watches: list[Watch]) -> None:
        key, gone = id(function), self._gone
        reference: Callable[[], Any]
        try:
            reference = weakref.ref(function, lambda reference: gone.append((key, reference)))
        except TypeError:  # some built-in callables
            return
        record.kept += 1
        self._by_object[key] = (reference, record, watches)

    def _forget(self, key: int) -> None:
        entry = self._by_object.pop(key, None)
        if entry is not None:
            entry[1].kept -= 1
            self.unneeded.append(entry[1])


# ---- what goes into the bytes ---------------------------------------------------------------------------------------


def _watches(function: Callable[..., Any]) -> list[Watch] | None:
    """What to look at before the bytes are used again; None: there is no telling, so pickle each time."""
    watches: list[Watch] = []
    return watches if _watch(function, watches, set()) else None


def _watch(value: Any, watches: list[Watch], seen: set[int]) -> bool:
    """Whether `value` stays what it was as long as the watches that are added here hold."""
    if isinstance(value, _ATOMS) or id(value) in seen:
        return True
    seen.add(id(value))
    if isinstance(value, (tuple, frozenset)) and type(value) in (tuple, frozenset):
        return all(_watch(item, watches, seen) for item in value)
    if isinstance(value, functools.partial) and type(value) is functools.partial and not value.__dict__:
        return _watch((value.func, value.args, tuple(value.keywords.values())), watches, seen)
    if isinstance(value, Dependent):
        return value.importable() or _watch(value.parts, watches, seen)
    if isinstance(value, types.ModuleType):
        return sys.modules.get(value.__name__) is value
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
        if _importable(value):
            return True
        if isinstance(value, types.FunctionType):
            return _watch_function(value, watches, seen)
        if isinstance(value, type):
            return _watch_class(value, watches, seen)
    return False


def _importable(value: Any) -> bool:
    """Whether pickle takes it by reference, so that nothing of it is in the bytes."""
    module = getattr(value, "__module__", None)
    if module in (None, "__main__") or module not in sys.modules:
        return False
    found: Any = sys.modules[module]
    for name in value.__qualname__.split("."):
        found = getattr(found, name, _MISSING)
    return found is value


def _watch_function(function: types.FunctionType, watches: list[Watch], seen: set[int]) -> bool:
    if function.__kwdefaults__ or function.__dict__:
        return False  # dictionaries, which change in place; rare
    mine = weakref.ref(function)
    watches.append((lambda: getattr(mine(), "__code__", None), function.__code__))
    watches.append((lambda: getattr(mine(), "__defaults__", None), function.__defaults__))
    for index, cell in enumerate(function.__closure__ or ()):
        if not _watch_place(lambda index=index: _in_cell(mine(), index), _content(cell), watches, seen):  # type: ignore[misc]
            return False
    for name in set(_names(function.__code__)):
        found = function.__globals__.get(name, _MISSING)
        if not _watch_place(_global(mine, name), found, watches, seen):
            return False
    return _watch(function.__defaults__, watches, seen)


def _watch_place(look: Callable[[], Any], found: Any, watches: list[Watch], seen: set[int]) -> bool:
    """Watch one place, without keeping a function or class alive that is found there (it may be the watched one)."""
    if isinstance(found, (types.FunctionType, type)):
        reference = weakref.ref(found)
        watches.append((lambda: look() is reference(), True))
    else:
        watches.append((look, found))
    return found is _MISSING or _watch(found, watches, seen)


def _watch_class(cls: type, watches: list[Watch], seen: set[int]) -> bool:
    mine = weakref.ref(cls)
    size = len(vars(cls))
    watches.append((lambda: len(getattr(mine(), "__dict__", ())) == size, True))
    for name, found in list(vars(cls).items()):
        if name in _OF_EVERY_CLASS or isinstance(found, types.MemberDescriptorType):
            continue
        if not _watch_place(_attribute(mine, name), _unwrapped(found), watches, seen):
            return False
    return all(_watch(base, watches, seen) for base in cls.__bases__)


def _attribute(reference: Callable[[], Any], name: str) -> Callable[[], Any]:
    """Looks up an attribute of a class, without keeping the class alive."""
    return lambda: _unwrapped(getattr(reference(), "__dict__", {}).get(name, _MISSING))


def _unwrapped(attribute: Any) -> Any:
    return attribute.__func__ if isinstance(attribute, (staticmethod, classmethod)) else attribute


def _global(reference: Callable[[], Any], name: str) -> Callable[[], Any]:
    """Looks up a global of a function, without keeping its module's namespace alive."""
    return lambda: getattr(reference(), "__globals__", {}).get(name, _MISSING)


def _names(code: types.CodeType) -> Iterator[str]:
    """The global names that a function's code looks up, inner functions included."""
    import dis  # only here: by-reference functions do not come this far

    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _in_cell(function: types.FunctionType | None, index: int) -> Any:
    """What a closure's cell holds; a cell itself cannot be referred to weakly."""
    return _content(function.__closure__[index]) if function is not None and function.__closure__ else _MISSING


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return _MISSING
