"""The progress bar of `map`: it counts futures as they end, counts the failed ones, and is always closed."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest

from trio_sched import Client
from trio_sched.client import progress


class RecordingBar:
    """A bar in place of tqdm's that records what it would show."""

    def __init__(self, *, total: int, desc: str, unit: str) -> None:
        self.n = 0
        self.total = total
        self.desc = desc
        self.postfix: dict[str, Any] = {}
        self.closed = False

    def update(self) -> None:
        assert not self.closed
        self.n += 1

    def set_postfix(self, *, refresh: bool, **shown: Any) -> None:
        assert not refresh, "a redraw for each failed task would cost what the task costs"
        self.postfix = shown

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[RecordingBar]:
    """The bars that are shown."""
    shown: list[RecordingBar] = []

    def make(**options: Any) -> RecordingBar:
        shown.append(RecordingBar(**options))
        return shown[-1]

    monkeypatch.setattr(progress, "tqdm", make)
    return shown


def test_the_bar_counts_every_end_and_the_failures_and_is_closed_after_the_last(bars: list[RecordingBar]) -> None:
    futures: list[Future[int]] = [Future() for _ in range(4)]
    progress.show_progress(futures, "a<b")
    [bar] = bars
    assert (bar.n, bar.total, bar.desc) == (0, 4, "a<b")
    futures[0].set_result(1)
    assert (bar.n, bar.postfix) == (1, {})
    futures[1].set_exception(KeyError())
    assert (bar.n, bar.postfix) == (2, {"failed": 1})
    futures[2].cancel()
    assert (bar.n, bar.postfix, bar.closed) == (3, {"failed": 2}, False)
    futures[3].set_result(1)
    assert (bar.n, bar.postfix, bar.closed) == (4, {"failed": 2}, True)


def test_futures_that_are_done_count_at_once(bars: list[RecordingBar]) -> None:
    done: Future[int] = Future()
    done.set_result(1)
    progress.show_progress([done], "done")
    assert bars[0].closed


def test_a_map_without_tasks_shows_no_bar(bars: list[RecordingBar]) -> None:
    progress.show_progress([], "abs")
    assert bars == []


def test_futures_that_end_in_several_threads_are_all_counted(bars: list[RecordingBar]) -> None:
    futures: list[Future[int]] = [Future() for _ in range(400)]
    progress.show_progress(futures, "abs")
    threads = [
        threading.Thread(target=lambda part=part: [future.set_result(1) for future in futures[part::4]])
        for part in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (bars[0].n, bars[0].closed) == (400, True)


def test_the_bar_is_on_standard_error(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(client.map(abs, range(-30, 0), progress=True)) == list(range(30, 0, -1))
    assert list(client.map(abs, range(-30, 0), chunksize=7, progress=True)) == list(range(30, 0, -1))
    assert list(client.map(abs, [], progress=True)) == []
    out, error = capsys.readouterr()
    deadline = time.monotonic() + 10.0  # the client's thread draws after it has resolved the last future
    while "5/5" not in error and time.monotonic() < deadline:
        threading.Event().wait(0.01)
        error += capsys.readouterr().err
    assert out == ""
    assert "abs" in error
    assert "30/30" in error
    assert "5/5" in error
