"""The front: binds every socket, makes the parts and wires them, writes the connection files, and runs the parts.

front = IpyparallelFront(IppConfig(profile_dir=...))
await nursery.start(serve, front.config.for_server(), [front])
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import trio

from trio_sched.ipyparallel import connection_files
from trio_sched.ipyparallel.broadcast import BroadcastRelay
from trio_sched.ipyparallel.config import SIDES, IppConfig, Side, new_key
from trio_sched.ipyparallel.controller_context import ControllerContext
from trio_sched.ipyparallel.dask import DaskScheduler
from trio_sched.ipyparallel.heartbeat import HeartbeatMonitor
from trio_sched.ipyparallel.queries import RecordQueries
from trio_sched.ipyparallel.records.recorder import NullRecorder, open_recorder
from trio_sched.ipyparallel.registration import ClientNotifier, Registration
from trio_sched.ipyparallel.relay import OutputRelay, Relay
from trio_sched.ipyparallel.tasks import TaskQueue
from trio_sched.logs import get_logger
from trio_sched.server.ingress import EffectHandler, Ingress, TaskEffect
from trio_sched.transport.curve import new_keys
from trio_sched.wire.jupyter import Codec

log = get_logger(__name__)
AsyncFunction: TypeAlias = Callable[[], Awaitable[Any]]


class IpyparallelFront:
    """Serves ipyparallel's clients and engines."""

    def __init__(self, config: IppConfig) -> None:
        self.config = config
        #: What the parts share, and the part with the tasks; None before `run`. Tests inspect them.
        self.context: ControllerContext | None = None
        self.queue: TaskQueue | None = None
        self._effect_handlers: Mapping[type, Callable[[Any], None]] = {}

    @property
    def effect_handler(self) -> EffectHandler:
        """See Front."""
        return self

    def take(self, effect: TaskEffect) -> None:
        """See EffectHandler. Effects that need no message have no handler."""
        handle = self._effect_handlers.get(type(effect))
        if handle is not None:
            handle(effect)

    def flush(self) -> None:
        """See Front."""
        if self.queue is not None:
            self.queue.flush()

    async def run(self, ingress: Ingress, *, task_status: trio.TaskStatus[dict[str, str]]) -> None:
        """Serve until cancelled. `task_status.started` gets the path of the connection file for clients."""
        self.context = context = self._open(ingress)
        try:
            tasks = self._build(context)
            written = self._write_files(context)
            try:
                async with trio.open_nursery() as nursery:
                    for task in tasks:
                        nursery.start_soon(task)
                    task_status.started({"ipyparallel": str(connection_files.path_of(self.config, "client"))})
            finally:
                if not self.config.reuse:
                    for side, content in written.items():
                        connection_files.remove(connection_files.path_of(self.config, side), content)
        finally:
            context.sockets.close()

    def _open(self, ingress: Ingress) -> ControllerContext:
        """Choose the signing key, the ports and the CURVE keys, which the files of a former run may determine."""
        config = self.config
        recorder = open_recorder(config)
        former = connection_files.read_former(config) if config.reuse else {}
        key = former["client"]["key"] if former else config.key
        if key is None:  # ipcontroller --enable-curve does not sign; encrypted by default, messages are signed as well
            key = "" if config.curve else new_key()
        if config.uses_curve and not config.curve_publickey:
            pair = new_keys(()).server
            config = _replaced(config, curve_publickey=pair.public, curve_secretkey=pair.secret)
        _log_exposure(config)
        return ControllerContext(config, ingress, Codec(key.encode(), config.signature_scheme), recorder, former)

    def _build(self, context: ControllerContext) -> Sequence[AsyncFunction]:
        """Bind the sockets, and make the parts, each with the parts that it calls. Returns the tasks to run.

        The order of the sockets is fixed, so that ports of a pool are assigned in the same way in each run.
        """
        registration_socket = context.bind_both("router", "registration")
        notification_socket = context.bind("xpub", "client", "notification")
        ping_socket, pong_socket = (
            context.bind("xpub", "engine", "hb_ping"),
            context.bind("router", "engine", "hb_pong"),
        )
        task_clients, task_engines = context.bind("router", "client", "task"), context.bind_retrying("task")
        mux_clients, mux_engines = context.bind("router", "client", "mux"), context.bind_retrying("mux")
        control_clients, control_engines = context.bind("router", "client", "control"), context.bind_retrying("control")
        broadcast_engines = context.bind_retrying("broadcast", context.config.broadcast_leaves)
        broadcast_clients = context.bind("router", "client", "broadcast")
        iopub_engines, iopub_clients = context.bind("sub", "engine", "iopub"), context.bind("xpub", "client", "iopub")

        codec, note, recorder = context.codec, context.ingress.note, context.recorder
        notifier = ClientNotifier(context, notification_socket)
        queue = self.queue = TaskQueue(context, task_clients, task_engines)
        self._effect_handlers = queue.effect_handlers
        mux = Relay("mux", mux_clients, mux_engines, codec, note, recorder)
        control = Relay("control", control_clients, control_engines, codec, note, NullRecorder())
        is_registered = context.registry.engines.__contains__
        broadcast = BroadcastRelay(broadcast_clients, broadcast_engines, codec, note, recorder, is_registered)
        dask = DaskScheduler(context.config.dask_host())
        queries = RecordQueries(
            codec, recorder, context.registry.joined, queue.submit, notifier.shut_down, dask, queue.unfinished
        )
        routers = task_engines, mux_engines, control_engines, broadcast_engines
        on_removed = [*(router.discard for router in routers), broadcast.engine_removed, recorder.engine_removed]
        registration = Registration(context, registration_socket, notifier, queries.answer, on_removed)
        heartbeats = HeartbeatMonitor(context, ping_socket, pong_socket, registration)
        engine_left = partial(registration.remove_engine, reason="it shut down")
        output = OutputRelay(iopub_engines, iopub_clients, codec, note, recorder, engine_left)
        parts = (*routers, notifier, queue, mux, control, broadcast, dask, registration, heartbeats, output, recorder)
        subscriptions = partial(context.pump_subscriptions, iopub_clients)
        return [context.admission.run, subscriptions, *(part.run for part in parts)]

    def _write_files(self, context: ControllerContext) -> dict[Side, dict[str, Any]]:
        server_key = context.config.curve_publickey if context.config.uses_curve else None
        written: dict[Side, dict[str, Any]] = {}
        for side in SIDES:
            path = connection_files.path_of(context.config, side)
            written[side] = connection_files.content_of(
                context.config, side, context.ports[side], context.codec, server_key
            )
            connection_files.write(path, written[side])
            log.info("connection file", path=str(path))
        return written


def _log_exposure(config: IppConfig) -> None:
    """Log who may connect, if it is not what users of ipyparallel expect, or not safe."""
    if config.curve is None and config.uses_curve:
        log.warning(
            "connections are encrypted with CURVE, because a port is open to other machines",
            off="--no-curve, c.IPController.enable_curve = False or IPP_ENABLE_CURVE=0",
        )
    elif config.is_remote and not config.uses_curve:
        log.warning(
            "ports are open to other machines without CURVE: anyone who can read the network, or has an account on a "
            "machine from which engines or clients connect, can read output and results and impersonate engines",
            on="--enable-curve",
        )


def _replaced(config: IppConfig, **changes: Any) -> IppConfig:
    return IppConfig(**{**{name: getattr(config, name) for name in IppConfig.__struct_fields__}, **changes})
