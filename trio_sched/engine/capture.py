"""Capture what a task prints, to be sent with its result: sys.stdout and sys.stderr write to the running task's output.

For a task that prints nothing the cost is one look at a flag. With one slot, everything printed while the task runs
belongs to the task, whichever thread prints; with several, what the task's own thread prints. Everything else, and what
C code or a child process writes to the descriptors, goes to the worker's own output.

The captured text is bounded: of more than LIMIT characters the beginning and the end are kept, with a note between.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

from trio_sched.wire.native import TaskResult, sendable

#: The most characters kept of each stream of a task.
LIMIT = 1_000_000
_HALF = LIMIT // 2


class _BoundedText:
    """The text written to one stream, without its middle when it is too long."""

    __slots__ = ("_cut", "_head", "_parts", "_size")

    def __init__(self) -> None:
        self._head = ""
        self._cut = 0
        self._parts: list[str] = []
        self._size = 0

    def add(self, text: str) -> None:
        self._parts.append(text)
        self._size += len(text)
        if self._size > 2 * LIMIT:  # not at LIMIT, to spread the cost of joining
            self._shorten()

    def _shorten(self) -> None:
        text = "".join(self._parts)
        if not self._head:
            self._head, text = text[:_HALF], text[_HALF:]
        self._cut += max(0, len(text) - _HALF)
        self._parts = [text[-_HALF:]]
        self._size = len(self._parts[0])

    def take(self) -> str:
        """Return the text and clear it."""
        if self._size > (_HALF if self._head else LIMIT):
            self._shorten()
        tail = "".join(self._parts)
        text = f"{self._head}\n[... {self._cut} characters cut ...]\n{tail}" if self._cut else self._head + tail
        self._head, self._cut, self._parts, self._size = "", 0, [], 0
        return text


class CapturedOutput:
    """What the task in one slot printed, on both streams."""

    __slots__ = ("_dirty", "_texts", "active")

    def __init__(self) -> None:
        #: Whether a task runs in the slot, so that its output is captured.
        self.active = False
        self._dirty = False
        self._texts = (_BoundedText(), _BoundedText())

    def begin(self) -> None:
        """Capture from now on: a task begins."""
        self.active = True

    def add(self, stream: int, text: str) -> None:
        """Add output of the task to a stream: 0 for stdout, 1 for stderr."""
        self._texts[stream].add(text)
        self._dirty = True

    def end(self, result: TaskResult) -> None:
        """Stop capturing, and put the captured output into the task's result."""
        self.active = False
        if self._dirty:
            self._dirty = False
            result.stdout, result.stderr = (sendable(text.take()) for text in self._texts)

    def discard(self) -> None:
        """Stop capturing in a forked child process."""
        self.active = False


class _BinaryStream(io.RawIOBase):
    """`sys.stdout.buffer`: decodes bytes and writes the text to the stream."""

    def __init__(self, stream: TaskStream) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        data = bytes(data)
        self._stream.write(data.decode("utf-8", "replace"))
        return len(data)


class TaskStream(io.TextIOBase):
    """One of the two streams: writes to the running task's output, and to `real` while no task runs."""

    encoding = "utf-8"
    errors: str | None = "replace"

    def __init__(self, real: TextIO, stream: int, find_output: Callable[[], CapturedOutput | None]) -> None:
        self._real = real
        self._number = stream
        self._find_output = find_output
        self._buffer: _BinaryStream | None = None

    def write(self, text: str, /) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        output = self._find_output()
        if output is None or not output.active:
            self._real.write(text)
        else:
            output.add(self._number, text)
        return len(text)

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        self._real.flush()

    def close(self) -> None:
        """Do nothing: a task that closes its standard output must not close the worker's."""

    def fileno(self) -> int:
        return self._real.fileno()

    def isatty(self) -> bool:
        return False

    @property
    def buffer(self) -> _BinaryStream:
        if self._buffer is None:
            self._buffer = _BinaryStream(self)
        return self._buffer


class Capture:
    """The captured outputs of all slots, and the streams that write to them."""

    def __init__(self, slots: int) -> None:
        #: By slot.
        self.outputs = [CapturedOutput() for _ in range(slots)]
        self._by_thread: dict[int, CapturedOutput] = {}

    def install(self) -> None:
        """Replace sys.stdout and sys.stderr."""
        only = self.outputs[0] if len(self.outputs) == 1 else None
        find_output = (lambda: only) if only is not None else self._output_of_this_thread
        sys.stdout = TaskStream(sys.stdout, 0, find_output)
        sys.stderr = TaskStream(sys.stderr, 1, find_output)

    def bind_thread(self, slot: int) -> None:
        """Give the output of the calling thread to this slot."""
        self._by_thread[threading.get_ident()] = self.outputs[slot]

    def discard(self) -> None:
        """Stop capturing in a forked child process, whose output goes to the worker's own streams."""
        for output in self.outputs:
            output.discard()

    def _output_of_this_thread(self) -> CapturedOutput | None:
        return self._by_thread.get(threading.get_ident())
