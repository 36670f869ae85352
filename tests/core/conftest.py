"""All tests of the core check each change of a task's state against the table of transitions."""

from __future__ import annotations

import pytest

from trio_sched.core.records import CheckedTask
from trio_sched.core.scheduler import Scheduler


@pytest.fixture(autouse=True)
def check_transitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scheduler, "task_type", CheckedTask)
