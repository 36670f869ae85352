"""docs/architecture.md and docs/contributing.md name files, classes and functions; each of them exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(trio_sched/[\w/]+\.py)`(?:[,\s]+`([A-Z]\w*(?:\.\w+)?|[a-z_]+)`)?", PAGE)


def defined(path: Path) -> set[str]:
    """The functions and classes that a module defines, and methods as `Class.method`."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{part.name}"
                for part in node.body
                if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef))
            }
    return names


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED)))
def test_each_name_on_the_page_exists(file: str, name: str) -> None:
    assert (ROOT / file).is_file()
    assert not name or name in defined(ROOT / file)


def test_the_page_names_the_code() -> None:
    assert len(NAMED) > 20


def test_each_path_in_contributing_exists() -> None:
    text = (ROOT / "docs/contributing.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:trio_sched|tests)/[\w/.*]+)`", text)
    assert [path for path in paths if "NAME" not in path and not list(ROOT.glob(path))] == []
    assert len(paths) > 20


def test_each_class_of_the_glossary_exists() -> None:
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8").partition("## Classes")[2]
    names = [name for row in re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    classes = set[str]().union(*(defined(path) for path in (ROOT / "trio_sched").rglob("*.py")))
    assert names
    assert [name for name in names if name not in classes] == []
