"""A driver for the property tests: random events for the core and its model.

`ModelDriver` passes the same events to a `Scheduler` and a `NaiveScheduler` and compares their effects after each. It
tracks open assignments and recalls, as a front does, so most of its events are valid. Some are not: late, repeated and
wrong answers, unknown ids, engines that join twice. Every decision is one call of `choose`, so Hypothesis or a plain
random generator can make it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from numpy.random import default_rng

from trio_sched.core import invariants
from trio_sched.core.effects import AssignTask, Effect, Publish, RecallTask
from trio_sched.core.events import (
    CancelRequested,
    ClientJoined,
    ClientLeft,
    ClientPaused,
    ClientResumed,
    Dependency,
    DependencyUnmet,
    DrainRequested,
    EngineJoined,
    EngineLost,
    EngineReturned,
    Event,
    MonitoringChanged,
    RecallAnswered,
    ResultsReceived,
    TaskFinished,
    TaskSpec,
    TaskSubmitted,
    TimePassed,
)
from trio_sched.core.ids import ClientId, EngineId, TaskId, is_native, make_task_id, session_of
from trio_sched.core.scheduler import Scheduler, Settings

from .naive import RANDOM_SCHEMES, NaiveScheduler, without_reasons

Choose = Callable[[Sequence[Any]], Any]

CLIENTS = [1, 2, 3]
UNKNOWN_CLIENT = 4
SCHEMES = ["leastload", "leastload", "leastload", "lru", "lru", "twobin", "weighted", "plainrandom", "pure"]
ASKED = [(), (), (), (("gpu", 1.0),), (("gpu", 2.0),), (("gpu", 1.0), ("mem", 0.5))]
OFFERED = [(), (("gpu", 1.0),), (("gpu", 2.0), ("mem", 1.0)), (("mem", 2.0),)]
RICH = (("gpu", 2.0), ("mem", 1.0))
COUNTING = [(True, False), (True, False), (True, True), (False, True), (True, True), (False, False)]
MOST_ENGINES = 5
YES, NO = True, False


class ModelDriver:
    """A scheduler, its model, and the assignments and recalls that are open."""

    def __init__(self, choose: Choose) -> None:
        self.choose = choose
        scheme, seed = choose(SCHEMES), choose(range(4))
        settings = Settings(
            scheme=scheme,
            hwm=choose([1, 1, 2, 3, 0]),
            grace_s=choose([2.0, 2.0, 0.0]),
            keep_finished=choose([1000, 1000, 3, 1, 0]),
            max_dependencies=choose([100, 100, 4]),
            max_targets=1 if seed == 3 else 100,  # needs no draw of its own
        )
        self.scheduler = Scheduler(settings, random.Random(seed), default_rng(seed))
        self.naive = NaiveScheduler(settings)
        self.guided = scheme in RANDOM_SCHEMES
        self.rich = choose([NO, NO, YES])  # engines with several slots and many resources: promotion (R16) matters
        self.fragile = choose([NO, NO, YES])  # tasks survive few engine deaths: the blame (R20) matters
        self.plain_only = scheme == "pure" and seed != 0  # "pure" refuses most options
        self.native = choose([YES, YES, NO])
        self.now = 100.0
        self.counters = dict.fromkeys([*CLIENTS, UNKNOWN_CLIENT], 0)
        self.submitted: list[TaskId] = []
        self.joined: list[EngineId] = []
        self.open: list[AssignTask] = []  # not answered yet
        self.answered: list[AssignTask] = []
        self.recalls: list[RecallTask] = []
        self.happens(MonitoringChanged(choose([NO, YES])))
        for client in CLIENTS:
            self.happens(ClientJoined(client, choose([1.0, 1.0, 2.0, 0.5, 3.0])))
        for _ in range(choose([1, 2, 2, 3, 0])):
            self.engine_joins()

    def happens(self, event: Event) -> None:
        """Pass an event to both; their effects and deadlines are the same."""
        real = self.scheduler.handle(event, self.now)
        naive = self.naive.handle(event, self.now, real if self.guided else ())
        assert without_reasons(real) == without_reasons(naive), event
        assert published(real) == published(naive), event
        assert self.scheduler.next_deadline() == self.naive.next_deadline(), event
        invariants.check(self.scheduler)
        for effect in real:
            if isinstance(effect, AssignTask):
                self.open = [a for a in self.open if (a.engine, a.task) != (effect.engine, effect.task)]
                self.open.append(effect)
            elif isinstance(effect, RecallTask):
                self.recalls.append(effect)

    def some(self, values: Sequence[Any], most: int) -> list[Any]:
        """Up to `most` of the values, each at most once."""
        return list(dict.fromkeys(self.choose(values) for _ in range(self.choose(range(most + 1))))) if values else []

    # ---- clients ----------------------------------------------------------------------------------------------------

    def task_id(self, client: int, counter: int) -> TaskId:
        return make_task_id(client, counter) if self.native else f"task-{client}-{counter}"

    def new_id(self, client: int) -> TaskId:
        self.counters[client] += self.choose([1, 1, 1, 2])
        return self.task_id(client, self.counters[client])

    def any_id(self) -> TaskId:
        """Mostly one of the last ids submitted, sometimes any of them, rarely one that was not submitted."""
        if not self.submitted or self.choose(range(25)) == 24:
            client = self.choose([*CLIENTS, UNKNOWN_CLIENT])
            return self.task_id(client, self.counters[client] + 2)
        return self.choose(self.submitted[-8:] if self.choose(range(5)) != 4 else self.submitted)

    def submit(self, client: ClientId, task: TaskId, spec: TaskSpec) -> None:
        self.submitted.append(task)
        self.happens(TaskSubmitted(client, task, f"payload of {task}", spec))

    def plain_tasks(self) -> None:
        choose, client = self.choose, self.choose(CLIENTS)
        for _ in range(choose([1, 1, 2, 4])):
            self.submit(client, self.new_id(client), TaskSpec(priority=choose([0, 0, 0, 1, -1])))

    def careful_task(self) -> None:
        """A task with options and without dependencies."""
        client = self.choose(CLIENTS)
        self.submit(client, self.new_id(client), TaskSpec(**self.asks()))

    def dependent_task(self) -> None:
        choose, client = self.choose, self.choose(CLIENTS)
        task = self.new_id(client)
        named = {name: tuple(dict.fromkeys(self.any_id() for _ in range(choose([0, 0, 1, 2, 3])))) for name in "afi"}
        if choose(range(25)) == 24:
            named[choose("afi")] += (task,)
        asks = self.asks() if choose([NO, YES]) else {}
        if named["a"]:
            asks["after"] = Dependency(named["a"], choose([YES, YES, NO]), *choose(COUNTING))
        if named["f"]:
            asks["follow"] = Dependency(named["f"], choose([YES, NO]), *choose(COUNTING))
        self.submit(client, task, TaskSpec(inputs=named["i"] if choose([YES, NO]) else (), **asks))

    def asks(self) -> dict[str, Any]:
        choose = self.choose
        asks: dict[str, Any] = {
            "resources": ASKED,
            "priority": [0, 0, 1],
            "kind": ["", "other"],
            "retries": [0, 0, 1, 3],
            "timeout_s": [None, None, 0.5, 1.0, 3.0],
            "backoff_s": [0.0, 0.0, 0.5, 2.0],
            "same_engine": [True, False],
            "crash_limit": [1, 0, None] if self.fragile else [3, 3, 1, 0, None],
        }
        asks = {name: choose(values) for name, values in asks.items()}
        if choose([NO, NO, NO, YES]):
            asks["targets"] = frozenset(self.some([*self.joined[-5:], "nobody"], 3))
        return asks

    def submission_again(self) -> None:
        """Submit an id again, mostly from the same session."""
        if self.submitted:
            task = self.choose(self.submitted[-20:])
            own = session_of(task) if is_native(task) else int(task.split("-")[1])
            client = own if self.choose(range(5)) != 4 else self.choose([*CLIENTS, UNKNOWN_CLIENT])
            self.happens(TaskSubmitted(client, task, "again"))

    def cancel(self) -> None:
        self.happens(CancelRequested(self.any_id(), self.choose([None, None, *CLIENTS])))

    def results_received(self) -> None:
        tasks = [self.any_id() for _ in range(self.choose([1, 3, 6]))]
        for client in CLIENTS:
            self.happens(ResultsReceived(client, tuple(tasks)))

    def client_pauses(self) -> None:
        """Pause a client, mostly one that is open."""
        self.happens(ClientPaused(self.choose([*CLIENTS, *CLIENTS, UNKNOWN_CLIENT]), "it reads nothing"))

    def client_resumes(self) -> None:
        self.happens(ClientResumed(self.choose([*CLIENTS, *CLIENTS, UNKNOWN_CLIENT])))

    # ---- engines ----------------------------------------------------------------------------------------------------

    def engine_joins(self) -> None:
        choose = self.choose
        if len(self.naive.engines) < MOST_ENGINES:
            engine = len(self.joined)
            self.joined.append(engine)
            slots, offers = (2, RICH) if self.rich else (choose([1, 1, 2]), choose(OFFERED))
            kind = choose(["", "", "", "other"])
            self.happens(EngineJoined(engine, slots, choose([None, None, None, 0, 1, 3]), offers, kind))

    def engines_answer(self) -> None:
        """Answer some open assignments, mostly the first of an engine."""
        for _ in range(self.choose([1, 1, 2, 4])):
            if self.open:
                a = self.choose(self.open)
                if self.choose(range(4)) != 3:
                    a = next(other for other in self.open if other.engine == a.engine)
                self.close(a)
                kind = self.choose(["ok", "ok", "ok", "error", "error", "unmet", "cancelled"])
                self.answer(kind, a.engine, a.task, self.choose([a.attempt, a.attempt, None]))

    def close(self, a: AssignTask) -> None:
        self.open.remove(a)
        self.answered.append(a)

    def answer(self, kind: str, engine: EngineId, task: TaskId, attempt: int | None) -> None:
        if kind == "unmet":
            self.happens(DependencyUnmet(engine, task, "", attempt))
        elif kind in ("recalled", "kept"):
            self.happens(RecallAnswered(engine, task, kind == "recalled", attempt))
        else:
            self.happens(TaskFinished(engine, task, kind, f"{kind} of {task}", "", attempt))  # type: ignore[arg-type]

    def answer_out_of_turn(self) -> None:
        """Answer a second time, or for any task from any engine."""
        kind = self.choose(["ok", "error", "unmet", "recalled", "kept"])
        if self.answered and self.choose([YES, NO]):
            a = self.choose(self.answered[-10:])
            self.answer(kind, a.engine, a.task, self.choose([a.attempt, None]))
        else:
            self.answer(kind, self.choose([*self.joined[-5:], "nobody"]), self.any_id(), self.choose([None, 0, 1, 2]))

    def recalls_answered(self) -> None:
        for _ in range(self.choose([1, 2])):
            if self.recalls:
                r = self.choose(self.recalls)
                self.recalls.remove(r)
                kind = self.choose(["recalled", "recalled", "kept"])
                for a in [a for a in self.open if (a.engine, a.task, a.attempt) == (r.engine, r.task, r.attempt)]:
                    if kind == "recalled":
                        self.close(a)
                self.answer(kind, r.engine, r.task, r.attempt)

    def held_by(self, engine: EngineId) -> list[TaskId]:
        return [a.task for a in self.open if a.engine == engine]

    def engine_lost(self) -> None:
        if self.joined:
            here = [engine.id for engine in self.naive.engines]
            engine = self.choose(here if here and self.choose(range(8)) != 7 else self.joined[-6:])
            running = tuple(self.some(self.held_by(engine), 2)) if self.choose([YES, NO]) else None
            self.happens(EngineLost(engine, "gone", self.choose([NO, NO, YES]), running))

    def engine_returns(self) -> None:
        lost = [engine.id for engine in self.naive.engines if engine.lost_until is not None]
        if self.joined:
            engine = self.choose(lost if lost and self.choose(range(8)) != 7 else self.joined[-6:])
            held = self.held_by(engine)
            self.happens(EngineReturned(engine, frozenset(self.some([*held, "nothing"], len(held)))))

    def rare_event(self) -> None:
        """Emit a rare or an invalid event."""
        what = self.choose(["drain", "drain", "engine again", "client again", "leave", "drain all", "back"])
        if not self.joined:
            return
        if what == "drain":
            self.happens(DrainRequested(self.choose([*self.joined[-6:], "nobody"])))
        elif what == "drain all" and self.choose(range(6)) == 5:
            self.happens(DrainRequested(None))
        elif what == "engine again":
            here = [engine.id for engine in self.naive.engines]  # a removed engine joins with a new id
            if here:
                self.happens(EngineJoined(self.choose(here), 3, 0))
        elif what == "client again":
            client = self.choose(CLIENTS)
            if self.naive.find_client(client) is not None:
                self.happens(ClientJoined(client, 7.0))
        elif what == "back":
            gone = [client for client in CLIENTS if self.naive.find_client(client) is None]
            if gone:
                self.happens(ClientJoined(self.choose(gone), 1.0))
        elif what == "leave" and self.choose(range(4)) == 3:
            self.happens(ClientLeft(self.choose([*CLIENTS, UNKNOWN_CLIENT]), self.choose([NO, YES])))

    # ---- time -------------------------------------------------------------------------------------------------------

    def time_passes(self) -> None:
        """Advance the clock, mostly with a `TimePassed`; perhaps nothing is due."""
        self.now += self.choose([0.0, 0.5, 0.5, 1.0, 2.0])
        if self.choose([YES, YES, NO]):
            self.happens(TimePassed())

    def auditor_wakes(self) -> None:
        """Advance the clock to the next deadline exactly; no deadline up to it remains."""
        deadline = self.scheduler.next_deadline()
        if deadline is not None:
            self.now = max(self.now, deadline)
            self.happens(TimePassed())
            after = self.scheduler.next_deadline()
            assert after is None or after > self.now, "a deadline stays behind"


def published(effects: Sequence[Effect]) -> list[tuple[Any, ...]]:
    """The `Publish` effects, each with its position."""
    return [(place, e.what, e.task, e.engine, e.outcome) for place, e in enumerate(effects) if isinstance(e, Publish)]


#: The actions, with their relative frequency.
ACTIONS: dict[str, int] = {
    "plain_tasks": 5,
    "careful_task": 5,
    "dependent_task": 8,
    "submission_again": 1,
    "cancel": 2,
    "results_received": 2,
    "client_pauses": 1,
    "client_resumes": 2,
    "engine_joins": 2,
    "engines_answer": 12,
    "answer_out_of_turn": 1,
    "recalls_answered": 2,
    "engine_lost": 2,
    "engine_returns": 2,
    "rare_event": 1,
    "time_passes": 3,
    "auditor_wakes": 3,
}
