"""The public names: the package, its documentation and its lazy imports agree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import trio_sched

API = Path(__file__).resolve().parents[2] / "docs" / "api.md"


def test_the_documentation_lists_exactly_the_public_names() -> None:
    documented = re.findall(r"^\| `(\w+)` \|", API.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(documented) == sorted(trio_sched.__all__)
    assert trio_sched.__all__ == sorted(trio_sched.__all__)


@pytest.mark.parametrize("name", trio_sched.__all__)
def test_each_public_name_can_be_imported_and_has_a_docstring(name: str) -> None:
    value = getattr(trio_sched, name)
    assert name in dir(trio_sched)
    assert name.startswith("__") or value.__doc__


def test_all_errors_have_one_root() -> None:
    errors = [getattr(trio_sched, name) for name in trio_sched.__all__]
    errors = [error for error in errors if isinstance(error, type) and issubclass(error, Exception)]
    assert len(errors) > 15
    assert all(issubclass(error, trio_sched.TrioSchedError) for error in errors)


def test_other_names_are_not_attributes() -> None:
    with pytest.raises(AttributeError, match="'trio_sched' has no attribute 'Cleint'"):
        trio_sched.Cleint  # noqa: B018  # the access is tested


def test_importing_the_package_imports_nothing_else() -> None:
    code = f"import sys; sys.path[:0] = {sys.path!r}; import trio_sched; print(*sys.modules)"
    command = [sys.executable, "-S", "-c", code]  # without site, whose .pth files may import other modules
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    tops = {name.partition(".")[0] for name in ran.stdout.split()}
    assert tops - set(sys.stdlib_module_names) <= {"trio_sched", "__main__"}
    assert not {name for name in ran.stdout.split() if name.startswith("trio_sched.")}


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert version("trio_sched") == trio_sched.__version__
