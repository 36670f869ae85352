"""The server on one screen: configuration in, one nursery, and an orderly end (R29, R30).

    running = await nursery.start(serve, Config(name="lab"))      # inside a Trio program
    trio.run(serve, Config(name="lab"))                           # as a process of its own

Fronts bring messages in; three readers turn them into events; the actor owns the state; alarms stand for time. Fronts
outlast everything else, also when the whole is cancelled from outside, so that peers are told.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import trio

from trio_sched.core.scheduler import Scheduler
from trio_sched.errors import TrioSchedError
from trio_sched.logs import get_logger
from trio_sched.server.actor import Actor
from trio_sched.server.auditor import Auditor
from trio_sched.server.budget import ByteBudget
from trio_sched.server.config import Config
from trio_sched.server.functions import Functions
from trio_sched.server.happenings import ShutdownBegan, Tell
from trio_sched.server.hub import Hub, Inbox
from trio_sched.server.identity import Identity, connections, new_identity
from trio_sched.server.intake import Intake
from trio_sched.server.links import Front
from trio_sched.server.memory import BurstTrim
from trio_sched.server.native import NativeFront
from trio_sched.server.notifications import Notifications
from trio_sched.server.outbox import Outbox
from trio_sched.server.queries import Queries
from trio_sched.server.reception import Reception
from trio_sched.server.recovery import GuardedScheduler
from trio_sched.server.results import Results
from trio_sched.server.sessions import Sessions
from trio_sched.transport.connection import Connection, remove_connection_files, write_connection_files
from trio_sched.transport.connection_limits import ConnectionBounds, connection_bounds, descriptor_limit
from trio_sched.transport.reach import resolution_problem
from trio_sched.wire.native import Closing

log = get_logger(__name__)
LINGER_BYTES = 1 << 16


async def serve(
    config: Config | None = None,
    fronts: Sequence[Front] | None = None,
    *,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a scheduler until it is told to stop (by a client, or by `Running.stop`), or cancelled.

    `fronts` default to the native one. Signals are the caller's business: see `stop_on_signals`.

    :raises AddressInUseError: another process listens at the address.
    :raises ConfigError: the runtime directory or the address will not do.
    """
    config = config or Config()
    server = Server(config, new_identity(config), trio.current_time())
    shields: list[trio.CancelScope] = []
    try:
        async with trio.open_nursery() as nursery:
            try:
                addresses: dict[str, str] = {}
                for front in [NativeFront(config)] if fronts is None else fronts:
                    shields.append(trio.CancelScope(shield=True))
                    addresses.update(await nursery.start(_shielded, front, server.hub, shields[-1]))
                for task in server.tasks:
                    nursery.start_soon(task)
                with _connection_files(server.identity, config, addresses) as (client, engine):
                    nursery.start_soon(_check_advertised_host, client.address, addresses.get("native", ""))
                    task_status.started(Running(server, client, engine, addresses))
                    await server.until_stopped()
            finally:
                server.say_closing()
                for shield in shields:
                    shield.cancel()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _the_one_error(group) from None


async def _shielded(
    front: Front, hub: Hub, shield: trio.CancelScope, *, task_status: trio.TaskStatus[dict[str, str]]
) -> None:
    with shield:
        await front.run(hub, task_status=task_status)


async def _check_advertised_host(advertised: str, bound: str) -> None:
    """Warn where the host that stands for a wildcard in the connection files is not even known here."""
    if advertised == bound:
        return
    host = advertised.removeprefix("tcp://").rpartition(":")[0]
    problem = await trio.to_thread.run_sync(resolution_problem, host.strip("[]"), abandon_on_cancel=True)
    if problem:
        advice = "set advertised_host (--advertised-host) to a name or an address by which others reach this machine"
        log.warning("the advertised host cannot be resolved here", host=host, reason=problem, advice=advice)


@contextmanager
def _connection_files(
    identity: Identity, config: Config, addresses: Mapping[str, str]
) -> Iterator[tuple[Connection, Connection]]:
    """Written when peers can connect, removed before they no longer can. Not written where native ones never can."""
    client, engine = connections(identity, config, addresses)
    if not addresses.keys() & {"native", "websocket"}:
        yield client, engine
        return
    write_connection_files(client, engine, identity.directory)
    log.info("listening", name=identity.name, **addresses)
    try:
        yield client, engine
    finally:
        remove_connection_files(client, engine, identity.directory)


def _the_one_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One of our own errors alone is raised as itself: callers expect an AddressInUseError, not a group of one."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, TrioSchedError) else group


