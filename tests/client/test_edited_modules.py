"""Edited and reloaded modules: engines run the version that the client has loaded."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trio_sched import CallError, Client, Future, SubmitError
from trio_sched.transport.connection_info import ConnectionInfo

LIMIT_S = 60.0


class Project:
    """Modules of the user, in a directory that the client and the engines share."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.prefix = f"m{os.urandom(4).hex()}"

    def name(self, short: str) -> str:
        return f"{self.prefix}_{short}"

    def write(self, short: str, source: str, **names: str) -> None:
        """Write a module; `{x}` in its source stands for the name of the project's module x."""
        names = {word: self.name(word) for word in ("a", "b", "pkg")} | names
        path = self.directory / f"{self.prefix}_{short}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source.format(**names), encoding="utf-8")

    def load(self, short: str) -> ModuleType:
        importlib.invalidate_caches()
        return importlib.import_module(self.name(short).replace("/", "."))

    def forget(self) -> None:
        for name in [name for name in sys.modules if name.startswith(self.prefix)]:
            del sys.modules[name]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # in the client: it must reload the source
    project = Project(tmp_path)
    yield project
    project.forget()


class Engines:
    """The two engines, each of which can run a call alone."""

    def __init__(self, client: Client) -> None:
        self._client = client
        until = time.monotonic() + LIMIT_S
        while len(client.engines()) < 2:
            assert time.monotonic() < until
        self.numbers = sorted(engine["engine"] for engine in client.engines())

    def submit(self, index: int, function: Callable[..., Any], *args: Any) -> Future[Any]:
        return self._client.options(targets=[self.numbers[index]]).submit(function, *args)

    def run(self, index: int, function: Callable[..., Any], *args: Any) -> Any:
        return self.submit(index, function, *args).result(LIMIT_S)

    def both(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        return [self.run(index, function, *args) for index in range(2)]


@pytest.fixture
def engines(scheduler: ConnectionInfo, project: Project) -> Iterator[Engines]:
    with Client(scheduler, connect_timeout=LIMIT_S) as client:  # made after the project has extended sys.path
        yield Engines(client)


def test_every_engine_runs_a_reloaded_module(engines: Engines, project: Project) -> None:
    project.write("a", "FACTOR = 2\ndef f(x): return FACTOR * x\n")
    module = project.load("a")
    assert engines.both(module.f, 10) == [20, 20]
    project.write("a", "FACTOR = 3\ndef f(x): return FACTOR * x\n")  # of the same size, within the same second
    importlib.reload(module)
    assert engines.both(module.f, 10) == [module.f(10)] * 2 == [30, 30]


def test_modules_that_the_function_s_module_imports_are_reloaded_too(engines: Engines, project: Project) -> None:
    project.write("b", "def helper(): return 'old'\n")
    project.write("a", "from {b} import helper\nimport {b} as b\ndef f(): return helper(), b.helper()\n")
    module = project.load("a")
    assert engines.both(module.f) == [("old", "old")] * 2
    project.write("b", "def helper(): return 'newer'\n")
    importlib.reload(sys.modules[project.name("b")])
    assert module.f() == ("old", "newer")  # as Python does in this process
    assert engines.both(module.f) == [("newer", "newer")] * 2  # all of the version that is loaded


def test_modules_named_by_a_function_pickled_by_value_are_reloaded(engines: Engines, project: Project) -> None:
    project.write("a", "def f(): return 'old'\n")
    module = project.load("a")
    namespace: dict[str, Any] = {"__name__": "__main__", "module": module}
    exec("def call(): return module.f()", namespace)
    assert engines.run(0, namespace["call"]) == "old"
    project.write("a", "def f(): return 'newer'\n")
    importlib.reload(module)
    assert engines.run(0, namespace["call"]) == "newer"


def test_a_package_is_imported_again_as_a_whole(engines: Engines, project: Project) -> None:
    package = project.directory / project.name("pkg")
    package.mkdir()
    (package / "__init__.py").write_text("from . import one\n")
    (package / "one.py").write_text("def f(): return 'old'\n")
    (package / "two.py").write_text(f"import {package.name}.one\ndef f(): return {package.name}.one.f()\n")
    module = project.load("pkg/two")
    assert engines.run(0, module.f) == "old"
    (package / "one.py").write_text("def f(): return 'newer'\n")
    importlib.reload(sys.modules[f"{package.name}.one"])
    assert engines.run(0, module.f) == "newer"


def test_queued_calls_run_with_the_version_that_they_were_submitted_with(engines: Engines, project: Project) -> None:
    project.write("a", "SIZE = 1\ndef f(): return SIZE\n")
    module = project.load("a")
    assert engines.run(0, module.f) == 1
    queued = [engines.submit(0, module.f) for _ in range(20)]
    project.write("a", "SIZE = 22\ndef f(): return SIZE\n")
    importlib.reload(module)
    queued += [engines.submit(0, module.f) for _ in range(20)]
    assert [future.result(LIMIT_S) for future in queued] == [1] * 20 + [22] * 20


def test_an_edited_module_without_reload_is_an_error_on_new_engines(engines: Engines, project: Project) -> None:
    project.write("a", "def f(): return 'old'\n")
    module = project.load("a")
    assert engines.run(0, module.f) == "old"
    project.write("a", "def f(): return 'newer'\n")
    assert engines.run(0, module.f) == module.f() == "old"
    with pytest.raises(CallError, match=rf"engine {engines.numbers[1]} at .*'{project.name('a')}'.* is not available"):
        engines.run(1, module.f)  # which can only load the edited file
    importlib.reload(module)
    assert engines.both(module.f) == ["newer"] * 2


def test_an_edit_between_import_and_first_submission_is_a_submit_error(engines: Engines, project: Project) -> None:
    project.write("a", "def f(): return 'old'\n")
    module = project.load("a")
    project.write("a", "def f(): return 'newer'\n")
    with pytest.raises(SubmitError, match=rf"edited after .* importlib.reload\({project.name('a')}\)"):
        engines.run(0, module.f)
    importlib.reload(module)
    assert engines.run(0, module.f) == "newer"


def test_a_deleted_file_does_not_affect_engines_that_have_loaded_it(engines: Engines, project: Project) -> None:
    project.write("a", "def f(): return 'here'\n")
    module = project.load("a")
    assert engines.run(0, module.f) == "here"
    (project.directory / f"{project.name('a')}.py").unlink()
    assert engines.run(0, module.f) == "here"
    with pytest.raises(CallError, match=rf"engine {engines.numbers[1]} at .* needs the module '{project.name('a')}'"):
        engines.run(1, module.f)


def test_the_error_of_a_missing_module_names_the_engine_and_the_remedy(engines: Engines, project: Project) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("def f():\n    import not_installed_there", namespace)
    with pytest.raises(ModuleNotFoundError) as caught:
        engines.run(0, namespace["f"])
    (note,) = caught.value.__notes__
    assert note.startswith(f"raised on engine {engines.numbers[0]} at {os.uname().nodename} (")
    assert "Install the module on that host" in note
    assert note in str(caught.value.__cause__)
