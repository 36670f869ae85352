"""Diagnose why a worker process exited: a sentence for the client whose task was running (R20, R24).

Pure: the nanny gathers an `ExitInfo`, and `exit_reason` interprets it. The kernel's out-of-memory killer leaves no
message, only SIGKILL; the evidence for it is an increased counter (of the control group or of the machine), or memory
that was nearly full.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

#: Share of memory in use above which a SIGKILL counts as an out-of-memory kill.
_NEARLY_FULL = 0.95
_FRAME = re.compile(r'\s*File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.+)')
#: The number of innermost calls in the description of a crash.
_MAX_FRAMES = 5
_ENGINE = str(Path(__file__).parent)
_HINTS = {
    "SIGSEGV": "a segmentation fault: a bug in compiled code, or a stack that grew too deep",
    "SIGABRT": "abort: compiled code found an error that it could not handle",
    "SIGBUS": "bus error: often a full /dev/shm or a mapped file that was cut short",
    "SIGFPE": "arithmetic error in compiled code",
    "SIGILL": "illegal instruction: compiled for another processor",
    "SIGTERM": "another process asked it to end",
    "SIGXCPU": "its CPU time limit was reached",
}


@dataclass(frozen=True)
class ExitInfo:
    """Observations of the nanny about the exit of a worker process."""

    #: As in `subprocess.Popen.returncode`: negative for a signal.
    returncode: int
    #: Out-of-memory kills that the kernel counted during the worker's life, in (the control group, the machine).
    oom_kills: tuple[int, int] = (0, 0)
    #: The last measured resident memory of the worker; 0: never measured.
    rss_bytes: int = 0
    #: The last measured share of the machine's, or the control group's, memory in use.
    memory_used: float = 0.0
    #: The output of faulthandler: the Python stack of the thread that crashed.
    fault: str = ""


def exit_reason(info: ExitInfo) -> str:
    """Why the worker exited: one sentence, with the Python stack where faulthandler wrote one."""
    code = info.returncode
    text = _describe_exit_code(code) if code >= 0 else _describe_signal(-code, info)
    stack = _describe_stack(info.fault)
    return f"{text}; it was in {stack}" if stack else text


def _describe_exit_code(code: int) -> str:
    return f"the process ended with exit code {code}, as os._exit({code}) does"


def _describe_signal(number: int, info: ExitInfo) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"killed by signal {number}"
    if name == "SIGKILL":
        return _describe_sigkill(info)
    hint = _HINTS.get(name)
    return f"killed by signal {name} ({hint})" if hint else f"killed by signal {name}"


def _describe_sigkill(info: ExitInfo) -> str:
    cgroup, host = info.oom_kills
    size = f"; it used {info.rss_bytes / 2**20:,.0f} MiB when last measured" if info.rss_bytes else ""
    if cgroup:
        return f"out of memory: killed by the kernel, which counted {cgroup} such kill(s) in this container{size}"
    if host:
        return f"probably out of memory: killed when the kernel counted {host} out-of-memory kill(s){size}"
    if info.memory_used >= _NEARLY_FULL:
        return f"probably out of memory: killed with {info.memory_used:.0%} of the memory in use{size}"
    return f"killed by signal SIGKILL (by another process, or out of memory without a trace){size}"


def _describe_stack(fault: str) -> str:
    """The stack of the thread that crashed, innermost call first, without the frames of this package's engine."""
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
    return " < ".join(frames[:_MAX_FRAMES])
