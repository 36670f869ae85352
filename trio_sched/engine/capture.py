"""What a task prints goes back with its result: sys.stdout and sys.stderr of a worker lead to the task that runs.

Cheap: nothing happens for a task that prints nothing but a look at a flag. With one slot, everything that is printed
while the task runs is its own, whichever thread prints; with several, what the task's own thread prints. What nobody's
task prints, and what C code or a child process writes to the descriptors, goes where the worker's own output goes.

Bounded: of what is more than LIMIT characters the beginning and the end are kept, with a note between.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

from trio_sched.wire.native import sendable

LIMIT = 1_000_000
"""Characters kept of each stream of a task."""
_HALF = LIMIT // 2


class _Text:
    """What was written to one stream, its middle cut out when it grows too long."""

    __slots__ = ("_cut", "_head", "_parts", "_size")

    def __init__(self) -> None:
        self._head = ""
        self._cut = 0
        self._parts: list[str] = []
        self._size = 0

    def add(self, text: str) -> None:
        self._parts.append(text)
        self._size += len(text)
        if self._size > 2 * LIMIT:  # rarely, so that the cost of joining is spread
            self._shorten()

    def _shorten(self) -> None:
        text = "".join(self._parts)
        if not self._head:
            self._head, text = text[:_HALF], text[_HALF:]
        self._cut += max(0, len(text) - _HALF)
        self._parts = [text[-_HALF:]]
        self._size = len(self._parts[0])

    def take(self) -> str:
        """The text; and begin anew."""
        if self._size > (_HALF if self._head else LIMIT):
            self._shorten()
        tail = "".join(self._parts)
        text = f"{self._head}\n[... {self._cut} characters cut ...]\n{tail}" if self._cut else self._head + tail
        self._head, self._cut, self._parts, self._size = "", 0, [], 0
        return text


class Output:
    """What the task in one slot printed. `open` while a task runs there; `dirty` when it printed something."""

    __slots__ = ("dirty", "open", "texts")

    def __init__(self) -> None:
        self.open = False
        self.dirty = False
        self.texts = (_Text(), _Text())

    def take(self) -> tuple[str, str]:
        """(stdout, stderr) of the task that ended."""
        self.dirty = False
        return sendable(self.texts[0].take()), sendable(self.texts[1].take())


class _Bytes(io.RawIOBase):
    """`sys.stdout.buffer`, for those who print bytes."""

    def __init__(self, stream: TaskStream) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        data = bytes(data)
        self._stream.write(data.decode("utf-8", "replace"))
        return len(data)


class TaskStream(io.TextIOBase):
    """One of the two streams: hands what is written to the task that runs, else to `real`."""

    def __init__(self, real: TextIO, which: int, find: Callable[[], Output | None]) -> None:
        self._real = real
        self._which = which
        self._find = find
        self._buffer: _Bytes | None = None

    def write(self, text: str, /) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        output = self._find()
        if output is None or not output.open:
            self._real.write(text)
            return len(text)
        output.texts[self._which].add(text)
        output.dirty = True
        return len(text)

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        self._real.flush()

    def close(self) -> None:
        """A task that closes its standard output closes nothing."""

    def fileno(self) -> int:
        return self._real.fileno()

    def isatty(self) -> bool:
        return False

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has a plain attribute
        return "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]  # likewise
        return "replace"

    @property
    def buffer(self) -> _Bytes:
        if self._buffer is None:
            self._buffer = _Bytes(self)
        return self._buffer


class Capture:
    """The outputs of all slots; `install` puts the streams in place, `claim` gives a slot's thread its own."""

    def __init__(self, slots: int) -> None:
        self.outputs = [Output() for _ in range(slots)]
        self._by_thread: dict[int, Output] = {}

    def install(self) -> None:
        """From now on sys.stdout and sys.stderr are ours."""
        only = self.outputs[0] if len(self.outputs) == 1 else None
        find = (lambda: only) if only is not None else self._of_this_thread
        sys.stdout = TaskStream(sys.stdout, 0, find)
        sys.stderr = TaskStream(sys.stderr, 1, find)

    def claim(self, slot: int) -> None:
        """What this thread prints belongs to this slot."""
        self._by_thread[threading.get_ident()] = self.outputs[slot]

    def _of_this_thread(self) -> Output | None:
        return self._by_thread.get(threading.get_ident())
