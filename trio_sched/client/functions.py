"""Pickled functions and their digests: when the kept bytes of a function are valid, and when it is pickled again.

A function is sent once per session and named by its digest afterwards, so `submit` needs the digest of the function *as
it is now*. Pickling costs 5 us for a function that can be imported, and hundreds for one that cannot: its code, its
closure and the globals that it names are pickled with it. So the registry keeps the bytes of each function object,
with a list of *watches*: each cell, global, default and attribute whose content is in the bytes, with the object found
there; and the stamps of the modules that the function needs (`wire.source_stamps`), none of which may have been loaded
again. The bytes stay valid while every watch finds the same object, and these objects cannot change inside (numbers,
strings, modules, importable objects, other watched functions). A function that captures any other object, for example a
list or an array, is pickled at each submit, and a changed function has another digest.

A function that was garbage collected, and has no unfinished task, is dropped in this process and on the engines.
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

from trio_sched.client.conditions import Dependent
from trio_sched.wire import payload, source_stamps

_ATOMS = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
_MISSING = object()
#: Attributes that Python adds to every class, and that do not affect its behaviour.
_CLASS_ATTRIBUTES = frozenset(vars(type("Empty", (), {}))) | {"__annotations__", "__qualname__"}


class Function:
    """A pickled function, with the counts that decide when it can be dropped."""

    __slots__ = ("data", "digest", "ended", "kept", "sent", "submitted")

    def __init__(self, digest: bytes, data: bytes) -> None:
        self.digest = digest
        self.data = data
        #: Whether the scheduler has it.
        self.sent = False
        #: The numbers of its tasks that were submitted, and that have ended.
        self.submitted = 0
        self.ended = 0
        #: The number of function objects with these bytes, which may be submitted again.
        self.kept = 0


#: (a look-up, the object that it found when the function was pickled).
WatchedValue = tuple[Callable[[], Any], Any]


class FunctionRegistry:
    """The functions of one client: by digest, and by function object where the bytes can be remembered.

    `register` may be called in any thread; all other methods belong to the session.
    """

    def __init__(self) -> None:
        self.by_digest: dict[bytes, Function] = {}
        #: Functions that may have become unneeded, for `drop_unneeded` to check.
        self.unneeded: deque[Function] = deque()
        self._by_object: dict[int, tuple[Callable[[], Any], Function, list[WatchedValue]]] = {}
        self._lock = threading.Lock()
        #: (key, reference) of collected function objects. The garbage collector appends to it at any time and in any
        #: thread, so that it must not need a lock.
        self._collected: deque[tuple[int, Any]] = deque()

    def register(self, function: Callable[..., Any]) -> Function:
        """Return the pickled form of a function as it is now, with the stamps of the user's own modules that it needs.

        :raises Exception: the pickling failed.
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
        record = self.intern(pickled)
        if watches_now is not None and same_sources is not None:
            watches_now.append((same_sources, True))
        with self._lock:
            self._forget(id(function))
            if watches_now is not None:
                self._remember(function, record, watches_now)
        if not record.submitted:
            self.unneeded.append(record)  # in case that it is never submitted
        return record

    def intern(self, data: bytes) -> Function:
        """Return the one `Function` with these pickled bytes."""
        digest = payload.digest(data)
        return self.by_digest.get(digest) or self.by_digest.setdefault(digest, Function(digest, data))

    def task_ended(self, function: Function | None) -> None:
        """Count a task of this function that has ended."""
        if function is not None:
            function.ended += 1
            if not function.kept and function.submitted == function.ended:
                self.unneeded.append(function)

    def mark_all_unsent(self) -> None:
        """Note that the scheduler has none of the functions: another instance, or a session that began again."""
        for function in self.by_digest.values():
            function.sent = False

    def drop_unneeded(self) -> list[bytes]:
        """Drop functions without a function object or an unfinished task; return the digests that the scheduler has."""
        if not self.unneeded and not self._collected:
            return []
        with self._lock:
            while self._collected:
                key, reference = self._collected.popleft()
                entry = self._by_object.get(key)
                if entry is not None and entry[0] is reference:
                    self._forget(key)
        dropped = []
        while self.unneeded:
            record = self.unneeded.popleft()
            if record.kept or record.submitted != record.ended or self.by_digest.get(record.digest) is not record:
                continue  # it is added again with the end of its last task or function object
            del self.by_digest[record.digest]
            if record.sent:
                record.sent = False
                dropped.append(record.digest)
        return dropped

    def _remember(self, function: Callable[..., Any], record: Function, watches: list[WatchedValue]) -> None:
        key, collected = id(function), self._collected
        reference: Callable[[], Any]
        try:
            reference = weakref.ref(function, lambda reference: collected.append((key, reference)))
        except TypeError:  # some built-in callables
            return
        record.kept += 1
        self._by_object[key] = (reference, record, watches)

    def _forget(self, key: int) -> None:
        entry = self._by_object.pop(key, None)
        if entry is not None:
            entry[1].kept -= 1
            self.unneeded.append(entry[1])


