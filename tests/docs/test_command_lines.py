"""Each `trio-sched ...` line of the documentation parses. The lines are not run.

Skipped blocks are parsed as well: a command for a second machine can have a wrong option, too.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest
from typer.main import get_command

from tests.docs.test_snippets import BLOCK, PAGES
from trio_sched.cli.app import PROGRAM, app, run_command_line

SHELLS = {"sh", "console", "text"}
COMMAND = re.compile(rf"^(?:\$ |.*[ \"'(/])?{PROGRAM} (?P<rest>.+)$")
SHELL_WORDS = re.compile(r"^(&|&&|\|\|?|;|>|2>|>>|#.*)$")


def command_lines() -> Iterator[object]:
    """The arguments of each command line, as parameters named by page and line."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in BLOCK.finditer(text):
            if block["language"] not in SHELLS:
                continue
            first = text.count("\n", 0, block.start("code")) + 1
            for number, line in enumerate(block["code"].splitlines(), first):
                if not line.lstrip().startswith("#") and (match := COMMAND.match(line)) is not None:
                    yield pytest.param(arguments(match["rest"]), id=f"{page.name}:{number}")


def arguments(rest: str) -> list[str]:
    """The arguments of one command, up to a comment or a word of the shell."""
    words: list[str] = []
    for word in shlex.split(rest, comments=True):
        if SHELL_WORDS.match(word):
            break
        words.append(word.rstrip(";"))
        if word.endswith(";"):
            break
    return words


def parse(words: list[str]) -> str:
    """Parse the arguments as the command line does, without running the command; returns the name of the command.

    :raises click.ClickException: the command line does not accept them.
    """
    group = get_command(app)
    context = group.make_context(PROGRAM, list(words))
    with context:
        rest = [*context._protected_args, *context.args]
        name, command, rest = group.resolve_command(context, rest)  # type: ignore[attr-defined]  # click's Group
        command.make_context(name, rest, parent=context)
    return str(name)


LINES = list(command_lines())


def test_the_documentation_has_command_lines() -> None:
    assert len(LINES) > 10


@pytest.mark.parametrize("words", LINES)
def test_each_command_line_of_the_documentation_parses(words: list[str]) -> None:
    assert parse(words) in words


@pytest.mark.parametrize("words", [["engine", "lab-engine.json"], ["up", "--no-such-option"], ["no-such-command"]])
def test_a_wrong_command_line_is_an_error(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"unexpected extra argument|No such option|No such command"):
        parse(words)
    assert run_command_line(words) == 2
