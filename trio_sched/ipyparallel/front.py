"""The front: binds every socket, says in the connection files where they are, and runs the parts.

front = IpyparallelFront(IppConfig(profile_dir=...))
await nursery.start(serve, front.config.for_server(), [front])
"""

from __future__ import annotations

from functools import partial
from typing import Any

import trio

from trio_sched.ipyparallel import files
from trio_sched.ipyparallel.broadcast import Broadcast
from trio_sched.ipyparallel.config import SIDES, IppConfig, Side, new_key
from trio_sched.ipyparallel.dask import DaskScheduler
from trio_sched.ipyparallel.desk import Desk
from trio_sched.ipyparallel.heartbeat import Heartbeat
from trio_sched.ipyparallel.monitor import Monitor, Queue
from trio_sched.ipyparallel.queries import Queries
from trio_sched.ipyparallel.records.base import Monitor as Records
from trio_sched.ipyparallel.records.base import NullMonitor
from trio_sched.ipyparallel.records.opening import open_monitor
from trio_sched.ipyparallel.registration import Registration
from trio_sched.ipyparallel.relay import Output, Relay
from trio_sched.ipyparallel.tasks import TaskQueue
from trio_sched.logs import get_logger
from trio_sched.server.hub import Hub
from trio_sched.transport.curve import new_keys
from trio_sched.wire.jupyter import Codec

log = get_logger(__name__)


class IpyparallelFront:
    """What real ipyparallel clients and engines talk to."""

    def __init__(self, config: IppConfig) -> None:
        self.config = config
        self.desk: Desk | None = None
        """What the parts share, while it runs: for tests to look into."""

    async def run(self, hub: Hub, *, task_status: trio.TaskStatus[dict[str, str]]) -> None:
        """See server.links.Front."""
        records = open_monitor(self.config)
        self.desk = desk = self._open(hub, records)
        try:
            self._bind(desk, records)
            written = self._write_files(desk)
            try:
                async with trio.open_nursery() as nursery:
                    for task in desk.tasks:
                        nursery.start_soon(task)
                    task_status.started({"ipyparallel": str(files.path_of(self.config, "client"))})
            finally:
                if not self.config.reuse:
                    for side, inside in written.items():
                        files.remove(files.path_of(self.config, side), inside)
        finally:
            desk.sockets.close()

    def _open(self, hub: Hub, records: Records) -> Desk:
        """Settle key, ports and CURVE keys, which a former run may have left."""
        config = self.config
        former = files.read_former(config) if config.reuse else {}
        key = former["client"]["key"] if former else config.key
        if key is None:  # ipcontroller --enable-curve does not sign; encrypted by default, messages are signed as well
            key = "" if config.curve else new_key()
        if config.uses_curve and not config.curve_publickey:
            pair = new_keys(()).server
            config = _replaced(config, curve_publickey=pair.public, curve_secretkey=pair.secret)
        _say_who_may_connect(config)
        return Desk(config, hub, Codec(key.encode(), config.signature_scheme), records, former)

    def _bind(self, desk: Desk, records: Records) -> None:
        """Make the parts, each with its sockets; what they want to be run is in desk.tasks."""
        registration = Registration(desk)
        Heartbeat(desk, registration)
        queue = TaskQueue(desk)
        codec, note, monitor = desk.codec, desk.hub.note, desk.monitor
        recorders: tuple[tuple[Queue, Monitor], ...] = ("mux", monitor), ("control", NullMonitor())
        relays = [
            Relay(name, desk.bind("router", "client", name), desk.bind_patient(name), codec, note, recorder)
            for name, recorder in recorders
        ]
        leaves = desk.bind_patient("broadcast", desk.config.broadcast_leaves)
        clients = desk.bind("router", "client", "broadcast")
        broadcast = Broadcast(clients, leaves, codec, note, monitor, desk.roster.engines.__contains__)
        engines, clients = desk.bind("sub", "engine", "iopub"), desk.bind("xpub", "client", "iopub")
        output = Output(engines, clients, codec, note, monitor, lambda uuid: desk.engine_gone(uuid, "it shut down"))
        desk.tasks.append(partial(desk.pump_subscriptions, clients))
        dask = DaskScheduler(desk.config.dask_host())
        queries = Queries(
            codec, records, desk.roster.present, queue.submit, registration.shut_down, dask, queue.whereabouts
        )
        registration.ask(queries.answer)
        desk.on_engine_gone += [broadcast.engine_gone, records.engine_gone]
        desk.tasks += [*(relay.run for relay in relays), broadcast.run, output.run, records.run, dask.run]

    def _write_files(self, desk: Desk) -> dict[Side, dict[str, Any]]:
        server_key = desk.config.curve_publickey if desk.config.uses_curve else None
        written: dict[Side, dict[str, Any]] = {}
        for side in SIDES:
            path = files.path_of(desk.config, side)
            written[side] = files.contents(desk.config, side, desk.ports[side], desk.codec, server_key)
            files.write(path, written[side])
            log.info("connection file", path=str(path))
        return written


def _say_who_may_connect(config: IppConfig) -> None:
    """In the log, if it is not what users of ipyparallel expect, or not safe."""
    if config.curve is None and config.uses_curve:
        log.warning(
            "connections are encrypted with CURVE, because a port is open to other machines",
            off="--no-curve, c.IPController.enable_curve = False or IPP_ENABLE_CURVE=0",
        )
    elif config.is_remote and not config.uses_curve:
        log.warning(
            "ports are open to other machines without CURVE: whoever can read the network, or has an account on a "
            "machine from which engines or clients connect, can read output and results and take the place of engines",
            on="--enable-curve",
        )


def _replaced(config: IppConfig, **changes: Any) -> IppConfig:
    return IppConfig(**{**{name: getattr(config, name) for name in IppConfig.__struct_fields__}, **changes})
