"""Fixtures for tests with raw ZeroMQ peers. Tests that need ipyparallel are not collected without it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.ipyparallel.raw_peers import Peer, TrioThread

collect_ignore_glob = [] if importlib.util.find_spec("ipyparallel") else ["test_relay*.py", "test_broadcast*.py"]


@pytest.fixture(params=[False, True], ids=["unrecorded", "recorded"])
def loop(request: pytest.FixtureRequest) -> Iterator[TrioThread]:
    """The thread of the code under test, without records and with records."""
    from tests.ipyparallel.raw_peers import running_thread

    with running_thread(request.param) as running:
        yield running


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    """Creates a peer: `peer(zmq.DEALER, socket, "name")`."""
    from tests.ipyparallel.raw_peers import peers as making_peers

    with making_peers() as make:
        yield make
