"""Source stamps: the version of the user's own modules that a pickled function needs, and how an engine loads it.

A function that can be imported is pickled as the names of its module and of itself. Its code is what the engine imports
under these names, so the client also sends a *stamp* of each module: a digest of the source from which the module was
loaded. `seal` wraps the pickled function together with the stamps. Unpickling the wrapper on an engine calls
`load_sealed`, which compares the stamps, imports the modules again when the engine's files have the required version,
and fails with `CallError` when they have another one.

*Own* modules have stamps: those with a Python source file outside of the standard library and of site-packages (an
editable install counts as own). The stamps of a function cover the modules named in its pickle, and the own modules
which these refer to from their global names and by import statements, transitively. Extension, frozen and zipped
modules have no stamp, nor have modules whose file cannot be read, nor a module with `__trio_sched_stamp__ = False`,
which is meant to differ between machines; an engine uses these as they are.

Modules are imported again into *new* module objects, together with all own modules that refer to them. Functions that
were loaded before keep the module objects from which they were loaded: running tasks, and tasks queued for the former
version, use the former version throughout.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import marshal
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from operator import attrgetter, is_
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from trio_sched.errors import CallError, SubmitError

_INSTALLED = frozenset(("site-packages", "dist-packages"))
_STANDARD_LIBRARY = tuple(os.path.dirname(path) + os.sep for path in (os.__file__, os.path.realpath(os.__file__)))
_PACKAGE = __name__.partition(".")[0]
_PICKLE_PROTOCOL = 5
#: Pickle's opcode for a text of less than 256 bytes; the next byte is the length.
_SHORT_TEXT = b"\x8c"
#: A module whose global of this name is False has no stamp.
OPT_OUT = "__trio_sched_stamp__"
_BYTECODE_HEADER_BYTES = 16
_AUTORELOAD = "IPython.extensions.autoreload"
#: Instead of a digest: the file was edited after the module was loaded, so the loaded source is unknown.
_UNKNOWN = "unknown"
_spec_of = attrgetter("__spec__")


class Stamp(NamedTuple):
    """A module, the digest of its source as loaded, and the path of that source on the client."""

    module: str
    digest: str
    path: str


class Seal(NamedTuple):
    """The stamps of a pickled function, and the state of the modules in which they were made."""

    modules: tuple[ModuleType, ...]
    specs: tuple[Any, ...]
    times: tuple[float | None, ...]
    stamps: tuple[Stamp, ...]

    def holds(self) -> bool:
        """Whether no module was reloaded since, which gives a module a new spec. Costs about 40 ns for each module."""
        return all(map(is_, map(_spec_of, self.modules), self.specs)) and (
            _AUTORELOAD not in sys.modules or autoreload_times(self.modules) == self.times
        )


class LoadedSources:
    """The digests of the sources from which the own modules of this process were loaded."""

    def __init__(self) -> None:
        #: Rises whenever modules are imported again.
        self.generation = 0
        #: By module: (the spec with which it was loaded, when autoreload loaded it, the digest).
        self._digests: dict[str, tuple[Any, float | None, str]] = {}
        #: The names in `sys.modules` when `_own` was made.
        self._loaded: frozenset[str] = frozenset()
        #: The own modules among these, each with its name as a pickle holds it.
        self._own: dict[str, bytes] = {}
        self._seals: dict[tuple[str, ...], Seal] = {}
        self._started_at: float | None = None

    # ---- client -----------------------------------------------------------------------------------------------------

    def seal(self, pickled: bytes) -> tuple[bytes, Callable[[], bool] | None]:
        """Wrap a pickled function with the stamps that it needs.

        :returns: the wrapped pickle, and a function that says whether the stamps still hold; (`pickled`, None) if the
            function needs no stamps.
        :raises SubmitError: a module was edited after this process loaded it; the message names the module.
        """
        seeds = tuple(name for name, text in self._own_names().items() if text in pickled)
        if not seeds:
            return pickled, None
        seal = self._seals.get(seeds)
        if seal is None or not seal.holds() or tuple(map(sys.modules.get, seeds)) != seal.modules[: len(seeds)]:
            seal = self._seals[seeds] = self._make_seal(seeds)
        if not seal.stamps:
            return pickled, seal.holds
        return pickle.dumps(_Sealed(seal.stamps, pickled), _PICKLE_PROTOCOL), seal.holds

    def _own_names(self) -> dict[str, bytes]:
        """The loaded own modules, each with its name as a pickle holds it."""
        if sys.modules.keys() != self._loaded:  # 20 us for 1,000 modules
            modules = dict(sys.modules)
            self._loaded = frozenset(modules)
            texts = {name: name.encode("utf-8", "replace") for name in modules if is_own(name, modules[name])}
            self._own = {n: _SHORT_TEXT + bytes((len(t),)) + t for n, t in texts.items() if len(t) < 256}
        return self._own

    def _make_seal(self, seeds: Iterable[str]) -> Seal:
        found = {name: sys.modules[name] for name in seeds}
        pending = list(found.values())
        while pending:
            for name, module in references(pending.pop()).items():
                if name not in found:
                    found[name] = module
                    pending.append(module)
        modules = tuple(found.values())
        specs, times = tuple(map(_spec_of, modules)), autoreload_times(modules)
        stamps = []
        for name, module in found.items():
            digest = self.digest_of(name, module)
            if digest == _UNKNOWN:
                _drop_bytecode(origin_of(module))  # otherwise a reload may use it
                raise SubmitError(
                    f"the module {name!r} is not what its file {origin_of(module)} holds now: the file was edited "
                    f"after this process imported it; call importlib.reload({name}), or start this process again"
                )
            if digest:
                stamps.append(Stamp(name, digest, origin_of(module)))
        return Seal(modules, specs, times, tuple(sorted(stamps)))

    # ---- both sides -------------------------------------------------------------------------------------------------

    def digest_of(self, name: str, module: ModuleType) -> str:
        """The digest of the source from which the module was loaded; "" if the source cannot be read.

        Python does not keep the source, so the file is read when a module is first used after it was (re)loaded. If the
        file was written after this process began, the module's functions are compared with those in the file.
        """
        spec, (time_s,) = module.__spec__, autoreload_times((module,))
        known = self._digests.get(name)
        if known is not None and known[0] is spec and known[1] == time_s:
            return known[2]
        digest = self._digest_of_file(module, spec, time_s) if spec is not None else ""
        if digest != _UNKNOWN:  # the edit may be undone
            self._digests[name] = spec, time_s, digest
        return digest

    def _digest_of_file(self, module: ModuleType, spec: ModuleSpec, time_s: float | None) -> str:
        source = read_source(spec.origin)
        if source is None:
            return ""
        with contextlib.suppress(OSError):
            written_at = os.stat(str(spec.origin)).st_mtime
            is_current = written_at == time_s or written_at < self._process_start() or _is_from(module, spec, source)
            if not is_current:
                return _UNKNOWN
        return digest_of_source(source)

    def _process_start(self) -> float:
        if self._started_at is None:
            self._started_at = process_started_at()
        return self._started_at

    # ---- engine -----------------------------------------------------------------------------------------------------

    def require(self, stamps: Iterable[Stamp]) -> None:
        """Import modules again that are loaded in another version. Modules that are not loaded are not imported.

        :raises CallError: a file has another version; no module was changed.
        """
        wrong = [stamp for stamp in stamps if not self._is_met(stamp)]
        for stamp in wrong:
            source = read_source(origin_of(sys.modules.get(stamp.module)))
            if source is None or digest_of_source(source) != stamp.digest:
                raise _differs(stamp)
        if wrong:
            self._import_again({stamp.module for stamp in wrong})

    def check(self, stamps: Iterable[Stamp]) -> None:
        """Check, after an import, that the loaded modules have the required version.

        :raises CallError: a module has another one.
        """
        for stamp in stamps:
            if not self._is_met(stamp):
                raise _differs(stamp)

    def _is_met(self, stamp: Stamp) -> bool:
        module = sys.modules.get(stamp.module)
        return module is None or self.digest_of(stamp.module, module) in ("", stamp.digest)

    def _import_again(self, changed: set[str]) -> None:
        """Import these modules again, and all own modules that refer to them or are inside them."""
        out = with_dependents(changed)
        self.generation += 1
        for name in out:
            _drop_bytecode(origin_of(sys.modules.get(name)))
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        for name in sorted(out):
            parent = name.rpartition(".")[0]
            if parent in sys.modules and parent not in out:  # the parent has the former module as an attribute
                importlib.import_module(name)


_sources = LoadedSources()
seal = _sources.seal


def generation() -> int:
    """A number that rises whenever this process imports modules again; functions loaded by name are then outdated."""
    return _sources.generation


class _Sealed:
    """A pickled function with its stamps, which pickles itself as a call of `load_sealed`."""

    def __init__(self, stamps: tuple[Stamp, ...], pickled: bytes) -> None:
        self._arguments = tuple(map(tuple, stamps)), pickled

    def __reduce__(self) -> Any:
        return load_sealed, self._arguments


def load_sealed(stamps: Iterable[tuple[str, str, str]], pickled: bytes) -> Any:
    """Unpickle a function whose modules must have these stamps. Not thread-safe.

    :raises CallError: a module has another version, in this process and in its file.
    """
    wanted = [Stamp(*stamp) for stamp in stamps]
    _sources.require(wanted)
    function = pickle.loads(pickled)
    _sources.check(wanted)
    return function


def _differs(stamp: Stamp) -> CallError:
    here = origin_of(sys.modules.get(stamp.module))
    file = f"the file {here} has another one" if read_source(here) is not None else f"the file {here} does not exist"
    return CallError(
        f"the version of the module {stamp.module!r} that the client has loaded, from {stamp.path}, is not available "
        f"here: {file}. Make the files of client and engine the same. After an edit, importlib.reload({stamp.module}) "
        "in the client and submit again: tasks that were submitted before need an engine that still has their version "
        "loaded"
    )


# ---- modules --------------------------------------------------------------------------------------------------------


def is_own(name: str, module: object) -> bool:
    """Whether the module is one of the user's own (from a source file, not installed, not part of Python) and has not
    opted out of stamps.
    """
    if name == "__main__" or name.partition(".")[0] == _PACKAGE or not isinstance(module, ModuleType):
        return False
    if vars(module).get(OPT_OUT) is False:
        return False
    origin = origin_of(module)
    return (
        origin.endswith(".py")
        and not origin.startswith(_STANDARD_LIBRARY)
        and _INSTALLED.isdisjoint(origin.split(os.sep))
    )


def references(module: ModuleType) -> dict[str, ModuleType]:
    """The own modules that a module refers to, by name.

    They come from its globals (modules, and the modules that define functions, classes, or the classes of other values)
    and from import statements inside its functions.
    """
    names = {name for value in list(vars(module).values()) for name in _defining_modules(value)}
    packages = [""]
    for part in module.__name__.split("."):
        packages.append(f"{packages[-1]}{part}.")
    for code in _with_inner(_codes_of(module)):
        names.update(package + name for package in packages for name in code.co_names)
    found = {name: sys.modules[name] for name in names if name in sys.modules}
    return {name: other for name, other in found.items() if other is not module and is_own(name, other)}


def _defining_modules(value: object) -> Iterator[str]:
    """The names of the modules that define a value, or its class, found without running code of the value's class."""
    if isinstance(value, ModuleType):
        names = [getattr(value, "__name__", None)]
    elif isinstance(value, FunctionType):
        names = [value.__module__]
    elif isinstance(value, type):
        names = [type.__getattribute__(value, "__dict__").get("__module__")]
    else:
        names = [type.__getattribute__(type(value), "__dict__").get("__module__")]
        with contextlib.suppress(AttributeError):  # for wrappers, such as those of functools.lru_cache
            names.append(object.__getattribute__(value, "__dict__").get("__module__"))
    for name in names:
        if isinstance(name, str):
            yield name


