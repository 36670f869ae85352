"""What is written by mistake, mostly by those who come from other pools, and what to write instead."""

from __future__ import annotations

import inspect
import types
import weakref
from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

from trio_sched.client.options import OptionNames
from trio_sched.transport.connection import Connection

POOL_WORDS = ("max_workers", "n_workers", "num_workers", "workers", "processes", "n_jobs")
"""What other pools call `engines`."""
OPTIONS = frozenset(OptionNames.__annotations__)
_parameters: weakref.WeakKeyDictionary[Any, frozenset[str] | None] = weakref.WeakKeyDictionary()
"""By function: the keywords that it takes; None: any, or not known."""


def check_client_arguments(maker: Callable[..., Any], where: object, misnamed: Mapping[str, object]) -> None:
    """Check what `Client` or `open_client` (the `maker`) was given; `misnamed` are the keywords that it does not have.

    :raises TypeError: `where` is neither a name nor a path nor a connection, or there are such keywords.
    """
    name = maker.__name__
    for word, value in misnamed.items():
        if word in POOL_WORDS:
            count = value if type(value) is int else "N"
            raise TypeError(
                f"{name}() has no {word}; for a scheduler with {count} engines of its own write {name}(engines={count})"
            )
        known = [parameter for parameter in inspect.signature(maker).parameters if parameter != "misnamed"]
        raise TypeError(f"{name}() has no argument {word!r}; it has {', '.join(known)}")
    if isinstance(where, int):
        raise TypeError(
            f"{name}({where}): the first argument names a running scheduler; for a scheduler with {where} engines of "
            f"its own write {name}(engines={where})"
        )
    if where is not None and not isinstance(where, (str, Path, Connection)):
        raise TypeError(
            f"{name}({where!r}): the first argument names a running scheduler: its name, or the path of its connection "
            "file"
        )


def check_keywords(function: Callable[..., Any], kwargs: Mapping[str, object]) -> None:
    """Find options of a task among the keyword arguments of its function.

    :raises TypeError: one is there, and the function has no parameter of that name.
    """
    if OPTIONS.isdisjoint(kwargs):
        return
    try:
        accepted = _parameters[function]
    except KeyError:
        accepted = _parameters[function] = _accepted(function)
    except TypeError:  # nothing that can be remembered
        accepted = _accepted(function)
    if accepted is None:
        return
    for option in OPTIONS & kwargs.keys() - accepted:
        name = getattr(function, "__name__", repr(function))
        raise TypeError(
            f"{name}() has no parameter {option!r}; as an option of the task, write "
            f"options({option}={kwargs[option]!r}).submit({name}, ...)"
        )


def check_map_keywords(function: Callable[..., Any], misnamed: Mapping[str, object]) -> None:
    """Check the keywords that `map` does not have.

    :raises TypeError: there is one.
    """
    for word, value in misnamed.items():
        name = getattr(function, "__name__", repr(function))
        if word in OPTIONS:
            hint = f"as an option of the tasks, write options({word}={value!r}).map({name}, ...)"
        else:
            hint = f"to give each call of {name}() a keyword argument, map a functools.partial"
        raise TypeError(f"map() has no argument {word!r}; {hint}")


def _accepted(function: Callable[..., Any]) -> frozenset[str] | None:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in ones have none
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(parameter.name for parameter in parameters if parameter.kind in keywords)


def instead_of(value: object, error: Exception) -> str:
    """What to pass instead of a value that cannot be pickled, as the end of a message; empty if nothing is known."""
    if isinstance(value, types.GeneratorType):
        return "; pass a list of its items, or map() a function over it"
    if "'generator' object" in str(error):
        return "; there is a generator in it: pass a list of its items"
    if isinstance(value, types.CoroutineType):
        return "; await it, and pass its result"
    if isinstance(value, futures.Future) or hasattr(type(value), "_asyncio_future_blocking"):
        return "; it is a future of another executor: pass its result"
    return ""
