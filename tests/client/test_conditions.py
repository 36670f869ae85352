"""Conditions on engines (R19), the function of chunks, and the imports of their module."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from trio_sched import UnmetDependency, depend, require
from trio_sched.client.conditions import Chunk, Dependent, have_modules


@depend(callable, len)
def doubled(x: int) -> int:
    """Return the double."""
    return 2 * x


def test_r19_the_condition_is_checked_before_the_call() -> None:
    assert doubled(4) == 8
    assert doubled.__name__ == "doubled"
    picky = depend(lambda limit, *, name: False, 3, name="x")(abs)
    with pytest.raises(UnmetDependency, match=r"<lambda>\(3, name='x'\) is false on this engine"):
        picky(1)
    with pytest.raises(TypeError, match="'int' object is not callable"):
        depend(3)  # type: ignore[arg-type]  # the point of the test


def test_r19_require_checks_that_modules_can_be_imported() -> None:
    assert have_modules("json", "os.path", "__main__") in (True, False)
    assert have_modules("json", "os.path")
    assert not have_modules("json", "no_such_module_anywhere")
    assert not have_modules("no_such_package.module")
    assert require("json")(abs)(-1) == 1
    with pytest.raises(UnmetDependency, match=r"have_modules\('no_such_module_anywhere'\)"):
        require("no_such_module_anywhere")(abs)(-1)
    with pytest.raises(TypeError, match="names of modules, not <built-in"):
        require(abs)  # type: ignore[arg-type]  # the point of the test


def test_decorated_functions_are_pickled_by_reference_if_they_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(doubled, Dependent)
    monkeypatch.setitem(sys.modules, doubled.__module__, sys.modules[__name__])
    assert pickle.loads(pickle.dumps(doubled)) is doubled
    undecorated = depend(callable, len)(abs)
    copy = pickle.loads(pickle.dumps(undecorated))
    assert copy is not undecorated
    assert copy(-1) == 1


def test_a_chunk_calls_its_function_for_each_row() -> None:
    assert Chunk(divmod)([(7, 2), (9, 4)]) == [(3, 1), (2, 1)]


def test_conditions_import_nothing_heavy() -> None:
    code = (
        "import sys, trio_sched; trio_sched.depend; import trio_sched.client.conditions\n"
        "heavy = {'trio', 'anyio', 'zmq', 'rich', 'numpy', 'msgspec', 'trio_sched.client.blocking'}\n"
        "print(heavy & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "set()"
