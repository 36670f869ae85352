"""The progress bar: counted by futures as they end, drawn seldom, finished always."""

from __future__ import annotations

import sys
import threading
import time
import types
from concurrent.futures import Future
from typing import Any

import pytest

from trio_sched import Client
from trio_sched.client import progress


class Drawn:
    """A bar that remembers."""

    def __init__(self) -> None:
        self.drawn: list[tuple[int, int]] = []
        self.finished: list[tuple[int, int]] = []

    def draw(self, done: int, failed: int) -> None:
        self.drawn.append((done, failed))

    def finish(self, done: int, failed: int) -> None:
        self.finished.append((done, failed))


def test_it_is_drawn_seldom_and_finished_always(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    bar = Drawn()
    meter = progress.Meter(bar, 4)
    futures: list[Future[int]] = [Future() for _ in range(4)]
    for future in futures:
        future.add_done_callback(meter.count)
    futures[0].set_result(1)
    futures[1].set_exception(KeyError())
    assert bar.drawn == [(1, 0)]
    now += 0.2
    futures[2].cancel()
    assert bar.drawn == [(1, 0), (3, 2)]
    futures[3].set_result(1)
    assert bar.finished == [(4, 2)]


def test_in_a_terminal(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(client.map(abs, range(-30, 0), progress=True)) == list(range(30, 0, -1))
    assert list(client.map(abs, range(-30, 0), chunksize=7, progress=True)) == list(range(30, 0, -1))
    assert list(client.map(abs, [], progress=True)) == []
    out, error = capsys.readouterr()
    until = time.monotonic() + 10.0  # the client's thread draws after it has handed over the last result
    while "5/5" not in error and time.monotonic() < until:
        threading.Event().wait(0.01)
        error += capsys.readouterr().err
    assert out == ""
    assert "abs" in error
    assert "30/30" in error
    assert "5/5" in error


def test_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, html: str) -> None:
            shown.append(html)

    def display(html: str, display_id: bool) -> Handle:
        shown.append(html)
        return Handle()

    shell = types.SimpleNamespace(kernel=object())
    ipython: Any = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    display_module: Any = types.ModuleType("IPython.display")
    display_module.HTML, display_module.display = str, display
    assert not progress.in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display_module)
    assert progress.in_notebook()
    futures: list[Future[int]] = [Future() for _ in range(2)]
    progress.show(futures, "a<b")
    futures[0].set_result(1)
    futures[1].set_exception(KeyError())
    assert shown[0] == 'a&lt;b <progress value="0" max="2"></progress> 0/2'
    assert shown[-1] == 'a&lt;b <progress value="2" max="2"></progress> 2/2 <span style="color:red">1 failed</span>'
