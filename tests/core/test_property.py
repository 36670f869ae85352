"""The fast core against the naive model: random events, and after each one the same effects from both.

The state machine plays the outside world. It knows what a front knows (which assignments and recalls are open) so that
most of its events are sensible, and makes enough of those that are not: late, doubled and wrong answers, unknown ids,
engines that join twice. `HYPOTHESIS_PROFILE=long` tries for minutes.
"""

from __future__ import annotations

import random
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from numpy.random import default_rng

from trio_sched.core import invariants
from trio_sched.core.effects import AssignTask, Effect, Publish, RecallTask
from trio_sched.core.events import (
    SESSION_SHIFT,
    CancelRequested,
    ClientJoined,
    ClientLeft,
    Dependency,
    DependencyUnmet,
    DrainRequested,
    EngineId,
    EngineJoined,
    EngineLost,
    EngineReturned,
    Event,
    RecallAnswered,
    ResultsReceived,
    TaskFinished,
    TaskId,
    TaskSpec,
    TaskSubmitted,
    TimePassed,
)
from trio_sched.core.scheduler import Scheduler, Settings

from .naive import Naive, without_words

SCHEMES = ("leastload", "leastload", "leastload", "lru", "lru", "twobin", "weighted", "plainrandom", "pure")
CLIENTS = 3
index = st.integers(0, 1000)
"""Picks one of a list whose length the strategy does not know: `pick(list, index)`."""
seconds = st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0])
resources = st.sampled_from([(), (), (), (("gpu", 1.0),), (("gpu", 2.0),), (("gpu", 1.0), ("mem", 0.5))])
flags = st.sampled_from([(True, False), (True, False), (True, True), (False, True), (False, False)])


def pick(things: list[Any], at: int) -> Any:
    return things[at % len(things)]


