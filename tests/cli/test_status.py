"""What `status` shows of a view, without a scheduler."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from trio_sched.cli.options import ONLOOKER
from trio_sched.cli.status import _ago, rendered

VIEW: dict[str, Any] = {
    "name": "lab",
    "up_s": 61.0,
    "scheme": "lru",
    "hwm": 10,
    "draining": False,
    "tasks": {"waiting": 1234567, "ready": 0, "assigned": 2, "ok": 0, "error": 0, "lost": 3},
    "engines": [],
    "clients": [],
    "counters": {},
}


def shown(**changed: Any) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(rendered({**VIEW, **changed}))
    return capture.get()


def test_tasks_by_state_without_the_rare_ends_that_did_not_happen() -> None:
    text = shown()
    assert text.startswith("lab: up 1m1s, scheme lru, hwm 10\n")
    assert "1,234,567" in text
    assert "error" not in text
    assert "lost" in text


def test_without_engines_it_says_how_to_start_some() -> None:
    assert "trio-sched engine" in shown()


def test_engines_that_are_away_full_and_offer_something() -> None:
    engine = {
        "engine": 7, "state": "full", "slots": 2, "hwm": 10, "load": 20, "done": 5, "here_s": 3600.0,
        "connected": False,
        "resources": {"gpu": 2.0}, "free": {"gpu": 0.5}, "host": "far", "pid": 99,
    }  # fmt: skip
    text = shown(engines=[engine])
    for cell in ("full, away", "20/20", "gpu 0.5/2", "99 on far", "1h0m"):
        assert cell in text


def test_an_engine_without_a_limit_shows_its_load_alone() -> None:
    engine = {"engine": 7, "state": "open", "slots": 1, "hwm": 0, "load": 42, "done": 0, "here_s": 1.0}
    text = shown(engines=[engine | {"resources": {}, "free": {}}])
    assert " 42 " in text
    assert "42/" not in text


def test_clients_without_ourselves() -> None:
    client = {"client": 4, "ready": 1, "weight": 2.0, "submitted": 10, "undelivered": 0, "connected": False, "pid": 5}
    assert "away" in shown(clients=[{**client, "name": "notebook"}])
    assert "away" not in shown(clients=[{**client, "name": ONLOOKER}])
    assert "paused" in shown(clients=[{**client, "name": "notebook", "paused": "too much is unread"}])


def test_odd_things_are_counted() -> None:
    assert "odd things: malformed 3" in shown(counters={"malformed": 3, "too_large": 0})


def test_draining() -> None:
    assert "draining" in shown(draining=True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0s"), (59.9, "59.9s"), (60, "1m0s"), (3599, "59m59s"), (3600, "1h0m"), (90_000, "1d1h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert _ago(seconds) == text
