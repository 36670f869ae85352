"""The standard library's own tests of executors, of `wait` and of `as_completed`, with `Client` as the executor.

    python tests/downstream/executor_suite.py [options of unittest, or names of tests]

The tests are imported from the running Python (`test.test_concurrent_futures`). Some installations do not have them.
"""

from __future__ import annotations

import importlib
import sys
import unittest
from typing import Any

from trio_sched import Client
from trio_sched.client.local_cluster import LocalCluster
from trio_sched.transport.connection_info import ConnectionInfo

SUITE = "test.test_concurrent_futures"
#: A single module up to Python 3.11, a package since 3.12.
MODULES = [SUITE, *(f"{SUITE}.{name}" for name in ("util", "executor", "test_wait", "test_as_completed"))]
MIXINS = ("ExecutorTest", "WaitTests", "AsCompletedTests")
#: The smallest plausible number of tests; with fewer, the suite was not found as expected.
LEAST = 20
connection: ConnectionInfo


def definitions() -> dict[str, Any]:
    """Return all names that the modules of the suite define.

    :raises SystemExit: this Python was installed without its tests.
    """
    found: dict[str, Any] = {}
    for name in MODULES:
        try:
            found |= vars(importlib.import_module(name))
        except ModuleNotFoundError:
            if name == SUITE:
                raise SystemExit(f"this Python ({sys.executable}) was installed without {SUITE}") from None
    return found


def executor(max_workers: int) -> Client:
    """Make a client with the parameters of the standard executors."""
    if max_workers < 1:
        raise ValueError("max_workers must be greater than 0")
    return Client(connection)


def load_tests(loader: unittest.TestLoader, _tests: unittest.TestSuite, _pattern: str | None) -> unittest.TestSuite:
    """Load one test case for each mixin; unittest calls this."""
    found = definitions()
    suite = unittest.TestSuite()
    for name in MIXINS:
        bases = (found[name], found["ExecutorMixin"], found["BaseTestCase"])
        case = type(f"Client{name}", bases, {"executor_type": staticmethod(executor)})
        suite.addTests(loader.loadTestsFromTestCase(case))
    if suite.countTestCases() < LEAST:
        raise SystemExit(f"{suite.countTestCases()} tests in {SUITE}, at least {LEAST} expected")
    return suite


def main() -> None:
    """Run the tests on a scheduler with as many engines as the suite has workers."""
    global connection
    cluster = LocalCluster(definitions()["ExecutorMixin"].worker_count)
    try:
        connection = cluster.connection()
        unittest.main(verbosity=2)
    finally:
        cluster.close()


if __name__ == "__main__":
    main()
