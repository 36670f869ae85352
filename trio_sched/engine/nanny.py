"""The nanny: starts the workers of one machine, sends their heartbeats, and reports each worker death with its reason.

The nanny sends heartbeats so that a task that holds its interpreter's lock for a minute does not make its engine seem
dead. It reports worker deaths at once, so that the scheduler need not wait for missed heartbeats. Each worker has its
own connection to the scheduler; no task passes through the nanny. After a restart of the scheduler or a broken
connection, nanny and workers reconnect independently; until then the workers continue to run tasks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import trio

from trio_sched.engine.control_messages import NannyJoined, SchedulerMoved, StartWorker
from trio_sched.engine.host import cores, memory_used, oom_kills
from trio_sched.engine.scheduler_connection import FATAL_ERRORS
from trio_sched.engine.worker_supervisor import WorkerExit, WorkerSupervisor
from trio_sched.errors import NoSchedulerError, TrioSchedError, WireError
from trio_sched.logs import get_logger
from trio_sched.transport.connection_info import ConnectionInfo, client_file_of, find_connection, host_name
from trio_sched.transport.reachability import describe_unanswered
from trio_sched.transport.scratch import ScratchDirectory
from trio_sched.transport.zmq_socket import ZmqSocket
from trio_sched.wire.heartbeat import FIRST_PERIOD_S, Heartbeat
from trio_sched.wire.hello import NO_SESSION, SessionKey, build_hello
from trio_sched.wire.ids import format_task_id
from trio_sched.wire.native import (
    Bye,
    Closing,
    Error,
    Message,
    Ping,
    Pong,
    Welcome,
    WorkerDied,
    decode_to_engine,
    encode,
)

#: Finds the scheduler's current connection file. :raises TrioSchedError: there is none.
FindScheduler: TypeAlias = Callable[[], ConnectionInfo]
#: Prefix of the directories in which nannies keep the files that they share with their workers.
SCRATCH_PREFIX = "trio_sched-engines-"
#: How long the scheduler may take to answer the first hello.
START_TIMEOUT_S = 10.0
_log = get_logger("trio_sched.engine")


@dataclass(frozen=True)
class WorkerInfo:
    """The present state of one worker."""

    #: Process id; 0: the worker is being restarted.
    pid: int
    #: The engine's number at the scheduler; 0: not welcomed yet.
    engine: int
    #: Count of worker processes of this index that have exited.
    deaths: int
    #: Full ids of the running tasks.
    running: list[int]


async def run_nanny(
    connection: ConnectionInfo,
    *,
    workers: int | None = None,
    slots: int = 1,
    hwm: int | None = None,
    resources: Mapping[str, float] | None = None,
    name: str = "",
    where: str | Path | None = None,
    grace_s: float = 10.0,
    start_timeout_s: float | None = START_TIMEOUT_S,
    task_status: trio.TaskStatus[Nanny] = trio.TASK_STATUS_IGNORED,
) -> str:
    """Run workers for the scheduler of `connection` until the scheduler closes or the task is cancelled.

    The task counts as started when the scheduler has answered and the workers are being started.

    :param workers: the number of workers; None: one for each processor.
    :param slots: the number of tasks that each worker runs at once.
    :param hwm: each worker holds at most `hwm * slots` tasks; None: as the scheduler decides; 0: without a limit.
    :param resources: the amounts by name that each worker offers.
    :param name: the nanny's name, for people; default: host name and process id.
    :param where: the path or name by which a restarted scheduler is found; None: the scheduler's name.
    :param grace_s: how long running tasks may take to end when the workers are stopped.
    :param start_timeout_s: how long the scheduler may take to answer for the first time; None: as long as its
        connection file exists.
    :returns: why the nanny ended.
    :raises NoSchedulerError: the scheduler does not answer within `start_timeout_s`, or refuses the nanny.
    :raises TrioSchedError: without `start_timeout_s`: the scheduler does not answer, and its connection file is gone.
    """
    name = name or f"{host_name()}-{os.getpid()}"
    client_file = str(client_file_of(connection, where))
    start = StartWorker(
        connection, name=name, slots=slots, hwm=hwm, resources=dict(resources or {}), client_file=client_file
    )
    with ScratchDirectory(SCRATCH_PREFIX) as scratch:
        nanny = Nanny(
            start,
            cores() if workers is None else workers,
            scratch.path,
            lambda: find_connection(connection.name if where is None else where, "engine"),
            must_exist=start_timeout_s is None,
        )
        try:
            await nanny._run(grace_s, start_timeout_s, task_status)
        finally:
            nanny._connection.close()
    if nanny._connection.failure:
        raise nanny._connection.failure
    return nanny._connection.end_reason


class Nanny:
    """The workers of one machine, as `run_nanny` passes them to the code that starts it."""

    def __init__(
        self, start: StartWorker, workers: int, directory: Path, find_scheduler: FindScheduler, *, must_exist: bool
    ) -> None:
        """Prepare the workers; `_run` starts them.

        :param directory: for the files that nanny and workers share.
        :param must_exist: end when `find_scheduler` fails before the scheduler has answered for the first time.
        """
        self._connection = _NannyConnection(
            start.connection,
            start.name,
            find_scheduler,
            self._send_to_workers,
            self._sample_workers,
            must_exist=must_exist,
        )
        self._supervisors = [WorkerSupervisor(start, directory, index, self._on_exit) for index in range(workers)]
        for supervisor in self._supervisors:
            supervisor.sample(oom_kills(), 0.0)

    async def _run(self, grace_s: float, start_timeout_s: float | None, task_status: trio.TaskStatus[Nanny]) -> None:
        connection = self._connection
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            for supervisor in self._supervisors:
                nursery.start_soon(supervisor.run, grace_s)
            with trio.move_on_after(math.inf if start_timeout_s is None else start_timeout_s) as timeout:
                await connection.joined.wait()
            if timeout.cancelled_caught:
                connection.fail(f"did not answer within {start_timeout_s:g} s{await connection.describe_unanswered()}")
            else:
                task_status.started(self)
            await connection.ended.wait()
            nursery.cancel_scope.cancel()

    @property
    def session(self) -> int:
        """The nanny's session number; 0: not welcomed."""
        return self._connection.session.number

    @property
    def workers(self) -> list[WorkerInfo]:
        """The present state of each worker."""
        scheduler = self._connection.session.scheduler
        return [
            WorkerInfo(
                supervisor.pid,
                supervisor.status.session_with(scheduler),
                supervisor.deaths,
                supervisor.status.running_tasks(),
            )
            for supervisor in self._supervisors
        ]

    def stop(self, reason: str = "stopped") -> None:
        """End the workers and return from `run_nanny`."""
        self._connection.end(reason)

    def _send_to_workers(self, message: NannyJoined | SchedulerMoved) -> None:
        for supervisor in self._supervisors:
            supervisor.send(message)

    def _sample_workers(self) -> None:
        kills, used = oom_kills(), memory_used()
        for supervisor in self._supervisors:
            supervisor.sample(kills, used)

    def _on_exit(self, last: WorkerExit) -> None:
        if last.requested or not last.pid:
            return
        engine = last.status.session_with(self._connection.session.scheduler)
        running = last.status.running_tasks()
        names = [format_task_id(task) for task in running]
        _log.warning("worker died", engine=engine, pid=last.pid, reason=last.reason, running=names)
        self._connection.report(WorkerDied(engine, last.reason, running, last.pid))


