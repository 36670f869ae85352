"""The command line as a whole: help, shell completion, and errors as one line with an exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trio_sched import errors
from trio_sched.cli import app as app_module
from trio_sched.cli.app import FAILURE, INTERRUPTED, USAGE, run_command_line

COMMANDS = ("run", "up", "serve", "engine", "ipcontroller", "status", "explain", "cancel", "stop", "bench")


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """Return the exit code of a command that raises `error`."""

    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(app_module, "app", fail)
    return run_command_line(["status"])


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n  {name} " not in shown] == []


def test_no_argument_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line([]) == 0
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line([name, "--help"]) == 0
    assert f"Usage: trio-sched {name}" in capsys.readouterr().out


def test_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["--version"]) == 0
    assert capsys.readouterr().out.startswith("trio-sched 0.")


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["run"], ["up", "-n", "many"], ["status", "--nonsense"], ["bench", "--only", "nonsense"]],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(arguments) == USAGE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("trio-sched: error: ")
    assert "--help)" in shown.err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (errors.NoSchedulerError("none runs"), FAILURE, "none runs"),
        (errors.ConfigError("hwm = -1: it must be at least 0"), USAGE, "hwm = -1: it must be at least 0"),
        (OSError(28, "No space left on device"), FAILURE, "No space left on device"),
        (ExceptionGroup("many", [errors.AddressInUseError("taken")]), FAILURE, "taken"),
        (ExceptionGroup("many", [ValueError("x"), errors.AddressInUseError("taken")]), FAILURE, "taken"),
        (errors.WireError("two\nlines"), FAILURE, "two lines"),
        (
            ZeroDivisionError("oh"),
            FAILURE,
            "ZeroDivisionError: oh (a bug in trio_sched; TRIO_SCHED_DEBUG=1 shows the traceback)",
        ),
    ],
)
def test_errors_are_one_line(
    error: Exception, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(monkeypatch, error) == code
    assert capsys.readouterr().err.endswith(f"{words}\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BaseExceptionGroup("many", [KeyboardInterrupt(), OSError()])])
def test_an_interruption_is_silent_and_130(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(monkeypatch, error) == INTERRUPTED
    assert capsys.readouterr().err == ""


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIO_SCHED_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        failing(monkeypatch, ZeroDivisionError("oh"))


def complete(*words: str, **environment: str) -> list[str]:
    """Return the completions that bash shows for the last of the words."""
    done = subprocess.run(
        [sys.executable, "-m", "trio_sched"],
        env={
            **os.environ,
            "_TRIO_SCHED_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["trio-sched", *words]),
            "COMP_CWORD": str(len(words)),
            **environment,
        },
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_shell_completion_offers_commands_options_and_values(runtime_dir: Path) -> None:
    (runtime_dir / "lab-client.json").touch()
    assert complete("sta") == ["status"]
    assert complete("serve", "--websocket-po") == ["--websocket-port"]
    assert complete("up", "--scheme", "l") == ["leastload", "lru"]
    assert complete("status", "-C", "l") == ["lab"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_has_a_script_for_each_shell(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trio_sched", "--show-completion", shell],
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "_TRIO_SCHED_COMPLETE" in done.stdout


def test_help_imports_nothing_heavy_and_is_fast() -> None:
    """It takes 0.1 s of CPU time on a fast machine; the limit allows for slower ones."""
    script = (
        "import sys, time; from trio_sched.cli.app import run_command_line; code = run_command_line(['--help']);"
        "print(' '.join(sys.modules)); print(time.process_time()); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    *_, modules, seconds = done.stdout.splitlines()
    assert not {"trio", "anyio", "zmq", "numpy", "msgspec", "rich", "structlog", "psutil"} & set(modules.split())
    assert float(seconds) < 0.5
