"""The vocabulary: former names and phrases, which docs/glossary.md and plain prose replaced, do not return.

The lists are exact: they have the words that the project used in a private sense. Some of these words are ordinary
elsewhere (`Path.touch`), so only definitions are checked: classes, functions, attributes and modules.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = sorted(path for folder in ("trio_sched", "tests", "examples", "docs") for path in (ROOT / folder).rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

CLASSES = {
    "Alarm", "Archive", "Asked", "Attached", "Board", "Companion", "Conversation", "Dealt", "Desk", "Died",
    "Drawn", "EngineBook", "Ended", "Evidence", "Gathering", "Given", "Greeted", "Happened", "Happenings",
    "Hub", "Late", "Left", "Level", "Line", "Link", "Lookout", "Moved", "Needs", "News", "Origin", "Outlet",
    "Parcel", "Patient", "Pinged", "Place", "Pool", "Reception", "Room", "Roster", "Stopper", "TaskEnd",
    "Tell", "Told", "Turns", "Ward", "Watched", "Welcomed", "Wishes", "World",
}  # fmt: skip
FUNCTIONS = {
    "bury", "give_back", "hopeless", "let_go", "tidy", "touch", "told_to_stop",
}  # fmt: skip
ATTRIBUTES = {
    "anyone", "barred", "board", "desk", "fate", "graces", "hopeless", "lookout", "outlet", "parcels", "patient",
    "roster", "untold", "ward",
}  # fmt: skip
MODULES = {
    "asking", "board", "cause", "desk", "finding", "functional", "happenings", "hosting", "hub", "line",
    "links", "lookout", "machine", "news", "orders", "outside", "own", "patient", "reception", "roster",
    "stand", "test_house", "trouble", "ward", "watching", "world",
}  # fmt: skip
PHRASES = [
    r"\banew\b",
    r"\bso many\b",
    r"\bof what(ever)?\b",
    r"\bit has none\b",
    r"\bwhat cannot be\b",
    r"\b(some|any|every|no)body else",
    r"\bour own\b",
    r"\bof ours\b",
    r"\bgood-?bye\b",
    r"\bhears? (of|from|about)\b",
    r"\b(has|have|had) the word\b",
    r"\bpatience\b",
    r"\bbur(y|ies|ied)\b",
    r"\bstrangers?\b",
    r"\blet(s|ting)? go\b",
    r"\bmessages that are no\b",
    r"(?<!\bthere )(?<!\bThere )\b(is|are) no (?!longer\b|more than\b|later\b|earlier\b|larger\b)\w+",
]
#: Pages that quote former texts: the history of changes.
QUOTING = {ROOT / "docs" / "changelog.md"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def definitions(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line, kind, name) of what a file defines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            yield node.lineno, "class", node.name
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.lineno, "function", node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, "attribute", node.attr
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.lineno, "attribute", node.target.id


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of the comments and strings of a Python file, or of the lines of a page without code blocks.

    Lines of one comment or paragraph are joined, so that a phrase across a line break is found.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = re.sub(r"^```.*?^```$", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
        line = 1
        for paragraph in re.split(r"(\n\s*\n)", text):
            yield line, " ".join(paragraph.split())
            line += paragraph.count("\n")
        return
    strings = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    comment: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comment.append(token.string.lstrip("#: "))
        elif token.type in strings:
            yield token.start[0], " ".join(token.string.split())
        if comment and token.type not in (tokenize.COMMENT, tokenize.NL):
            yield token.start[0], " ".join(comment)
            comment = []


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_former_names_do_not_return(path: Path) -> None:
    former = {"class": CLASSES, "function": FUNCTIONS, "attribute": ATTRIBUTES}
    found = [
        f"{name_of(path)}:{line}: {kind} {name}"
        for line, kind, name in definitions(path)
        if name.lstrip("_") in former[kind]
    ]
    if path.stem in MODULES:
        found.append(f"{name_of(path)}: module {path.stem}")
    assert not found


@pytest.mark.parametrize("path", [*CODE, *PAGES], ids=name_of)
def test_former_phrases_do_not_return(path: Path) -> None:
    if path in QUOTING or path == Path(__file__):
        return
    found = [
        f"{name_of(path)}:{line}: {match[0]!r}"
        for line, text in prose(path)
        for phrase in PHRASES
        for match in re.finditer(phrase, text, re.IGNORECASE)
    ]
    assert not found


def test_phrases_are_found_across_line_breaks(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text(
        '"""A scheduler of our\n    own."""\n# It is\n# no message.\n# There is no message.\nx = f"of whatever {1}"\n'
    )
    page = tmp_path / "page.md"
    page.write_text("A text of\nwhatever kind.\n\n```python\nanew = 1\n```\n")
    for path, expected in ((code, ["our own", "is no message", "of whatever"]), (page, ["of whatever"])):
        found = [
            match[0]
            for _, text in prose(path)
            for phrase in PHRASES
            for match in re.finditer(phrase, text, re.IGNORECASE)
        ]
        assert sorted(set(map(str.lower, found))) == sorted(expected)