class _NannyConnection:
    """The nanny's own connection: hello, heartbeats, reports of worker deaths."""

    def __init__(
        self,
        connection_info: ConnectionInfo,
        name: str,
        find_scheduler: FindScheduler,
        send_to_workers: Callable[[NannyJoined | SchedulerMoved], None],
        on_heartbeat: Callable[[], None],
        *,
        must_exist: bool,
    ) -> None:
        self._connection_info = connection_info
        self._name = name
        self._find_scheduler = find_scheduler
        self._send_to_workers = send_to_workers
        self._on_heartbeat = on_heartbeat
        self._must_exist = must_exist
        self._socket: ZmqSocket | None = None
        self.session = NO_SESSION
        self._heartbeat = Heartbeat(trio.current_time(), period_s=FIRST_PERIOD_S)
        self._welcomed = self._refused = False
        self._hello_at = 0.0
        #: Reports that may not have arrived: each is kept until a ping that was sent after it is answered.
        self._unacked_reports: list[WorkerDied] = []
        #: The number of those that were sent before the last ping.
        self._reports_before_ping = 0
        #: Sockets in a row through which nothing was received, or the hello was refused.
        self._failed_sockets = 0
        self.joined = trio.Event()
        self.ended = trio.Event()
        self.end_reason = ""
        self.failure: TrioSchedError | None = None

    # ---- the end ----------------------------------------------------------------------------------------------------

    def end(self, reason: str) -> None:
        """Set `ended`; the first reason is kept."""
        self.end_reason = self.end_reason or reason
        self.joined.set()
        self.ended.set()

    def fail(self, what: str) -> None:
        """End with an error: the scheduler does, or did, `what`."""
        info = self._connection_info
        self.failure = NoSchedulerError(f"the scheduler {info.name!r} at {info.address} {what}")
        self.end(what)

    def close(self) -> None:
        """Send a Bye and close the socket."""
        if self._socket is not None:
            if self._welcomed:
                self._send(Bye(reason=self.end_reason or "the nanny was stopped"))
            self._socket.close()

    # ---- sockets ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Stay connected until cancelled.

        Opens one socket after the other, each until nothing is received through it (or the hello is refused); in
        between it looks for the connection file of a restarted scheduler.
        """
        while True:
            self._socket = ZmqSocket.dealer(self._connection_info)
            self._send_hello()
            await self._run_until_silent()
            await self._log_failed_socket()
            self._socket.close()
            self._update_connection_info()

    async def _log_failed_socket(self) -> None:
        """Log the first, second, fourth, eighth, ... failure in a row."""
        self._failed_sockets += 1
        if self._failed_sockets & (self._failed_sockets - 1):
            return
        if self._refused:
            what = "refuses the nanny; was it restarted?"
        elif self.joined.is_set():
            what = "is silent"
        else:
            what = f"does not answer{await self.describe_unanswered()}; the nanny keeps trying"
        _log.warning(f"the scheduler {what}", address=self._connection_info.address)

    async def describe_unanswered(self) -> str:
        """The result of `transport.reachability.describe_unanswered`, which blocks."""
        return await trio.to_thread.run_sync(describe_unanswered, self._connection_info.address, abandon_on_cancel=True)

    def _update_connection_info(self) -> None:
        """Read the connection file again: a restarted scheduler has a new token and has written it there."""
        try:
            info = self._find_scheduler()
        except TrioSchedError as error:
            if self._must_exist and not self.joined.is_set():
                self.failure = error
                self.end(str(error))
            return  # the file may be written later
        if info != self._connection_info:
            self._connection_info = info
            self._send_to_workers(SchedulerMoved(info))

    async def _run_until_silent(self) -> None:
        """Receive messages and send heartbeats until the scheduler is silent or has refused the hello."""
        assert self._socket is not None
        heartbeat = self._heartbeat
        last_received_at = trio.current_time()
        heartbeat.tick(last_received_at)
        heartbeat.sent(last_received_at)
        while True:
            messages = []
            with trio.move_on_at(heartbeat.due_at):
                messages = await self._socket.receive()
            for frames in messages:
                self._on_message(frames[0])
            self._socket.flush()
            now = trio.current_time()
            if messages:
                last_received_at = now
            if now < heartbeat.due_at:
                continue
            heartbeat.tick(now)
            if self._refused or heartbeat.is_silent(last_received_at, now):
                return
            heartbeat.sent(now)
            self._send_heartbeat()

    def _send_heartbeat(self) -> None:
        if self._welcomed:
            self._reports_before_ping = len(self._unacked_reports)
            self._send(Ping())
        self._on_heartbeat()

    def report(self, death: WorkerDied) -> None:
        """Report a worker death now, and again after each reconnection until the report has arrived."""
        self._unacked_reports.append(death)
        if self._welcomed:
            self._send(death)

    # ---- incoming messages ------------------------------------------------------------------------------------------

    def _on_message(self, data: bytes | bytearray | memoryview) -> None:
        try:
            message = decode_to_engine(data)
        except WireError as error:
            _log.warning("a message from the scheduler cannot be decoded", error=str(error))
            return
        if isinstance(message, Welcome):
            self._on_welcome(message)
        elif isinstance(message, Pong):
            del self._unacked_reports[: self._reports_before_ping]
            self._reports_before_ping = 0
        elif isinstance(message, Closing):
            self.end(message.reason or "the scheduler shut down")
        elif isinstance(message, Error):
            self._on_error(message)

    def _on_welcome(self, welcome: Welcome) -> None:
        if welcome.scheduler != self.session.scheduler:
            self._unacked_reports.clear()  # the engines belong to another instance
        self.session = SessionKey(welcome.session, welcome.secret, welcome.scheduler)
        self._heartbeat.period_s = welcome.heartbeat_s
        self._welcomed = True
        self._failed_sockets = 0
        self._reports_before_ping = 0
        for death in self._unacked_reports:
            self._send(death)
        self._send_to_workers(NannyJoined(welcome.session, welcome.scheduler))
        self.joined.set()

    def _on_error(self, error: Error) -> None:
        if error.kind == "unknown_peer":
            if self._welcomed or trio.current_time() - self._hello_at > self._heartbeat.period_s:
                self._send_hello()
        elif error.kind == "unauthenticated" and self.session.number:
            self._refused = True  # the scheduler was restarted
            self._welcomed = False
        elif error.kind == "closing":
            self.end(error.message)
        elif error.kind in FATAL_ERRORS:
            self.fail(f"refuses the nanny: {error.message}")
        else:
            _log.warning("the scheduler reports an error", kind=error.kind, message=error.message)

    # ---- outgoing messages ------------------------------------------------------------------------------------------

    def _send_hello(self) -> None:
        self._welcomed = self._refused = False
        self._hello_at = trio.current_time()
        self._send(
            build_hello("nanny", self._connection_info.token, host=host_name(), name=self._name, session=self.session)
        )

    def _send(self, message: Message) -> None:
        assert self._socket is not None
        self._socket.send([encode(message)])
        self._socket.flush()
