"""The server on one screen: configuration in, one nursery, and an orderly end (R29, R30).

    running = await nursery.start(serve, Config(name="lab"))      # inside a Trio program
    trio.run(serve, Config(name="lab"))                           # as a process of its own

Fronts bring messages in; three readers turn them into events; the auditor turns time into events; the actor owns the
state. Fronts end last, also when `serve` is cancelled, so that the peers receive `Closing`.
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
from trio_sched.server.auditor import Auditor, SessionAudit
from trio_sched.server.budget import ByteBudget
from trio_sched.server.client_messages import ClientMessages
from trio_sched.server.config import Config
from trio_sched.server.engine_messages import EngineMessages
from trio_sched.server.events import EnginesExpected
from trio_sched.server.guarded_scheduler import GuardedScheduler
from trio_sched.server.identity import Identity, connections, new_identity
from trio_sched.server.ingress import Front, Inbox, Ingress
from trio_sched.server.intake import Intake
from trio_sched.server.native import NativeFront
from trio_sched.server.notifications import Notifications
from trio_sched.server.outbox import Outbox
from trio_sched.server.queries import QueryHandler
from trio_sched.server.reader import Reader
from trio_sched.server.results import ResultsReader
from trio_sched.server.session_manager import SessionManager
from trio_sched.server.sessions import FunctionCache, Sessions
from trio_sched.server.shutdown import Shutdown
from trio_sched.transport.connection_info import ConnectionInfo, remove_connection_files, write_connection_files
from trio_sched.transport.connection_limits import ConnectionBounds, connection_bounds, descriptor_limit
from trio_sched.transport.reachability import resolution_error

log = get_logger(__name__)


async def serve(
    config: Config | None = None,
    fronts: Sequence[Front] | None = None,
    *,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a scheduler until a client or `Running.stop` stops it, or until it is cancelled.

    `fronts` default to the native one. The caller handles signals, with `stop_on_signals` for example.

    :raises AddressInUseError: another process listens at the address.
    :raises ConfigError: the runtime directory or the address cannot be used.
    :raises ValueError: more than one front has an effect handler.
    """
    config = config or Config()
    fronts = [NativeFront(config)] if fronts is None else fronts
    server = Server(config, new_identity(config), trio.current_time(), fronts)
    shields: list[trio.CancelScope] = []
    try:
        async with trio.open_nursery() as nursery:
            try:
                addresses: dict[str, str] = {}
                for front in fronts:
                    shields.append(trio.CancelScope(shield=True))
                    addresses.update(await nursery.start(_shielded, front, server.ingress, shields[-1]))
                for task in server.tasks:
                    nursery.start_soon(task)
                with _connection_files(server.identity, config, addresses) as (client, engine):
                    nursery.start_soon(_check_advertised_host, client.address, addresses.get("native", ""))
                    task_status.started(Running(server, client, engine, addresses))
                    await server.until_stopped()
            finally:
                server.actor.finish(trio.current_time())
                for shield in shields:
                    shield.cancel()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _single_error(group) from None


async def _shielded(
    front: Front, ingress: Ingress, shield: trio.CancelScope, *, task_status: trio.TaskStatus[dict[str, str]]
) -> None:
    with shield:
        await front.run(ingress, task_status=task_status)


async def _check_advertised_host(advertised: str, bound: str) -> None:
    """Warn if the host that stands for a wildcard in the connection files cannot be resolved on this host."""
    if advertised == bound:
        return
    host = advertised.removeprefix("tcp://").rpartition(":")[0]
    problem = await trio.to_thread.run_sync(resolution_error, host.strip("[]"), abandon_on_cancel=True)
    if problem:
        advice = "set advertised_host (--advertised-host) to a name or an address by which others reach this machine"
        log.warning("the advertised host cannot be resolved here", host=host, reason=problem, advice=advice)


@contextmanager
def _connection_files(
    identity: Identity, config: Config, addresses: Mapping[str, str]
) -> Iterator[tuple[ConnectionInfo, ConnectionInfo]]:
    """Write the connection files when peers can connect, and remove them before peers no longer can. A server without a
    native and a WebSocket front writes none."""
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


def _single_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the only error of a group if it is a TrioSchedError, because callers expect an AddressInUseError and not a
    group of one; otherwise the group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, TrioSchedError) else group