# ---- watches --------------------------------------------------------------------------------------------------------


def _watches(function: Callable[..., Any]) -> list[WatchedValue] | None:
    """Return what to check before the bytes are used again; None: the function must be pickled each time."""
    watches: list[WatchedValue] = []
    return watches if _watch(function, watches, set()) else None


def _watch(value: Any, watches: list[WatchedValue], seen: set[int]) -> bool:
    """Add watches for `value`; return whether it cannot change while they hold."""
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
    """Whether the object is pickled by reference, so that its content is not in the bytes."""
    module = getattr(value, "__module__", None)
    if module in (None, "__main__") or module not in sys.modules:
        return False
    found: Any = sys.modules[module]
    for name in value.__qualname__.split("."):
        found = getattr(found, name, _MISSING)
    return found is value


def _watch_function(function: types.FunctionType, watches: list[WatchedValue], seen: set[int]) -> bool:
    if function.__kwdefaults__ or function.__dict__:
        return False  # rare: dictionaries, which change in place
    mine = weakref.ref(function)
    watches.append((lambda: getattr(mine(), "__code__", None), function.__code__))
    watches.append((lambda: getattr(mine(), "__defaults__", None), function.__defaults__))
    for index, cell in enumerate(function.__closure__ or ()):
        if not _watch_place(_cell(mine, index), _content(cell), watches, seen):
            return False
    for name in set(_names(function.__code__)):
        found = function.__globals__.get(name, _MISSING)
        if not _watch_place(_global(mine, name), found, watches, seen):
            return False
    return _watch(function.__defaults__, watches, seen)


def _watch_place(look: Callable[[], Any], found: Any, watches: list[WatchedValue], seen: set[int]) -> bool:
    """Watch one place, without a strong reference to a function or class found there (it may be the watched one)."""
    if isinstance(found, (types.FunctionType, type)):
        reference = weakref.ref(found)
        watches.append((lambda: look() is reference(), True))
    else:
        watches.append((look, found))
    return found is _MISSING or _watch(found, watches, seen)


def _watch_class(cls: type, watches: list[WatchedValue], seen: set[int]) -> bool:
    mine = weakref.ref(cls)
    size = len(vars(cls))
    watches.append((lambda: len(getattr(mine(), "__dict__", ())) == size, True))
    for name, found in list(vars(cls).items()):
        if name in _CLASS_ATTRIBUTES or isinstance(found, types.MemberDescriptorType):
            continue
        if not _watch_place(_attribute(mine, name), _unwrapped(found), watches, seen):
            return False
    return all(_watch(base, watches, seen) for base in cls.__bases__)


def _attribute(reference: Callable[[], Any], name: str) -> Callable[[], Any]:
    """Make the look-up of a class's attribute, without a strong reference to the class."""
    return lambda: _unwrapped(getattr(reference(), "__dict__", {}).get(name, _MISSING))


def _unwrapped(attribute: Any) -> Any:
    return attribute.__func__ if isinstance(attribute, (staticmethod, classmethod)) else attribute


def _global(reference: Callable[[], Any], name: str) -> Callable[[], Any]:
    """Make the look-up of a function's global, without a strong reference to its module's namespace."""
    return lambda: getattr(reference(), "__globals__", {}).get(name, _MISSING)


def _names(code: types.CodeType) -> Iterator[str]:
    """The global names that a function's code uses, those of inner functions included."""
    import dis  # imported here: functions pickled by reference do not need it

    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _cell(reference: Callable[[], Any], index: int) -> Callable[[], Any]:
    """Make the look-up of a cell's content in a function's closure, without a strong reference to the function."""

    def look() -> Any:
        closure = getattr(reference(), "__closure__", None)
        return _content(closure[index]) if closure else _MISSING

    return look


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell is empty
        return _MISSING
