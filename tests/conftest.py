"""What every test needs: a runtime directory of its own, no scheduler inherited from outside, Hypothesis profiles.

Warnings are errors and every test has a time limit (pyproject.toml, and a harder one here). The runtime directory
lies directly below /tmp because an `ipc://` path may be at most 107 bytes long; it is set before anything of ours
is imported, and inherited by every process that a test starts, so that no test finds (or disturbs) a scheduler of
whoever runs it, or of a test beside it.
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
_stderr: list[int] = []
"""What pytest does not capture, as a descriptor."""
_SHORT_TMP = "/tmp" if sys.platform != "win32" and os.path.isdir("/tmp") else None
_runtime_dir = Path(tempfile.mkdtemp(prefix="ts-", dir=_SHORT_TMP))

for _name in [name for name in os.environ if name.startswith("TRIO_SCHED_")]:
    del os.environ[_name]
os.environ["TRIO_SCHED_RUNTIME_DIR"] = str(_runtime_dir)
os.environ["COLUMNS"] = "120"  # of the tables and help texts that tests read
os.environ.pop("FORCE_COLOR", None)


def pytest_configure(config: pytest.Config) -> None:
    """Choose how long Hypothesis tries: HYPOTHESIS_PROFILE=long for minutes, else seconds."""
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
    """End the process, with the stacks of all threads, when a test is stuck for good.

    pytest-timeout ends a test once; a teardown that waits for what the test left behind is beyond it.
    """
    faulthandler.dump_traceback_later(HARD_LIMIT_S, exit=True, file=_stderr[0])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind in /tmp."""
    shutil.rmtree(_runtime_dir, ignore_errors=True)


@pytest.fixture
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory for one test alone, short enough for `ipc://`, also for the processes that it starts."""
    directory = Path(tempfile.mkdtemp(prefix="ts-", dir=_SHORT_TMP))
    monkeypatch.setenv("TRIO_SCHED_RUNTIME_DIR", str(directory))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