def with_dependents(changed: set[str]) -> set[str]:
    """These own modules, and the own modules that refer to them or are inside them, transitively."""
    own = {name: module for name, module in list(sys.modules.items()) if is_own(name, module)}
    referring: dict[str, set[str]] = {}
    for name, module in own.items():
        for other in references(module):
            referring.setdefault(other, set()).add(name)
        parent = name.rpartition(".")[0]
        if parent in own:
            referring.setdefault(parent, set()).add(name)
    found, pending = set(changed), list(changed)
    while pending:
        new = referring.get(pending.pop(), set()) - found
        found |= new
        pending.extend(new)
    return found


def origin_of(module: ModuleType | None) -> str:
    """The path of the file from which a module was loaded; "" if there is none."""
    origin = getattr(getattr(module, "__spec__", None), "origin", None)
    return origin if isinstance(origin, str) else ""


def autoreload_times(modules: Sequence[ModuleType]) -> tuple[float | None, ...]:
    """The modification time of each module's file when IPython's autoreload last loaded it; None: never.

    Autoreload (of IPython 9) often replaces the functions inside a module instead of reloading the module.
    """
    if _AUTORELOAD not in sys.modules:
        return (None,) * len(modules)
    try:
        shell = sys.modules["IPython"].get_ipython()
        times = shell.magics_manager.registry["AutoreloadMagics"]._reloader.modules_mtimes
    except (AttributeError, KeyError):
        return (None,) * len(modules)
    return tuple(times.get(module.__name__) for module in modules)