class Rules(RuleBasedStateMachine):
    """Two schedulers, one outside world."""

    @initialize(
        scheme=st.sampled_from(SCHEMES),
        hwm=st.sampled_from([0, 1, 1, 2, 3]),
        keep_finished=st.sampled_from([0, 1, 3, 1000]),
        seed=st.integers(0, 3),
        monitored=st.booleans(),
        weights=st.lists(st.sampled_from([1.0, 1.0, 2.0, 0.5, 3.0]), min_size=CLIENTS, max_size=CLIENTS),
        engines=st.integers(0, 3),
        native=st.sampled_from([True, True, False]),
    )
    def begin(
        self,
        scheme: str,
        hwm: int,
        keep_finished: int,
        seed: int,
        monitored: bool,
        weights: list[float],
        engines: int,
        native: bool,
    ) -> None:
        settings = Settings(scheme=scheme, hwm=hwm, grace_s=2.0, keep_finished=keep_finished)
        self.scheduler = Scheduler(settings, random.Random(seed), default_rng(seed))
        self.naive = Naive(settings)
        self.scheduler.monitored = self.naive.monitored = monitored
        self.asks_allowed = scheme != "pure" or seed == 0  # mostly not, or little else would happen
        self.random = scheme in ("plainrandom", "twobin", "weighted")
        self.native = native
        self.now = 100.0
        self.counters = dict.fromkeys(range(1, CLIENTS + 1), 0)
        self.submitted: list[TaskId] = []
        self.joined: list[EngineId] = []
        self.open: list[AssignTask] = []  # not answered yet, as far as the outside knows
        self.answered: list[AssignTask] = []
        self.recalls: list[RecallTask] = []
        for client, weight in enumerate(weights, start=1):
            self.happens(ClientJoined(client, weight))
        for _ in range(engines):
            self.engine_joins()

    def happens(self, event: Event) -> None:
        """Both handle the event; both do the same."""
        real = self.scheduler.handle(event, self.now)
        naive = self.naive.handle(event, self.now, real if self.random else ())
        assert without_words(real) == without_words(naive), event
        assert published(real) == published(naive), event
        deadline, earliest = self.scheduler.next_deadline(), self.naive.next_deadline()
        assert earliest is None or (deadline is not None and deadline <= earliest), event
        invariants.check(self.scheduler)
        for effect in real:
            if isinstance(effect, AssignTask):
                self.open = [a for a in self.open if (a.engine, a.task) != (effect.engine, effect.task)]
                self.open.append(effect)
            elif isinstance(effect, RecallTask):
                self.recalls.append(effect)

    # ---- clients ----------------------------------------------------------------------------------------------------

    def new_id(self, client: int, skip: int = 0) -> TaskId:
        self.counters[client] += 1 + skip
        number = client << SESSION_SHIFT | self.counters[client]
        return number if self.native else f"task-{client}-{self.counters[client]}"

    def known_or_not(self, at: int) -> TaskId:
        """Mostly an id that was submitted, sometimes one that was not (yet)."""
        if not self.submitted or at % 25 == 24:
            client = 1 + at % CLIENTS
            number = self.counters[client] + 2
            return client << SESSION_SHIFT | number if self.native else f"task-{client}-{number}"
        return self.submitted[-1 - (at // 25) % min(len(self.submitted), 8)]

    def submit(self, client: int, task: TaskId, spec: TaskSpec) -> None:
        self.submitted.append(task)
        self.happens(TaskSubmitted(client, task, f"payload of {task}", spec))

    @rule(
        client=st.integers(1, CLIENTS),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        skip=st.sampled_from([0, 0, 0, 1]),
        asks=resources,
    )
    def plain_task(self, client: int, priority: int, skip: int, asks: tuple[tuple[str, float], ...]) -> None:
        asks = asks if self.asks_allowed else ()
        self.submit(client, self.new_id(client, skip), TaskSpec(priority=priority, resources=asks))

    @rule(client=st.integers(1, CLIENTS), count=st.integers(2, 6), priority=st.sampled_from([0, 0, 1]))
    def plain_tasks(self, client: int, count: int, priority: int) -> None:
        for _ in range(count):
            self.plain_task(client, priority, 0, ())

    @rule(
        client=st.integers(1, CLIENTS),
        retries=st.sampled_from([0, 1, 3]),
        timeout_s=st.sampled_from([None, 0.0, 0.5, 1.0, 3.0]),
        backoff_s=st.sampled_from([0.0, 0.0, 0.5, 2.0]),
        same_engine=st.booleans(),
        crash_limit=st.sampled_from([3, 0, None, 1]),
        only=st.one_of(st.none(), st.none(), st.sets(index, max_size=2)),
    )
    @precondition(lambda self: self.asks_allowed)
    def careful_task(
        self,
        client: int,
        retries: int,
        timeout_s: float | None,
        backoff_s: float,
        same_engine: bool,
        crash_limit: int | None,
        only: set[int] | None,
    ) -> None:
        """A task for which something is asked, but which depends on nothing."""
        spec = TaskSpec(
            retries=retries,
            timeout_s=timeout_s,
            backoff_s=backoff_s,
            same_engine=same_engine,
            crash_limit=crash_limit,
            targets=self.targets(only),
        )
        self.submit(client, self.new_id(client), spec)

    @rule(
        client=st.integers(1, CLIENTS),
        after=st.lists(index, max_size=3),
        follow=st.lists(index, max_size=2),
        inputs=st.lists(index, max_size=2),
        after_all=st.booleans(),
        follow_all=st.booleans(),
        after_flags=flags,
        follow_flags=flags,
        own=st.sampled_from([None] * 20 + ["after", "follow", "inputs"]),
        data=st.data(),
    )
    @precondition(lambda self: self.asks_allowed)
    def dependent_task(
        self,
        client: int,
        after: list[int],
        follow: list[int],
        inputs: list[int],
        after_all: bool,
        follow_all: bool,
        after_flags: tuple[bool, bool],
        follow_flags: tuple[bool, bool],
        own: str | None,
        data: st.DataObject,
    ) -> None:
        task = self.new_id(client)
        names = {"after": after, "follow": follow, "inputs": inputs}
        ids = {name: list(dict.fromkeys(self.known_or_not(at) for at in ats)) for name, ats in names.items()}
        if own is not None:
            ids[own].append(task)
        spec = TaskSpec(
            after=Dependency(tuple(ids["after"]), after_all, *after_flags) if after else None,
            follow=Dependency(tuple(ids["follow"]), follow_all, *follow_flags) if follow else None,
            inputs=tuple(ids["inputs"]),
            targets=self.targets(data.draw(st.one_of(st.none(), st.none(), st.none(), st.sets(index, max_size=3)))),
            resources=data.draw(resources),
            priority=data.draw(st.sampled_from([0, 0, 1])),
            retries=data.draw(st.sampled_from([0, 0, 1])),
            timeout_s=data.draw(st.sampled_from([None, None, 1.0])),
            same_engine=data.draw(st.booleans()),
        )
        self.submit(client, task, spec)

    def targets(self, chosen: set[int] | None) -> frozenset[EngineId] | None:
        """Engines that joined once, or one that never did."""
        if chosen is None:
            return None
        return frozenset(pick(self.joined, at) if self.joined and at % 10 != 9 else 999 for at in chosen)

    @rule(at=index, client=st.one_of(st.none(), st.integers(1, CLIENTS + 1)))
    @precondition(lambda self: self.submitted)
    def submission_again(self, at: int, client: int | None) -> None:
        """The same id, mostly from the same session."""
        task = pick(self.submitted, -1 - at)
        own = task >> SESSION_SHIFT if isinstance(task, int) else int(task.split("-")[1])
        self.happens(TaskSubmitted(own if client is None else client, task, "again"))

    @rule(at=index, client=st.one_of(st.none(), st.integers(1, CLIENTS)))
    def cancel(self, at: int, client: int | None) -> None:
        task = self.known_or_not(at)
        self.happens(CancelRequested(task, client))

    @rule(client=st.integers(1, CLIENTS), ats=st.lists(index, max_size=5))
    def results_received(self, client: int, ats: list[int]) -> None:
        self.happens(ResultsReceived(client, tuple(self.known_or_not(at) for at in ats)))

    # ---- engines ----------------------------------------------------------------------------------------------------

    @rule(
        slots=st.sampled_from([1, 1, 2]),
        hwm=st.sampled_from([None, None, None, 0, 1, 3]),
        offers=st.sampled_from([(), (("gpu", 1.0),), (("gpu", 2.0), ("mem", 1.0)), (("mem", 2.0),)]),
    )
    @precondition(lambda self: len(self.naive.engines) < 5)
    def engine_joins(
        self, slots: int = 1, hwm: int | None = None, offers: tuple[tuple[str, float], ...] = (("gpu", 1.0),)
    ) -> None:
        engine = len(self.joined)
        self.joined.append(engine)
        self.happens(EngineJoined(engine, slots, hwm, offers))

    def answering(self, at: int) -> AssignTask:
        """An open assignment, in most cases the first of its engine."""
        chosen = pick(self.open, at)
        if at % 4 != 3:
            chosen = next(a for a in self.open if a.engine == chosen.engine)
        self.open.remove(chosen)
        self.answered.append(chosen)
        return chosen

    @rule(at=index)
    @precondition(lambda self: self.open)
    def task_succeeds(self, at: int) -> None:
        a = self.answering(at)
        self.happens(TaskFinished(a.engine, a.task, "ok", f"result of {a.task}", attempt=a.attempt))

    @rule(ats=st.lists(index, min_size=1, max_size=6))
    @precondition(lambda self: self.open)
    def tasks_succeed(self, ats: list[int]) -> None:
        for at in ats:
            if self.open:
                self.task_succeeds(at)

    @rule(at=index, outcome=st.sampled_from(["error", "error", "ok", "cancelled"]), attempt=st.booleans())
    @precondition(lambda self: self.open)
    def task_ends(self, at: int, outcome: Any, attempt: bool) -> None:
        a = self.answering(at)
        result = f"{outcome} of {a.task}"
        self.happens(TaskFinished(a.engine, a.task, outcome, result, "", a.attempt if attempt else None))

    @rule(at=index)
    @precondition(lambda self: self.open)
    def task_declined(self, at: int) -> None:
        a = self.answering(at)
        self.happens(DependencyUnmet(a.engine, a.task, "no such file", a.attempt))

    @rule(at=index, recalled=st.booleans())
    @precondition(lambda self: self.recalls)
    def recall_answered(self, at: int, recalled: bool) -> None:
        r = self.recalls.pop(at % len(self.recalls))
        mine = [a for a in self.open if (a.engine, a.task, a.attempt) == (r.engine, r.task, r.attempt)]
        if recalled:
            self.open = [a for a in self.open if a not in mine]
            self.answered += mine
        self.happens(RecallAnswered(r.engine, r.task, recalled, r.attempt))

    @rule(at=index, confirmed=st.booleans(), running=st.one_of(st.none(), st.lists(index, max_size=2)))
    @precondition(lambda self: self.joined)
    def engine_lost(self, at: int, confirmed: bool, running: list[int] | None) -> None:
        engine = pick(self.joined, -1 - at)
        held = [a.task for a in self.open if a.engine == engine] or [0]
        names = None if running is None else tuple(pick(held, n) for n in running)
        self.happens(EngineLost(engine, "gone", confirmed, names))

    @rule(at=index, holding=st.lists(index, max_size=3))
    @precondition(lambda self: self.joined)
    def engine_returns(self, at: int, holding: list[int]) -> None:
        lost = [engine.id for engine in self.naive.engines if engine.gone_at is not None]
        engine = pick(lost, at) if lost and at % 8 != 7 else pick(self.joined, at)
        held = [a.task for a in self.open if a.engine == engine] or [0]
        self.happens(EngineReturned(engine, frozenset(pick(held, n) for n in holding)))

    # ---- what happens seldom, and what should not ---------------------------------------------------------------------

    @rule(
        what=st.sampled_from(["drain", "drain all", "client leaves", "engine rejoins", "client rejoins"]),
        at=index,
        sure=st.integers(0, 3),
        cancel=st.booleans(),
    )
    @precondition(lambda self: self.joined)
    def seldom(self, what: str, at: int, sure: int, cancel: bool) -> None:
        client = 1 + at % (CLIENTS + 1)
        if what == "engine rejoins":
            self.happens(EngineJoined(pick(self.joined, at), 3, 0))
        elif what == "client rejoins" and self.naive.find_client(client) is not None:
            self.happens(ClientJoined(client, 7.0))
        elif what == "drain" and sure:
            self.happens(DrainRequested(pick(self.joined, at)))
        elif what == "drain all" and sure == 3 and at % 4 == 3:
            self.happens(DrainRequested(None))
        elif what == "client leaves" and sure == 3:
            self.happens(ClientLeft(client, cancel))

    @rule(
        at=index,
        kind=st.sampled_from(["ok", "error", "unmet", "recalled", "kept"]),
        engine=st.one_of(st.none(), st.integers(0, 6)),
        attempt=st.sampled_from([None, 0, 1, 2, 3]),
    )
    def answer_out_of_turn(self, at: int, kind: str, engine: EngineId | None, attempt: int | None) -> None:
        """An engine answers a second time, or for a task that need not be its own."""
        if engine is None and self.answered:
            a = pick(self.answered, -1 - at)
            self.happens(answer(kind, a.engine, a.task, a.attempt if attempt else None))
        else:
            self.happens(answer(kind, engine or 0, self.known_or_not(at), attempt))

    # ---- time -------------------------------------------------------------------------------------------------------

    @rule(by=seconds)
    def time_passes(self, by: float) -> None:
        """The clock goes on, and whoever looks at it tells; perhaps nothing is due."""
        self.now += by
        self.happens(TimePassed())

    @rule(by=seconds)
    def time_passes_unseen(self, by: float) -> None:
        self.now += by

    @rule()
    def auditor_wakes(self) -> None:
        """At the next deadline exactly. What was due is done: no deadline stays behind."""
        deadline = self.scheduler.next_deadline()
        if deadline is not None:
            self.now = max(self.now, deadline)
            self.happens(TimePassed())
            after = self.scheduler.next_deadline()
            assert after is None or after > self.now


def answer(kind: str, engine: EngineId, task: TaskId, attempt: int | None) -> Event:
    if kind == "unmet":
        return DependencyUnmet(engine, task, "", attempt)
    if kind in ("recalled", "kept"):
        return RecallAnswered(engine, task, kind == "recalled", attempt)
    return TaskFinished(engine, task, "ok" if kind == "ok" else "error", f"stray {kind}", "", attempt)


def published(effects: list[Effect]) -> list[tuple[Any, ...]]:
    """What monitors are told, in order."""
    return [(e.what, e.task, e.engine) for e in effects if isinstance(e, Publish)]


TestRules = Rules.TestCase
