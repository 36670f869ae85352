"""Source stamps: which modules have them, what they depend on, and when they are made again."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from trio_sched.errors import CallError, SubmitError
from trio_sched.wire import payload, source_stamps
from trio_sched.wire.source_stamps import LoadedSources, Stamp, is_own, references, with_dependents

Make = Callable[..., ModuleType]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """`make(name, source)` writes a module and imports it, or loads it again; its name begins with `stamped_`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def make(name: str, source: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return importlib.reload(sys.modules[name]) if name in sys.modules else importlib.import_module(name)

    yield make
    for name in [name for name in sys.modules if name.startswith("stamped_")]:
        del sys.modules[name]


def test_own_modules_are_neither_installed_nor_part_of_python(make: Make) -> None:
    import encodings.idna
    import zipimport

    own = make("stamped_a", "")
    assert is_own("stamped_a", own)
    others: list[ModuleType] = [json, encodings.idna, zipimport, sys, pytest, source_stamps, sys.modules["__main__"]]
    assert not any(is_own(module.__name__, module) for module in others)


def test_an_editable_install_is_own_and_one_in_site_packages_is_not(make: Make, tmp_path: Path) -> None:
    module = make("stamped_a", "")
    for place, expected in (("src/pkg", True), ("venv/site-packages/pkg", False), ("usr/dist-packages/pkg", False)):
        assert module.__spec__ is not None
        module.__spec__.origin = str(tmp_path / place / "a.py")
        assert is_own("stamped_a", module) is expected


def test_a_module_in_a_zip_file_has_no_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as file:
        file.writestr("stamped_zipped.py", "def f(): return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "own.zip"))
    pickled = payload.dump_function(importlib.import_module("stamped_zipped").f)
    sealed, _ = LoadedSources().seal(pickled)
    assert sealed == pickled
    del sys.modules["stamped_zipped"]


def test_a_function_without_own_modules_is_sent_unchanged() -> None:
    pickled = payload.dump_function(json.dumps)
    assert LoadedSources().seal(pickled) == (pickled, None)


def test_a_seal_holds_until_a_module_is_reloaded(make: Make) -> None:
    make("stamped_b", "def g(): pass\n")
    module = make("stamped_a", "from stamped_b import g\ndef f(): pass\n")
    sources, pickled = LoadedSources(), payload.dump_function(module.f)
    first, holds = sources.seal(pickled)
    assert holds is not None
    assert holds()
    importlib.reload(sys.modules["stamped_b"])
    assert not holds()
    assert sources.seal(pickled)[0] == first  # the source is unchanged
    make("stamped_b", "def g(): return 1\n")
    assert sources.seal(pickled)[0] != first


def test_a_module_may_opt_out_of_stamps(make: Make) -> None:
    make("stamped_b", "__trio_sched_stamp__ = False\ndef g(): pass\n")
    module = make("stamped_a", "from stamped_b import g\ndef f(): pass\n")
    sources = LoadedSources()
    assert sources.seal(payload.dump_function(module.g))[1] is None
    sealed, _ = sources.seal(payload.dump_function(module.f))
    make("stamped_b", "__trio_sched_stamp__ = False\ndef g(): return 1\n")
    assert sources.seal(payload.dump_function(module.f))[0] == sealed


def test_a_digest_does_not_depend_on_line_ends() -> None:
    assert source_stamps.digest_of_source(b"a = 1\r\n") == source_stamps.digest_of_source(b"a = 1\n")


def test_references_are_found_without_running_code_of_the_values(make: Make) -> None:
    make("stamped_b", "import functools\nclass C: pass\n@functools.lru_cache\ndef cached(): pass\ndef g(): pass\n")
    make("stamped_c", "")
    lazy = "class Lazy:\n    def __getattr__(self, name): raise SystemExit\n    __module__ = property(__getattr__)\n"
    ways = ("from stamped_b import g", "from stamped_b import C", "import stamped_b", "from stamped_b import cached")
    for source in (*ways, "import stamped_b\nx = stamped_b.C()\ndel stamped_b"):
        module = make("stamped_a", f"import json\n{source}\n{lazy}lazy = Lazy()\n")
        assert set(references(module)) == {"stamped_b"}
        for name in list(vars(module)):
            if not name.startswith("__"):
                delattr(module, name)


def test_imports_inside_functions_are_references(make: Make, tmp_path: Path) -> None:
    make("stamped_b", "")
    (tmp_path / "stamped_pkg" / "inner").mkdir(parents=True)
    statements = ("import stamped_b", "from .. import one", "from ..two import x")
    source = "".join(["class C:\n    def m(self):\n", *(f"        {statement}\n" for statement in statements)])
    for name in ("__init__", "one", "two", "inner/__init__", "inner/three"):
        (tmp_path / "stamped_pkg" / f"{name}.py").write_text(source)
    importlib.invalidate_caches()
    for name in ("stamped_pkg.one", "stamped_pkg.two", "stamped_pkg.inner.three"):
        importlib.import_module(name)
    found = set(references(sys.modules["stamped_pkg.inner.three"]))
    assert found == {"stamped_b", "stamped_pkg.one", "stamped_pkg.two"}


def test_dependents_are_found_transitively_and_in_cycles(make: Make) -> None:
    make("stamped_c", "")
    make("stamped_b", "import stamped_c\n")
    make("stamped_a", "import stamped_b\n")
    sys.modules["stamped_c"].back = sys.modules["stamped_a"]  # type: ignore[attr-defined]
    make("stamped_d", "import stamped_a\n")
    make("stamped_e", "")
    assert with_dependents({"stamped_b"}) == {f"stamped_{letter}" for letter in "abcd"}
    assert with_dependents({"stamped_e"}) == {"stamped_e"}


def test_a_module_edited_since_its_import_has_no_stamp_until_the_edit_is_undone(make: Make, tmp_path: Path) -> None:
    source = "class C:\n    class D:\n        @staticmethod\n        def m(): return 1\ndef f(): return 1\n"
    module = make("stamped_a", source)
    module.C.myself = module.C  # a cycle
    sources, pickled = LoadedSources(), payload.dump_function(module.f)
    (tmp_path / "stamped_a.py").write_text(source.replace("m(): return 1", "m(): return 2"))
    with pytest.raises(SubmitError, match=r"'stamped_a' is not what its file .* importlib\.reload\(stamped_a\)"):
        sources.seal(pickled)
    (tmp_path / "stamped_a.py").write_text("def f(:\n")
    with pytest.raises(SubmitError):
        sources.seal(pickled)
    (tmp_path / "stamped_a.py").write_text(source)
    assert sources.seal(pickled)[0] != pickled


def test_an_edit_of_constants_is_noticed_until_the_module_is_reloaded(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    module = make("stamped_a", "X = 1\ndef f(): return X\n")
    (tmp_path / "stamped_a.py").write_text("X = 2\ndef f(): return X\n")  # the same size, and in the same second
    sources = LoadedSources()
    with pytest.raises(SubmitError, match=r"importlib\.reload"):
        sources.seal(payload.dump_function(module.f))
    assert importlib.reload(module).X == 2
    sources.seal(payload.dump_function(module.f))


def test_names_that_a_reload_leaves_in_the_module_are_not_an_edit(make: Make) -> None:
    make("stamped_a", "def f(): return 1\ndef former(): return 1\n")
    module = make("stamped_a", "def f(): return 22\n")
    assert module.former() == 1
    LoadedSources().seal(payload.dump_function(module.f))


def test_a_file_older_than_the_process_counts_as_the_loaded_source(make: Make, tmp_path: Path) -> None:
    module = make("stamped_a", "def f(): return 1\n")
    (tmp_path / "stamped_a.py").write_text("def f(): return 2\n")
    os.utime(tmp_path / "stamped_a.py", (1, 1))
    assert LoadedSources().digest_of("stamped_a", module) == source_stamps.digest_of_source(b"def f(): return 2\n")


def test_an_engine_without_the_required_version_changes_no_module(make: Make) -> None:
    module = make("stamped_a", "")
    sources = LoadedSources()
    with pytest.raises(CallError, match=r"'stamped_a' .*, from /x/a\.py, .* the file .*stamped_a\.py has another"):
        sources.require([Stamp("stamped_a", "another", "/x/a.py")])
    assert sys.modules["stamped_a"] is module
    sources.require([Stamp("stamped_not_here", "another", "/x/b.py")])
    assert sources.generation == 0


_AUTORELOADED = """
import os, sys
from IPython.core.interactiveshell import InteractiveShell
from trio_sched.client.functions import FunctionRegistry
sys.path.insert(0, os.getcwd())
shell, functions = InteractiveShell.instance(), FunctionRegistry()
def write(source):
    with open("stamped_a.py", "w") as file:
        file.write(source)
    shell.run_cell("digests.append(functions.register(stamped_a.f).digest)").raise_error()
    shell.run_cell("assert stamped_a.f() == expected").raise_error()
open("stamped_a.py", "w").close()
shell.run_cell("%load_ext autoreload").raise_error()
shell.run_cell("%autoreload 2").raise_error()
with open("stamped_a.py", "w") as file:
    file.write("def f(): return 'old'\\n")
digests = []
shell.user_ns.update(functions=functions, digests=digests)
shell.run_cell("import stamped_a").raise_error()
for number, body in enumerate(["'old'", "'newer'", "'newer'", "'newest, and last'"]):
    shell.user_ns["expected"] = eval(body)
    write(f"def f(): return {body}\\n")
    if number == 2:
        write(f"# a comment\\ndef f(): return {body}\\n")
assert len(set(digests)) == 4 and len(digests) == 5, digests
"""


def test_a_reload_by_autoreload_of_ipython_is_noticed(tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    done = subprocess.run(
        [sys.executable, "-c", _AUTORELOADED],
        cwd=tmp_path,
        env={**os.environ, "IPYTHONDIR": str(tmp_path / "ipython"), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
