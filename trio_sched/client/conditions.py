"""Conditions on engines (functional dependencies, R19), and the function that runs a chunk of a `map`.

A condition is a function that the engine calls before a task: whether numpy is installed, for example. If it is false,
the task is sent to another engine, and this does not use up a retry. Engines import this module, so it must not import
anything heavy.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterable
from typing import Any, Generic, ParamSpec, TypeVar

from trio_sched.errors import UnmetDependency

P = ParamSpec("P")
T = TypeVar("T")


def depend(check: Callable[..., object], *args: Any, **kwargs: Any) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function that must run on an engine where `check(*args, **kwargs)` is true (R19).

        @depend(shutil.which, "ffmpeg")
        def convert(path): ...

    The engine calls `check` before each call of the function. If it is false, the task is sent to another engine; if it
    raises an exception, the task fails.

    :raises TypeError: `check` is not callable.
    """
    if not callable(check):
        raise TypeError(f"'{type(check).__name__}' object is not callable; depend(check, *args) takes a function first")

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        return Dependent(function, check, args, kwargs)

    return decorate


def require(*modules: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function that must run on an engine where these modules can be imported (R19).

    The modules are looked up before each call, but not imported.

    :raises TypeError: a module is not given by its name.
    """
    for module in modules:
        if not isinstance(module, str):
            raise TypeError(f"require() takes names of modules, not {module!r}")
    return depend(have_modules, *modules)


def have_modules(*modules: str) -> bool:
    """Return whether these modules can be imported in this process."""
    return all(_is_importable(module) for module in modules)


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package is missing; __main__ has no spec
        return False


class Dependent(Generic[P, T]):
    """A function with a condition; made by `depend` and `require`.

    Pickled by reference where it can be imported, as a function is: the name of the inner function leads to this
    object.
    """

    def __init__(
        self, function: Callable[P, T], check: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._check = check
        self._args = args
        self._kwargs = kwargs

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        if not self._check(*self._args, **self._kwargs):
            name = getattr(self._check, "__name__", repr(self._check))
            arguments = ", ".join(
                [*map(repr, self._args), *(f"{key}={value!r}" for key, value in self._kwargs.items())]
            )
            raise UnmetDependency(f"{name}({arguments}) is false on this engine")
        return self._function(*args, **kwargs)

    @property
    def parts(self) -> tuple[Any, ...]:
        """The objects that are pickled with this one by value."""
        return self._function, self._check, self._args, *self._kwargs.values()

    def importable(self) -> bool:
        """Return whether its module has this very object under its name."""
        module = getattr(self, "__module__", "__main__")
        if module == "__main__":
            return False
        found: Any = sys.modules.get(module)
        for name in getattr(self, "__qualname__", "?").split("."):
            found = getattr(found, name, None)
        return found is self

    def __reduce__(self) -> Any:
        if self.importable():
            return getattr(self, "__qualname__")  # noqa: B009  # set by update_wrapper
        return _dependent, (self._function, self._check, self._args, self._kwargs)


def _dependent(function: Any, check: Any, args: Any, kwargs: Any) -> Dependent[Any, Any]:
    return Dependent(function, check, args, kwargs)


class Chunk(Generic[T]):
    """Calls a function for each row of a list: the function that `map` submits when `chunksize` is above 1."""

    def __init__(self, function: Callable[..., T]) -> None:
        self._function = function

    def __call__(self, rows: Iterable[tuple[Any, ...]]) -> list[T]:
        return [self._function(*row) for row in rows]
