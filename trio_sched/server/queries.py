"""The views that clients can ask for. A view is made within one turn, so that it is consistent.

Answers are plain data. The core's views come from `core.snapshot`; this module adds what only the server knows (names,
hosts, connections, dropped messages).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trio_sched.core import snapshot
from trio_sched.core.ids import TaskId
from trio_sched.core.scheduler import Scheduler
from trio_sched.server.budget import ByteBudget, held_for
from trio_sched.server.ingress import Ingress
from trio_sched.server.sessions import EngineSession, Session, Sessions


class QueryHandler:
    """Answers queries by the name of the view."""

    def __init__(
        self,
        scheduler: Scheduler,
        sessions: Sessions,
        budget: ByteBudget,
        ingress: Ingress,
        about: dict[str, Any],
        started_at: float,
    ) -> None:
        self._scheduler = scheduler
        self._sessions = sessions
        self._budget = budget
        self._ingress = ingress
        self._about = about
        self._started_at = started_at
        self._answers: dict[str, Callable[[TaskId, float], Any]] = {
            "status": self._status,
            "engines": self._engines,
            "explain": self._explain,
            "story": self._story,
        }

    def answer(self, what: str, task: TaskId, now: float) -> Any:
        """Return the view `what`.

        :raises LookupError: there is no such view, or no such task; the message names the views.
        """
        answer = self._answers.get(what)
        if answer is None:
            raise LookupError(f"there is no view {what!r}; there are {', '.join(self._answers)}")
        return answer(task, now)

    def _status(self, _task: TaskId, now: float) -> dict[str, Any]:
        view = snapshot.status(self._scheduler, now)
        for row in view["clients"]:
            client = self._sessions.clients.get(row["client"])
            if client is not None:
                row.update(_about(client, now))
                row["submitted"] = client.submission_count
                row["undelivered"] = len(client.queued_results) + sum(len(batch.results) for batch in client.unacked)
                row["held_bytes"] = held_for(client)
                row["unread_bytes"] = client.unread_bytes
        view["engines"] = self._with_sessions(view["engines"], now)
        view["nannies"] = [{"nanny": nanny.number, **_about(nanny, now)} for nanny in self._sessions.nannies.values()]
        view["connections"] = self._ingress.connections.status()
        view["memory"] = {"held_bytes": self._budget.held_bytes, "total_bytes": self._budget.total_bytes}
        view["counters"] = {**view["counters"], **self._ingress.counters}
        return {**self._about, "up_s": now - self._started_at, **view}

    def _engines(self, _task: TaskId, now: float) -> list[dict[str, Any]]:
        return self._with_sessions(snapshot.engines(self._scheduler, now), now)

    def _with_sessions(self, rows: list[dict[str, Any]], now: float) -> list[dict[str, Any]]:
        for row in rows:
            engine = self._sessions.engines.get(row["engine"])
            if engine is not None:
                row.update(_about(engine, now))
                row["nanny"] = engine.nanny
        return rows

    def _explain(self, task: TaskId, now: float) -> str:
        return snapshot.explain(self._scheduler, task, now)

    def _story(self, task: TaskId, now: float) -> list[tuple[float, str]]:
        """Return each line of the task's story with its age in seconds."""
        return [(now - when, text) for when, text in snapshot.story(self._scheduler, task)]


def _about(session: Session | EngineSession, now: float) -> dict[str, Any]:
    return {
        "name": session.name,
        "host": session.host,
        "pid": session.pid,
        "python": session.python,
        "connected": session.connection is not None,
        "silent_s": now - session.last_received_at,
    }
