"""`Client`: a `concurrent.futures.Executor` whose workers are the engines of a scheduler.

All code that takes an executor works with it: `map` with chunks, `with`, `as_completed`, `wait`,
`loop.run_in_executor`. What an executor does not have (dependencies, targets, retries, timeouts, priorities, resources)
is given to `options(...)`, which returns a view of the client with `submit` and `map`.
"""

# P in the first overload of `submit` could stand for the parameters of the others, which mypy reports. But mypy tries
# the others for calls whose arguments do not fit P, which have futures; and in this order its errors name the argument.
# mypy: disable-error-code="overload-cannot-match"

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Executor
from typing import Any, Never, ParamSpec, TypeAlias, TypeVar, overload

from trio_sched.client.calls import check_map_arguments, make_call, pickle_function, prepare_map
from trio_sched.client.connection import Connection
from trio_sched.client.functions import Function
from trio_sched.client.future import Future
from trio_sched.client.misuse import check_keywords, check_map_keywords
from trio_sched.client.options import OptionNames, TaskRef, Unpack, task_number, wire_options
from trio_sched.client.settings import ClientSettings, init_takes_settings
from trio_sched.errors import NoSchedulerError, VersionMismatch
from trio_sched.transport.connection_info import ENV_ENGINE_OF, ConnectionInfo, find_connection
from trio_sched.wire import native

P = ParamSpec("P")
T = TypeVar("T")
#: What may stand in place of a function's argument (R9): a future, or a sequence of futures. For a future deeper inside
#: an argument, mypy needs a cast.
FutureArg: TypeAlias = futures.Future[Any] | Sequence[futures.Future[Any]]

#: The default timeout of queries, in seconds.
QUERY_TIMEOUT_S = 10.0


