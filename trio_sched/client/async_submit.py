"""Submitting from asynchronous code: what the client, its views and its task groups have in common."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Never, ParamSpec, TypeAlias, TypeVar, overload

from trio_sched.client.async_future import AsyncFuture
from trio_sched.client.calls import check_map, find_function, find_rows, make_call
from trio_sched.client.functions import Function
from trio_sched.client.misuse import check_keywords, check_map_keywords
from trio_sched.client.options import OptionNames, Unpack, wire_options

if TYPE_CHECKING:
    from trio_sched.client.async_line import AsyncLine
    from trio_sched.client.group import AsyncTaskGroup

P = ParamSpec("P")
T = TypeVar("T")
Late: TypeAlias = AsyncFuture[Any] | Sequence[AsyncFuture[Any]]
"""What may stand where a function wants a value, or several (R9); deeper inside, mypy needs a cast."""


class AsyncSubmitter:
    """Submits under given options, into a task group or not."""

    def __init__(self, line: AsyncLine, asked: OptionNames, group: AsyncTaskGroup | None) -> None:
        self._line = line
        self._asked = asked
        self._wire = wire_options(asked, line.origin.scheduler) if asked else None
        self._group = group

    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> AsyncFuture[T]: ...
    @overload  # see Submitter.submit
    def submit(self, fn: Callable[..., T], a: Late, /, *args: Any, **kwargs: Any) -> AsyncFuture[T]: ...  # type: ignore[overload-cannot-match]
    @overload
    def submit(self, fn: Callable[..., T], a: Any, b: Late, /, *args: Any, **kwargs: Any) -> AsyncFuture[T]: ...  # type: ignore[overload-cannot-match]
    @overload
    def submit(self, fn: Callable[..., T], a: Any, b: Any, c: Late, /, *args: Any, **kwargs: Any) -> AsyncFuture[T]: ...  # type: ignore[overload-cannot-match]
    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> AsyncFuture[T]:
        """Run `fn(*args, **kwargs)` on an engine; returns its future at once. Goes out when you next await something,
        or waits in this process while the scheduler takes no more: see `wait_for_credit`.

        A future among the arguments, at any depth, stands for its result (R9).

        :raises SubmitError: the function or an argument cannot be pickled; the message names it.
        :raises TypeError: a keyword argument is an option of a task (see `options`), and no parameter of the function.
        :raises VersionMismatch: no engine runs this Python.
        :raises SchedulerClosed: the scheduler is gone, or shuts down.
        """
        if kwargs:
            check_keywords(fn, kwargs)
        return self._submit(find_function(self._line.functions, fn), args, kwargs)

    def _submit(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncFuture[Any]:
        line, group = self._line, self._group
        lookout, session = line.lookout, line.session
        if group is not None:
            group.check_open()
        if lookout.trouble is not None:
            lookout.check()
        if lookout.warning:
            lookout.warn()
        future: AsyncFuture[Any] = AsyncFuture(line.origin, function, group or line.failures)
        call, frames, inputs = make_call(function, args, kwargs, self._wire, line.origin, session.max_message_bytes)
        number = session.submit(future, call, frames, [needed.number for needed in inputs])
        assert number is not None  # nothing can end between the pickling and this: there is one thread
        future.number = number
        if group is not None:
            group.admit(future)
        line.wake()
        return future

    async def wait_for_credit(self) -> None:
        """Wait until everything that was submitted is on its way to the scheduler, which takes only so many calls and
        bytes at a time (its settings credit, client_bytes and total_bytes). Between two of many large submissions, it
        keeps what waits in this process small.

        :raises TrioSchedError: the scheduler is gone.
        """
        await self._line.wait_for_credit()

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        chunksize: int = 1,
        buffersize: int | None = None,
        **misnamed: Never,
    ) -> AsyncResults[T]:
        """Submit `fn` for each row of the iterables; iterate with `async for` over the results, in order.

        `chunksize`: calls that travel and run as one task. `buffersize`: tasks that are submitted ahead; the iterables,
        which may be endless, are read as results are taken. None: everything is submitted now. If one call fails, the
        iterator raises what it raised, and cancels what is left, as its `aclose()` does.

        :raises TypeError: `buffersize` is neither an integer nor None, or there is an argument of another name.
        :raises ValueError: `chunksize` or `buffersize` is less than 1.
        """
        check_map_keywords(fn, misnamed)
        check_map(chunksize, buffersize)
        function, rows = find_rows(self._line.functions, fn, iterables, chunksize)
        submitting = (self._submit(function, row, {}) for row in rows)
        submitted = deque(submitting if buffersize is None else itertools.islice(submitting, buffersize))
        return AsyncResults(submitted, submitting, chunked=chunksize > 1)

    def options(self, **options: Unpack[OptionNames]) -> AsyncSubmitter:
        """A view that submits with these options, beside those that this one has. See OptionNames."""
        return AsyncSubmitter(self._line, {**self._asked, **options}, self._group)


class AsyncResults(Generic[T]):
    """The results of a `map`, in order. Refers to no result that it has returned."""

    def __init__(
        self, submitted: deque[AsyncFuture[Any]], submitting: Iterator[AsyncFuture[Any]], *, chunked: bool
    ) -> None:
        self._submitted = submitted
        self._submitting = submitting
        self._chunked = chunked
        self._here: deque[T] = deque()

    def __aiter__(self) -> AsyncResults[T]:
        return self

    async def __anext__(self) -> T:
        while not self._here:
            if not self._submitted:
                raise StopAsyncIteration
            try:
                self._submitted.extend(itertools.islice(self._submitting, 1))
                value = await self._submitted[0]
            except BaseException:
                await self.aclose()
                raise
            self._submitted.popleft()
            self._here.extend(value if self._chunked else (value,))
        return self._here.popleft()

    async def aclose(self) -> None:
        """Cancel the tasks that are left, and end the iteration. Nobody is told of those that have failed."""
        for future in self._submitted:
            future.see()
            future.cancel()
        self._submitted.clear()
        self._submitting = iter(())
        self._here.clear()
