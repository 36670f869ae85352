"""The environment of every test: a runtime directory, no settings of the user, Hypothesis profiles.

Warnings are errors and every test has a time limit (pyproject.toml, and a hard limit here). The runtime directory is
set before the package is imported, and every process that a test starts inherits it, so that no test finds or disturbs
a scheduler of the user or of a parallel test. It is directly below /tmp because an `ipc://` path has at most 107 bytes.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HARD_LIMIT_S = 300 if os.environ.get("HYPOTHESIS_PROFILE") != "long" else 86_400
#: A descriptor of the standard error that pytest does not capture.
_stderr: list[int] = []
_SHORT_TMP = "/tmp" if sys.platform != "win32" and os.path.isdir("/tmp") else None
_runtime_dir = Path(tempfile.mkdtemp(prefix="ts-", dir=_SHORT_TMP))

for _name in [name for name in os.environ if name.startswith("TRIO_SCHED_")]:
    del os.environ[_name]
os.environ["TRIO_SCHED_RUNTIME_DIR"] = str(_runtime_dir)
os.environ["COLUMNS"] = "120"  # width of the tables and help texts that tests read
os.environ.pop("FORCE_COLOR", None)


def pytest_configure(config: pytest.Config) -> None:
    """Register the Hypothesis profiles: "default" takes seconds, HYPOTHESIS_PROFILE=long takes minutes."""
    from hypothesis import HealthCheck, settings

    _stderr.append(os.dup(2))
    slow_machine = [HealthCheck.too_slow, HealthCheck.data_too_large]
    settings.register_profile("default", deadline=None, suppress_health_check=slow_machine)
    settings.register_profile(
        "long", deadline=None, suppress_health_check=slow_machine, max_examples=5000, stateful_step_count=100
    )
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Print the stacks of all threads and exit if a test does not end.

    pytest-timeout interrupts a test once, which does not end a teardown that blocks afterwards.
    """
    faulthandler.dump_traceback_later(HARD_LIMIT_S, exit=True, file=_stderr[0])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the runtime directory."""
    shutil.rmtree(_runtime_dir, ignore_errors=True)


@pytest.fixture
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a runtime directory for one test and the processes that it starts, with a path short enough for `ipc://`."""
    directory = Path(tempfile.mkdtemp(prefix="ts-", dir=_SHORT_TMP))
    monkeypatch.setenv("TRIO_SCHED_RUNTIME_DIR", str(directory))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(autouse=True)
def check_transitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check each change of a task's state against the table of transitions."""
    from trio_sched.core.records import CheckedTask
    from trio_sched.core.scheduler import Scheduler

    monkeypatch.setattr(Scheduler, "task_type", CheckedTask)
