"""Common mistakes of users of other pools, and the errors that name the correct call."""

from __future__ import annotations

import inspect
import types
import weakref
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

from trio_sched.client.options import OptionNames

OPTIONS = frozenset(OptionNames.__annotations__)
#: By function: the keywords that it takes; None: any keyword, or not known.
_keywords: weakref.WeakKeyDictionary[Any, frozenset[str] | None] = weakref.WeakKeyDictionary()


def check_keywords(function: Callable[..., Any], kwargs: Mapping[str, object]) -> None:
    """Look for options of a task among the keyword arguments of its function.

    :raises TypeError: there is one, and the function has no parameter of that name.
    """
    if OPTIONS.isdisjoint(kwargs):
        return
    try:
        accepted = _keywords[function]
    except KeyError:
        accepted = _keywords[function] = _find_keywords(function)
    except TypeError:  # the function cannot be hashed or referred to weakly
        accepted = _find_keywords(function)
    if accepted is None:
        return
    for option in OPTIONS & kwargs.keys() - accepted:
        name = getattr(function, "__name__", repr(function))
        raise TypeError(
            f"{name}() has no parameter {option!r}; as an option of the task, write "
            f"options({option}={kwargs[option]!r}).submit({name}, ...)"
        )


def check_map_keywords(function: Callable[..., Any], misnamed: Mapping[str, object]) -> None:
    """Check the keyword arguments that `map` does not have.

    :raises TypeError: there is one.
    """
    for word, value in misnamed.items():
        name = getattr(function, "__name__", repr(function))
        if word in OPTIONS:
            hint = f"as an option of the tasks, write options({word}={value!r}).map({name}, ...)"
        else:
            hint = f"to give each call of {name}() a keyword argument, map a functools.partial"
        raise TypeError(f"map() has no argument {word!r}; {hint}")


def _find_keywords(function: Callable[..., Any]) -> frozenset[str] | None:
    """The keywords that a function takes; None: any keyword, or not known."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have no signature
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(parameter.name for parameter in parameters if parameter.kind in kinds)


def suggest_alternative(value: object, error: Exception) -> str:
    """Return what to pass in place of a value that cannot be pickled, as the end of a message; empty: no suggestion."""
    if isinstance(value, types.GeneratorType):
        return "; pass a list of its items, or map() a function over it"
    if "'generator' object" in str(error):
        return "; there is a generator in it: pass a list of its items"
    if isinstance(value, types.CoroutineType):
        return "; await it, and pass its result"
    if isinstance(value, futures.Future) or hasattr(type(value), "_asyncio_future_blocking"):
        return "; it is a future of another executor: pass its result"
    return ""
