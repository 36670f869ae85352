"""docs/rules.md: the rules are numbered without a gap, and each has an example."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).resolve().parents[2] / "docs/rules.md").read_text(encoding="utf-8")
RULES = dict(re.findall(r"^### (R\d+) [^\n]+\n(.*?)(?=^###? |\Z)", PAGE, re.DOTALL | re.MULTILINE))


def test_rules_are_numbered_without_a_gap() -> None:
    assert list(RULES) == [f"R{number}" for number in range(1, len(RULES) + 1)]
    assert len(RULES) == 34


def test_each_rule_has_an_example() -> None:
    assert [rule for rule, text in RULES.items() if "```" not in text] == []
