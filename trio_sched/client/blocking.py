"""`Client`: a `concurrent.futures.Executor` whose workers are a scheduler's engines.

Whatever takes an executor takes this one: `map` with chunks, `with`, `as_completed`, `wait`, `loop.run_in_executor`.
What an executor has no words for (dependencies, targets, retries, timeouts, priorities, resources) is said with
`options(...)`, which returns a view of the client with `submit` and `map`.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Never, ParamSpec, TypeAlias, TypeVar, overload

from trio_sched.client.calls import check_map, find_function, find_rows, make_call
from trio_sched.client.functions import Function
from trio_sched.client.future import Future
from trio_sched.client.line import Line
from trio_sched.client.lookout import check_seconds, hello
from trio_sched.client.misuse import check_client_arguments, check_keywords, check_map_keywords
from trio_sched.client.options import OptionNames, TaskRef, Unpack, task_number, wire_options
from trio_sched.client.successor import Reconnect, Successor
from trio_sched.transport.connection import Connection, find
from trio_sched.wire import native

P = ParamSpec("P")
T = TypeVar("T")
Late: TypeAlias = futures.Future[Any] | Sequence[futures.Future[Any]]
"""What may stand where a function wants a value, or several (R9); deeper inside, mypy needs a cast."""

CONNECT_TIMEOUT_S = 10.0
RECONNECT_S = 60.0
ASK_TIMEOUT_S = 10.0


class Submitter(Executor):
    """What `Client` and its views have in common: submitting under given options."""

    _line: Line
    _asked: OptionNames
    _wire: native.Options | None

    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    @overload  # mypy compares with P, which could stand for these; but it tries them for a call that P does not fit
    def submit(self, fn: Callable[..., T], a: Late, /, *args: Any, **kwargs: Any) -> Future[T]: ...  # type: ignore[overload-cannot-match]
    @overload
    def submit(self, fn: Callable[..., T], a: Any, b: Late, /, *args: Any, **kwargs: Any) -> Future[T]: ...  # type: ignore[overload-cannot-match]
    @overload
    def submit(self, fn: Callable[..., T], a: Any, b: Any, c: Late, /, *args: Any, **kwargs: Any) -> Future[T]: ...  # type: ignore[overload-cannot-match]
    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run `fn(*args, **kwargs)` on an engine; returns its future.

        A future among the arguments, at any depth, stands for its result: the task waits for it, and its value goes
        from engine to engine without coming here (R9). It must be one of this client. If it fails, the task fails with
        ImpossibleDependency. Waits while the scheduler holds as many bytes of calls as its settings client_bytes and
        total_bytes allow, except in a callback.

        :raises SubmitError: the function or an argument cannot be pickled; the message names it.
        :raises TypeError: a keyword argument is an option of a task (see `options`), and no parameter of the function.
        :raises VersionMismatch: no engine runs this Python.
        :raises SchedulerClosed: the scheduler is gone, or shuts down.
        :raises RuntimeError: after `shutdown`, or in a forked child.
        """
        if kwargs:
            check_keywords(fn, kwargs)
        return self._submit(find_function(self._line.functions, fn), args, kwargs)

    def _submit(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        line = self._line
        session, lookout = line.session, line.lookout
        if lookout.warning:
            lookout.warn()
        future: Future[Any] = Future(line.origin, function)
        while True:
            call, frames, inputs = make_call(function, args, kwargs, self._wire, line.origin, session.max_message_bytes)
            with line.lock:
                if lookout.trouble is not None:
                    lookout.check()
                if line.session.blocked:
                    line.wait_for_credit()
                if future._origin is not line.origin:  # the scheduler was replaced meanwhile
                    session, future = line.session, Future(line.origin, function)
                    continue
                number = session.submit(future, call, frames, [needed.number for needed in inputs])
                if number is not None:
                    future.number = number
                    break
            for needed in inputs:  # one has ended just now: its value goes along
                if isinstance(needed, Future):
                    needed.wait_if_ending(session.tasks)
        line.wake()
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        progress: bool = False,
        **misnamed: Never,
    ) -> Generator[T, None, None]:
        """`map(fn, *iterables)` on the engines, in order.

        `timeout`: seconds from now until the last result. `chunksize`: calls that travel and run as one task.
        `buffersize`: tasks that are submitted ahead; the iterables, which may be endless, are read as results are
        taken. None: everything is submitted now. `progress`: show a bar. If one call fails, the iterator raises what it
        raised. When the iterator has raised or was closed, the tasks that are left are cancelled.

        :raises TypeError: `buffersize` is neither an integer nor None, or there is an argument of another name.
        :raises ValueError: `chunksize` or `buffersize` is less than 1, or a bar is asked for with a `buffersize`.
        """
        check_map_keywords(fn, misnamed)
        check_map(chunksize, buffersize)
        if progress and buffersize is not None:
            raise ValueError("progress=True needs the number of tasks, which is not known with a buffersize; omit one")
        until = None if timeout is None else time.monotonic() + timeout
        function, rows = find_rows(self._line.functions, fn, iterables, chunksize)
        submitting = (self._submit(function, row, {}) for row in rows)
        submitted = deque(submitting if buffersize is None else itertools.islice(submitting, buffersize))
        if progress:
            from trio_sched.client.progress import show

            show(submitted, getattr(fn, "__name__", "map"))
        results = _results(submitted, submitting, until)
        return results if chunksize == 1 else _flattened(results)

    def options(self, **options: Unpack[OptionNames]) -> Submitter:
        """A view that submits with these options, beside those that this one has. See OptionNames."""
        return View(self._line, {**self._asked, **options})

    # ---- looking and cancelling -------------------------------------------------------------------------------------

    def status(self, timeout: float = ASK_TIMEOUT_S) -> dict[str, Any]:
        """The scheduler in numbers: tasks by state, clients, engines with their load, counters."""
        status: dict[str, Any] = self._line.ask("status", 0, timeout)
        return status

    def engines(self, timeout: float = ASK_TIMEOUT_S) -> list[dict[str, Any]]:
        """The engines that are here: number, host, Python, load, resources."""
        engines: list[dict[str, Any]] = self._line.ask("engines", 0, timeout)
        return engines

    def explain(self, task: TaskRef, timeout: float = ASK_TIMEOUT_S) -> str:
        """Why a task is not running now, in words."""
        return str(self._line.ask("explain", self._number(task), timeout))

    def story(self, task: TaskRef, timeout: float = ASK_TIMEOUT_S) -> list[tuple[float, str]]:
        """What happened to a task, in order: (seconds, what)."""
        return [(when, what) for when, what in self._line.ask("story", self._number(task), timeout)]

    def cancel(self, *tasks: TaskRef) -> None:
        """Cancel tasks of any client of this scheduler: futures, or ids."""
        for task in tasks:
            number = task_number(task, self._line.origin.scheduler, "cancel it with its own cancel()")
            if isinstance(task, Future) and task.session == self._line.session.number:
                task.cancel()
            else:
                self._line.cancel(number)

    def _number(self, task: TaskRef) -> int:
        return task_number(task, self._line.origin.scheduler)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks. With `wait`, return when all have ended; with `cancel_futures`, cancel them first.

        Without `wait` the tasks go on, and their futures still end.
        """
        self._line.leave(now=False, cancel=cancel_futures)
        if wait:
            self._line.join()


class Client(Submitter):
    """An executor on the engines of a scheduler.

    `Client()` finds the running scheduler: $TRIO_SCHED_CONNECTION, else the only one of this user. `where` names one: a
    name, or the path of a connection file. `Client(engines=4)` brings a scheduler and four engines of its own, as
    processes that end when the client is closed or dies, and waits until the engines have joined; `hwm` and `scheme`
    are theirs.

    `name` is shown in status and dashboards. `weight` is the fair share (R15). With `cancel_on_leave` the tasks end
    with the client, however it ends; else they go on. A scheduler not heard of for `reconnect_s` seconds counts as
    gone: its unfinished tasks end with SchedulerClosed, and so does the client. With `reconnect="same-name"` the client
    goes on: it connects to the next scheduler of the name, or in the file, by which it found this one. The unfinished
    tasks are lost with the old one all the same; `submit` raises SchedulerClosed until the new one has answered.

    Leaving `with` waits for all tasks, as with every executor. At the interpreter's exit a client that was not shut
    down hands over what was submitted, but waits for no results.

    :raises NoSchedulerError: there is none, or several, or it does not answer, or the engines of its own have not all
        joined, within `connect_timeout` seconds.
    :raises ConnectionFileError: the file that was named cannot be used.
    """

    def __init__(
        self,
        where: str | Path | Connection | None = None,
        *,
        engines: int | None = None,
        hwm: int | None = None,
        scheme: str | None = None,
        name: str = "",
        weight: float = 1.0,
        cancel_on_leave: bool = False,
        connect_timeout: float = CONNECT_TIMEOUT_S,
        reconnect_s: float = RECONNECT_S,
        reconnect: Reconnect = "never",
        **misnamed: Never,
    ) -> None:
        from trio_sched.client.own import OwnScheduler

        check_client_arguments(Client, where, misnamed)
        check_seconds(connect_timeout=connect_timeout, reconnect_s=reconnect_s)
        own = OwnScheduler.if_asked(where, engines, hwm=hwm, scheme=scheme)
        try:
            connection = own.connection() if own else where if isinstance(where, Connection) else find(where, "client")
            greeting = hello(connection, name=name, weight=weight, cancel_on_leave=cancel_on_leave)
            successor = Successor.if_asked(reconnect, where, connection, own=own is not None)
            line = Line(connection, greeting, reconnect_s=reconnect_s, companion=own, successor=successor)
        except BaseException:
            if own:
                own.close()
            raise
        line.start(connect_timeout)
        self._line = line
        self._asked = {}
        self._wire = None
        weakref.finalize(self, line.abandon).atexit = False

    @property
    def session(self) -> int:
        """The number of this client's session: the first part of its tasks' ids."""
        return self._line.session.number

    def __enter__(self) -> Client:
        return self

    def __repr__(self) -> str:
        return f"<Client {self._line.session.number} of {self._line.connection.name!r}>"


class View(Submitter):
    """A client with options; made by `options(...)`. Shutting it down shuts its client down."""

    def __init__(self, line: Line, asked: OptionNames) -> None:
        self._line = line
        self._asked = asked
        self._wire = wire_options(asked, line.origin.scheduler)


def _results(
    submitted: deque[Future[Any]], submitting: Iterator[Future[Any]], until: float | None
) -> Generator[Any, None, None]:
    """The results in order; for each one that is taken, submit the next task, if there is one.

    Nothing here refers to a result that was yielded. However it ends, the tasks that are left are cancelled.
    """
    try:
        while submitted:
            submitted.extend(itertools.islice(submitting, 1))
            yield _pop_result(submitted, until)
    finally:
        for future in submitted:
            future.cancel()


def _pop_result(submitted: deque[Future[Any]], until: float | None) -> Any:
    """The result of the first of these, which is taken off; cancelled if there is none in time."""
    future = submitted.popleft()
    try:
        return future.result(None if until is None else until - time.monotonic())
    except BaseException:
        future.cancel()
        raise
    finally:
        del future  # it is in the traceback of the exception that it holds


def _flattened(chunks: Generator[list[T], None, None]) -> Generator[T, None, None]:
    """The results in all of these lists, without a reference to one that was yielded."""
    with contextlib.closing(chunks):
        for chunk in chunks:
            chunk.reverse()
            while chunk:
                yield chunk.pop()