class Submitter(Executor):
    """Submits tasks with given options: the base of `Client` and its views."""

    _connection: Connection
    _option_values: OptionNames
    _wire_options: native.Options | None

    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    @overload
    def submit(self, fn: Callable[..., T], a: FutureArg, /, *args: Any, **kwargs: Any) -> Future[T]: ...
    @overload
    def submit(self, fn: Callable[..., T], a: Any, b: FutureArg, /, *args: Any, **kwargs: Any) -> Future[T]: ...
    @overload
    def submit(self, fn: Callable[..., T], a: Any, b: Any, c: FutureArg, /, *args: Any, **kwargs: Any) -> Future[T]: ...
    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run `fn(*args, **kwargs)` on an engine, and return its future.

        A future among the arguments, at any depth, stands for its result: the task waits for it, and the scheduler
        sends the value to the engine, without passing it through this process (R9). It must be a future of this client.
        If its task fails, this task fails with ImpossibleDependency. `submit` waits while the scheduler holds as many
        bytes of calls as its settings client_bytes and total_bytes allow, except in a callback.

        :raises SubmitError: the function or an argument cannot be pickled; the message names it.
        :raises TypeError: a keyword argument is an option of a task (see `options`), and the function has no parameter
            of that name.
        :raises VersionMismatch: no engine runs this minor version of Python.
        :raises SchedulerClosed: the scheduler has ended, or shuts down.
        :raises RuntimeError: the client was shut down, or this is a forked child.
        """
        if kwargs:
            check_keywords(fn, kwargs)
        return self._submit(pickle_function(self._connection.functions, fn), args, kwargs)

    def _submit(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        connection = self._connection
        if connection.watch.warning:
            connection.watch.emit_warning()
        session, session_ref = connection.session, connection.session_ref
        while True:
            call, frames, inputs = make_call(
                function, args, kwargs, self._wire_options, session_ref, session.max_message_bytes
            )
            with connection.lock:
                watch = connection.watch
                if watch.submit_error is not None:
                    watch.check_can_submit()
                if connection.session.is_blocked:
                    connection.wait_for_credit()
                if session_ref is not connection.session_ref:  # another scheduler has answered since
                    session, session_ref = connection.session, connection.session_ref
                    continue
                future: Future[Any] = Future(session_ref, function, session.next_counter)
                if session.submit(future, call, frames, [needed.number for needed in inputs]) is not None:
                    break
            for needed in inputs:  # one has ended since it was pickled: its value must be in the call
                if isinstance(needed, Future):
                    needed.wait_if_ending(session.tasks)
        connection.wake()
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
        """Submit `fn` for each row of the iterables, and return an iterator over the results, in order.

        If a call fails, the iterator raises its exception. When the iterator has raised or was closed, the remaining
        tasks are cancelled.

        :param timeout: seconds from now until the last result.
        :param chunksize: calls that travel and run as one task.
        :param buffersize: tasks that are submitted ahead of the results taken; the iterables, which may be endless, are
            read accordingly. None: every task is submitted at once.
        :param progress: whether to show a progress bar on standard error.
        :raises TypeError: `buffersize` is neither an integer nor None, or there is an argument of another name.
        :raises ValueError: `chunksize` or `buffersize` is less than 1, or `progress` is given with a `buffersize`.
        """
        check_map_keywords(fn, misnamed)
        check_map_arguments(chunksize, buffersize)
        if progress and buffersize is not None:
            raise ValueError("progress=True needs the number of tasks, which is not known with a buffersize; omit one")
        deadline = None if timeout is None else time.monotonic() + timeout
        function, rows = prepare_map(self._connection.functions, fn, iterables, chunksize)
        submitting = (self._submit(function, row, {}) for row in rows)
        submitted = deque(submitting if buffersize is None else itertools.islice(submitting, buffersize))
        if progress:
            from trio_sched.client.progress import show_progress

            show_progress(submitted, getattr(fn, "__name__", "map"))
        results = _iterate_results(submitted, submitting, deadline)
        return results if chunksize == 1 else _flatten(results)

    def options(self, **options: Unpack[OptionNames]) -> Submitter:
        """Return a view that submits with these options, in addition to its own; `OptionNames` lists them.

        :raises ValueError: a value is not valid; the message names the option.
        :raises TypeError: there is no option of that name.
        """
        return BoundOptions(self._connection, {**self._option_values, **options})

    # ---- queries and cancellation -----------------------------------------------------------------------------------

    def status(self, timeout: float = QUERY_TIMEOUT_S) -> dict[str, Any]:
        """Return the scheduler's status: tasks by state, clients, engines with their load, counters.

        :param timeout: seconds to wait for the answer.
        :raises TrioSchedError: the scheduler did not answer, or has ended.
        """
        status: dict[str, Any] = self._connection.query("status", 0, timeout)
        return status

    def engines(self, timeout: float = QUERY_TIMEOUT_S) -> list[dict[str, Any]]:
        """Return the connected engines: number, host, Python, load, resources. Raises as `status`."""
        engines: list[dict[str, Any]] = self._connection.query("engines", 0, timeout)
        return engines

    def explain(self, task: TaskRef, timeout: float = QUERY_TIMEOUT_S) -> str:
        """Return the reason why a task is not running now. Raises as `status`.

        :raises ValueError: `task` is not a task of this scheduler.
        """
        return str(self._connection.query("explain", self._number(task), timeout))

    def story(self, task: TaskRef, timeout: float = QUERY_TIMEOUT_S) -> list[tuple[float, str]]:
        """Return the history of a task: (seconds, text) of each event, in order. Raises as `explain`."""
        return [(when, what) for when, what in self._connection.query("story", self._number(task), timeout)]

    def cancel(self, *tasks: TaskRef) -> None:
        """Cancel tasks of any client of this scheduler, given as futures or ids (R23).

        :raises ValueError: one of these is not a task of this scheduler.
        """
        for task in tasks:
            number = task_number(task, self._connection.session_ref.scheduler, "cancel it with its own cancel()")
            if isinstance(task, Future) and task.session == self._connection.session.number:
                task.cancel()
            else:
                self._connection.cancel(number)

    def _number(self, task: TaskRef) -> int:
        return task_number(task, self._connection.session_ref.scheduler)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse further submissions. Tasks that are not cancelled still run, and their futures still end.

        :param wait: whether to return only when every task has ended.
        :param cancel_futures: whether to cancel the unfinished tasks first.
        """
        self._connection.leave(now=False, cancel=cancel_futures)
        if wait:
            self._connection.join()


