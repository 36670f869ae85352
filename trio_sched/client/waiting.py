"""`wait` and `as_completed` of `concurrent.futures`, typed so that the futures keep their own class.

At run time they are the standard functions: futures of any executors may be mixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import Any, Generic, NamedTuple, TypeVar, cast

F = TypeVar("F", bound=futures.Future[Any])


class Waited(NamedTuple, Generic[F]):
    """The result of `wait`."""

    #: The futures that are done.
    done: set[F]
    not_done: set[F]


def wait(fs: Iterable[F], timeout: float | None = None, return_when: str = futures.ALL_COMPLETED) -> Waited[F]:
    """Wait for futures, as `concurrent.futures.wait` does, and return (done, not_done).

    :param timeout: the longest time to wait, in seconds; None: no limit.
    :param return_when: a constant of `concurrent.futures`: ALL_COMPLETED, FIRST_COMPLETED or FIRST_EXCEPTION.
    """
    return cast("Waited[F]", Waited(*futures.wait(fs, timeout, return_when)))


def as_completed(fs: Iterable[F], timeout: float | None = None) -> Iterator[F]:
    """Return an iterator over futures in the order in which they end, as `concurrent.futures.as_completed` does.

    :raises TimeoutError: raised by the iterator, if a future is unfinished `timeout` seconds from now.
    """
    return cast("Iterator[F]", futures.as_completed(fs, timeout))
