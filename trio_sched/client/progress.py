"""A progress bar for `map(..., progress=True)`: rich's in a terminal, a line of HTML that updates in a notebook.

Imported only when a bar is asked for. The bar counts tasks as they end, in whatever order, from the client's thread,
and draws at most ten times a second: a bar must not cost what a task costs.
"""

from __future__ import annotations

import html
import sys
import threading
import time
from collections.abc import Collection
from concurrent.futures import Future
from typing import Any, Protocol

DRAW_EVERY_S = 0.1


class Bar(Protocol):
    """Something that shows how far we are."""

    def draw(self, done: int, failed: int) -> None: ...
    def finish(self, done: int, failed: int) -> None: ...


class Meter:
    """Counts the futures that end, and has a bar drawn now and then."""

    def __init__(self, bar: Bar, total: int) -> None:
        self._bar = bar
        self._total = total
        self._done = 0
        self._failed = 0
        self._drawn_at = 0.0
        self._lock = threading.Lock()

    def count(self, future: Future[Any]) -> None:
        """A future has ended: its callback."""
        failed = future.cancelled() or future.exception() is not None
        with self._lock:
            self._done += 1
            self._failed += failed
            now = time.monotonic()
            if self._done == self._total:
                self._bar.finish(self._done, self._failed)
            elif now - self._drawn_at >= DRAW_EVERY_S:
                self._drawn_at = now
                self._bar.draw(self._done, self._failed)


def show(futures: Collection[Future[Any]], label: str) -> None:
    """Show a bar until all of these have ended."""
    if not futures:
        return
    bar: Bar = NotebookBar(label, len(futures)) if in_notebook() else TerminalBar(label, len(futures))
    meter = Meter(bar, len(futures))
    bar.draw(0, 0)
    for future in futures:
        future.add_done_callback(meter.count)


def in_notebook() -> bool:
    """Whether this is a kernel whose output is shown as HTML."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython  # type: ignore[import-not-found,unused-ignore]  # only where it runs already

    shell = get_ipython()
    return shell is not None and getattr(shell, "kernel", None) is not None


class TerminalBar:
    """rich's progress bar, on standard error, so that a script's output stays clean."""

    def __init__(self, label: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("[red]{task.fields[trouble]}"),
            console=Console(stderr=True),
            auto_refresh=False,
        )
        self._task = self._progress.add_task(label, total=total, trouble="")
        self._progress.start()

    def draw(self, done: int, failed: int) -> None:
        trouble = f"{failed} failed" if failed else ""
        self._progress.update(self._task, completed=done, trouble=trouble, refresh=True)

    def finish(self, done: int, failed: int) -> None:
        self.draw(done, failed)
        self._progress.stop()


class NotebookBar:
    """An HTML progress element, updated in place; needs no widgets."""

    def __init__(self, label: str, total: int) -> None:
        self._label = html.escape(label)
        self._total = total
        self._handle: Any = None

    def draw(self, done: int, failed: int) -> None:
        from IPython import display as ipython  # type: ignore[import-not-found,unused-ignore]

        display: Any = ipython  # typed in part, where it is installed
        trouble = f' <span style="color:red">{failed} failed</span>' if failed else ""
        bar = display.HTML(
            f'{self._label} <progress value="{done}" max="{self._total}"></progress> {done}/{self._total}{trouble}'
        )
        if self._handle is None:
            self._handle = display.display(bar, display_id=True)
        else:
            self._handle.update(bar)

    finish = draw
