"""A naive model of the scheduler: docs/rules.md, plainly and slowly, as the oracle for the core.

Rules:

- The model has a list of tasks and a list of engines, and answers each question by a walk over them. It has no queues,
  heaps or counts that must be kept consistent.
- Where the model and the core disagree, docs/rules.md decides which one is wrong.
- Schemes that draw at random cannot be computed twice. For them `handle` takes the effects of the core (`follow`),
  checks that each engine is one that the scheme may choose (R11), and makes the same choice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from trio_sched.core.effects import (
    Accept,
    AssignTask,
    DeliverResult,
    Effect,
    ForgetEngine,
    ForgetSession,
    Publish,
    RecallTask,
    Refuse,
)
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
from trio_sched.core.ids import ClientId, EngineId, TaskId, is_native, session_of

RANDOM_SCHEMES = frozenset({"plainrandom", "twobin", "weighted"})


@dataclass(eq=False)
class NaiveClient:
    id: ClientId
    weight: float
    number: int
    virtual_time: float = 0.0
    left: bool = False
    paused: bool = False


@dataclass(eq=False)
class NaiveEngine:
    id: EngineId
    slots: int
    capacity: float
    offers: dict[str, float]
    kind: str
    number: int
    tasks: list[NaiveTask] = field(default_factory=list)  # outstanding, in the order of assignment
    running: list[NaiveTask] = field(default_factory=list)  # those that hold their resources (R16)
    draining: bool = False
    lost_until: float | None = None  # while lost: the end of its grace period
    known_running: frozenset[TaskId] | None = None

    def free(self, name: str) -> float:
        return self.offers.get(name, 0.0) - sum(dict(task.spec.resources).get(name, 0.0) for task in self.running)

    def fits(self, spec: TaskSpec) -> bool:
        return self.kind == spec.kind and all(amount <= self.free(name) for name, amount in spec.resources)

    def could_fit(self, spec: TaskSpec) -> bool:
        return self.kind == spec.kind and all(amount <= self.offers.get(name, 0) for name, amount in spec.resources)


@dataclass(eq=False)
class NaiveTask:
    id: TaskId
    client: NaiveClient
    payload: Any
    spec: TaskSpec
    number: int
    retries_left: int
    deadline: float | None
    submissions: int = 1  # accepted ones
    state: str = "waiting"  # "waiting", "assigned", "ended"
    queued: bool = False  # in the ready queues
    engine: NaiveEngine | None = None
    attempt: int = 0
    failed_at: set[EngineId] = field(default_factory=set)
    declined_by: set[EngineId] = field(default_factory=set)
    ran_on: EngineId | None = None  # its last attempt that ran and ended
    crashes: int = 0
    backoff_until: float | None = None  # the end of its backoff
    delayed: bool = False  # only by the backoff; ends when time passes, not before
    recall: str = ""  # while assigned: "cancelling", "recalling"
    ends: dict[TaskId, tuple[str, EngineId | None]] = field(default_factory=dict)  # of its dependencies
    end: DeliverResult | None = None
    received: bool = False
    dropped: bool = False

    @property
    def depends_on(self) -> set[TaskId]:
        after, follow = self.spec.after or Dependency(), self.spec.follow or Dependency()
        return {*after.tasks, *follow.tasks, *self.spec.inputs}


class NaiveScheduler:
    """The rules of docs/rules.md. `monitored`, `handle` and `next_deadline` are like those of `Scheduler`."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.monitored = False
        self.draining = False
        self.now = 0.0
        self.clients: list[NaiveClient] = []
        self.engines: list[NaiveEngine] = []  # registered, in the order in which they joined
        self.engines_joined = 0
        self.by_last_use: list[NaiveEngine] = []  # least recently used first
        self.tasks: list[NaiveTask] = []  # in submission order
        self.ended: list[NaiveTask] = []  # in the order in which they ended
        self.seen: dict[int, int] = {}  # session -> highest counter
        self.submission_count = 0
        self.last_sent = 0.0
        self.last_in_turn: dict[str, int] = {}  # by kind
        self.to_settle: list[NaiveTask] = []
        self.effects: list[Effect] = []
        self.real_effects: list[Effect] = []

    def handle(self, event: Event, now: float, follow: Iterable[Effect] = ()) -> list[Effect]:
        """Handle an event; return its effects. `follow`: the effects of the core, for schemes that draw at random."""
        self.now, self.effects, self.real_effects = now, [], list(follow)
        getattr(self, HANDLERS[type(event)])(event)
        self.settle()
        self.send()
        self.drop_results()
        return self.effects

    def next_deadline(self) -> float | None:
        times = [engine.lost_until for engine in self.engines]
        times += [task.backoff_until for task in self.waiting() if task.delayed]
        times += [task.deadline for task in self.waiting()]
        return min((time for time in times if time is not None), default=None)

    # ---- queries ----------------------------------------------------------------------------------------------------

    def find(self, task: TaskId) -> NaiveTask | None:
        return next((t for t in self.tasks if t.id == task), None)

    def find_engine(self, engine: EngineId) -> NaiveEngine | None:
        return next((e for e in self.engines if e.id == engine), None)

    def find_client(self, client: ClientId) -> NaiveClient | None:
        return next((c for c in self.clients if c.id == client and not c.left), None)

    def waiting(self) -> list[NaiveTask]:
        return [task for task in self.tasks if task.state == "waiting"]

    def unfinished(self) -> list[NaiveTask]:
        return [task for task in self.tasks if task.state != "ended"]

    def needed(self, task: NaiveTask) -> bool:
        return any(task.id in other.spec.inputs for other in self.unfinished())

    # ---- dependencies (R2-R9) ---------------------------------------------------------------------------------------

    @staticmethod
    def counts(dependency: Dependency, outcome: str) -> bool:
        return dependency.success if outcome == "ok" else dependency.failure

    def met(self, task: NaiveTask, dependency: Dependency) -> bool:
        good = [name in task.ends and self.counts(dependency, task.ends[name][0]) for name in dependency.tasks]
        return not good or (all(good) if dependency.all else any(good))

    def is_impossible_dependency(self, task: NaiveTask, dependency: Dependency) -> bool:
        bad = [name in task.ends and not self.counts(dependency, task.ends[name][0]) for name in dependency.tasks]
        return bool(bad) and (any(bad) if dependency.all else all(bad))

    @staticmethod
    def by_results(task: NaiveTask) -> Dependency:
        return Dependency(tasks=task.spec.inputs)

    def places(self, task: NaiveTask) -> set[EngineId] | None:
        """The engines that `follow` allows by now; None: any."""
        follow = task.spec.follow
        if follow is None or not follow.tasks:
            return None
        ended = [task.ends[name] for name in follow.tasks if name in task.ends]
        if follow.all and len(ended) < len(follow.tasks):
            return set()
        return {engine for outcome, engine in ended if engine is not None and self.counts(follow, outcome)}

    def follow_broken(self, task: NaiveTask) -> bool:
        follow = task.spec.follow
        if follow is None or not follow.tasks:
            return False
        ended = [task.ends[name] for name in follow.tasks if name in task.ends]
        if follow.all and (
            any(not self.counts(follow, outcome) or engine is None for outcome, engine in ended)
            or len({engine for _, engine in ended}) > 1
        ):
            return True
        return len(ended) == len(follow.tasks) and not any(self.allows(task, engine) for engine in self.engines)

    def allows(self, task: NaiveTask, engine: NaiveEngine) -> bool:
        """Whether targets and `follow` allow the engine, and the task does not exclude it for good."""
        places, targets = self.places(task), task.spec.targets
        return (
            engine.id not in self.excluded_for_good(task)
            and (targets is None or engine.id in targets)
            and (places is None or engine.id in places)
        )

    @staticmethod
    def excluded_for_good(task: NaiveTask) -> set[EngineId]:
        return task.declined_by if task.spec.same_engine else task.declined_by | task.failed_at

    def no_target_left(self, task: NaiveTask) -> bool:
        gone = self.excluded_for_good(task)
        targets = task.spec.targets
        return targets is not None and not any(e.id in targets and e.id not in gone for e in self.engines)

    def impossible(self, task: NaiveTask) -> bool:
        after = task.spec.after or Dependency()
        return (
            self.is_impossible_dependency(task, after)
            or self.is_impossible_dependency(task, self.by_results(task))
            or self.follow_broken(task)
            or self.no_target_left(task)
        )

    def ready(self, task: NaiveTask) -> bool:
        after = task.spec.after or Dependency()
        places = self.places(task)
        return (
            task.state == "waiting"
            and self.met(task, after)
            and self.met(task, self.by_results(task))
            and (places is None or any(self.allows(task, engine) for engine in self.engines))
        )

    def invalid(self, task: NaiveTask) -> bool:
        """Whether a dependency is the task itself or not known, or an input whose result was dropped (R5, R9)."""
        if any(name == task.id or self.find(name) is None for name in task.depends_on):
            return True
        inputs = [self.find(name) for name in task.spec.inputs]
        return any(t.dropped and t.end.outcome == "ok" for t in inputs if t is not None and t.end is not None)

    # ---- the four steps ---------------------------------------------------------------------------------------------

    def update_place(self, task: NaiveTask) -> None:
        """End the task if it is impossible now, or make it ready or not ready."""
        if task.state == "waiting" and self.impossible(task):
            self.end(task, "unreachable", error="ImpossibleDependency")
        elif not self.ready(task):
            task.queued = task.delayed = False
        elif task.delayed or (task.backoff_until is not None and task.backoff_until > self.now):
            task.delayed = True
        elif not task.queued:
            self.make_ready(task)

    def settle(self) -> None:
        """The cascade, in the order of the ends (R4)."""
        while self.to_settle:
            ended = self.to_settle.pop(0)
            for task in self.unfinished():
                if ended.id in task.depends_on and ended.id not in task.ends:
                    task.ends[ended.id] = (ended.end.outcome, ended.end.engine)
                    self.update_place(task)

    def send(self) -> None:
        while self.send_one():
            pass

    def make_ready(self, task: NaiveTask) -> None:
        """Make a task ready; its client becomes active with its first ready task (R15)."""
        client = task.client
        if not client.paused and not any(t.queued and t.client is client for t in self.tasks):
            self.activate(client)
        task.queued = True

    def activate(self, client: NaiveClient) -> None:
        active = [t.client.virtual_time for t in self.waiting() if t.queued and not t.client.paused]
        client.virtual_time = max(client.virtual_time, min(active) if active else self.last_sent)

    # ---- dispatch (R10-R16) -----------------------------------------------------------------------------------------

    def send_one(self) -> bool:
        if self.draining:
            return False
        able = [(task, engines) for task in self.waiting() if task.queued and (engines := self.candidates(task))]
        if not able:
            return False
        task, engines = min(able, key=lambda pair: self.turn(pair[0]))
        self.assign(task, self.choose(task, engines))
        return True

    @staticmethod
    def turn(task: NaiveTask) -> tuple[float, float, int, int]:
        return (-task.spec.priority, task.client.virtual_time, task.client.number, task.number)

    def candidates(self, task: NaiveTask) -> list[NaiveEngine]:
        """The engines that may take the task, the least recently used first."""
        return [engine for engine in self.by_last_use if self.may_take(engine, task)]

    def may_take(self, engine: NaiveEngine, task: NaiveTask) -> bool:
        if task.client.paused or engine.draining or engine.lost_until is not None or not self.allows(task, engine):
            return False
        if engine.id in task.failed_at and not self.may_return(task):
            return False
        if self.settings.scheme == "pure":
            return engine.kind == task.spec.kind
        return len(engine.tasks) < engine.capacity and engine.fits(task.spec)

    def may_return(self, task: NaiveTask) -> bool:
        """Whether the task may return to engines where it failed: no other registered engine matches (R18)."""
        return task.spec.same_engine and not any(
            self.allows(task, engine) and engine.could_fit(task.spec) and engine.id not in task.failed_at
            for engine in self.engines
        )

    def choose(self, task: NaiveTask, engines: list[NaiveEngine]) -> NaiveEngine:
        scheme = self.settings.scheme
        if scheme == "leastload":
            return min(engines, key=lambda engine: len(engine.tasks))  # the first of several: the least recently used
        if scheme == "lru":
            return engines[0]
        if scheme == "pure":
            last = self.last_in_turn.get(task.spec.kind, -1)
            turn = sorted(engines, key=lambda engine: (engine.number <= last, engine.number))
            self.last_in_turn[task.spec.kind] = turn[0].number
            return turn[0]
        assert scheme in RANDOM_SCHEMES, scheme
        attempt = (task.id, task.attempt + 1)
        sent = [e.engine for e in self.real_effects if isinstance(e, AssignTask) and (e.task, e.attempt) == attempt]
        chosen = [engine for engine in engines if engine.id in sent]
        assert len(chosen) == 1, f"{task.id} may go to {[e.id for e in engines]}, was sent to {sent}"
        return chosen[0]

    def assign(self, task: NaiveTask, engine: NaiveEngine) -> None:
        client = task.client
        self.last_sent = max(self.last_sent, client.virtual_time)
        client.virtual_time += 1 / client.weight
        self.by_last_use.remove(engine)
        self.by_last_use.append(engine)
        task.state, task.queued, task.engine = "assigned", False, engine
        task.attempt += 1
        task.recall = ""
        engine.tasks.append(task)
        if len(engine.running) < engine.slots:
            engine.running.append(task)
        self.effects.append(self.assignment(task))
        self.publish("assigned", task, engine.id)

    def assignment(self, task: NaiveTask) -> AssignTask:
        inputs = tuple(self.find(name).end.result for name in task.spec.inputs)
        return AssignTask(task.engine.id, task.id, task.attempt, task.payload, inputs)

    # ---- ends -------------------------------------------------------------------------------------------------------

    def end(self, task: NaiveTask, outcome: str, on: Any = None, result: Any = None, error: str = "") -> None:
        """End a task; the cascade settles its dependents. `on`: the engine on which it ran."""
        task.state, task.queued = "ended", False
        on = task.ran_on if on is None else on
        task.end = DeliverResult(task.client.id, task.id, outcome, on, result, error)
        if task.client.left:
            task.received = True
        else:
            self.effects += [task.end] * task.submissions
        self.publish("finished", task, on, outcome)
        self.forget_session(task.client.id)
        self.ended.append(task)
        self.to_settle.append(task)
        self.forget_oldest()

    def release(self, task: NaiveTask) -> NaiveEngine:
        """Take a task off its engine; the longest waiting other task that fits becomes running (R16)."""
        engine = task.engine
        task.state, task.engine = "waiting", None
        engine.tasks.remove(task)
        if task in engine.running:
            engine.running.remove(task)
        for other in engine.tasks:
            if other not in engine.running and len(engine.running) < engine.slots and engine.fits(other.spec):
                engine.running.append(other)
        return engine

    def fail(self, task: NaiveTask, outcome: str, on: EngineId, result: Any = None, error: str = "") -> None:
        """Retry a failed task if retries are left (R18), else end it."""
        if task.retries_left <= 0:
            self.end(task, outcome, on, result, error)
            return
        task.retries_left -= 1
        task.ran_on = on
        if outcome == "error":
            task.failed_at.add(on)
        if task.spec.timeout_s:
            task.deadline = self.now + task.spec.timeout_s
        if task.spec.backoff_s:
            nth = task.spec.retries - task.retries_left
            task.backoff_until = self.now + min(task.spec.backoff_s * 2.0 ** min(nth - 1, 64), 86_400.0)
        self.update_place(task)

    def forget_oldest(self) -> None:
        """Forget old tasks at the end of a task: the two oldest are examined (R22)."""
        for _ in range(2):
            if len(self.ended) <= self.settings.keep_finished:
                return
            oldest = self.ended.pop(0)
            if self.needed(oldest):
                self.ended.append(oldest)
            else:
                self.tasks.remove(oldest)

    def drop_results(self) -> None:
        """Drop results that were received and are not an input of an unfinished task (R9, R22)."""
        for task in self.ended:
            if task.received and not self.needed(task):
                task.dropped = True

    def publish(self, what: Any, task: Any = None, engine: Any = None, outcome: Any = None) -> None:
        if self.monitored:
            client = task.client.id if task is not None else None
            self.effects.append(Publish(what, task.id if task is not None else None, engine, client, outcome))

    # ---- clients ----------------------------------------------------------------------------------------------------

    def client_joined(self, event: ClientJoined) -> None:
        if self.find_client(event.client) is None:
            self.clients.append(NaiveClient(event.client, event.weight, len(self.clients)))

    def client_left(self, event: ClientLeft) -> None:
        client = self.find_client(event.client)
        if client is None:
            return
        self.resume(client)
        client.left = True
        self.forget_session(client.id)
        for task in list(self.tasks):
            if task.client is client:
                task.received = task.received or task.state == "ended"
                if event.cancel:
                    self.cancel(task)

    def forget_session(self, client: ClientId) -> None:
        """Emit `ForgetSession` if no session of this id is open and all of its tasks have ended."""
        if self.find_client(client) is None and not any(task.client.id == client for task in self.unfinished()):
            self.effects.append(ForgetSession(client))

    def client_paused(self, event: ClientPaused) -> None:
        client = self.find_client(event.client)
        if client is not None:
            client.paused = True

    def client_resumed(self, event: ClientResumed) -> None:
        client = self.find_client(event.client)
        if client is not None:
            self.resume(client)

    def resume(self, client: NaiveClient) -> None:
        """Resume a client, which becomes active (R34)."""
        if client.paused and any(t.queued and t.client is client for t in self.tasks):
            self.activate(client)
        client.paused = False

    def task_submitted(self, event: TaskSubmitted) -> None:
        client, task = self.find_client(event.client), self.find(event.task)
        refused = self.why_refused(event)
        if client is not None and is_native(event.task) and session_of(event.task) == event.client:
            session = session_of(event.task)
            self.seen[session] = max(self.seen.get(session, -1), event.task)
        if refused:
            self.effects.append(Refuse(event.client, event.task, refused))
            return
        self.effects.append(Accept(event.client, event.task))
        if task is not None:
            task.submissions += 1
            if task.end is not None:
                self.effects.append(task.end)
            return
        spec = event.spec
        deadline = self.now + spec.timeout_s if spec.timeout_s else None
        task = NaiveTask(event.task, client, event.payload, spec, self.submission_count, spec.retries, deadline)
        self.submission_count += 1
        invalid = self.invalid(task)
        self.tasks.append(task)
        self.publish("submitted", task)
        if invalid:
            self.end(task, "unreachable", error="InvalidDependency")
            return
        for name in task.depends_on:
            other = self.find(name)
            if other.end is not None and other not in self.to_settle:
                task.ends[name] = (other.end.outcome, other.end.engine)
        self.update_place(task)

    def why_refused(self, event: TaskSubmitted) -> str:
        spec, task = event.spec, self.find(event.task)
        if self.find_client(event.client) is None:
            return "no such client"
        if task is not None:
            if task.client.id != event.client:
                return "another session's"
            return "received and dropped" if task.dropped else ""
        if is_native(event.task) and is_native(event.client):
            session = session_of(event.task)
            if session != event.client:
                return "another session's"
            if event.task <= self.seen.get(session, -1):
                return "forgotten"
        if self.draining:
            return "draining"
        for dependency in (spec.after, spec.follow):
            if dependency is not None and not dependency.success and not dependency.failure:
                return "neither success nor failure"
        edges = [id for dependency in (spec.after, spec.follow) if dependency for name in dependency.tasks]
        if len(edges) + len(spec.inputs) > self.settings.max_dependencies:
            return "too many dependencies"
        if spec.targets is not None and len(spec.targets) > self.settings.max_targets:
            return "too many targets"
        asks = edges or spec.inputs or spec.targets is not None or spec.resources or spec.retries or spec.timeout_s
        if self.settings.scheme == "pure" and asks:
            return "pure"
        return ""

    def results_received(self, event: ResultsReceived) -> None:
        for name in event.tasks:
            task = self.find(name)
            if task is not None and task.client.id == event.client and task.state == "ended":
                task.received = True

    def cancel_requested(self, event: CancelRequested) -> None:
        task = self.find(event.task)
        if task is not None and event.client in (None, task.client.id):
            self.cancel(task)

    def cancel(self, task: NaiveTask) -> None:
        if task.state == "waiting":
            self.end(task, "cancelled", error="TaskCancelled")
        elif task.state == "assigned":
            self.recall_task(task, "cancelling")

    def recall_task(self, task: NaiveTask, why: str) -> None:
        """Recall a task once; no recall is sent to a lost engine (R20, R23, R29)."""
        if not task.recall and task.engine.lost_until is None:
            self.effects.append(RecallTask(task.engine.id, task.id, task.attempt))
        if task.recall != "cancelling":
            task.recall = why

    # ---- engines ----------------------------------------------------------------------------------------------------

    def engine_joined(self, event: EngineJoined) -> None:
        if self.find_engine(event.engine) is not None:
            return
        self.engines_joined += 1
        hwm = self.settings.hwm if event.hwm is None else event.hwm
        capacity = hwm * event.slots if hwm else float("inf")
        number, resources = self.engines_joined, dict(event.resources)
        engine = NaiveEngine(event.engine, event.slots, capacity, resources, event.kind, number)
        self.engines.append(engine)
        self.by_last_use.insert(0, engine)
        self.publish("engine_joined", engine=engine.id)

    def monitoring_changed(self, event: MonitoringChanged) -> None:
        self.monitored = event.on

    def drain_requested(self, event: DrainRequested) -> None:
        if event.engine is None:
            self.draining = True
        for engine in self.engines:
            if event.engine in (None, engine.id):
                engine.draining = True
                for task in engine.tasks:
                    if task not in engine.running:
                        self.recall_task(task, "recalling")

    def assigned(self, event: TaskFinished | DependencyUnmet | RecallAnswered) -> NaiveTask | None:
        """The task, if it is assigned to this engine for this attempt (R17)."""
        task = self.find(event.task)
        if task is None or task.engine is None or task.engine.id != event.engine:
            return None
        return task if event.attempt in (None, task.attempt) else None

    def task_finished(self, event: TaskFinished) -> None:
        task = self.assigned(event)
        if task is None:
            return
        self.release(task)
        if task.recall == "cancelling":
            self.end(task, "cancelled", event.engine, error="TaskCancelled")
        elif event.outcome == "error":
            self.fail(task, "error", event.engine, event.result)
        else:
            self.end(task, event.outcome, event.engine, event.result)

    def dependency_unmet(self, event: DependencyUnmet) -> None:
        task = self.assigned(event)
        if task is not None:
            self.release(task)
            task.declined_by.add(event.engine)
            self.requeue(task, event.engine)

    def recall_answered(self, event: RecallAnswered) -> None:
        task = self.assigned(event)
        if task is None:
            return
        if event.recalled:
            self.release(task)
            self.requeue(task)
        elif task.recall == "recalling":
            task.recall = ""

    def requeue(self, task: NaiveTask, on: EngineId | None = None) -> None:
        """Queue a released task again with its old place and deadline; a cancelled one ends."""
        if task.recall == "cancelling":
            self.end(task, "cancelled", on, error="TaskCancelled")
        else:
            self.update_place(task)

    def engine_returned(self, event: EngineReturned) -> None:
        engine = self.find_engine(event.engine)
        if engine is None:
            return
        engine.lost_until = engine.known_running = None
        never_begun = []
        for task in engine.tasks:
            if task.recall and task.id not in event.holding:
                never_begun.append(task)
            elif task.recall:
                self.effects.append(RecallTask(engine.id, task.id, task.attempt))
            elif task.id not in event.holding:
                self.effects.append(self.assignment(task))
        for task in never_begun:
            self.release(task)
            self.requeue(task)

    def engine_lost(self, event: EngineLost) -> None:
        engine = self.find_engine(event.engine)
        if engine is None or (engine.lost_until is not None and not event.confirmed):
            return
        if event.running is not None:
            engine.known_running = frozenset(event.running)
        if event.confirmed or not self.settings.grace_s:
            self.unregister(engine)
        else:
            engine.lost_until = self.now + self.settings.grace_s

    def unregister(self, engine: NaiveEngine) -> None:
        """Remove an engine: its tasks in the order of assignment (R20), then those that need it (R6, R7)."""
        self.engines.remove(engine)
        self.by_last_use.remove(engine)
        self.effects.append(ForgetEngine(engine.id))
        self.publish("engine_lost", engine=engine.id)
        known = engine.known_running
        ran = {task.id for task in engine.running} if known is None else known
        for task in engine.tasks:
            task.state, task.engine = "waiting", None
            self.requeue_orphan(task, engine, task.id in ran)
        for task in self.waiting():
            self.update_place(task)

    def requeue_orphan(self, task: NaiveTask, engine: NaiveEngine, running: bool) -> None:
        limit = task.spec.crash_limit
        task.crashes += running
        if running or (limit is None and task.recall != "cancelling"):
            task.ran_on = engine.id
        if task.recall == "cancelling":
            self.end(task, "cancelled", error="TaskCancelled")
        elif limit is None or (running and task.crashes > limit):
            self.fail(task, "lost", engine.id, error="EngineError")
        else:
            self.update_place(task)

    # ---- time (R21) -------------------------------------------------------------------------------------------------

    def time_passed(self, event: TimePassed) -> None:
        over = [engine for engine in self.engines if engine.lost_until is not None and engine.lost_until <= self.now]
        for engine in sorted(over, key=lambda engine: engine.lost_until):
            self.unregister(engine)
        self.settle()
        held = [task for task in self.waiting() if task.delayed and task.backoff_until <= self.now]
        for task in sorted(held, key=lambda task: (task.backoff_until, task.number)):
            task.delayed = False
            self.update_place(task)
        self.send()
        due = [task for task in self.waiting() if task.deadline is not None and task.deadline <= self.now]
        for task in sorted(due, key=lambda task: (task.deadline, task.number)):
            self.end(task, "timeout", error="TaskTimeout")


HANDLERS = {
    CancelRequested: "cancel_requested",
    ClientJoined: "client_joined",
    ClientLeft: "client_left",
    ClientPaused: "client_paused",
    ClientResumed: "client_resumed",
    DependencyUnmet: "dependency_unmet",
    DrainRequested: "drain_requested",
    EngineJoined: "engine_joined",
    EngineLost: "engine_lost",
    EngineReturned: "engine_returned",
    MonitoringChanged: "monitoring_changed",
    RecallAnswered: "recall_answered",
    ResultsReceived: "results_received",
    TaskFinished: "task_finished",
    TaskSubmitted: "task_submitted",
    TimePassed: "time_passed",
}


def without_reasons(effects: Iterable[Effect]) -> list[Effect]:
    """The effects on which core and model must agree: without reasons, and without `Publish`."""
    plain: list[Effect] = []
    for effect in effects:
        if isinstance(effect, Refuse):
            plain.append(Refuse(effect.client, effect.task, ""))
        elif isinstance(effect, DeliverResult):
            plain.append(msgspec.structs.replace(effect, reason=""))
        elif not isinstance(effect, Publish):
            plain.append(effect)
    return plain