# ---- sources --------------------------------------------------------------------------------------------------------


def read_source(path: str | None) -> bytes | None:
    """Read a Python source file; None: it cannot be read."""
    if not path or not path.endswith(".py"):
        return None
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def digest_of_source(source: bytes) -> str:
    """The digest of a module's source, which does not depend on the form of line ends."""
    return hashlib.blake2b(source.replace(b"\r\n", b"\n"), digest_size=8).hexdigest()


def _drop_bytecode(path: str) -> None:
    """Remove cached bytecode, which Python uses while time (in seconds) and size of the source are unchanged."""
    with contextlib.suppress(OSError, NotImplementedError, ValueError):
        os.unlink(importlib.util.cache_from_source(path))


def _is_from(module: ModuleType, spec: ModuleSpec, source: bytes) -> bool:
    """Whether a module was loaded from this source, judged by its cached bytecode and its functions.

    Functions that the source does not define are ignored, because a reload leaves former names in the module.
    """
    if type(spec.loader) is not SourceFileLoader:
        return True
    try:
        whole = spec.loader.source_to_code(source, str(spec.origin))
    except (SyntaxError, ValueError):
        return False
    if _cached_code(spec) not in (None, whole):
        return False
    defined = _codes(whole)
    return all(
        code in defined.get(code.co_qualname, (code,)) for code in _codes_of(module) if code.co_filename == spec.origin
    )


