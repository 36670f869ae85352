"""The project's checks: `nox` runs those that every change must pass, `nox -s NAME` one session, `nox -l` lists all.

Every change must pass tests, lint, types and docs. The other sessions take minutes and are run by hand.
"""

from __future__ import annotations

from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "types", "tests", "docs"]


def group(name: str) -> list[str]:
    """Return the requirements of a dependency group of pyproject.toml."""
    return list(nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), name))


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the test suite with every installed version of Python."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", *(session.posargs or ["-n", "2"]))


@nox.session(python=PYTHONS)
def executor_suite(session: nox.Session) -> None:
    """Run the standard library's tests of executors, wait and as_completed with `Client`, if they are installed."""
    session.install(".")
    code = "import importlib.util as util; print(util.find_spec('test.test_concurrent_futures') is not None)"
    if "True" not in str(session.run("python", "-c", code, silent=True)):
        session.skip("this Python was installed without test.test_concurrent_futures")
    session.run("python", "tests/downstream/executor_suite.py", *session.posargs)


@nox.session(name="property")
def property_(session: nox.Session) -> None:
    """Compare the core with its oracle, with the long Hypothesis profile."""
    session.install(".[test]")
    session.run(
        "python",
        "-m",
        "pytest",
        "tests/core/test_property.py",
        "--timeout=0",
        *session.posargs,
        env={"HYPOTHESIS_PROFILE": "long"},
    )


@nox.session
def slow(session: nox.Session) -> None:
    """Run the tests that take more than a few seconds each."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", "-m", "slow", "--timeout=600", *session.posargs)


@nox.session
def attack(session: nox.Session) -> None:
    """Measure round trips, results and memory of an honest client while attackers use the same server."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", "-m", "attack", "--timeout=600", "-s", "tests/attack", *session.posargs)


@nox.session
def slurm(session: nox.Session) -> None:
    """Test ipyparallel's Slurm launchers with the drop-in controller; needs root, slurm-wlm and munge."""
    session.install(".[test]", "ipyparallel>=9")
    session.run("python", "-m", "pytest", "-m", "slow", "--timeout=300", "tests/ipyparallel/test_slurm.py")


@nox.session
def mpi(session: nox.Session) -> None:
    """Test ipyparallel's MPI launcher with the drop-in controller; needs an mpiexec, such as that of openmpi-bin."""
    session.install(".[test]", "ipyparallel>=9", "mpi4py")
    session.run("python", "-m", "pytest", "-m", "slow", "--timeout=300", "tests/ipyparallel/test_mpi.py")


@nox.session
def lint(session: nox.Session) -> None:
    """Check rules and format with ruff."""
    session.install(*group("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy --strict: the package, the examples and some tests."""
    session.install(".[test]", *group("types"))
    session.run("mypy", "--strict", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error. The session `tests` runs its snippets."""
    session.install(".", *group("docs"))
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the scheduler as docs/benchmarks.md does."""
    session.install(".")
    session.run("trio-sched", "bench", "--only", "throughput,payload,depth", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure single parts, and compare the scheduler with other systems (20 minutes)."""
    session.install(".", *group("bench"))
    for name in session.posargs or ("core", "start", "pools", "controllers"):
        session.run("python", "-m", f"tests.benchmarks.{name}")


@nox.session
@nox.parametrize("version", ["9.2", "8.8"], ids=["9.2", "8.8"])
def downstream(session: nox.Session, version: str) -> None:
    """Run ipyparallel's test suite with its own controller and with the drop-in controller (15 minutes).

    The session fails if a test passes only with ipyparallel's controller. The results of that controller are kept for
    later sessions. With arguments for pytest (`nox -s "downstream(9.2)" -- ipyparallel.tests.test_client -k shutdown`)
    only the drop-in controller runs, without a comparison.
    """
    session.install(".", f"ipyparallel[test]~={version}", "distributed")  # test_become_dask needs distributed
    pytest = ["python", "-m", "pytest", "-c", "tests/downstream/pytest.ini", "-p", "no:cacheprovider", "--pyargs"]
    swapped = {"PYTHONPATH": str(Path("tests/downstream").resolve())}
    if session.posargs:
        session.run(*pytest, *session.posargs, env=swapped)
        return
    stock, drop_in = (Path(session.create_tmp()).resolve() / name for name in ("stock.xml", "drop_in.xml"))
    outcomes = [0, 1]  # 1: some tests failed
    if not stock.exists():
        session.run(*pytest, "ipyparallel.tests", f"--junitxml={stock}", success_codes=outcomes)
    session.run(*pytest, "ipyparallel.tests", f"--junitxml={drop_in}", env=swapped, success_codes=outcomes)
    session.run("python", "tests/downstream/compare.py", str(stock), str(drop_in))
