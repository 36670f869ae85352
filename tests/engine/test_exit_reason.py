"""`exit_reason`: why a worker process exited, in words."""

from __future__ import annotations

from pathlib import Path

import pytest

import trio_sched.engine
from trio_sched.engine.exit_reason import ExitInfo, exit_reason

FAULT = """Fatal Python error: Segmentation fault

Stack (most recent call first):
  File "/home/me/model.py", line 12 in inner
  File "/home/me/model.py", line 20 in fit
  File "{engine}/runner.py", line 90 in run
  File "{engine}/single.py", line 90 in run
"""


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (ExitInfo(0), "the process ended with exit code 0, as os._exit(0) does"),
        (ExitInfo(3), "the process ended with exit code 3, as os._exit(3) does"),
        (ExitInfo(-15), "killed by signal SIGTERM (another process asked it to end)"),
        (ExitInfo(-10), "killed by signal SIGUSR1"),
        (ExitInfo(-63), "killed by signal 63"),
        (ExitInfo(-9), "killed by signal SIGKILL (by another process, or out of memory without a trace)"),
        (
            ExitInfo(-9, oom_kills=(1, 1), rss_bytes=3 << 30),
            "out of memory: killed by the kernel, which counted 1 such kill(s) in this container; "
            "it used 3,072 MiB when last measured",
        ),
        (
            ExitInfo(-9, oom_kills=(0, 2)),
            "probably out of memory: killed when the kernel counted 2 out-of-memory kill(s)",
        ),
        (ExitInfo(-9, memory_used=0.97), "probably out of memory: killed with 97% of the memory in use"),
        (
            ExitInfo(-6, fault=FAULT.format(engine=Path(trio_sched.engine.__file__).parent)),
            "killed by signal SIGABRT (abort: compiled code found an error that it could not handle); "
            "it was in inner (/home/me/model.py:12) < fit (/home/me/model.py:20)",
        ),
    ],
)
def test_r20_an_exit_has_a_reason_in_words(info: ExitInfo, words: str) -> None:
    assert exit_reason(info) == words
