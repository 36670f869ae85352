"""Engine results: what engines say, as events, in the order in which each of them said it.

An engine's leaving travels this same road, its own Bye as well as what its nanny reports: so what it sent before it
left is handled before its leaving (R31). A result is counted for `acked` as soon as it is read here, for then nothing
can keep it from the actor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trio_sched.core.events import DependencyUnmet, DrainRequested, PayloadRef, RecallAnswered, TaskFinished
from trio_sched.server.happenings import Left, Pinged, WorkerDied
from trio_sched.server.hub import Hub
from trio_sched.server.links import ENGINES, Link
from trio_sched.server.outbox import Outbox
from trio_sched.server.reader import Reader
from trio_sched.server.sessions import EngineSession, NannySession, Sessions
from trio_sched.wire.native import (
    Bye,
    Died,
    Draining,
    Finished,
    Frame,
    Ping,
    Recalled,
    RemoteError,
    TaskEnd,
    attach,
)


class Results(Reader):
    """Reads what engines sent."""

    who = "an engine"

    def __init__(self, hub: Hub, sessions: Sessions, outbox: Outbox) -> None:
        super().__init__(hub, ENGINES, hub.inbox.add_results)
        self._outbox = outbox
        self.handlers = {
            Finished: self._finished,
            Recalled: self._recalled,
            Draining: self._draining,
            Ping: self._ping,
            Bye: self._bye,
        }
        self._sessions = sessions

    def handle(self, link: Link, message: Any, frames: Sequence[Frame]) -> None:
        """See Reader. A nanny's reports of deaths come along here, too, and its good-bye behind them."""
        nanny = link.session or link.former
        if type(message) is Died and isinstance(nanny, NannySession):
            self._died(nanny, message)
        elif type(message) is Bye and isinstance(nanny, NannySession):
            self.events.append(Left(nanny, message.reason or "said good-bye"))
        else:
            super().handle(link, message, frames)

    def _finished(self, engine: EngineSession, message: Finished, frames: Sequence[Frame]) -> None:
        ends = message.results
        results = attach(ends, frames)
        number = engine.number
        add = self.events.append
        for end, result in zip(ends, results, strict=True):
            end.engine = number
            outcome = end.outcome
            if outcome == "ok":
                add(TaskFinished(number, end.id, "ok", result, "", end.attempt))
            elif outcome == "unmet":
                add(DependencyUnmet(number, end.id, end.reason or "it declined", end.attempt))
            else:
                add(_failed(number, end, result))
        engine.taken += len(ends)
        engine.untold_bytes += sum([len(frame) for frame in frames]) if frames else 0
        engine.answered(len(ends))
        if engine.calls:
            self._outbox.touch_engine(engine)  # its window is open again

    def _recalled(self, engine: EngineSession, message: Recalled, _frames: Sequence[Frame]) -> None:
        number = engine.number
        self.events += [RecallAnswered(number, task, True) for task in message.given]
        self.events += [RecallAnswered(number, task, False) for task in message.kept]
        engine.answered(len(message.given))
        if engine.calls:
            self._outbox.touch_engine(engine)

    def _draining(self, engine: EngineSession, _message: Draining, _frames: Sequence[Frame]) -> None:
        self.events.append(DrainRequested(engine.number))

    def _ping(self, engine: EngineSession, _message: Ping, _frames: Sequence[Frame]) -> None:
        self.events.append(Pinged(engine))

    def _bye(self, engine: EngineSession, message: Bye, _frames: Sequence[Frame]) -> None:
        self.events.append(Left(engine, message.reason or "said good-bye"))

    def _died(self, nanny: NannySession, message: Died) -> None:
        engine = self._sessions.engines.get(message.engine)
        if engine is None and message.pid and not message.engine:
            engine = self._sessions.engine_of(nanny, message.pid)
        if engine is None or engine.nanny != nanny.number:
            if message.engine:  # else it died before it joined
                self.hub.note("death_of_unknown", engine=message.engine, nanny=nanny.number)
            return
        running = None if message.running is None else tuple(message.running)
        self.events.append(WorkerDied(engine, message.reason or "its nanny saw it die", running))


def _failed(engine: int, end: TaskEnd, result: PayloadRef) -> TaskFinished:
    """An engine's answer other than ok. It can only say error and cancelled; the other ends are the scheduler's to
    decide."""
    error = end.error
    if end.outcome == "cancelled":
        return TaskFinished(engine, end.id, "cancelled", result, end.reason, end.attempt)
    if end.outcome != "error":
        end.outcome = "error"
        if error is None:
            end.error = error = RemoteError("EngineError", end.reason or "the engine failed the task")
    reason = end.reason or (f"{error.name}: {error.message}" if error else "")
    return TaskFinished(engine, end.id, "error", result, reason, end.attempt)
