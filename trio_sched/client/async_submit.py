"""Submission from asynchronous code: the base of the client, its views with options, and its task groups."""

# The overloads of `submit` are those of `blocking.Submitter`.
# mypy: disable-error-code="overload-cannot-match"

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Never, ParamSpec, TypeAlias, TypeVar, overload

from trio_sched.client.async_connection import AsyncConnection
from trio_sched.client.async_future import AsyncFuture, FutureOwner
from trio_sched.client.calls import check_map_arguments, make_call, pickle_function, prepare_map
from trio_sched.client.functions import Function
from trio_sched.client.misuse import check_keywords, check_map_keywords
from trio_sched.client.options import OptionNames, Unpack, wire_options

P = ParamSpec("P")
T = TypeVar("T")
#: What may stand in place of a function's argument (R9): a future, or a sequence of futures. For a future deeper inside
#: an argument, mypy needs a cast.
FutureArg: TypeAlias = AsyncFuture[Any] | Sequence[AsyncFuture[Any]]


class AsyncSubmitter:
    """Submits tasks with given options, which one block owns."""

    def __init__(self, connection: AsyncConnection, option_values: OptionNames, owner: FutureOwner) -> None:
        self._connection = connection
        self._option_values = option_values
        self._wire_options = wire_options(option_values, connection.session_ref.scheduler) if option_values else None
        self._owner = owner

    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> AsyncFuture[T]: ...
    @overload
    def submit(self, fn: Callable[..., T], a: FutureArg, /, *args: Any, **kwargs: Any) -> AsyncFuture[T]: ...
    @overload
    def submit(self, fn: Callable[..., T], a: Any, b: FutureArg, /, *args: Any, **kwargs: Any) -> AsyncFuture[T]: ...
    @overload
    def submit(
        self, fn: Callable[..., T], a: Any, b: Any, c: FutureArg, /, *args: Any, **kwargs: Any
    ) -> AsyncFuture[T]: ...
    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> AsyncFuture[T]:
        """Run `fn(*args, **kwargs)` on an engine, and return its future at once.

        The call is sent at the caller's next `await`, or is queued in this process until the scheduler has credit for
        it: see `wait_for_credit`. A future among the arguments, at any depth, stands for its result (R9).

        :raises SubmitError: the function or an argument cannot be pickled; the message names it.
        :raises TypeError: a keyword argument is an option of a task (see `options`), and the function has no parameter
            of that name.
        :raises VersionMismatch: no engine runs this minor version of Python.
        :raises SchedulerClosed: the scheduler has ended, or shuts down.
        :raises RuntimeError: the client or the task group was left.
        """
        if kwargs:
            check_keywords(fn, kwargs)
        return self._submit(pickle_function(self._connection.functions, fn), args, kwargs)

    def _submit(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncFuture[Any]:
        connection, owner = self._connection, self._owner
        watch, session, session_ref = connection.watch, connection.session, connection.session_ref
        owner.check_open()
        if watch.submit_error is not None:
            watch.check_can_submit()
        if watch.warning:
            watch.emit_warning()
        call, frames, inputs = make_call(
            function, args, kwargs, self._wire_options, session_ref, session.max_message_bytes
        )
        future: AsyncFuture[Any] = AsyncFuture(session_ref, function, session.next_counter, owner)
        number = session.submit(future, call, frames, [needed.number for needed in inputs])
        assert number is not None  # no input can end between the pickling and this call: there is one thread
        owner.on_submitted(future)
        connection.wake()
        return future

    async def wait_for_credit(self) -> None:
        """Wait until every submitted call is on its way to the scheduler.

        The scheduler's settings credit, client_bytes and total_bytes limit the calls and bytes that it takes at once;
        the rest is queued in this process. Awaited between large submissions, this method keeps that queue small.

        :raises TrioSchedError: the scheduler has ended.
        """
        await self._connection.wait_for_credit()

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        chunksize: int = 1,
        buffersize: int | None = None,
        **misnamed: Never,
    ) -> AsyncResults[T]:
        """Submit `fn` for each row of the iterables, and return an asynchronous iterator over the results, in order.

        If a call fails, the iterator raises its exception and cancels the remaining tasks, as its `aclose()` does.

        :param chunksize: calls that travel and run as one task.
        :param buffersize: tasks that are submitted ahead of the results taken; the iterables, which may be endless, are
            read accordingly. None: every task is submitted at once.
        :raises TypeError: `buffersize` is neither an integer nor None, or there is an argument of another name.
        :raises ValueError: `chunksize` or `buffersize` is less than 1.
        """
        check_map_keywords(fn, misnamed)
        check_map_arguments(chunksize, buffersize)
        function, rows = prepare_map(self._connection.functions, fn, iterables, chunksize)
        submitting = (self._submit(function, row, {}) for row in rows)
        submitted = deque(submitting if buffersize is None else itertools.islice(submitting, buffersize))
        return AsyncResults(submitted, submitting, chunked=chunksize > 1)

    def options(self, **options: Unpack[OptionNames]) -> AsyncSubmitter:
        """Return a view that submits with these options, in addition to its own; `OptionNames` lists them.

        :raises ValueError: a value is not valid; the message names the option.
        :raises TypeError: there is no option of that name.
        """
        return AsyncSubmitter(self._connection, {**self._option_values, **options}, self._owner)


class AsyncResults(Generic[T]):
    """The results of a `map`, in order. Keeps no reference to a result that it has returned."""

    def __init__(
        self, submitted: deque[AsyncFuture[Any]], submitting: Iterator[AsyncFuture[Any]], *, chunked: bool
    ) -> None:
        self._submitted = submitted
        self._submitting = submitting
        self._chunked = chunked
        self._values: deque[T] = deque()

    def __aiter__(self) -> AsyncResults[T]:
        return self

    async def __anext__(self) -> T:
        while not self._values:
            if not self._submitted:
                raise StopAsyncIteration
            try:
                self._submitted.extend(itertools.islice(self._submitting, 1))
                value = await self._submitted[0]
            except BaseException:
                await self.aclose()
                raise
            self._submitted.popleft()
            self._values.extend(value if self._chunked else (value,))
        return self._values.popleft()

    async def aclose(self) -> None:
        """Cancel the remaining tasks and end the iteration. The errors of those that have failed count as seen."""
        for future in self._submitted:
            future.mark_seen()
            future.cancel()
        self._submitted.clear()
        self._submitting = iter(())
        self._values.clear()
