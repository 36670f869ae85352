"""The tour of the code names files, classes and functions; each of them is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOUR = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(trio_sched/[\w/]+\.py)`(?:[,\s]+`([A-Z]\w*(?:\.\w+)?|[a-z_]+)`)?", TOUR)


def defined(path: Path) -> set[str]:
    """The names that a module defines, methods as `Class.method`."""
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
def test_the_tour_leads_somewhere(file: str, name: str) -> None:
    assert (ROOT / file).is_file()
    assert not name or name in defined(ROOT / file)


def test_the_tour_has_stops() -> None:
    assert len(NAMED) > 20
