"""The handlers of engines' events in the actor's turn, and of the heartbeats of engines and nannies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trio_sched.core.events import DependencyUnmet, DrainRequested, PayloadRef, RecallAnswered, TaskFinished
from trio_sched.server.events import (
    AnswersReceived,
    DrainReceived,
    Effect,
    HeartbeatReceived,
    RecallAnswersReceived,
    SendMessage,
)
from trio_sched.server.guarded_scheduler import GuardedScheduler
from trio_sched.server.outbox import Outbox
from trio_sched.server.sessions import EngineSession, Session
from trio_sched.wire.native import Pong, RemoteError, TaskResult


class EngineMessages:
    """Handlers of the events of engines. Each returns effects."""

    def __init__(self, guarded: GuardedScheduler, outbox: Outbox) -> None:
        self._guarded = guarded
        self._core = guarded.handle
        self._outbox = outbox
        #: (session, event, now) -> effects, by the type of the event.
        self.handlers: dict[type, Callable[[Any, Any, float], list[Effect]]] = {
            AnswersReceived: self._answers_received,
            RecallAnswersReceived: self._recall_answers_received,
            DrainReceived: self._drain_received,
            HeartbeatReceived: answer_heartbeat,
        }

    def _answers_received(self, engine: EngineSession, event: AnswersReceived, now: float) -> list[Effect]:
        effects: list[Effect] = []
        handle, number = self._guarded.scheduler.handle, engine.number
        answered: TaskFinished | DependencyUnmet
        for answer, payload in zip(event.answers, event.payloads, strict=True):
            answer.engine = number
            outcome = answer.outcome
            if outcome == "ok":
                answered = TaskFinished(number, answer.id, "ok", payload, "", answer.attempt)
            elif outcome == "unmet":
                answered = DependencyUnmet(number, answer.id, answer.reason or "it declined", answer.attempt)
            else:
                answered = _make_failure(number, answer, payload)
            try:  # as in `GuardedScheduler.handle`, without a call for each answer
                effects += handle(answered, now)
            except Exception as error:
                effects += self._guarded.recover(answered, error, now)
        count = len(event.answers)
        engine.answer_count += count
        engine.unacked_bytes += event.frame_bytes
        self._release_window(engine, count)
        return effects

    def _recall_answers_received(self, engine: EngineSession, event: RecallAnswersReceived, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for task in event.given:
            effects += self._core(RecallAnswered(engine.number, task, True), now)
        for task in event.kept:
            effects += self._core(RecallAnswered(engine.number, task, False), now)
        self._release_window(engine, len(event.given))
        return effects

    def _release_window(self, engine: EngineSession, count: int) -> None:
        engine.release_window(count)
        if engine.queued_calls:
            self._outbox.mark_engine_dirty(engine)  # its window is open again

    def _drain_received(self, engine: EngineSession, _event: DrainReceived, now: float) -> list[Effect]:
        return self._core(DrainRequested(engine.number), now)


def answer_heartbeat(session: Session, _event: HeartbeatReceived, _now: float) -> list[Effect]:
    """Answer the heartbeat of an engine or a nanny."""
    return [SendMessage(session, Pong())]


def _make_failure(engine: int, answer: TaskResult, payload: PayloadRef) -> TaskFinished:
    """Return the event for an answer that is neither ok nor unmet.

    From an engine only the outcomes "error" and "cancelled" are accepted; any other one counts as "error".
    """
    error = answer.error
    if answer.outcome == "cancelled":
        return TaskFinished(engine, answer.id, "cancelled", payload, answer.reason, answer.attempt)
    if answer.outcome != "error":
        answer.outcome = "error"
        if error is None:
            answer.error = error = RemoteError("EngineError", answer.reason or "the engine failed the task")
    reason = answer.reason or (f"{error.name}: {error.message}" if error else "")
    return TaskFinished(engine, answer.id, "error", payload, reason, answer.attempt)