class Server:
    """The parts of one scheduler, put together."""

    def __init__(self, config: Config, identity: Identity, now: float) -> None:
        self.config = config
        self.identity = identity
        rng = random.Random(config.seed)
        self.scheduler = Scheduler(config.settings(), rng, _generator(config))
        self.sessions = Sessions()
        self.inbox = Inbox(config.submissions_per_turn)
        self.hub = Hub(self.inbox, self.identity, _bounds(config))
        self.hub.stop = self.stop
        functions = Functions()
        self.budget = ByteBudget(config, self.sessions)
        self.outbox = Outbox(self.hub, config, self.sessions, functions, self.budget, self.identity.instance)
        about = {"name": config.name, "scheduler": self.identity.instance}
        self.queries = Queries(
            self.scheduler, self.sessions, self.budget, self.hub.counters, about, now, self.hub.connections.status
        )
        guarded = GuardedScheduler(self.scheduler, self.hub)
        self._reception = Reception(
            config, guarded, self.hub, self.sessions, functions, self.outbox, self.budget, self.queries
        )
        self._burst_trim = BurstTrim()
        self.auditor = Auditor(self.hub, config, self.sessions, self.outbox, self._tidy, now)
        self.actor = Actor(guarded, self._reception, self.inbox, self.outbox, self._after_turn)
        intake = Intake(self.hub, config, functions, self.outbox, self.budget, self.stop)
        results = Results(self.hub, self.sessions, self.outbox)
        notifications = Notifications(
            self.hub, config, self.sessions, self.identity.tokens, lambda: self._reason is not None
        )
        self.readers = (intake, results, notifications)
        self.tasks = (
            *(reader.run for reader in self.readers),
            self.actor.run,
            self.auditor.alarm.run,
            self.outbox.alarm.run,
        )
        self._reason: str | None = None
        self._told = trio.Event()
        self._idle = trio.Event()

    def _after_turn(self, deadline: float | None) -> None:
        self.auditor.moved(deadline)
        if self._reason is not None:
            self._look_whether_idle()

    def _tidy(self) -> None:
        """Once in a heartbeat period."""
        for engine in self.sessions.engines.values():
            self.outbox.acknowledge(engine)
        self._reception.sweep_departed()
        self.budget.recount()
        self.budget.trim()
        self._burst_trim.check(self.hub.counters.total())
        for client in self.sessions.clients.values():
            if client.paused:
                self.outbox.count_unread(client)  # the limit may have grown
        self.outbox.tell_credit()
        self.hub.flush()

    # ---- the end ----------------------------------------------------------------------------------------------------

    def stop(self, reason: str) -> None:
        """Begin to shut down; the first reason counts."""
        if self._reason is None:
            self._reason = reason
            self._told.set()

    async def until_stopped(self) -> None:
        """Until told to stop, and then until what runs has ended and its results are sent, or the grace period is
        over (R29)."""
        await self._told.wait()
        log.info("shutting down", reason=self._reason)
        self.inbox.add_notifications([ShutdownBegan(self._reason or "")])
        with trio.move_on_after(self.config.shutdown_grace_s) as grace:
            await self._idle.wait()
        if grace.cancelled_caught and self.config.shutdown_grace_s:
            log.warning("tasks were still running", grace_s=self.config.shutdown_grace_s)
        self.outbox.flush_gathered(trio.current_time())

    def _look_whether_idle(self) -> None:
        """Nothing runs that could still end, and connected clients have what there is, but for what a closing socket
        can still get rid of."""
        for engine in self.sessions.engines.values():
            self.outbox.acknowledge(engine)  # engines leave when they know that their results arrived
        self.hub.flush()
        running = any(engine.load and not engine.lost_until for engine in self.scheduler.engines.values())
        unsent = any(
            client.link is not None and (client.ends or client.unacked_bytes > LINGER_BYTES)
            for client in self.sessions.clients.values()
        )
        if self.scheduler.draining and not running and not unsent:
            self._idle.set()

    def say_closing(self) -> None:
        """Tell everyone, unless they have been told already."""
        if not self.scheduler.draining:
            closing = Closing(self._reason or "the scheduler was cancelled")
            self.outbox.take([Tell(session, closing) for session in self.sessions])
            self.hub.flush()


def _bounds(config: Config) -> ConnectionBounds:
    """The limits of connections, as the descriptors of this process allow them."""
    bounds = connection_bounds(
        descriptor_limit(), config.max_connections, config.max_connections_per_address, config.handshake_s
    )
    if bounds.max_connections < config.max_connections:
        log.warning(
            "max_connections is more than the descriptor limit allows",
            wanted=config.max_connections,
            allowed=bounds.max_connections,
            descriptors=bounds.descriptors,
        )
    return bounds


def _generator(config: Config) -> Any:
    """The numpy Generator that scheme "weighted" draws with; others do without numpy, which takes 0.18 s to import."""
    if config.scheme != "weighted":
        return None
    import numpy

    return numpy.random.default_rng(config.seed)


class Running:
    """A scheduler that is running: what `nursery.start(serve, ...)` returns."""

    def __init__(self, server: Server, client: Connection, engine: Connection, addresses: Mapping[str, str]) -> None:
        self.server = server
        """Its parts, for tests to look into."""
        self.connection = client
        """For clients."""
        self.engine_connection = engine
        """For engines and nannies."""
        self.name = client.name
        self.addresses = dict(addresses)
        """Where it listens: "native", and "websocket" if there is one."""

    def stop(self, reason: str = "it was told to stop") -> None:
        """Shut down in good order (R29): `serve` returns when it is done. Only from the event loop's thread."""
        self.server.stop(reason)

    def expect_engines(self, count: int) -> None:
        """Have clients that connect wait until this many engines have joined; 0: no longer. Only from the event loop's
        thread."""
        self.server.sessions.expected_engines = count

    def status(self) -> Any:
        """What `Query("status")` answers: plain data."""
        return self.server.queries.answer("status", 0, trio.current_time())


async def stop_on_signals(
    stop: Callable[[str], None],
    signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call `stop` at the first of these signals, and raise KeyboardInterrupt at the second. Run it beside `serve`."""
    with trio.open_signal_receiver(*signals) as received:
        task_status.started()
        count = 0
        async for number in received:
            count += 1
            if count > 1:
                raise KeyboardInterrupt
            stop(signal.Signals(number).name)
