"""A simulation of the whole server under random load and random faults, without Trio. A seed determines a run.

The server is the real one; network and peers are those of this package; the order of actions is random. The first phase
checks *safety*: connections are cut or lose messages, engines die with their tasks or leave, clients disconnect and
reconnect, tasks are cancelled, answers are repeated, malformed messages are sent. The invariants of the core, and the
transitions of each task, are checked after each action. The second phase checks *liveness*: faults end, all peers
reconnect, and every accepted submission must get exactly one result.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trio_sched.core.invariants import check
from trio_sched.core.records import CheckedTask
from trio_sched.errors import InvariantError
from trio_sched.server.config import Config
from trio_sched.server.identity import Identity
from trio_sched.server.native import NativeFront
from trio_sched.server.serve import Server
from trio_sched.testing.memory import MemoryNetwork
from trio_sched.testing.peers import FakeClient, FakeEngine, FakeNanny, FakePeer
from trio_sched.wire import native

ADDRESS = "memory://simulated"
_STEPS_TO_SETTLE = 20_000


class Simulator:
    """One run: `Simulator(seed).run()`.

    :raises InvariantError: an invariant does not hold; a note has the seed.
    """

    def __init__(self, seed: int, *, clients: int = 3, engines: int = 4, steps: int = 2_000, **settings: Any) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self._bodies: dict[int, bytes] = {}
        #: By task id: the ids of the tasks whose results are its inputs.
        self._inputs: dict[int, list[int]] = {}
        #: Counts of the actions, by name.
        self.did: Counter[str] = Counter()
        self._steps = steps
        self._config = Config(seed=seed, **{"hwm": self.rng.choice((1, 2, 10)), "credit": 50, **settings})
        tokens = {"client": "client's", "engine": "engine's"}
        identity = Identity("simulated", str(seed), ADDRESS, Path(), tokens, None)  # type: ignore[arg-type]  # dict is invariant in its keys
        self.network = MemoryNetwork()
        self._front = NativeFront(self._config, self.network.open_router)
        self.server = Server(self._config, identity, self.now, [self._front])
        self.server.scheduler.task_type = CheckedTask
        self._router: Any = self._front.listen(self.server.ingress)
        self.nanny = FakeNanny(self._connect, tokens["engine"])
        self.clients = [self._make_client(tokens["client"]) for _ in range(clients)]
        self.engines: list[FakeEngine] = []
        self._engine_count = engines
        #: Clients whose sessions have ended.
        self.departed: list[FakeClient] = []
        self._next_heartbeat_at = 0.0
        #: Relative frequencies of the answers ok, error, unmet.
        self._answers = (20, 2, 1)
        for peer in (self.nanny, *self.clients):
            peer.send(peer.hello())
        self._actions: list[tuple[int, Callable[[], None]]] = [
            (30, self._server_turn),
            (20, self._deliver_to_peers),
            (12, self._submit),
            (20, self._engine_answers),
            (6, self._time_passes),
            (4, self._cancel),
            (2, self._engine_joins),
            (1, self._client_disconnects),
            (1, self._engine_disconnects),
            (1, self._engine_dies),
            (1, self._engine_leaves),
            (1, self._send_invalid_messages),
        ]

    def _make_client(self, token: str) -> FakeClient:
        """Make a client. Subclasses may simulate with other clients."""
        return FakeClient(self._connect, token)

    def _connect(self) -> Any:
        return self.network.connect(ADDRESS)

    def run(self) -> Server:
        """Run both phases; return the server."""
        try:
            weights = [weight for weight, _ in self._actions]
            actions = [action for _, action in self._actions]
            for action in self.rng.choices(actions, weights, k=self._steps):
                self.did[action.__name__] += 1
                action()
                check(self.server.scheduler)
            self._settle()
            self._require_ends()
        except Exception as error:
            error.add_note(f"Simulator(seed={self.seed}); {dict(self.did)}")
            raise
        return self.server

    # ---- ordinary actions -------------------------------------------------------------------------------------------

    def _server_turn(self) -> None:
        """One pass of the front, the readers and the actor. The order of the readers is random, as under Trio."""
        self._front.take(self._router.receive_nowait(), self.server.ingress, self.now)
        for reader in self.rng.sample(self.server.readers, len(self.server.readers)):
            reader.read_nowait()
        self.server.actor.step(self.now)

    def _peers(self) -> list[FakePeer]:
        return [self.nanny, *self.clients, *self.departed, *self.engines]

    def _deliver_to_peers(self) -> None:
        for peer in self._peers():
            if self.rng.random() < 0.7:
                self._deliver_to(peer)

    def _deliver_to(self, peer: FakePeer) -> None:
        peer.on_messages(peer.dealer.receive_nowait())

    def _time_passes(self) -> None:
        self._advance(self.rng.choice((0.001, 0.01, 0.3, 1.0)))

    def _advance(self, by_s: float) -> None:
        self.now += by_s
        if self.now >= self._next_heartbeat_at:
            self._next_heartbeat_at = self.now + self._config.heartbeat_s
            for peer in self._peers():
                if peer.sends_heartbeats and peer.number:
                    peer.send(peer.ping())
            self._server_turn()  # heartbeats arrive before the auditor looks for silent peers
        timer = self.server.auditor.timer
        if timer.at <= self.now:
            timer.fire(self.now)
        if self.server.outbox.flush_at <= self.now:
            self.server.actor.step(self.now)

    def _submit(self) -> None:
        client = self.rng.choice(self.clients)
        if not client.number or len(client.sent) - client.accepted > min(20, self._config.credit):
            return
        bodies = [f"{client.number}-{number}" for number in range(self.rng.randint(1, 5))]
        options = self._options(client)
        last = client.submit_nowait(*bodies, fn=self.rng.choice((b"", b"f", b"g")), **options)
        inputs = [client.task_id(task) for task in options.get("inputs", ())]
        for at, body in enumerate(reversed(bodies)):
            self._bodies[last - at] = body.encode()
            self._inputs[last - at] = inputs

    def _options(self, client: FakeClient) -> dict[str, Any]:
        rng = self.rng
        options: dict[str, Any] = {}
        if client.sent and rng.random() < 0.3:
            count = rng.randint(1, min(3, len(client.sent)))
            options[rng.choice(("after", "follow", "inputs"))] = [call.id for call in rng.sample(client.sent, count)]
        if rng.random() < 0.2:
            options["retries"] = rng.randint(1, 2)
        if rng.random() < 0.1:
            options["timeout_s"] = rng.choice((0.5, 5.0))
        if rng.random() < 0.1:
            options["priority"] = rng.randint(-1, 1)
        if rng.random() < 0.1:
            options["resources"] = {"gpu": rng.choice((0.5, 1.0))}
        if rng.random() < 0.1 and self.engines:
            options["targets"] = [
                engine.number for engine in rng.sample(self.engines, rng.randint(1, len(self.engines)))
            ]
        return options

    def _engine_answers(self) -> None:
        for engine in self.engines:
            if engine.repeated:
                raise InvariantError(f"engine {engine.number} was given {engine.repeated} twice")
            if engine.queued() and self.rng.random() < 0.7:
                call = engine.take_call()
                self._require_inputs(call)
                self.rng.choices((engine.answer_ok, engine.answer_error, engine.answer_unmet), self._answers)[0](call)
            recalled, engine.recalled = engine.recalled, []
            if recalled:
                queued = set(engine.queued())
                given = [task for task in recalled if task in queued]
                engine.answer_recall(*given, kept=[task for task in recalled if task not in queued])

    def _require_inputs(self, call: native.Call) -> None:
        """Check that a call has the values of its inputs, in order (R9), and no others."""
        values = [value.body for value in call.inputs or ()]
        if values != [self._bodies[task] for task in self._inputs.get(call.id, ())]:
            raise InvariantError(f"task {call.id} came with the inputs {values}")

    def _cancel(self) -> None:
        client = self.rng.choice(self.clients)
        if client.sent:
            client.send(native.Cancel([self.rng.choice(client.sent).id]))

    # ---- faults -----------------------------------------------------------------------------------------------------

    def _engine_joins(self) -> None:
        if len(self.engines) < self._engine_count:
            nanny = self.nanny.number if self.rng.random() < 0.5 else 0
            slots, resources = self.rng.choice((1, 1, 2)), self.rng.choice(({}, {"gpu": 1.0}))
            engine = FakeEngine(self._connect, "engine's", slots=slots, resources=resources, nanny=nanny)
            engine.send(engine.hello())
            self.engines.append(engine)

    def _client_disconnects(self) -> None:
        """End a client's session, or interrupt its connection."""
        client = self.rng.choice(self.clients)
        if client.number and len(self.clients) > 1 and self.rng.random() < 0.2:
            client.leave(cancel=self.rng.random() < 0.5)
            self.clients.remove(client)
            self.departed.append(client)
            return
        self._interrupt_connection(client)

    def _engine_disconnects(self) -> None:
        if self.engines:
            self._interrupt_connection(self.rng.choice(self.engines))

    def _interrupt_connection(self, peer: FakePeer) -> None:
        """Cut the connection of a peer, or lose its messages for a while; mostly the peer reconnects."""
        if self.rng.random() < 0.5:
            peer.dealer.cut()
        else:
            peer.dealer.lose()
            for _ in range(self.rng.choice((1, 8, 20))):
                self._advance(1.0)
                self._server_turn()
        if self.rng.random() < 0.8:
            self._reconnect(peer)

    def _reconnect(self, peer: FakePeer) -> None:
        peer.reconnect()
        peer.send(peer.hello())

    def _engine_dies(self) -> None:
        if not self.engines:
            return
        engine = self.engines.pop(self.rng.randrange(len(self.engines)))
        engine.dealer.close()
        if engine.number and self.rng.random() < 0.7:
            running = list(engine.calls)[: self.rng.randint(0, 2)]
            self.nanny.report_death(engine, running=self.rng.choice((None, running)))

    def _engine_leaves(self, engine: FakeEngine | None = None) -> None:
        if self.engines:
            engine = engine or self.rng.choice(self.engines)
            self.engines.remove(engine)
            if engine.number:
                engine.leave()
            engine.dealer.close()

    def _send_invalid_messages(self) -> None:
        """Send queries, repeated answers and malformed messages."""
        client = self.rng.choice(self.clients)
        client.send(native.Watch(self.rng.random() < 0.5))
        client.send(
            native.Query(1, self.rng.choice(("status", "engines", "explain", "story")), self.rng.randint(0, 99))
        )
        peer = self.rng.choice(self._peers())
        if isinstance(peer, FakeEngine) and peer.calls:
            task = self.rng.choice(list(peer.calls))
            peer.send(native.Recalled([], [task]))
        peer.send_frames([self.rng.randbytes(self.rng.randint(0, 20))])

    # ---- second phase -----------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Reconnect all peers and let time pass, without faults, until all tasks have ended."""
        for peer in (self.nanny, *self.clients, *self.engines):
            self._reconnect(peer)
        self._answers = (1, 0, 0)
        fresh = FakeEngine(self._connect, "engine's", resources={"gpu": 1.0})  # no task excludes it
        fresh.send(fresh.hello())
        self.engines.append(fresh)
        for step in range(_STEPS_TO_SETTLE):
            self._server_turn()
            for peer in self._peers():
                self._deliver_to(peer)
            self._engine_answers()
            self._advance(0.05)
            check(self.server.scheduler)
            if step == 300:  # ends tasks whose targets cannot take them
                while len(self.engines) > 1:
                    self._engine_leaves(self.engines[0])
            if step > 400 and all(self._settled(client) for client in self.clients) and not self.server.scheduler.tasks:
                return
        raise InvariantError(f"not settled: {self.server.queries.answer('status', 0, self.now)}")

    def _settled(self, client: FakeClient) -> bool:
        session = self.server.sessions.clients[client.number]
        return not session.queued_results and not session.unacked and client.accepted == len(client.sent)

    def _require_ends(self) -> None:
        """Check that each accepted submission has exactly one result, and that the result is its own."""
        for client in self.clients:
            delivered = Counter(client.deliveries)
            refused = Counter(message.id for message in client.received_messages if isinstance(message, native.Refused))
            for call in client.sent:
                task = client.task_id(call.id)
                if delivered[task] + bool(refused[task]) != 1:
                    raise InvariantError(f"task {task} has {delivered[task]} ends and {refused[task]} refusals")
                end = client.results.get(task)
                if end is not None and end.outcome == "ok" and end.body != call.body:
                    raise InvariantError(f"task {task} got {end.body!r}, not {call.body!r}")
