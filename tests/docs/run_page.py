"""Run the Python blocks of one page of the documentation in order: `python run_page.py PAGE`.

A line `print(...)  # text` promises that it prints this text; an ellipsis in the text matches any characters. The page
runs in a process of its own, so that its functions are in `__main__`, as in a script that is made from the page.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

PROMISE = re.compile(r"^\s*print\(.*\)\s+# (.+)$")


def blocks(page: str) -> list[tuple[int, str]]:
    """(line number, code) of the Python blocks without a `skip` or `run by` comment."""
    found = []
    pattern = re.compile(r"(<!--[^\n]*-->\n)?```python\n(.*?)\n```", re.DOTALL)
    for match in pattern.finditer(page):
        if not (match[1] or "").startswith(("<!-- skip:", "<!-- run by:")):
            found.append((page.count("\n", 0, match.start(2)) + 1, match[2]))
    return found


def kept(promise: str, line: str) -> bool:
    """Whether the printed line matches the promised text."""
    return re.fullmatch(".*".join(re.escape(part) for part in promise.split("...")), line) is not None


def main() -> None:
    path = Path(sys.argv[1])
    namespace = sys.modules["__main__"].__dict__
    for line, code in blocks(path.read_text(encoding="utf-8")):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile("\n" * (line - 1) + code, str(path), "exec"), namespace)
        printed = iter(output.getvalue().splitlines())
        for promise in filter(None, map(PROMISE.match, code.splitlines())):
            if not any(kept(promise[1].strip(), text) for text in printed):
                sys.exit(f"{path}:{line}: this block did not print {promise[1]!r}; it printed:\n{output.getvalue()}")


if __name__ == "__main__":
    main()
