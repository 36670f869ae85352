"""Running one call: find its function, unpickle its arguments, go to its client's place, call, and word the answer.

Each call begins in its client's directory and with the worker's own umask, whatever the call before it did: both are
set each time, which costs two system calls (0.6 us together); to find out whether they changed would cost more. The
directory is kept open, so that setting it looks up no path. With several slots all calls of a worker share one
directory and one umask, which each call that begins sets again.

Nothing that a task does may end the loop that runs it: whatever is raised, SystemExit and KeyboardInterrupt included,
is the task's error. What could not be loaded is told apart from what the task raised (CallError).

The path of a plain call is kept straight, because a worker's whole cost for a small task is here: about 5 us, most of
it pickle.
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

from trio_sched.engine import ends
from trio_sched.engine.ends import Ended
from trio_sched.transport.connection import host_name
from trio_sched.wire import payload, source_stamps
from trio_sched.wire.ids import session_of
from trio_sched.wire.native import Call, Frame, Place, TaskEnd, Value

Function = Callable[..., Any]
_fchdir, _set_umask = os.fchdir, os.umask


class Runner:
    """What a worker knows about functions and places. `run` may be called from several threads; `learn` from one."""

    def __init__(self) -> None:
        self.limit_bytes = 0
        """Largest message that the scheduler takes; 0: not known."""
        self.engine = 0
        """The number of this engine at its scheduler; 0: not welcomed."""
        self.in_call = False
        """With one slot: whether the task's own code runs, which an interrupt may hit."""
        self.forked = False
        """Whether this process is one that a task forked: there is no worker in it to come back to."""
        self._functions: dict[bytes, Function] = {}
        self._pickled: dict[bytes, bytes] = {}
        """Functions that no task has asked for yet, by digest."""
        self._by_name: dict[str, Function] = {}
        self._sources = source_stamps.generation()
        """Of the modules in `_by_name`."""
        self._places: dict[int, Place] = {}
        self._loading = threading.Lock()
        self._session = 0
        self._home = _current_directory()
        self._directory = -1
        """Descriptor of the directory in which calls of the current session begin; -1: it cannot be opened."""
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._loops = threading.local()

    def learn(
        self, functions: Mapping[bytes, bytes], drop: Sequence[bytes] = (), places: Mapping[int, Place] | None = None
    ) -> None:
        """Take what came with an Assign."""
        self._pickled.update(functions)
        for digest in drop:
            self._functions.pop(digest, None)
            self._pickled.pop(digest, None)
        if places:
            self._places.update(places)
            self._session = 0  # the place of the current one may have changed

    def forget(self) -> None:
        """The scheduler is another one: its digests and sessions mean nothing any more."""
        self._functions.clear()
        self._pickled.clear()
        self._places.clear()
        self._session = 0

    def run(self, call: Call, frames: Sequence[Frame]) -> Ended:
        """Run the call; never raises."""
        what = "the function"
        try:
            session = session_of(call.id)
            if session != self._session:
                self._move(session)
            try:
                _fchdir(self._directory)
            except OSError:  # a task closed it
                self._move(session)
            _set_umask(self._umask)
            function = self._functions.get(call.fn) or self._find(call)
            what = "an argument"
            if frames or call.inputs or call.call:
                args, kwargs = _arguments(call, frames)
            else:
                args, kwargs = pickle.loads(call.body)
        except BaseException as error:  # importing runs code of others
            return ends.of_error(call, ends.call_error(call, what, error, self._who()), 0.0, self.limit_bytes)
        started = perf_counter()
        try:
            self.in_call = True
            value = function(*args, **kwargs)
            if type(value) is CoroutineType:
                value = self._complete(value)
            self.in_call = False
            if self.forked:
                _end_fork(None)
        except BaseException as error:  # the task's, whatever it is
            self.in_call = False
            if self.forked:
                _end_fork(error)
            if isinstance(error, ModuleNotFoundError):
                error.add_note(f"raised on {self._who()}. {ends.MODULE_ADVICE}")
            return ends.of_error(call, error, perf_counter() - started, self.limit_bytes)
        took_s = perf_counter() - started
        if value is None and not call.call:
            return TaskEnd(id=call.id, body=ends.NONE, attempt=call.attempt, took_s=took_s), ()
        del args, kwargs  # what the task returns may be an argument
        box = [value]
        del value
        return ends.of_value(call, box.pop(), took_s, self.limit_bytes)

    def _who(self) -> str:
        """This engine, for messages to users."""
        return f"engine {self.engine} at {host_name()} ({sys.executable}, Python {sys.version.split()[0]})"

    def _find(self, call: Call) -> Function:
        if call.call:
            if self._sources != source_stamps.generation():
                self._by_name.clear()
                self._sources = source_stamps.generation()
            return self._by_name.get(call.call) or self._load_by_name(call.call)
        with self._loading:
            return self._functions.get(call.fn) or self._load(call)

    def _load(self, call: Call) -> Function:
        pickled = self._pickled.get(call.fn)
        if pickled is None:
            raise LookupError(f"the scheduler did not send the function with digest {call.fn.hex()!r}")
        function = pickle.loads(pickled)
        if not callable(function):
            raise TypeError(f"a {type(function).__qualname__} is not callable")
        self._functions[call.fn] = function
        del self._pickled[call.fn]
        return function  # type: ignore[no-any-return]  # callable() narrows Any to nothing better

    def _load_by_name(self, name: str) -> Function:
        module, colon, path = name.partition(":")
        if not (module and colon and path):
            raise ValueError(f'{name!r} is not of the form "module:name"')
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        if not callable(found):
            raise TypeError(f"{name} is a {type(found).__qualname__}, which is not callable")
        self._by_name[name] = found
        return found  # type: ignore[no-any-return]  # as above

    # ---- places -----------------------------------------------------------------------------------------------------

    def _move(self, session: int) -> None:
        """Go to where the client works: its sys.path entries, and its working directory or our own."""
        place = self._places.get(session, _NOWHERE)
        if extend_path(place.path):
            importlib.invalidate_caches()
        if self._directory >= 0:
            with contextlib.suppress(OSError):
                os.close(self._directory)
        self._directory = -1
        for directory in (place.cwd, self._home):
            if directory and _entered(directory):
                self._directory = _opened_current_directory()
                break
        self._session = session

    # ---- async def --------------------------------------------------------------------------------------------------

    def _complete(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run an `async def` task to its end, on an asyncio loop that this thread keeps."""
        runner = getattr(self._loops, "runner", None)
        if runner is None:
            import asyncio

            runner = self._loops.runner = asyncio.Runner()
        return runner.run(_and_no_more(coroutine))


def _end_fork(error: BaseException | None) -> NoReturn:
    """The task returned, or raised, in a process that it forked: end that as a script would end."""
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


async def _and_no_more(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run it, then cancel what it left behind on the loop: that would only go on while the next task runs."""
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


def _arguments(call: Call, frames: Sequence[Frame]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The arguments of a call that is not plain: by name, with frames, with results of other tasks (R9)."""
    if call.call:
        return call.args or (), call.kwargs or {}
    inputs = call.inputs or ()
    own = call.frames - sum(value.frames for value in inputs)
    body, buffers = payload.unpack(call.body, frames[:own])
    if not inputs:
        return payload.loads(body, _writable(buffers))  # type: ignore[no-any-return]  # as the client packed it
    values = []
    for value in inputs:
        values.append(_input(value, frames[own : own + value.frames]))
        own += value.frames
    with payload.providing(values):
        return payload.loads(body, _writable(buffers))  # type: ignore[no-any-return]


def _input(value: Value, frames: Sequence[Frame]) -> Any:
    body, buffers = payload.unpack(value.body, frames)
    if value.codec == "msgpack":
        return msgspec.msgpack.decode(body)
    return payload.loads(body, _writable(buffers))


def _writable(buffers: Sequence[Frame]) -> list[Frame]:
    """So that a task may change an array that it was given, as it may in a local call."""
    return [
        bytearray(buffer)
        if isinstance(buffer, bytes) or (isinstance(buffer, memoryview) and buffer.readonly)
        else buffer
        for buffer in buffers
    ]


# ---- sys.path -------------------------------------------------------------------------------------------------------

_NOWHERE = Place()


def extend_path(entries: Sequence[str]) -> bool:
    """Add the entries that exist and are new. Those that the client has before anything that we share go first, as
    there (the script's own directory); the others last. True: something was added."""
    known = set(sys.path)
    shared = next((index for index, entry in enumerate(entries) if entry in known), len(entries))
    new_first = [entry for entry in entries[:shared] if os.path.exists(entry)]
    new_last = [entry for entry in entries[shared:] if entry and entry not in known and os.path.exists(entry)]
    sys.path[:0] = new_first
    sys.path.extend(new_last)
    return bool(new_first or new_last)


def _entered(directory: str) -> bool:
    try:
        os.chdir(directory)
    except OSError:  # it is not on this machine, or not for us
        return False
    return True


def _opened_current_directory() -> int:
    """A descriptor for `os.fchdir`; -1: there is none to be had."""
    try:
        return os.open(".", getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1


def _current_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed under us
        return ""
