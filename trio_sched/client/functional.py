"""What engines import of the client: functional dependencies (R19), and the function that runs a chunk of a `map`.

A functional dependency is a question that the engine answers when it has the task in hand: "do you have numpy?". If the
answer is no, the task goes to another engine, without using up a retry. Imports nothing heavy: engines pay for it.
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
    """Run a function only on an engine where `check(*args, **kwargs)` is true.

        @depend(shutil.which, "ffmpeg")
        def convert(path): ...

    The check runs before each call, on the engine. If it is false the task goes elsewhere; if it raises, the task
    fails.
    """
    if not callable(check):
        raise TypeError(f"'{type(check).__name__}' object is not callable; depend(check, *args) takes a function first")

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        return Dependent(function, check, args, kwargs)

    return decorate


def require(*modules: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Run a function only on an engine where these modules can be imported (they are not, until the function does)."""
    for module in modules:
        if not isinstance(module, str):
            raise TypeError(f"require() takes names of modules, not {module!r}")
    return depend(have_modules, *modules)


def have_modules(*modules: str) -> bool:
    """Whether these modules can be imported here."""
    return all(_is_there(module) for module in modules)


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # of a package around it; __main__ has no spec
        return False


class Dependent(Generic[P, T]):
    """A function with a question before it; made by `depend` and `require`.

    Where it can be imported it is pickled by reference, as a function is, for its inner function has lost its name.
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
            asked = ", ".join([*map(repr, self._args), *(f"{key}={value!r}" for key, value in self._kwargs.items())])
            raise UnmetDependency(f"{name}({asked}) is false on this engine")
        return self._function(*args, **kwargs)

    @property
    def parts(self) -> tuple[Any, ...]:
        """Everything that is pickled with it by value."""
        return self._function, self._check, self._args, *self._kwargs.values()

    def importable(self) -> bool:
        """Whether this object is what its module calls by its name."""
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
    """Runs a function on each row of a list; what `map` submits when chunks are larger than one."""

    def __init__(self, function: Callable[..., T]) -> None:
        self._function = function

    def __call__(self, rows: Iterable[tuple[Any, ...]]) -> list[T]:
        return [self._function(*row) for row in rows]
