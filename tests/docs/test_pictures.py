"""The diagrams and generated tables in docs/ are those that docs/draw.py makes from the code."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def draw() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw", DOCS / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("picture", ["states.svg", "life.svg"])
def test_each_diagram_is_the_one_made_from_the_code(draw: ModuleType, picture: str) -> None:
    assert (DOCS / picture).read_text(encoding="utf-8") == draw.PICTURES[picture](), "run: python docs/draw.py"


@pytest.mark.parametrize("page", ["states.md", "configuration.md"])
def test_each_table_is_the_one_made_from_the_code(draw: ModuleType, page: str) -> None:
    _, drawn, _ = draw.split((DOCS / page).read_text(encoding="utf-8"))
    assert drawn == draw.TABLES[page](), "run: python docs/draw.py"


def test_the_states_page_explains_each_state(draw: ModuleType) -> None:
    page = (DOCS / "states.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^(\w+)\n: ", page, re.MULTILINE))
    assert explained == {state.value for state in draw.State}