class Server:
    """The parts of one scheduler, put together. Everything is wired here, and nowhere else: each part gets those that
    it calls when it is made. The fronts exist before, and get the ingress when they run."""

    def __init__(self, config: Config, identity: Identity, now: float, fronts: Sequence[Front]) -> None:
        self.config = config
        self.identity = identity
        # from messages to events
        self.inbox = Inbox()
        self.ingress = Ingress(self.inbox, identity, _bounds(config))
        notifications = Notifications(self.ingress, identity.tokens)
        results = ResultsReader(self.ingress, notifications.read_hello)
        intake = Intake(self.ingress, config, notifications.read_hello)
        self.readers: tuple[Reader, ...] = (results, notifications, intake)
        # the state
        self.scheduler = Scheduler(config.settings(), random.Random(config.seed), _generator(config))
        self.sessions = Sessions()
        functions = FunctionCache()
        self.budget = ByteBudget(config, self.sessions)
        self.outbox = Outbox(self.ingress, config, self.sessions, functions, self.budget, identity.instance, fronts)
        self.shutdown = Shutdown(self.scheduler, self.sessions, self.outbox)
        # the handlers of events
        guarded = GuardedScheduler(self.scheduler, self.ingress)
        about = {"name": config.name, "scheduler": identity.instance}
        self.queries = QueryHandler(self.scheduler, self.sessions, self.budget, self.ingress, about, now)
        clients = ClientMessages(
            config, self.ingress, guarded.handle, functions, self.budget, self.outbox, self.queries
        )
        engines = EngineMessages(guarded, self.outbox)
        manager = SessionManager(
            config, self.ingress, guarded.handle, self.sessions, self.outbox, self.budget,
            clients, engines, {"client": intake, "engine": results, "nanny": notifications}, self.shutdown,
        )  # fmt: skip
        audit = SessionAudit(config, self.ingress, self.sessions, manager, self.outbox, self.budget, now)
        self.auditor = Auditor(self.inbox, config.heartbeat_s, now)
        self.actor = Actor(guarded, manager, clients, audit, self.inbox, self.outbox, self.auditor, self.shutdown)
        self.tasks = (results.run, notifications.run, intake.run, self.actor.run, self.auditor.run)

    async def until_stopped(self) -> None:
        """Wait until a shutdown begins, and then until running tasks have ended and their results are sent, or the
        grace period is over (R29)."""
        await self.shutdown.began.wait()
        log.info("shutting down", reason=self.shutdown.closing.reason if self.shutdown.closing else "")
        with trio.move_on_after(self.config.shutdown_grace_s) as grace:
            await self.shutdown.idle.wait()
        if grace.cancelled_caught and self.config.shutdown_grace_s:
            log.warning("tasks were still running", grace_s=self.config.shutdown_grace_s)


def _bounds(config: Config) -> ConnectionBounds:
    """Return the limits of connections, as the descriptor limit of this process allows them."""
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
    """Return the numpy Generator for the scheme "weighted". The others do without numpy, whose import takes 0.18 s."""
    if config.scheme != "weighted":
        return None
    import numpy

    return numpy.random.default_rng(config.seed)


class Running:
    """A running scheduler, as `nursery.start(serve, ...)` returns it."""

    def __init__(
        self, server: Server, client: ConnectionInfo, engine: ConnectionInfo, addresses: Mapping[str, str]
    ) -> None:
        #: The parts, for tests.
        self.server = server
        #: The connection data of clients.
        self.connection = client
        #: The connection data of engines and nannies.
        self.engine_connection = engine
        self.name = client.name
        #: The addresses of the fronts by name, such as "native" and "websocket".
        self.addresses = dict(addresses)

    def stop(self, reason: str = "the program requested a stop") -> None:
        """Shut down (R29); `serve` returns when that is done. May be called only in the thread of the event loop."""
        self.server.ingress.stop(reason)

    def expect_engines(self, count: int) -> None:
        """Have clients that connect wait until `count` engines have joined; 0: they need not wait any longer. May be
        called only in the thread of the event loop."""
        self.server.inbox.add_notifications([EnginesExpected(count)])

    def status(self) -> Any:
        """Return the answer to `Query("status")`, which is plain data, and new. May be called only in the thread of the
        event loop. There the state is consistent: this runs between two steps of the actor, because a step has no
        `await`. It changes no state."""
        return self.server.queries.answer("status", 0, trio.current_time())


async def stop_on_signals(
    stop: Callable[[str], None],
    signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call `stop` at the first of these signals, and raise KeyboardInterrupt at the second. Run it next to `serve`."""
    with trio.open_signal_receiver(*signals) as received:
        task_status.started()
        count = 0
        async for number in received:
            count += 1
            if count > 1:
                raise KeyboardInterrupt
            stop(signal.Signals(number).name)
