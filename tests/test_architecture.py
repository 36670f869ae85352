"""The architecture: import directions, access to sockets and clocks, sizes of files and functions.

The table of import directions is that of docs/architecture.md: core imports no sockets, wire no event loop, server none
of its fronts. If a part needs another one that it may not import, either the code is in the wrong part, or its caller
should pass something in.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "trio_sched"
MODULES = sorted((ROOT / PACKAGE).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

EVERYTHING = {
    "cli", "client", "core", "engine", "errors", "ipyparallel", "logs", "server", "testing", "transport", "web", "wire",
}  # fmt: skip
MAY_IMPORT = {
    "errors": set(),
    "logs": set(),
    "core": {"core", "errors"},
    "wire": {"wire", "core", "errors"},
    "transport": {"transport", "errors"},
    "server": {"server", "core", "wire", "transport", "errors", "logs"},
    "web": {"web", "server", "core", "wire", "transport", "errors", "logs"},
    "ipyparallel": {"ipyparallel", "server", "core", "wire", "transport", "errors", "logs"},
    "client": {"client", "wire", "transport", "errors", "logs"},
    "engine": {"engine", "wire", "transport", "errors", "logs"},
    "testing": EVERYTHING - {"cli"},
    "cli": EVERYTHING,
    "__main__": {"cli"},
    "__init__": EVERYTHING - {"cli"},
}
IMPURE = {
    "anyio", "asyncio", "datetime", "logging", "os", "secrets", "select", "signal", "socket", "sqlite3", "structlog",
    "subprocess", "threading", "time", "trio", "trio_websocket", "uuid", "zmq",
}  # fmt: skip
SOCKETS = {"zmq", "socket", "trio_websocket", "select"}
LONG_FUNCTION_LINES, LONG_FILE_LINES = 60, 850
MOST_IGNORED_TYPE_ERRORS = 25
TOP_LEVEL = {
    ".ci", ".gitignore", "CHANGELOG.md", "LICENSE", "README.md", "docs", "examples", "noxfile.py", "pyproject.toml",
    "tests", "trio_sched",
}  # fmt: skip


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of each import of a file, relative imports resolved."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = list(path.relative_to(ROOT).with_suffix("").parts)[: -node.level]
                base = ".".join([*package, base] if base else package)
            yield node.lineno, base
            if base == PACKAGE:
                for alias in node.names:
                    yield node.lineno, f"{base}.{alias.name}"


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function, without those of nested functions."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield node
            yield from own_nodes(node)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_follow_the_directions(path: Path) -> None:
    part, wrong = part_of(path), []
    for line, name in imports(path):
        top, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if top == PACKAGE and other in EVERYTHING and other not in MAY_IMPORT[part]:
            wrong.append(f"{name_of(path)}:{line}: {part} imports {name}")
        if part == "core" and top in IMPURE:
            wrong.append(f"{name_of(path)}:{line}: core is pure, but imports {name}")
        if part != "transport" and top in SOCKETS:
            wrong.append(f"{name_of(path)}:{line}: only transport touches sockets, this imports {name}")
        if part != "cli" and top == "structlog":
            wrong.append(f"{name_of(path)}:{line}: the library logs through trio_sched.logs, this imports {name}")
        if part == "wire" and top in {"trio", "anyio"}:
            wrong.append(f"{name_of(path)}:{line}: wire is bytes and messages, but imports {name}")
    assert not wrong


def test_every_part_has_a_row_in_the_table_of_imports() -> None:
    assert {part_of(path) for path in MODULES} <= set(MAY_IMPORT)


def test_the_documentation_has_the_same_table_of_imports() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| [^|]+ \| ([^|]+) \|$", page, re.MULTILINE)
    documented = {}
    for parts, text in rows:
        named = set(re.findall(r"`(\w+)`", text))
        allowed = EVERYTHING - named if text.startswith("all") else named
        if re.search(r"what (it|`\w+`) may import", text):
            allowed = allowed.union(*(MAY_IMPORT[part] for part in named))
        documented.update({part: allowed - {part} for part in re.findall(r"`(\w+)`", parts)})
    assert documented == {part: MAY_IMPORT[part] - {part} for part in EVERYTHING}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_module_imports_itself_through_others() -> None:
    """Imports under TYPE_CHECKING and inside functions count.

    The package itself is left out: its names are loaded when they are used (PEP 562).
    """
    modules = {module_of(path) for path in MODULES} - {PACKAGE}
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        imported = set()
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                submodules = {f"{node.module}.{alias.name}" for alias in node.names} & modules
                imported |= submodules or {node.module}
        graph[module_of(path)] = imported & modules - {module_of(path)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")


def test_a_class_name_belongs_to_one_class() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{name_of(path)}:{node.lineno}")
    assert {name: at for name, at in places.items() if len(at) > 1} == {}


def test_ignored_type_errors_are_few_and_have_a_reason() -> None:
    ignored = [
        (f"{name_of(path)}:{number}", line)
        for path in MODULES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if "# type: ignore" in line
    ]
    assert [place for place, line in ignored if not re.search(r"# type: ignore\[[a-z-, ]+\]  # \w", line)] == []
    assert len(ignored) <= MOST_IGNORED_TYPE_ERRORS


def callbacks(tree: ast.Module) -> Iterator[str]:
    """Yield the names of attributes that are annotated as callables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for part in ast.walk(node):
                if isinstance(part, ast.AnnAssign) and re.match(r"(typing\.)?Callable\b", ast.unparse(part.annotation)):
                    if isinstance(part.target, ast.Attribute):
                        yield part.target.attr
                    elif isinstance(part.target, ast.Name) and part in node.body:
                        yield part.target.id


