"""For the tests that stand bare sockets on either side of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.ipyparallel.raw_peers import Loop, Peer
from tests.ipyparallel.raw_peers import loop as running_loop
from tests.ipyparallel.raw_peers import peers as making_peers


@pytest.fixture(params=[False, True], ids=["unwatched", "watched"])
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    """The code under test, without a monitor and with one."""
    with running_loop(request.param) as running:
        yield running


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    """Makes a peer: `peer(zmq.DEALER, socket, "name")`."""
    with making_peers() as make:
        yield make