class Client(Submitter):
    """An executor on the engines of a scheduler.

    `Client()` finds the running scheduler: $TRIO_SCHED_CONNECTION, else the only one of this user. `where` names one: a
    name, or the path of a connection file. `Client(engines=4)` starts a local cluster of a scheduler and four engines,
    as processes that end when the client is closed or exits for any reason, and waits until the engines have joined;
    `hwm` and `scheme` are its settings.

    `name` is shown in status and dashboards. `weight` is the fair share (R15). With `cancel_on_leave` the tasks are
    cancelled when the client leaves or is lost; else they go on. A scheduler that sends nothing for `reconnect_s`
    seconds counts as ended: its unfinished tasks end with SchedulerClosed, and the client ends. With
    `reconnect="same-name"` the client continues: it connects to the next scheduler of the name or file that led to this
    one. The unfinished tasks are lost with the old scheduler all the same; `submit` raises SchedulerClosed until the
    new one has answered.

    Leaving `with` waits for all tasks, as with every executor. At the interpreter's exit a client that was not shut
    down sends the submitted calls, but does not wait for results.

    :raises NoSchedulerError: there is no scheduler, several match, it does not answer, or the engines of the local
        cluster have not all joined, within `connect_timeout` seconds.
    :raises ConnectionFileError: the given connection file cannot be used.
    :raises TypeError: an argument has a wrong name or type, or arguments contradict each other.
    :raises ValueError: an argument's value is not valid.
    """

    @init_takes_settings
    def __init__(self, settings: ClientSettings) -> None:
        cluster, where = None, settings.where
        if settings.engines is not None:
            from trio_sched.client.local_cluster import LocalCluster

            cluster = LocalCluster(settings.engines, hwm=settings.hwm, scheme=settings.scheme)
        try:
            if cluster is not None:
                info = cluster.connection()
            else:
                info = where if isinstance(where, ConnectionInfo) else find_connection(where, "client")
            connection = Connection(settings, info, cluster)
        except BaseException:
            if cluster is not None:
                cluster.close()
            raise
        connection.start(settings.connect_timeout)
        self._connection = connection
        self._option_values = {}
        self._wire_options = None
        weakref.finalize(self, connection.abandon).atexit = False

    @property
    def session(self) -> int:
        """The number of this client's session, which is the first part of its tasks' ids."""
        return self._connection.session.number

    def __enter__(self) -> Client:
        return self

    def __repr__(self) -> str:
        return f"<Client {self._connection.session.number} of {self._connection.info.name!r}>"


class BoundOptions(Submitter):
    """A client with options; made by `options(...)`. Shutting it down shuts its client down."""

    def __init__(self, connection: Connection, option_values: OptionNames) -> None:
        self._connection = connection
        self._option_values = option_values
        self._wire_options = wire_options(option_values, connection.session_ref.scheduler)


# ---- results of map -------------------------------------------------------------------------------------------------


def _iterate_results(
    submitted: deque[Future[Any]], submitting: Iterator[Future[Any]], deadline: float | None
) -> Generator[Any, None, None]:
    """Yield the results in order, and submit the next task, if there is one, for each result that is taken.

    Keeps no reference to a result that was yielded. At its end, for any reason, the remaining tasks are cancelled.
    """
    try:
        while submitted:
            submitted.extend(itertools.islice(submitting, 1))
            yield _pop_result(submitted, deadline)
    finally:
        for future in submitted:
            future.cancel()


def _pop_result(submitted: deque[Future[Any]], deadline: float | None) -> Any:
    """Remove the first of these futures, and return its result. It is cancelled if there is no result in time."""
    future = submitted.popleft()
    try:
        return future.result(None if deadline is None else deadline - time.monotonic())
    except BaseException:
        future.cancel()
        raise
    finally:
        del future  # else the traceback of the exception would refer to the future, which refers to the exception


def _flatten(chunks: Generator[list[T], None, None]) -> Generator[T, None, None]:
    """Yield the results in these lists. Keeps no reference to a result that was yielded."""
    with contextlib.closing(chunks):
        for chunk in chunks:
            chunk.reverse()
            while chunk:
                yield chunk.pop()


# ---- the client of a running task -----------------------------------------------------------------------------------

_current_lock = threading.Lock()
_current_client: Client | None = None


def current_client() -> Client:
    """Return a client of the scheduler that runs the calling task. All tasks of a worker share it.

    The first call makes the client. Another one is made after it was shut down, after a restart of the scheduler, and
    in a process that a task has forked. It is closed when the worker ends; tasks that were submitted through it
    continue. A task that waits for another task keeps its engine busy meanwhile.

    :raises NoSchedulerError: this is neither a task nor a process that a task started; the scheduler does not answer;
        or the engine's host has no connection file for clients (the message names the file to copy).
    """
    global _current_client
    if ENV_ENGINE_OF not in os.environ:
        raise NoSchedulerError("current_client() is for code that runs in a task; elsewhere use Client()")
    with _current_lock:
        info = find_connection(None, "client")
        if _current_client is None or not _is_usable(_current_client, info):
            former, _current_client = _current_client, None
            if former is not None and former._connection.pid == os.getpid():
                former.shutdown(wait=False)
            _current_client = Client(info, name="a task")
        return _current_client


def _is_usable(client: Client, info: ConnectionInfo) -> bool:
    connection = client._connection
    error = connection.watch.submit_error
    return connection.info == info and connection.pid == os.getpid() and isinstance(error, VersionMismatch | None)


def _renew_lock() -> None:
    """Replace the lock in a forked child, where the thread that may hold it does not run."""
    global _current_lock
    _current_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
