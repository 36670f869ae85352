"""Submitting from asynchronous code: what the client, its views and its task groups have in common."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeAlias, TypeVar, overload

from trio_sched.client.async_future import AsyncFuture
from trio_sched.client.blocking import chunks
from trio_sched.client.calls import find_function, make_call
from trio_sched.client.functional import Chunk
from trio_sched.client.functions import Function
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
        self._wire = wire_options(asked) if asked else None
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
        """Run `fn(*args, **kwargs)` on an engine; returns its future at once. Goes out when you next await something.

        A future among the arguments, at any depth, stands for its result (R9).

        :raises SubmitError: the function or an argument cannot be pickled; the message names it.
        :raises VersionMismatch: no engine runs this Python.
        :raises SchedulerClosed: the scheduler is gone, or shuts down.
        """
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
        future: AsyncFuture[Any] = AsyncFuture(line.origin, function, group)
        call, frames, inputs = make_call(function, args, kwargs, self._wire, future.session, session.max_message_bytes)
        number = session.submit(future, call, frames, [needed.number for needed in inputs])
        assert number is not None  # nothing can end between the pickling and this: there is one thread
        future.number = number
        if group is not None:
            group.admit(future)
        line.wake()
        return future

    def map(self, fn: Callable[..., T], *iterables: Iterable[Any], chunksize: int = 1) -> AsyncResults[T]:
        """Submit `fn` for each row of the iterables now; iterate with `async for` over the results, in order.

        `chunksize`: so many calls travel and run as one task. If one fails, the iterator raises what it raised, and
        cancels what is left.
        """
        if chunksize < 1:
            raise ValueError(f"chunksize={chunksize!r}: must be 1 or more")
        rows = zip(*iterables)  # noqa: B905  # as the built-in map: the shortest decides
        if chunksize == 1:
            function = find_function(self._line.functions, fn)
            return AsyncResults([self._submit(function, row, {}) for row in rows], chunked=False)
        function = find_function(self._line.functions, Chunk(fn))
        return AsyncResults([self._submit(function, (chunk,), {}) for chunk in chunks(rows, chunksize)], chunked=True)

    def options(self, **options: Unpack[OptionNames]) -> AsyncSubmitter:
        """A view that submits with these options, beside those that this one has. See OptionNames."""
        return AsyncSubmitter(self._line, {**self._asked, **options}, self._group)


class AsyncResults(Generic[T]):
    """The results of a `map`, in order."""

    def __init__(self, futures: Iterable[AsyncFuture[Any]], *, chunked: bool) -> None:
        self._left = deque(futures)
        self._chunked = chunked
        self._here: deque[T] = deque()

    def __aiter__(self) -> AsyncResults[T]:
        return self

    async def __anext__(self) -> T:
        while not self._here:
            if not self._left:
                raise StopAsyncIteration
            try:
                value = await self._left[0]
            except BaseException:
                for future in self._left:
                    future.cancel()
                self._left.clear()
                raise
            self._left.popleft()
            self._here.extend(value if self._chunked else (value,))
        return self._here.popleft()
