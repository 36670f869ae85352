"""Each snippet of README.md and docs/ works as written.

The Python blocks of a page run in order as one script, with a scheduler and two engines. Shell blocks run line by line;
commands that stay in the foreground (`up`, `serve`, `engine`) run in the background of the other lines. TOML blocks are
loaded as configuration files, JSON blocks decoded as messages of the native protocol. A block that is not run has a
comment before it, with the reason (`<!-- skip: reason -->`) or the place where it runs (`<!-- run by: .ci/run -->`).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/api").glob("*.md"))]
LANGUAGES = {"python", "sh", "toml", "json", "text", "console", "{toctree}", "{eval-rst}", "{include}"}
BLOCK = re.compile(r"(?P<marker><!--[^\n]*-->\n)?^```(?P<language>\S*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
SCHEDULER_IS_UP = "ls $TRIO_SCHED_RUNTIME_DIR/*-client.json"
FOREGROUND = re.compile(r"trio-sched (up|serve|engine)\b")


def blocks(language: str) -> list[object]:
    """The blocks in one language, as parameters named by page and line."""
    found: list[object] = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            marker = match["marker"] or ""
            if match["language"] == language and not marker.startswith(("<!-- skip:", "<!-- run by:")):
                line = text.count("\n", 0, match.start("code"))
                found.append(pytest.param(match["code"], id=f"{page.name}:{line}"))
    return found


def pages_with_python() -> list[object]:
    return [pytest.param(page, id=page.name) for page in PAGES if "```python\n" in page.read_text(encoding="utf-8")]


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a scheduler with two engines for all pages; returns its name."""
    command = [sys.executable, "-m", "trio_sched", "up", "-n", "2", "--name", "docs", "--lifeline"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline()  # it prints one line when it is up
    yield "docs"
    process.stdin.close()
    process.wait(20)
    process.stdout.close()


def check_runs(command: list[str], directory: Path, **environment: str) -> None:
    bin_directory = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": bin_directory + os.pathsep + os.environ["PATH"], **environment}
    done = subprocess.run(
        command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", pages_with_python())
def test_python_blocks_print_what_they_promise(page: Path, scheduler: str, tmp_path: Path) -> None:
    runner = Path(__file__).with_name("run_page.py")
    check_runs([sys.executable, str(runner), str(page)], tmp_path, TRIO_SCHED_CONNECTION=scheduler)


@pytest.mark.parametrize("code", blocks("sh"))
def test_shell_blocks_succeed(code: str, tmp_path: Path, runtime_dir: Path) -> None:
    """The working directory has `examples` and a `script.py`; commands in the background end with the block."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "script.py").write_text("import trio_sched\ntrio_sched.Client().submit(len, 'ab').result()\n")
    lines = ["set -euo pipefail", "trap 'code=$?; kill $(jobs -p) 2>/dev/null || true; wait; exit $code' EXIT"]
    for line in code.splitlines():
        if FOREGROUND.search(line) and not line.lstrip().startswith("#"):
            lines += [
                f"{line.split('  #')[0]} &",
                f"until {SCHEDULER_IS_UP}; do sleep 0.05; done",
            ]
        else:
            lines.append(line)
    check_runs(["bash", "-c", "\n".join(lines)], tmp_path)


@pytest.mark.parametrize("code", blocks("toml"))
def test_toml_blocks_are_configuration_files(code: str, tmp_path: Path) -> None:
    from trio_sched.cli.settings import load_config

    file = tmp_path / "settings.toml"
    file.write_text(code, encoding="utf-8")
    assert load_config(file, {})


@pytest.mark.parametrize("code", blocks("json"))
def test_json_blocks_are_messages_without_unknown_keys(code: str) -> None:
    from trio_sched.wire import native

    message = msgspec.convert(msgspec.json.decode(code), native.FromPeer | native.ToClient)
    known = {field.encode_name for field in msgspec.structs.fields(type(message))} | {"type"}
    assert set(msgspec.json.decode(code)) <= known


def test_each_block_has_a_language_that_the_tests_know() -> None:
    odd = [
        f"{page.name}: {match['language']!r}"
        for page in PAGES
        for match in BLOCK.finditer(page.read_text(encoding="utf-8"))
        if match["language"] not in LANGUAGES
    ]
    assert not odd


def test_the_page_of_the_protocol_lists_all_messages_with_their_keys() -> None:
    from trio_sched.wire import native

    text = (ROOT / "docs/wire.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", text.partition("## All messages")[2], re.MULTILINE))
    messages = {kind.__struct_config__.tag: kind for kind in get_args(native.Message)}
    assert set(rows) == set(messages)
    for tag, keys in rows.items():
        fields = {field.encode_name for field in msgspec.structs.fields(messages[tag])}
        assert set(re.findall(r"`(\w+)`", keys)) <= fields
        assert "of its role" in keys or set(re.findall(r"`(\w+)`", keys)) == fields
