"""R33: an exception anywhere in the core ends what the event was about, and nothing else.

A trace function raises exceptions at random lines of the core, during random events. After each one the invariants
hold, and in the end every accepted submission has exactly one end.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from trio_sched.core import invariants, recovery
from trio_sched.core.effects import (
    Accept,
    AssignTask,
    DeliverResult,
    Effect,
    ForgetEngine,
    ForgetSession,
    RecallTask,
    Refuse,
)
from trio_sched.core.events import (
    DEFAULT_SPEC,
    CancelRequested,
    ClientJoined,
    ClientLeft,
    ClientPaused,
    Dependency,
    DrainRequested,
    EngineJoined,
    EngineLost,
    EngineReturned,
    Event,
    RecallAnswered,
    ResultsReceived,
    TaskFinished,
    TaskSpec,
    TaskSubmitted,
    TimePassed,
)
from trio_sched.core.ids import TaskId, make_task_id, session_of
from trio_sched.core.scheduler import Scheduler, Settings

CORE = str(Path(recovery.__file__).parent)
RECOVERY = recovery.__file__


class Fault(RuntimeError):
    """An exception that the core does not expect."""


class Faults:
    """Raises a Fault at the n-th line of the core that runs."""

    def __init__(self, line: int) -> None:
        self.left = line
        self.raised_at = ""

    def __enter__(self) -> Faults:
        sys.settrace(self._call)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        name = frame.f_code.co_filename
        return self._line if name.startswith(CORE) and name != RECOVERY else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and not self.raised_at:
            self.left -= 1
            if self.left <= 0:
                self.raised_at = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
                sys.settrace(None)
                raise Fault(self.raised_at)
        return self._line


class FaultyRun:
    """Random events of clients and engines, some of which raise a fault in the core."""

    def __init__(self, rng: random.Random, fault_every: int) -> None:
        self.rng = rng
        self.fault_every = fault_every
        settings = Settings(
            scheme=rng.choice(["leastload", "lru", "twobin"]),
            hwm=rng.choice([1, 2, 10]),
            grace_s=rng.choice([0.0, 2.0]),
            keep_finished=rng.choice([0, 2, 1000]),
        )
        self.scheduler = Scheduler(settings, random.Random(1))
        self.scheduler.monitored = rng.random() < 0.3
        self.now = 1.0
        self.counter = 0
        self.engine_number = 0
        self.accepted: Counter[TaskId] = Counter()
        self.refused: Counter[TaskId] = Counter()
        self.ends: Counter[TaskId] = Counter()
        self.submitted: list[int] = []
        self.held: dict[tuple[Any, TaskId], AssignTask] = {}
        self.recalls: list[RecallTask] = []
        self.faults: Counter[str] = Counter()
        self.blamed = 0
        self.clients: list[int] = []
        self.left: set[int] = set()
        self.client_number = 0
        self.known: set[tuple[str, Any]] = set()
        for _ in range(2):
            self.client_joins()
        for _ in range(2):
            self.engine_joins()

    def happens(self, event: Event) -> list[Effect]:
        where = ""
        if self.fault_every and self.rng.randrange(self.fault_every) == 0:
            line = self.rng.choice([self.rng.randint(1, 12), self.rng.randint(1, 40), self.rng.randint(1, 120)])
            try:
                with Faults(line) as faults:
                    effects = self.scheduler.handle(event, self.now)
            except Fault as fault:
                where = f"{type(event).__name__} {faults.raised_at}"
                self.faults[type(event).__name__] += 1
                recovered = recovery.recover(self.scheduler, event, fault, self.now)
                assert len(recovered.errors) == 1, (where, recovered.errors[1:])
                assert not recovered.was_reset
                effects = recovered.effects
        else:
            effects = self.scheduler.handle(event, self.now)
        try:
            invariants.check(self.scheduler)
            self.track(effects)
            self.check_forgotten(event, effects)
            if isinstance(event, TaskSubmitted):
                answers = [e for e in effects if isinstance(e, (Accept, Refuse)) and e.task == event.task]
                assert len(answers) == 1, answers
        except AssertionError as error:
            error.add_note(f"after {where}")
            raise
        return effects

    def check_forgotten(self, event: Event, effects: list[Effect]) -> None:
        """Engines and sessions without a record in the core were forgotten, once, by an effect."""
        if isinstance(event, EngineJoined):
            self.known.add(("engine", event.engine))
        elif isinstance(event, ClientJoined):
            self.known.add(("session", event.client))
        for effect in effects:
            if isinstance(effect, ForgetEngine):
                self.known.remove(("engine", effect.engine))
            elif isinstance(effect, ForgetSession):
                self.known.remove(("session", effect.client))
        engines = {("engine", engine) for engine in self.scheduler.engines}
        unfinished = {task.client.id for task in self.scheduler.tasks.values()}
        sessions = {("session", client) for client in [*self.scheduler.clients, *unfinished]}
        assert self.known == engines | sessions, (self.known, engines | sessions)

    def track(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Accept):
                self.accepted[effect.task] += 1
            elif isinstance(effect, Refuse):
                self.refused[effect.task] += 1
            elif isinstance(effect, DeliverResult):
                self.ends[effect.task] += 1
                self.blamed += effect.error == recovery.ERROR
                assert self.ends[effect.task] <= self.accepted[effect.task], effect
            elif isinstance(effect, AssignTask):
                self.held[effect.engine, effect.task] = effect
            elif isinstance(effect, RecallTask):
                self.recalls.append(effect)

    def submit(self) -> None:
        rng = self.rng
        client = rng.choice(self.clients)
        self.counter += 1
        task = make_task_id(client, self.counter)
        asks: dict[str, Any] = {}
        if self.submitted and rng.random() < 0.5:
            named = tuple(dict.fromkeys(rng.choice(self.submitted[-6:]) for _ in range(rng.randint(1, 3))))
            flags = (rng.random() < 0.6, *rng.choice([(True, False), (True, True), (False, True)]))
            what = rng.choice(["after", "follow", "inputs"])
            asks[what] = named if what == "inputs" else Dependency(named, *flags)
        if rng.random() < 0.3:
            asks |= {"retries": rng.randint(1, 2), "backoff_s": rng.choice([0.0, 1.0])}
        if rng.random() < 0.2:
            asks["timeout_s"] = 2.0
        if rng.random() < 0.2:
            asks["targets"] = frozenset([rng.randint(1, self.engine_number)])
        if rng.random() < 0.2:
            asks["resources"] = (("gpu", 1.0),)
        if rng.random() < 0.2:
            asks["priority"] = 1
        self.submitted.append(task)
        self.happens(TaskSubmitted(client, task, object(), TaskSpec(**asks) if asks else DEFAULT_SPEC))

    def answer(self) -> None:
        if self.held:
            (engine, task), assigned = self.rng.choice(list(self.held.items()))
            del self.held[engine, task]
            outcome = self.rng.choice(["ok", "ok", "ok", "error"])
            self.happens(TaskFinished(engine, task, outcome, "result", "", assigned.attempt))  # type: ignore[arg-type]

    def recall(self) -> None:
        recalls, self.recalls = self.recalls, []
        for recall in recalls:
            held = self.held.pop((recall.engine, recall.task), None)
            if held is not None:
                self.happens(RecallAnswered(recall.engine, recall.task, True, held.attempt))

    def cancel(self) -> None:
        if self.submitted:
            self.happens(CancelRequested(self.rng.choice(self.submitted[-10:])))

    def received(self) -> None:
        ended = [task for task in self.submitted if self.ends[task]]
        if ended:
            task = self.rng.choice(ended)
            self.happens(ResultsReceived(session_of(task), (task,)))

    def client_joins(self) -> None:
        self.client_number += 1
        self.happens(ClientJoined(self.client_number, self.rng.choice([1.0, 2.0])))
        self.clients.append(self.client_number)

    def client_leaves(self) -> None:
        if self.rng.random() < 0.5:
            self.client_joins()
            client = self.clients.pop(0)
            if self.rng.random() < 0.3:
                self.happens(ClientPaused(client))
            self.left.add(client)
            self.happens(ClientLeft(client, self.rng.random() < 0.5))

    def engine_joins(self) -> None:
        self.engine_number += 1
        offers = self.rng.choice([(), (("gpu", 2.0),)])
        self.happens(EngineJoined(self.engine_number, self.rng.choice([1, 2]), None, offers))

    def engine_lost(self) -> None:
        if self.scheduler.engines:
            engine = self.rng.choice(list(self.scheduler.engines))
            confirmed = self.rng.random() < 0.5
            if confirmed:
                self.held = {key: value for key, value in self.held.items() if key[0] != engine}
            self.happens(EngineLost(engine, "gone", confirmed))

    def engine_returns(self) -> None:
        lost = [engine for engine in self.scheduler.engines.values() if engine.lost_until]
        if lost:
            engine = self.rng.choice(lost).id
            self.happens(EngineReturned(engine, frozenset(task for holder, task in self.held if holder == engine)))

    def drain(self) -> None:
        if self.scheduler.engines and self.rng.random() < 0.3:
            self.happens(DrainRequested(self.rng.choice(list(self.scheduler.engines))))

    def time_passes(self) -> None:
        self.now += self.rng.choice([0.0, 0.5, 2.0])
        self.happens(TimePassed())

    def settle(self) -> None:
        """Without further faults, everything ends."""
        self.fault_every = 0
        self.happens(EngineJoined("last", 100, 0, (("gpu", 100.0),)))
        for engine in list(self.scheduler.engines):
            if engine != "last":
                self.held = {key: value for key, value in self.held.items() if key[0] != engine}
                self.happens(EngineLost(engine, "gone", True))
        for _ in range(200):
            if not self.scheduler.tasks:
                break
            self.recall()
            for (engine, task), assigned in list(self.held.items()):
                del self.held[engine, task]
                self.happens(TaskFinished(engine, task, "ok", "result", "", assigned.attempt))
            self.now += 2.0
            self.happens(TimePassed())
        assert not self.scheduler.tasks
        assert self.blamed <= self.faults.total()
        for task in self.submitted:
            assert self.accepted[task] + self.refused[task] == 1, task
            if session_of(task) not in self.left:
                assert self.ends[task] == self.accepted[task], task


ACTIONS: list[tuple[int, Callable[[FaultyRun], None]]] = [
    (10, FaultyRun.submit),
    (10, FaultyRun.answer),
    (3, FaultyRun.recall),
    (1, FaultyRun.cancel),
    (2, FaultyRun.received),
    (1, FaultyRun.client_leaves),
    (1, FaultyRun.engine_joins),
    (1, FaultyRun.engine_lost),
    (2, FaultyRun.engine_returns),
    (1, FaultyRun.drain),
    (3, FaultyRun.time_passes),
]


@pytest.mark.parametrize("block", range(4))
def test_r33_a_fault_at_any_line_of_the_core_is_survived(block: int) -> None:
    faults: Counter[str] = Counter()
    for seed in range(block, 120, 4):
        rng = random.Random(seed)
        run = FaultyRun(rng, fault_every=4)
        try:
            for action in rng.choices([a for _, a in ACTIONS], [w for w, _ in ACTIONS], k=120):
                action(run)
            run.settle()
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        faults += run.faults
    assert faults.total() > 100, faults