def test_no_callback_is_assigned_from_outside() -> None:
    """An object gets its callbacks when it is made. A class may change its own."""
    names = {name for path in MODULES for name in callbacks(parsed(path))}
    assigned = []
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in targets:
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) not in ("self", "cls"):
                    value = node.value if isinstance(node, ast.Assign) else None
                    if target.attr in names or isinstance(value, ast.Lambda):
                        assigned.append(f"{name_of(path)}:{node.lineno}: {ast.unparse(target)}")
    assert not assigned


def test_core_uses_no_global_random_generator() -> None:
    """The core may name `random.Random` as a type, but not use the global generator."""
    used = [
        f"{name_of(path)}:{node.lineno}"
        for path in MODULES
        if part_of(path) == "core"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call)
        and re.match(r"(np\.|numpy\.)?random\.(?!Random|Generator|default_rng)", ast.unparse(node.func))
    ]
    assert not used


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_are_readable(path: Path) -> None:
    """A module has a docstring and a limited length; its functions fit on a screen and swallow no errors."""
    tree, wrong = parsed(path), []
    if not ast.get_docstring(tree):
        wrong.append("has no docstring")
    if len(tree.body) > 1 and not any(
        isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body[:2]
    ):
        wrong.append("does not import annotations from __future__")
    if (lines := path.read_text(encoding="utf-8").count("\n")) > LONG_FILE_LINES:
        wrong.append(f"has {lines} lines: is there a second idea inside?")
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            if size > LONG_FUNCTION_LINES:
                wrong.append(f"line {node.lineno}: {node.name} has {size} lines")
            if not node.name.startswith("_") and not ast.get_docstring(node) and size > 12:
                wrong.append(f"line {node.lineno}: {node.name} has no docstring")
        if isinstance(node, ast.ExceptHandler) and [type(step) for step in node.body] == [ast.Pass]:
            caught = ast.unparse(node.type) if node.type else "everything"
            if caught in ("everything", "Exception", "BaseException"):
                wrong.append(f"line {node.lineno}: swallows {caught}")
    assert not wrong, f"{name_of(path)}: {wrong}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_name_in_dunder_all_exists(path: Path) -> None:
    tree = parsed(path)
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            try:
                names = ast.literal_eval(node.value)
            except ValueError:  # computed: tests/client/test_public_names.py checks it
                continue
            defined = {getattr(n, "name", None) or getattr(n, "id", None) for n in ast.walk(tree)}
            defined |= {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
            assert not [name for name in names if name not in defined and path.name != "__init__.py"]
            assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_tests_do_not_sleep(path: Path) -> None:
    """The functions that a test submits as tasks may sleep; the test itself may not."""
    slept = [
        node.lineno
        for test in parsed(path).body
        if isinstance(test, (ast.FunctionDef, ast.AsyncFunctionDef)) and test.name.startswith("test")
        for node in own_nodes(test)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep"
    ]
    assert not slept, f"{name_of(path)} sleeps in lines {slept}; wait for what it waits for, or use a MockClock"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("trio_sched", {"trio", "anyio", "zmq", "numpy", "typer", "msgspec"}),
        ("trio_sched.cli.app", {"trio", "anyio", "zmq", "numpy", "msgspec", "structlog"}),
        ("trio_sched.engine.worker", {"trio", "anyio", "numpy", "typer", "rich", "structlog"}),
        ("trio_sched.core.scheduler", {"trio", "anyio", "zmq", "typer", "rich"}),
    ],
)
def test_imports_stay_cheap(module: str, heavy: set[str]) -> None:
    """A worker does not import trio (0.25 s), `--help` neither trio nor numpy (0.2 s, for random schemes)."""
    script = f"import sys, {module}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not heavy & {name.split(".")[0] for name in done.stdout.split()}


def test_the_top_level_has_only_the_listed_entries() -> None:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    assert {line.split("/")[0] for line in done.stdout.splitlines()} == TOP_LEVEL
