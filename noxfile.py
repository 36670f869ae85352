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
    """The requirements of a dependency group of pyproject.toml."""
    return list(nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), name))


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The test suite, with every version of Python that is here."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", *(session.posargs or ["-n", "2"]))


@nox.session(python=PYTHONS)
def executor_suite(session: nox.Session) -> None:
    """The standard library's own tests of executors, wait and as_completed, with `Client`, where they are installed."""
    session.install(".")
    look = "import importlib.util as util; print(util.find_spec('test.test_concurrent_futures') is not None)"
    if "True" not in str(session.run("python", "-c", look, silent=True)):
        session.skip("this Python was installed without test.test_concurrent_futures")
    session.run("python", "tests/downstream/executor_suite.py", *session.posargs)


@nox.session(name="property")
def property_(session: nox.Session) -> None:
    """The core against its oracle, for as long as the long Hypothesis profile says."""
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
    """The tests that take more than a few seconds each."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", "-m", "slow", "--timeout=600", *session.posargs)


@nox.session
def attack(session: nox.Session) -> None:
    """Attackers against a real server with an honest client beside it: round trips, results and memory (minutes)."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", "-m", "attack", "--timeout=600", "-s", "tests/attack", *session.posargs)


@nox.session
def slurm(session: nox.Session) -> None:
    """ipyparallel's Slurm launchers with our controller, on a Slurm of its own: wants root, slurm-wlm and munge."""
    session.install(".[test]", "ipyparallel>=9")
    session.run("python", "-m", "pytest", "-m", "slow", "--timeout=300", "tests/ipyparallel/test_slurm.py")


@nox.session
def mpi(session: nox.Session) -> None:
    """ipyparallel's MPI launcher with our controller: wants an mpiexec, such as that of openmpi-bin."""
    session.install(".[test]", "ipyparallel>=9", "mpi4py")
    session.run("python", "-m", "pytest", "-m", "slow", "--timeout=300", "tests/ipyparallel/test_mpi.py")


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    session.install(*group("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict over the package, the examples and the tests that are typed."""
    session.install(".[test]", *group("types"))
    session.run("mypy", "--strict", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; every warning is an error. The tests run its snippets."""
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
    """ipyparallel's own test suite, as installed from the registry, on its controller and on ours (15 minutes).

    Fails if a test passes there and not here. Its own run is kept for the next time; with arguments for pytest
    (`nox -s "downstream(9.2)" -- ipyparallel.tests.test_client -k shutdown`), only ours is run, and nothing compared.
    """
    session.install(".", f"ipyparallel[test]~={version}", "distributed")  # the last for test_become_dask
    pytest = ["python", "-m", "pytest", "-c", "tests/downstream/pytest.ini", "-p", "no:cacheprovider", "--pyargs"]
    swapped = {"PYTHONPATH": str(Path("tests/downstream").resolve())}
    if session.posargs:
        session.run(*pytest, *session.posargs, env=swapped)
        return
    stock, ours = (Path(session.create_tmp()).resolve() / name for name in ("stock.xml", "ours.xml"))
    outcomes = [0, 1]  # 1: some failed
    if not stock.exists():
        session.run(*pytest, "ipyparallel.tests", f"--junitxml={stock}", success_codes=outcomes)
    session.run(*pytest, "ipyparallel.tests", f"--junitxml={ours}", env=swapped, success_codes=outcomes)
    session.run("python", "tests/downstream/compare.py", str(stock), str(ours))
