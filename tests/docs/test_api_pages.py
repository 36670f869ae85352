"""docs/api/: each public name has an entry that Sphinx generates from its docstring."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

import trio_sched
import trio_sched.testing

PAGES = Path(__file__).resolve().parents[2] / "docs/api"
ENTRIES = [
    entry
    for page in sorted(PAGES.glob("*.md"))
    for entry in re.findall(r"^\.\. auto(?:class|exception|function):: (\S+)$", page.read_text("utf-8"), re.MULTILINE)
]


@pytest.mark.parametrize("module", [trio_sched, trio_sched.testing], ids=lambda module: module.__name__)
def test_each_public_name_has_one_entry(module: ModuleType) -> None:
    names = {f"{module.__name__}.{name}" for name in module.__all__ if name != "__version__"}
    assert {entry for entry in ENTRIES if entry.rpartition(".")[0] == module.__name__} == names
    assert len(ENTRIES) == len(set(ENTRIES))


@pytest.mark.parametrize("entry", ENTRIES)
def test_each_entry_has_a_docstring(entry: str) -> None:
    module, _, name = entry.rpartition(".")
    assert getattr(importlib.import_module(module), name).__doc__
