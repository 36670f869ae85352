"""The tables of `status`, from an answer without a scheduler."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from trio_sched.cli.options import ADMIN_NAME
from trio_sched.cli.status import _duration, render

STATUS: dict[str, Any] = {
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
        console.print(render({**STATUS, **changed}))
    return capture.get()


def test_rare_states_without_tasks_are_not_shown() -> None:
    text = shown()
    assert text.startswith("lab: up 1m1s, scheme lru, hwm 10\n")
    assert "1,234,567" in text
    assert "error" not in text
    assert "lost" in text


def test_without_engines_status_names_the_command_that_starts_some() -> None:
    assert "trio-sched engine" in shown()


def test_an_engine_shows_state_load_resources_process_and_age() -> None:
    engine = {
        "engine": 7, "state": "full", "slots": 2, "hwm": 10, "load": 20, "done": 5, "here_s": 3600.0,
        "connected": False,
        "resources": {"gpu": 2.0}, "free": {"gpu": 0.5}, "host": "far", "pid": 99,
    }  # fmt: skip
    text = shown(engines=[engine])
    for cell in ("full, disconnected", "20/20", "gpu 0.5/2", "99 on far", "1h0m"):
        assert cell in text


def test_an_engine_without_a_high_water_mark_shows_its_load_only() -> None:
    engine = {"engine": 7, "state": "open", "slots": 1, "hwm": 0, "load": 42, "done": 0, "here_s": 1.0}
    text = shown(engines=[engine | {"resources": {}, "free": {}}])
    assert " 42 " in text
    assert "42/" not in text


def test_clients_are_shown_except_commands() -> None:
    client = {"client": 4, "ready": 1, "weight": 2.0, "submitted": 10, "undelivered": 0, "connected": False, "pid": 5}
    assert "disconnected" in shown(clients=[{**client, "name": "notebook"}])
    assert "disconnected" not in shown(clients=[{**client, "name": ADMIN_NAME}])
    assert "paused" in shown(clients=[{**client, "name": "notebook", "paused": "too much is unread"}])


def test_problems_are_shown_with_their_counts() -> None:
    assert "problems: malformed 3" in shown(counters={"malformed": 3, "too_large": 0})


def test_a_draining_scheduler_is_marked() -> None:
    assert "draining" in shown(draining=True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0s"), (59.9, "59.9s"), (60, "1m0s"), (3599, "59m59s"), (3600, "1h0m"), (90_000, "1d1h")],
)
def test_a_duration_has_two_units(seconds: float, text: str) -> None:
    assert _duration(seconds) == text
