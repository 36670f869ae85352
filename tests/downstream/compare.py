"""Which of ipyparallel's own tests pass with its controller and not with ours?

    python compare.py STOCK.xml OURS.xml

Reads the JUnit files of two runs, prints the tests as rows of a table, and fails if there are any.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

WORST_FIRST = ("error", "failure", "skipped")


def outcomes(path: Path) -> dict[str, str]:
    """Test -> "passed", "failure", "error" or "skipped". An xfailed test is skipped, to JUnit."""
    found: dict[str, str] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname', '').removeprefix('ipyparallel.tests.')}::{case.get('name')}"
        tags = {child.tag for child in case}
        outcome = next((tag for tag in WORST_FIRST if tag in tags), "passed")
        if found.get(name, "passed") == "passed":  # an error in a teardown comes as a second case
            found[name] = outcome
    return found


def main(stock_file: str, ours_file: str) -> int:
    """Print the table; the number of its rows, at most 1, is the exit status."""
    stock, ours = outcomes(Path(stock_file)), outcomes(Path(ours_file))
    for name, run in (("ipyparallel's controller", stock), ("ours", ours)):
        print(f"{name}: {dict(Counter(run.values()))}")
    lost = {test: ours.get(test, "not run") for test, outcome in stock.items() if outcome == "passed"}
    lost = {test: outcome for test, outcome in lost.items() if outcome != "passed"}
    won = [test for test, outcome in ours.items() if outcome == "passed" and stock.get(test) in ("failure", "error")]
    print(f"\nPassed there and not here: {len(lost)}\n")
    for test, outcome in sorted(lost.items()):
        print(f"| `{test}` | {outcome} |")
    for test in won:
        print(f"passes here and not there: {test}")
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
