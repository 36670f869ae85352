"""Run one call: find its function, unpickle its arguments, enter its client's environment, call, and build the result.

Each call begins in its client's directory and with the worker's own umask, whatever the call before changed: both are
set for each call, which costs two system calls (0.6 us together); to find out whether they changed would cost more. The
directory is kept open, so that setting it looks up no path. With several slots all calls of a worker share one
directory and one umask, and each call sets both at its start.

No exception of a task ends the loop that runs it: whatever is raised, SystemExit and KeyboardInterrupt included, is the
task's error. A function or an argument that cannot be loaded is a `CallError`, which is distinct from an exception of
the task.

The code for a usual call has few branches, because the whole cost of a small task in a
worker is here: about 5 us, most of it pickle.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from time import perf_counter
from types import CoroutineType
from typing import Any, NoReturn

import msgspec

from trio_sched.engine.results import (
    MODULE_ADVICE,
    PICKLED_NONE,
    FramedResult,
    call_error,
    result_of_error,
    result_of_value,
)
from trio_sched.transport.connection_info import host_name
from trio_sched.wire import payload, source_stamps
from trio_sched.wire.ids import session_of
from trio_sched.wire.native import Call, ClientEnvironment, Frame, TaskResult, Value

LoadedFunction = Callable[..., Any]
_fchdir, _set_umask = os.fchdir, os.umask


class CallRunner:
    """Runs calls, with the functions and environments that the scheduler has sent.

    `run` may be called from several threads, the other methods from one.
    """

    def __init__(self) -> None:
        #: With one slot: whether the task's own code runs, which an interrupt may end.
        self.in_call = False
        #: The number of this engine at its scheduler; 0: not welcomed.
        self._engine = 0
        #: The largest message that the scheduler accepts; 0: unknown.
        self._limit_bytes = 0
        #: Whether this process was forked by a task: it has no loop to return to.
        self._forked = False
        self._functions: dict[bytes, LoadedFunction] = {}
        #: Functions that no task has needed yet, by digest.
        self._pickled: dict[bytes, bytes] = {}
        self._by_name: dict[str, LoadedFunction] = {}
        #: The generation of the modules in which `_by_name` was filled.
        self._sources = source_stamps.generation()
        #: By client session.
        self._environments: dict[int, ClientEnvironment] = {}
        self._loading = threading.Lock()
        #: The client session whose environment was entered last; 0: none.
        self._session = 0
        self._home = _current_directory()
        #: Descriptor of the directory in which calls of the current session begin; -1: it cannot be opened.
        self._directory = -1
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._event_loops = threading.local()

    def join(self, engine: int, limit_bytes: int) -> None:
        """Record this engine's number at the scheduler, and the largest message that the scheduler accepts."""
        self._engine = engine
        self._limit_bytes = limit_bytes

    def update(
        self,
        functions: Mapping[bytes, bytes],
        drop: Sequence[bytes] = (),
        environments: Mapping[int, ClientEnvironment] | None = None,
    ) -> None:
        """Add the functions and environments of an `Assign`, and remove the functions to drop."""
        self._pickled.update(functions)
        for digest in drop:
            self._functions.pop(digest, None)
            self._pickled.pop(digest, None)
        if environments:
            self._environments.update(environments)
            self._session = 0  # the environment of the current session may have changed

    def reset(self) -> None:
        """Remove all functions and environments: they belong to a session that was not resumed."""
        self._functions.clear()
        self._pickled.clear()
        self._environments.clear()
        self._session = 0

    def enter_forked_child(self) -> None:
        """Note that this process is one that a task forked: it exits where the task ends."""
        self._forked = True

    def run(self, call: Call, frames: Sequence[Frame]) -> FramedResult:
        """Run the call; never raises."""
        what = "the function"
        try:
            session = session_of(call.id)
            if session != self._session:
                self._enter_environment(session)
            try:
                _fchdir(self._directory)
            except OSError:  # a task closed the descriptor
                self._enter_environment(session)
            _set_umask(self._umask)
            function = self._functions.get(call.fn) or self._find_function(call)
            what = "an argument"
            if frames or call.inputs or call.call:
                args, kwargs = _load_arguments(call, frames)
            else:
                args, kwargs = pickle.loads(call.body)
        except BaseException as error:  # imports run users' code
            failed = call_error(call, what, error, self._describe_engine())
            return result_of_error(call, failed, 0.0, self._limit_bytes)
        started = perf_counter()
        try:
            self.in_call = True
            value = function(*args, **kwargs)
            if type(value) is CoroutineType:
                value = self._run_coroutine(value)
            self.in_call = False
            if self._forked:
                _exit_forked_child(None)
        except BaseException as error:  # the task's, whatever it is
            self.in_call = False
            if self._forked:
                _exit_forked_child(error)
            if isinstance(error, ModuleNotFoundError):
                error.add_note(f"raised on {self._describe_engine()}. {MODULE_ADVICE}")
            return result_of_error(call, error, perf_counter() - started, self._limit_bytes)
        took_s = perf_counter() - started
        if value is None and not call.call:
            return TaskResult(id=call.id, body=PICKLED_NONE, attempt=call.attempt, took_s=took_s), ()
        del args, kwargs  # the value may be an argument, or a part of one
        box = [value]
        del value
        return result_of_value(call, box.pop(), took_s, self._limit_bytes)

    def _describe_engine(self) -> str:
        return f"engine {self._engine} at {host_name()} ({sys.executable}, Python {sys.version.split()[0]})"

    def _find_function(self, call: Call) -> LoadedFunction:
        if call.call:
            if self._sources != source_stamps.generation():
                self._by_name.clear()
                self._sources = source_stamps.generation()
            return self._by_name.get(call.call) or self._load_by_name(call.call)
        with self._loading:
            return self._functions.get(call.fn) or self._load(call)

    def _load(self, call: Call) -> LoadedFunction:
        pickled = self._pickled.get(call.fn)
        if pickled is None:
            raise LookupError(f"the scheduler did not send the function with digest {call.fn.hex()!r}")
        function = _check_callable(pickle.loads(pickled), "the pickled object")
        self._functions[call.fn] = function
        del self._pickled[call.fn]
        return function

    def _load_by_name(self, name: str) -> LoadedFunction:
        module, colon, path = name.partition(":")
        if not (module and colon and path):
            raise ValueError(f'{name!r} is not of the form "module:name"')
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        function = self._by_name[name] = _check_callable(found, name)
        return function

    # ---- environments -----------------------------------------------------------------------------------------------

    def _enter_environment(self, session: int) -> None:
        """Add the client's sys.path entries, and change to its working directory, or to the worker's where the
        client's does not exist.
        """
        environment = self._environments.get(session, _NO_ENVIRONMENT)
        if extend_sys_path(environment.path):
            importlib.invalidate_caches()
        if self._directory >= 0:
            with contextlib.suppress(OSError):
                os.close(self._directory)
        self._directory = -1
        for directory in (environment.cwd, self._home):
            if directory and _try_chdir(directory):
                self._directory = _open_current_directory()
                break
        self._session = session

    # ---- async def --------------------------------------------------------------------------------------------------

    def _run_coroutine(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run an `async def` task to its end, on an asyncio loop that this thread keeps."""
        runner = getattr(self._event_loops, "runner", None)
        if runner is None:
            import asyncio

            runner = self._event_loops.runner = asyncio.Runner()
        return runner.run(_run_alone(coroutine))


def _check_callable(found: Any, what: str) -> LoadedFunction:
    if not callable(found):
        raise TypeError(f"{what} is a {type(found).__qualname__}, which is not callable")
    function: LoadedFunction = found
    return function


def _exit_forked_child(error: BaseException | None) -> NoReturn:
    """Exit from a process that the task forked and in which it returned or raised, as a script would exit."""
    code = 0 if error is None else 1
    try:
        if isinstance(error, SystemExit):
            if error.code is None or isinstance(error.code, int):
                code = (error.code or 0) & 0xFF
            else:
                sys.stderr.write(f"{error.code}\n")
        elif error is not None:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


async def _run_alone(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run the coroutine, then cancel the tasks that it left on the loop: they would go on only while other coroutines
    run.
    """
    import asyncio

    try:
        return await coroutine
    finally:
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.gather(*left, return_exceptions=True)


# ---- arguments ------------------------------------------------------------------------------------------------------


def _load_arguments(call: Call, frames: Sequence[Frame]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Load the arguments of a call by name, with frames, or with results of other tasks (R9)."""
    if call.call:
        return call.args or (), call.kwargs or {}
    inputs = call.inputs or ()
    at = call.frames - sum(value.frames for value in inputs)
    body, buffers = payload.unpack(call.body, frames[:at])
    arguments: tuple[Sequence[Any], Mapping[str, Any]]
    if not inputs:
        arguments = payload.loads(body, _writable(buffers))
        return arguments
    values = []
    for value in inputs:
        values.append(_load_input(value, frames[at : at + value.frames]))
        at += value.frames
    with payload.provide_inputs(values):
        arguments = payload.loads(body, _writable(buffers))
    return arguments


def _load_input(value: Value, frames: Sequence[Frame]) -> Any:
    body, buffers = payload.unpack(value.body, frames)
    if value.codec == "msgpack":
        return msgspec.msgpack.decode(body)
    return payload.loads(body, _writable(buffers))


def _writable(buffers: Sequence[Frame]) -> list[Frame]:
    """Copy read-only buffers, so that a task may change an array that it was given, as in a local call."""
    return [
        bytearray(buffer)
        if isinstance(buffer, bytes) or (isinstance(buffer, memoryview) and buffer.readonly)
        else buffer
        for buffer in buffers
    ]


# ---- sys.path -------------------------------------------------------------------------------------------------------

_NO_ENVIRONMENT = ClientEnvironment()


def extend_sys_path(entries: Sequence[str]) -> bool:
    """Add the client's entries that exist and are new; returns whether there were any.

    Entries that the client has before the first common one go first, as there (the script's own directory); the others
    go last.
    """
    known = set(sys.path)
    first_common = next((index for index, entry in enumerate(entries) if entry in known), len(entries))
    new_first = [entry for entry in entries[:first_common] if os.path.exists(entry)]
    new_last = [entry for entry in entries[first_common:] if entry and entry not in known and os.path.exists(entry)]
    sys.path[:0] = new_first
    sys.path.extend(new_last)
    return bool(new_first or new_last)


def _try_chdir(directory: str) -> bool:
    try:
        os.chdir(directory)
    except OSError:  # the directory does not exist here, or may not be entered
        return False
    return True


def _open_current_directory() -> int:
    """Open a descriptor for `os.fchdir`; -1: it cannot be opened."""
    try:
        return os.open(".", getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1


def _current_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # the directory was removed
        return ""
