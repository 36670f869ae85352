"""A server that a test drives by hand: it receives, reads and steps when the test says so, without Trio."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from trio_sched.server.config import Config
from trio_sched.server.identity import Identity
from trio_sched.server.ingress import Front
from trio_sched.server.native import NativeFront
from trio_sched.server.serve import Server
from trio_sched.testing import FakeClient, FakeEngine, FakeNanny, MemoryNetwork
from trio_sched.testing.peers import FakePeer

P = TypeVar("P", bound=FakePeer)
ADDRESS = "memory://stepped"


class SteppedServer:
    """The parts of a server, and fake peers. `readers` are results, notifications and intake; `fronts` are additional
    to the native one."""

    def __init__(self, *, fronts: Sequence[Front] = (), **settings: Any) -> None:
        config = Config(seed=1, **settings)
        tokens: Any = {"client": "client's", "engine": "engine's"}
        self.network = MemoryNetwork()
        self.front = NativeFront(config, self.network.open_router)
        identity = Identity("stepped", "1", ADDRESS, Path(), tokens, None)
        self.server = Server(config, identity, 0.0, [self.front, *fronts])
        self.router: Any = self.front.listen(self.server.ingress)
        self.readers = self.server.readers
        self.now = 0.0

    def client(self) -> FakeClient:
        """A client that has joined."""
        return self._joined(FakeClient(self._connect, "client's"))

    def engine(self, **hello: Any) -> FakeEngine:
        """An engine that has joined."""
        return self._joined(FakeEngine(self._connect, "engine's", **hello))

    def nanny(self) -> FakeNanny:
        """A nanny that has joined."""
        return self._joined(FakeNanny(self._connect, "engine's"))

    def _connect(self) -> Any:
        return self.network.connect(ADDRESS)

    def _joined(self, peer: P) -> P:
        peer.send(peer.hello())
        self.work(peer)
        assert peer.joined
        return peer

    def receive(self) -> None:
        """Receive everything that peers have sent, as one burst."""
        self.front.take(self.router.receive_nowait(), self.server.ingress, self.now)

    def step(self) -> None:
        """Have the actor take a step."""
        self.server.actor.step(self.now)

    def work(self, *peers: FakePeer) -> None:
        """Receive, read and step; then the peers take what was sent to them."""
        self.receive()
        for reader in self.readers:
            reader.read_nowait()
        self.step()
        self.deliver(peers)

    def deliver(self, peers: Iterable[FakePeer]) -> None:
        """Have the peers take what was sent to them."""
        for peer in peers:
            peer.on_messages(peer.dealer.receive_nowait())
