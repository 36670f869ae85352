"""Compare two runs of ipyparallel's test suite: with its own controller, and with the one of trio_sched.

    python compare.py STOCK.xml OURS.xml

Reads the JUnit files of the runs, and prints the tests that pass with ipyparallel's controller only, as rows of a
table. It fails if there are any.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

WORST_FIRST = ("error", "failure", "skipped")


def outcomes(path: Path) -> dict[str, str]:
    """Return "passed", "failure", "error" or "skipped" by test. JUnit counts an xfailed test as skipped."""
    found: dict[str, str] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname', '').removeprefix('ipyparallel.tests.')}::{case.get('name')}"
        tags = {child.tag for child in case}
        outcome = next((tag for tag in WORST_FIRST if tag in tags), "passed")
        if found.get(name, "passed") == "passed":  # an error in a teardown is a second case
            found[name] = outcome
    return found


def main(stock_file: str, ours_file: str) -> int:
    """Print the table. Returns the exit status: 1 if the table has rows, else 0."""
    stock, ours = outcomes(Path(stock_file)), outcomes(Path(ours_file))
    for name, run in (("ipyparallel's controller", stock), ("trio_sched", ours)):
        print(f"{name}: {dict(Counter(run.values()))}")
    lost = {test: ours.get(test, "not run") for test, outcome in stock.items() if outcome == "passed"}
    lost = {test: outcome for test, outcome in lost.items() if outcome != "passed"}
    won = [test for test, outcome in ours.items() if outcome == "passed" and stock.get(test) in ("failure", "error")]
    print(f"\nPassed with ipyparallel's controller only: {len(lost)}\n")
    for test, outcome in sorted(lost.items()):
        print(f"| `{test}` | {outcome} |")
    for test in won:
        print(f"passes with trio_sched only: {test}")
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