def _cached_code(spec: ModuleSpec) -> CodeType | None:
    """The cached bytecode of the file's last import; None: there is none, or imports cannot write it."""
    if sys.dont_write_bytecode or not spec.cached or not os.access(os.path.dirname(spec.cached), os.W_OK):
        return None
    try:
        with open(spec.cached, "rb") as file:
            file.seek(_BYTECODE_HEADER_BYTES)
            code = marshal.load(file)
    except (OSError, EOFError, ValueError, TypeError):
        return None
    return code if isinstance(code, CodeType) else None


def _codes(code: CodeType) -> dict[str, list[CodeType]]:
    """A code object and those inside it, by qualified name."""
    found: dict[str, list[CodeType]] = {}
    for inner in _with_inner([code]):
        found.setdefault(inner.co_qualname, []).append(inner)
    return found


def _with_inner(codes: Iterable[CodeType]) -> Iterator[CodeType]:
    """Code objects, and those of the functions and classes that these define."""
    pending = list(codes)
    while pending:
        code = pending.pop()
        yield code
        pending.extend(constant for constant in code.co_consts if isinstance(constant, CodeType))


def _codes_of(module: ModuleType) -> Iterator[CodeType]:
    """The code objects of a module's functions, and of the functions in its classes."""
    values = list(vars(module).values())
    seen: set[type] = set()
    for value in values:
        if isinstance(value, type) and value not in seen and module.__name__ in _defining_modules(value):
            seen.add(value)
            values.extend(vars(value).values())
        function = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
        if isinstance(function, FunctionType) and function.__module__ == module.__name__:
            yield function.__code__


def process_started_at() -> float:
    """When this process began, in seconds since the epoch; 0.0 if the system does not say."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError, IndexError):
        return 0.0
    return time.time() - age_s - 1.0  # file times and ticks are coarser than the clock
