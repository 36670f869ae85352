"""The nanny: starts the workers of one machine, beats for them, and tells the scheduler when one dies and of what.

Beats come from here so that a task that holds its interpreter's lock for a minute does not make its engine look
dead; deaths are seen here when they happen, so that the scheduler need not wait for missing beats. The workers have
their own lines to the scheduler: a nanny is never between. When the scheduler is restarted or the line breaks,
nanny and workers come back each by itself, and the workers go on working meanwhile.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import trio

from trio_sched.engine.link import FATAL
from trio_sched.engine.machine import cores, memory_used, oom_kills
from trio_sched.engine.orders import Moved, News, Start
from trio_sched.engine.runner import SESSION_SHIFT
from trio_sched.engine.ward import Death, Ward
from trio_sched.errors import NoSchedulerError, TrioSchedError, WireError
from trio_sched.logs import get_logger
from trio_sched.transport.connection import Connection, client_file_of, find, host_name
from trio_sched.transport.reach import describe_unanswered
from trio_sched.transport.scratch import ScratchDirectory
from trio_sched.transport.zmq_socket import ZmqSocket
from trio_sched.wire.heartbeat import FIRST_PERIOD_S, Heartbeat
from trio_sched.wire.hello import NO_SESSION, SessionKey, build_hello
from trio_sched.wire.native import (
    COUNTER_MASK,
    Bye,
    Closing,
    Died,
    Error,
    Message,
    Ping,
    Pong,
    Welcome,
    decode_to_engine,
    encode,
)

LookUp: TypeAlias = Callable[[], Connection]
SCRATCH_PREFIX = "trio_sched-engines-"
"""Of the directories in which nannies keep what they share with their workers."""
START_TIMEOUT_S = 10.0
"""How long the scheduler may take to answer the first hello."""
_log = get_logger("trio_sched.engine")


@dataclass(frozen=True)
class WorkerInfo:
    """One worker now. `pid` 0: being restarted; `engine` 0: not welcomed yet."""

    pid: int
    engine: int
    deaths: int
    running: list[int]
    """Full ids of the tasks that it runs."""


async def run_nanny(
    connection: Connection,
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
    """Run workers for the scheduler of `connection` until it closes (or until cancelled); returns why it ended.

    `workers`: how many, default one for each processor. Each has `slots` (tasks that it runs at once), offers
    `resources` (amounts by name) and holds at most `hwm * slots` tasks (None: as the scheduler says; 0: no limit).
    `where`: the path or name under which to look when the scheduler was restarted (None: its name). `grace_s`: how
    long running tasks may take to end when the workers are stopped. `start_timeout_s`: how long the scheduler may take
    to answer for the first time; None: as long as its connection file is there. Started when the scheduler has answered
    and the workers are on their way.

    :raises NoSchedulerError: it does not answer within `start_timeout_s`, or refuses us.
    :raises TrioSchedError: without `start_timeout_s`: it does not answer, and its connection file is gone.
    """
    name = name or f"{host_name()}-{os.getpid()}"
    client_file = str(client_file_of(connection, where))
    start = Start(connection, name=name, slots=slots, hwm=hwm, resources=dict(resources or {}), client_file=client_file)
    with ScratchDirectory(SCRATCH_PREFIX) as scratch:
        nanny = Nanny(
            start,
            cores() if workers is None else workers,
            scratch.path,
            lambda: find(connection.name if where is None else where, "engine"),
            must_exist=start_timeout_s is None,
        )
        try:
            await nanny._run(grace_s, start_timeout_s, task_status)
        finally:
            nanny._line.close()
    if nanny._line.failure:
        raise nanny._line.failure
    return nanny._line.reason


class Nanny:
    """What `run_nanny` starts with: a look at the workers, and the means to stop them."""

    def __init__(self, start: Start, workers: int, directory: Path, look_up: LookUp, *, must_exist: bool) -> None:
        """`must_exist`: give up when `look_up` fails before the scheduler has answered for the first time."""
        self._line = _Line(start.connection, start.name, look_up, self._tell, self._on_beat, must_exist=must_exist)
        self._wards = [Ward(start, directory, index, self._on_death) for index in range(workers)]
        for ward in self._wards:
            ward.look(oom_kills(), 0.0)

    async def _run(self, grace_s: float, start_timeout_s: float | None, task_status: trio.TaskStatus[Nanny]) -> None:
        line = self._line
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.talk)
            for ward in self._wards:
                nursery.start_soon(ward.live, grace_s)
            with trio.move_on_after(math.inf if start_timeout_s is None else start_timeout_s) as patience:
                await line.joined.wait()
            if patience.cancelled_caught:
                line.fail(f"did not answer within {start_timeout_s:g} s{await line.describe_unanswered()}")
            else:
                task_status.started(self)
            await line.closed.wait()
            nursery.cancel_scope.cancel()

    @property
    def session(self) -> int:
        """Our session number; 0: not welcomed."""
        return self._line.session.number

    @property
    def workers(self) -> list[WorkerInfo]:
        """The workers as they are now."""
        scheduler = self._line.session.scheduler
        return [
            WorkerInfo(ward.pid, ward.board.session_with(scheduler), ward.deaths, ward.board.tasks())
            for ward in self._wards
        ]

    def stop(self, reason: str = "stopped") -> None:
        """End the workers and return from `run_nanny`."""
        self._line.end(reason)

    def _tell(self, order: News | Moved) -> None:
        for ward in self._wards:
            ward.tell(order)

    def _on_beat(self) -> None:
        kills, used = oom_kills(), memory_used()
        for ward in self._wards:
            ward.look(kills, used)

    def _on_death(self, death: Death) -> None:
        if death.orderly or not death.pid:
            return
        engine = death.board.session_with(self._line.session.scheduler)
        running = death.board.tasks()
        names = [f"{task >> SESSION_SHIFT}-{task & COUNTER_MASK}" for task in running]
        _log.warning("worker died", engine=engine, pid=death.pid, reason=death.reason, running=names)
        self._line.report(Died(engine, death.reason, running, death.pid))


class _Line:
    """The nanny's own connection: hello, beats, reports of deaths."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        look_up: LookUp,
        tell: Callable[[News | Moved], None],
        on_beat: Callable[[], None],
        *,
        must_exist: bool,
    ) -> None:
        self._connection = connection
        self._name = name
        self._look_up = look_up
        self._tell_workers = tell
        self._on_beat = on_beat
        self._socket: ZmqSocket | None = None
        self.session = NO_SESSION
        self._heartbeat = Heartbeat(trio.current_time(), period_s=FIRST_PERIOD_S)
        self._welcomed = self._refused = False
        self._hello_at = 0.0
        self._untold: list[Died] = []
        """Reports that may not have arrived: kept until a beat that was sent after them is answered."""
        self._told = 0
        """How many of them were sent before the last beat."""
        self._must_exist = must_exist
        self._silences = 0
        """How often in a row it did not answer through a new socket."""
        self.joined = trio.Event()
        self.closed = trio.Event()
        self.reason = ""
        self.failure: TrioSchedError | None = None

    def end(self, reason: str) -> None:
        """Say that it is over, for this reason; the first one counts."""
        self.reason = self.reason or reason
        self.joined.set()
        self.closed.set()

    def fail(self, what: str) -> None:
        """It is over, because the scheduler did `what`."""
        self.failure = NoSchedulerError(f"the scheduler {self._connection.name!r} at {self._connection.address} {what}")
        self.end(what)

    def close(self) -> None:
        """Say good-bye."""
        if self._socket is not None:
            if self._welcomed:
                self._send(Bye(reason=self.reason or "the nanny was stopped"))
            self._socket.close()

    async def describe_unanswered(self) -> str:
        """See `transport.reach`."""
        return await trio.to_thread.run_sync(describe_unanswered, self._connection.address, abandon_on_cancel=True)

    async def talk(self) -> None:
        """Stay connected until cancelled: one socket after the other, each until nothing is heard through it (or it
        is refused); in between look whether the scheduler was restarted."""
        while True:
            self._socket = ZmqSocket.dealer(self._connection)
            self._hello()
            await self._until_silent()
            await self._log_silence()
            self._socket.close()
            self._find_scheduler()

    async def _log_silence(self) -> None:
        """Ever more rarely."""
        self._silences += 1
        if self._silences & (self._silences - 1):
            return
        if self._refused:
            what = "refuses us; was it restarted?"
        elif self.joined.is_set():
            what = "is silent"
        else:
            what = f"does not answer{await self.describe_unanswered()}; we keep trying"
        _log.warning(f"the scheduler {what}", address=self._connection.address)

    def _find_scheduler(self) -> None:
        """A scheduler that was restarted has new secrets, and has written them where the former ones were."""
        try:
            connection = self._look_up()
        except TrioSchedError as error:
            if self._must_exist and not self.joined.is_set():
                self.failure = error
                self.end(str(error))
            return  # not yet
        if connection != self._connection:
            self._connection = connection
            self._tell_workers(Moved(connection))

    async def _until_silent(self) -> None:
        assert self._socket is not None
        heartbeat = self._heartbeat
        heard_at = trio.current_time()
        heartbeat.tick(heard_at)
        heartbeat.sent(heard_at)
        while True:
            messages = []
            with trio.move_on_at(heartbeat.due_at):
                messages = await self._socket.receive()
            for frames in messages:
                self._on_message(frames[0])
            self._socket.flush()
            now = trio.current_time()
            if messages:
                heard_at = now
            if now < heartbeat.due_at:
                continue
            heartbeat.tick(now)
            if self._refused or heartbeat.is_silent(heard_at, now):
                return
            heartbeat.sent(now)
            self._beat()

    def _beat(self) -> None:
        if self._welcomed:
            self._told = len(self._untold)
            self._send(Ping())
        self._on_beat()

    def report(self, died: Died) -> None:
        """Tell of a death, now or as soon as the scheduler is back."""
        self._untold.append(died)
        if self._welcomed:
            self._send(died)

    # ---- what comes in ----------------------------------------------------------------------------------------------

    def _on_message(self, data: bytes | bytearray | memoryview) -> None:
        try:
            message = decode_to_engine(data)
        except WireError as error:
            _log.warning("a message from the scheduler was not understood", error=str(error))
            return
        if isinstance(message, Welcome):
            self._on_welcome(message)
        elif isinstance(message, Pong):
            del self._untold[: self._told]
            self._told = 0
        elif isinstance(message, Closing):
            self.end(message.reason or "the scheduler shut down")
        elif isinstance(message, Error):
            self._on_error(message)

    def _on_welcome(self, welcome: Welcome) -> None:
        if welcome.scheduler != self.session.scheduler:
            self._untold.clear()  # another scheduler knows nothing of those engines
        self.session = SessionKey(welcome.session, welcome.secret, welcome.scheduler)
        self._heartbeat.period_s = welcome.heartbeat_s
        self._welcomed = True
        self._silences = 0
        self._told = 0
        for died in self._untold:
            self._send(died)
        self._tell_workers(News(welcome.session, welcome.scheduler))
        self.joined.set()

    def _on_error(self, error: Error) -> None:
        if error.kind == "unknown_peer":
            if self._welcomed or trio.current_time() - self._hello_at > self._heartbeat.period_s:
                self._hello()
        elif error.kind == "unauthenticated" and self.session.number:
            self._refused = True  # a scheduler that was restarted
            self._welcomed = False
        elif error.kind == "closing":
            self.end(error.message)
        elif error.kind in FATAL:
            self.fail(f"refuses us: {error.message}")
        else:
            _log.warning("the scheduler reports an error", kind=error.kind, message=error.message)

    # ---- what goes out ----------------------------------------------------------------------------------------------

    def _hello(self) -> None:
        self._welcomed = self._refused = False
        self._hello_at = trio.current_time()
        self._send(
            build_hello("nanny", self._connection.token, host=host_name(), name=self._name, session=self.session)
        )

    def _send(self, message: Message) -> None:
        assert self._socket is not None
        self._socket.send([encode(message)])
        self._socket.flush()
