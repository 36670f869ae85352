"""Count the identifiers in every source file of the running Python's standard library.

One task counts one file, then a tree of tasks merges the counts. Each merge gets the futures of sixteen counts as its
arguments: it waits for them, and their values go to its engine without passing through this script. A plain loop checks
the result.

    trio-sched run examples/stdlib_words.py              # or: --limit 200 for a part
"""

from __future__ import annotations

import argparse
import io
import keyword
import sys
import sysconfig
import time
import tokenize
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from trio_sched import Client

FAN_IN = 16


def count_identifiers(path: str) -> Counter[str]:
    """Count the identifiers of a source file, up to its first syntax error."""
    counts: Counter[str] = Counter()
    source = io.BytesIO(Path(path).read_bytes())
    try:
        for token in tokenize.tokenize(source.readline):
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                counts[token.string] += 1
    except (SyntaxError, tokenize.TokenError, UnicodeError):
        pass
    return counts


def merge(*counts: Counter[str]) -> Counter[str]:
    """Return the sum of several counts."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return total


def source_files() -> list[str]:
    """Return the source files of the standard library, without installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(str(path) for path in root.rglob("*.py") if "site-packages" not in path.parts)


def count_on_engines(client: Client, files: Sequence[str]) -> Counter[str]:
    """Submit a task for each file, then merges of sixteen counts until one count is left."""
    level: list[Future[Counter[str]]] = [client.submit(count_identifiers, file) for file in files]
    while len(level) > 1:
        level = [client.submit(merge, *level[at : at + FAN_IN]) for at in range(0, len(level), FAN_IN)]
    return level[0].result()


def count_in_a_loop(files: Sequence[str]) -> Counter[str]:
    """Count without engines."""
    total: Counter[str] = Counter()
    for file in files:
        total.update(count_identifiers(file))
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description="Count identifiers in the standard library's source files.")
    parser.add_argument("--limit", type=int, default=None, help="number of files to count")
    files = source_files()[: parser.parse_args().limit]

    with Client() as client:
        started = time.perf_counter()
        counts = count_on_engines(client, files)
        on_engines_s = time.perf_counter() - started

    started = time.perf_counter()
    expected = count_in_a_loop(files)
    in_a_loop_s = time.perf_counter() - started

    print(f"{len(files)} files, {counts.total()} identifiers, {len(counts)} distinct; the most frequent:")
    for name, times in counts.most_common(10):
        print(f"    {times:>8}  {name}")
    print(f"on engines {on_engines_s:.2f} s, in a plain loop {in_a_loop_s:.2f} s")
    if counts != expected:
        print("DIFFERENT from the plain loop")
        return 1
    print("OK: equal to the plain loop")
    return 0


if __name__ == "__main__":
    sys.exit(main())
