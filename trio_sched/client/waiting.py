"""`wait` and `as_completed` of `concurrent.futures`, with types that keep what a `Future` of ours knows.

At run time they are the standard ones: futures of any executor may be mixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import Any, Generic, NamedTuple, TypeVar

F = TypeVar("F", bound=futures.Future[Any])


class Waited(NamedTuple, Generic[F]):
    """What `wait` returns."""

    done: set[F]
    """Those that ended or were cancelled."""
    not_done: set[F]


def wait(fs: Iterable[F], timeout: float | None = None, return_when: str = futures.ALL_COMPLETED) -> Waited[F]:
    """Wait for these futures; return (done, not_done), as `concurrent.futures.wait` does.

    `timeout` is in seconds. `return_when` is one of the constants of `concurrent.futures`: ALL_COMPLETED,
    FIRST_COMPLETED, FIRST_EXCEPTION.
    """
    done, not_done = futures.wait(fs, timeout, return_when)
    return Waited(done, not_done)  # type: ignore[arg-type]  # the standard function returns what it was given


def as_completed(fs: Iterable[F], timeout: float | None = None) -> Iterator[F]:
    """Iterate over these futures as they end, each once, as `concurrent.futures.as_completed` does.

    :raises TimeoutError: not all of them have ended `timeout` seconds from now; raised by the iterator.
    """
    return futures.as_completed(fs, timeout)  # type: ignore[return-value]  # likewise
