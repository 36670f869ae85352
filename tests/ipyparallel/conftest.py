"""For the tests that stand bare sockets on either side of ours; and which tests need ipyparallel itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.ipyparallel.raw_peers import Loop, Peer

collect_ignore_glob = [] if importlib.util.find_spec("ipyparallel") else ["test_relay*.py", "test_broadcast*.py"]


@pytest.fixture(params=[False, True], ids=["unwatched", "watched"])
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    """The code under test, without a monitor and with one."""
    from tests.ipyparallel.raw_peers import loop as running_loop

    with running_loop(request.param) as running:
        yield running


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    """Makes a peer: `peer(zmq.DEALER, socket, "name")`."""
    from tests.ipyparallel.raw_peers import peers as making_peers

    with making_peers() as make:
        yield make
