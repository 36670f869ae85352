"""Logs go to standard error, as text or JSON, from the configured level on."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from trio_sched.cli.log_setup import configure_logs
from trio_sched.logs import get_logger
from trio_sched.server.config import LOG_LEVELS


@pytest.fixture(autouse=True)
def restored_logger() -> Iterator[None]:
    logger = logging.getLogger("trio_sched")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before


def test_json_logs_are_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    log = get_logger("trio_sched.test")
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


def test_console_logs_are_one_line_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("warning", "console")
    log = get_logger("trio_sched.test")
    log.info("too fine")
    log.warning("engine lost", engine=7)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert "engine lost" in shown.err
    assert "engine=7" in shown.err


@pytest.mark.parametrize("level", LOG_LEVELS)
def test_every_level_of_the_settings_can_be_configured(level: str) -> None:
    configure_logs(level)
    assert logging.getLogger("trio_sched").level == getattr(logging, level.upper())


def test_a_second_configuration_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    configure_logs("info", "console")
    get_logger("trio_sched.test").info("once", number=1)
    assert capsys.readouterr().err.count("once") == 1


def test_records_of_plain_logging_have_the_same_format(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    logging.getLogger("trio_sched.client").error("a message was not understood: %s", "odd")
    assert json.loads(capsys.readouterr().err)["event"] == "a message was not understood: odd"


EMBEDDED = """
import trio, trio_sched
from trio_sched.engine.nanny import run_nanny
from trio_sched.server.config import Config
from trio_sched.server.serve import serve

async def main():
    async with trio.open_nursery() as nursery:
        running = await nursery.start(serve, Config())
        async with trio.open_nursery() as engines:
            nanny = await engines.start(lambda task_status: run_nanny(
                running.engine_connection, workers=1, task_status=task_status))
            async with trio_sched.open_client(running.connection) as client:
                assert await client.submit(len, "abc") == 3
            nanny.stop()
        running.stop()

trio.run(main)
"""


def test_an_embedded_scheduler_with_engines_prints_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", EMBEDDED], capture_output=True, text=True, timeout=60, env=os.environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_warning_of_an_embedded_scheduler_is_printed() -> None:
    code = "import trio_sched.logs as logs; log = logs.get_logger('trio_sched.x'); log.info('a'); log.warning('b', c=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("", "b c=1\n")
