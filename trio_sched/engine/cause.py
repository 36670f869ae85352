"""Of what a worker died, in words for the one whose task was running (R20, R24).

Pure: the nanny gathers the evidence, `cause` weighs it. The kernel's out-of-memory killer leaves no message, only
SIGKILL; what gives it away is a counter that has risen (of our cgroup, or of the machine), or memory that was nearly
all in use.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

_NEARLY_FULL = 0.95
"""Share of a memory limit from which a SIGKILL is put down to memory."""
_FRAME = re.compile(r'\s*File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.+)')
_FRAMES = 5
"""Calls named of a crash."""
_ENGINE = str(Path(__file__).parent)
_HINTS = {
    "SIGSEGV": "a segmentation fault: a bug in compiled code, or a stack that grew too deep",
    "SIGABRT": "abort: compiled code found an error that it could not handle",
    "SIGBUS": "bus error: often a full /dev/shm or a mapped file that was cut short",
    "SIGFPE": "arithmetic error in compiled code",
    "SIGILL": "illegal instruction: compiled for another processor",
    "SIGTERM": "somebody asked it to end",
    "SIGXCPU": "its CPU time limit was reached",
}


@dataclass(frozen=True)
class Evidence:
    """What is known about a death. `oom_kills`: by how much the counters rose: (our cgroup's, the machine's)."""

    returncode: int
    """As subprocess has it: negative, the signal."""
    oom_kills: tuple[int, int] = (0, 0)
    rss_bytes: int = 0
    """Last seen resident memory; 0: never looked."""
    memory_used: float = 0.0
    """Last seen share of the machine's (or the cgroup's) memory in use."""
    fault: str = ""
    """What faulthandler wrote: where each Python thread was."""


def cause(evidence: Evidence) -> str:
    """Why the worker is dead, in a sentence; with the Python stack where there is one."""
    code = evidence.returncode
    text = _of_exit(code) if code >= 0 else _of_signal(-code, evidence)
    stack = _where(evidence.fault)
    return f"{text}; it was in {stack}" if stack else text


def _of_exit(code: int) -> str:
    return f"the process ended with exit code {code}, as os._exit({code}) does"


def _of_signal(number: int, evidence: Evidence) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"killed by signal {number}"
    if name == "SIGKILL":
        return _of_sigkill(evidence)
    hint = _HINTS.get(name)
    return f"killed by signal {name} ({hint})" if hint else f"killed by signal {name}"


def _of_sigkill(evidence: Evidence) -> str:
    cgroup, machine = evidence.oom_kills
    size = f"; it used {evidence.rss_bytes / 2**20:,.0f} MiB when last seen" if evidence.rss_bytes else ""
    if cgroup:
        return f"out of memory: killed by the kernel, which counted {cgroup} such kill(s) in this container{size}"
    if machine:
        return f"out of memory, it seems: killed when the kernel counted {machine} out-of-memory kill(s){size}"
    if evidence.memory_used >= _NEARLY_FULL:
        return f"out of memory, it seems: killed with {evidence.memory_used:.0%} of the memory in use{size}"
    return f"killed by signal SIGKILL (from outside, or out of memory unnoticed){size}"


def _where(fault: str) -> str:
    """From faulthandler's text: where the thread that crashed was, innermost call first, our own code left out."""
    lines = iter(fault.splitlines())
    for line in lines:
        if line.endswith("(most recent call first):"):
            break
    frames = []
    for line in lines:
        frame = _FRAME.match(line)
        if frame is None or frame["file"].startswith(_ENGINE):
            break
        frames.append(f"{frame['function']} ({frame['file']}:{frame['line']})")
    return " < ".join(frames[:_FRAMES])
