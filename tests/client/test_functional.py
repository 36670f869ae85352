"""Functional dependencies, and what engines import of the client."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from trio_sched import UnmetDependency, depend, require
from trio_sched.client.functional import Chunk, Dependent, have_modules


@depend(callable, len)
def doubled(x: int) -> int:
    """Twice as much."""
    return 2 * x


def test_r19_the_question_comes_first() -> None:
    assert doubled(4) == 8
    assert doubled.__name__ == "doubled"
    picky = depend(lambda limit, *, name: False, 3, name="x")(abs)
    with pytest.raises(UnmetDependency, match=r"<lambda>\(3, name='x'\) is false on this engine"):
        picky(1)
    with pytest.raises(TypeError, match="'int' object is not callable"):
        depend(3)  # type: ignore[arg-type]  # the point of the test


def test_r19_modules() -> None:
    assert have_modules("json", "os.path", "__main__") in (True, False)
    assert have_modules("json", "os.path")
    assert not have_modules("json", "no_such_module_anywhere")
    assert not have_modules("no_such_package.module")
    assert require("json")(abs)(-1) == 1
    with pytest.raises(UnmetDependency, match=r"have_modules\('no_such_module_anywhere'\)"):
        require("no_such_module_anywhere")(abs)(-1)
    with pytest.raises(TypeError, match="names of modules, not <built-in"):
        require(abs)  # type: ignore[arg-type]  # the point of the test


def test_decorated_functions_go_by_reference_where_they_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(doubled, Dependent)
    monkeypatch.setitem(sys.modules, doubled.__module__, sys.modules[__name__])
    assert pickle.loads(pickle.dumps(doubled)) is doubled
    undecorated = depend(callable, len)(abs)
    copy = pickle.loads(pickle.dumps(undecorated))
    assert copy is not undecorated
    assert copy(-1) == 1


def test_chunks() -> None:
    assert Chunk(divmod)([(7, 2), (9, 4)]) == [(3, 1), (2, 1)]


def test_engines_need_not_import_the_client() -> None:
    code = (
        "import sys, trio_sched; trio_sched.depend; import trio_sched.client.functional\n"
        "heavy = {'trio', 'anyio', 'zmq', 'rich', 'numpy', 'msgspec', 'trio_sched.client.blocking'}\n"
        "print(heavy & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "set()"
