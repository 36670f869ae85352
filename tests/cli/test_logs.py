"""Logs go to standard error, as lines or as JSON, from the level that was asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

from trio_sched.cli.logs import LEVELS, configure_logs
from trio_sched.server.config import LOG_LEVELS


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    log = structlog.get_logger("test")
    log.debug("too fine")
    log.info("engine joined", engine=7)
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        log.exception("broken")
    shown = capsys.readouterr()
    joined, broken = map(json.loads, shown.err.splitlines())
    assert shown.out == ""
    assert (joined["event"], joined["engine"], joined["level"]) == ("engine joined", 7, "info")
    assert "ZeroDivisionError" in broken["exception"]


def test_console(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("warning", "console")
    log = structlog.get_logger("test")
    log.info("too fine")
    log.warning("engine lost", engine=7)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert "engine lost" in shown.err
    assert "engine=7" in shown.err


def test_every_level_of_the_settings_is_known() -> None:
    assert set(LEVELS) == set(LOG_LEVELS)
