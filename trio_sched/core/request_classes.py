"""The request classes by their key, and the choice of the next task to assign and of its engine (R12, R13, R34).

Rules:

- After every event no ready task has an engine with room. So the next event can cause assignments only in the request
  classes in which a task becomes ready, or an engine gets room. These classes are `dispatchable`.
- Dispatch compares the first tasks of the queues of the dispatchable classes, and of no others. A class without a task
  that has an engine with room stops being dispatchable. So the cost of an event does not grow with the number of
  waiting tasks.
- A class with targets lives as long as tasks are in it, since the engines that match are found through the targets. A
  class without targets stays for a while, since making it again costs a walk over all engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trio_sched.core.fair_share import ClientState
from trio_sched.core.ids import EngineId
from trio_sched.core.records import NO_ENGINES, Engine, PlacementPolicy, ReadyQueue, RequestClass, Task

#: The number of classes from which empty ones without targets are discarded, too.
_MAX_IDLE_CLASSES = 256

RequiredAmounts = tuple[tuple[str, float], ...]


class RequestClasses:
    """All request classes, all registered engines, and the choice of the task that is dispatched next."""

    __slots__ = ("_by_key", "_by_target", "_make_policy", "dispatchable", "engines", "unconstrained")

    def __init__(self, make_policy: Callable[[], PlacementPolicy]) -> None:
        self._make_policy = make_policy
        self._by_key: dict[tuple[frozenset[EngineId] | None, RequiredAmounts, str], RequestClass] = {}
        self._by_target: dict[EngineId, dict[RequestClass, None]] = {}
        #: All registered engines.
        self.engines: dict[EngineId, Engine] = {}
        #: The classes in which a ready task may have an engine with room. A dict has an order, so a seed determines
        #: every choice.
        self.dispatchable: dict[RequestClass, None] = {}
        #: The class of native tasks without targets and resources; it is never discarded.
        self.unconstrained = self.find(None, ())

    def new_empty(self) -> RequestClasses:
        """A replacement with the same scheme, without engines and tasks."""
        return RequestClasses(self._make_policy)

    def __iter__(self) -> Iterator[RequestClass]:
        return iter(self._by_key.values())

    def find(self, targets: frozenset[EngineId] | None, resources: RequiredAmounts, kind: str = "") -> RequestClass:
        """The class with these requirements; it is made if it does not exist."""
        request_class = self._by_key.get((targets, resources, kind))
        if request_class is None:
            request_class = RequestClass(targets, resources, kind, self._make_policy(), self.engines)
            self._by_key[targets, resources, kind] = request_class
            candidates = (
                self.engines.values()
                if targets is None
                else [self.engines[target] for target in targets if target in self.engines]
            )
            for engine in candidates:
                if request_class.matches(engine):
                    self._add_member(request_class, engine)
            for target in targets or ():
                self._by_target.setdefault(target, {})[request_class] = None
        return request_class

    def discard_if_empty(self, request_class: RequestClass) -> None:
        """Discard the class if no task is in it and it is cheap to make again."""
        if (
            request_class.ready_count
            or request_class.paused_count
            or request_class.target_watchers
            or request_class is self.unconstrained
        ):
            return
        if request_class.targets is None and len(self._by_key) < _MAX_IDLE_CLASSES:
            return
        del self._by_key[request_class.key]
        self.dispatchable.pop(request_class, None)
        for engine in request_class.members.values():
            engine.request_classes.remove(request_class)
        for target in request_class.targets or ():
            request_classes = self._by_target[target]
            del request_classes[request_class]
            if not request_classes:
                del self._by_target[target]

    def add_engine(self, engine: Engine) -> None:
        """Register an engine with the classes that it matches."""
        self.engines[engine.id] = engine
        for request_class in [each for each in self._by_key.values() if each.targets is None]:
            if request_class.matches(engine):
                self._add_member(request_class, engine)
        for request_class in self._by_target.get(engine.id, ()):
            if request_class.matches(engine):
                self._add_member(request_class, engine)

    def remove_engine(self, engine: Engine) -> list[RequestClass]:
        """Unregister an engine; return the classes that have it among their targets."""
        del self.engines[engine.id]
        former, engine.request_classes = engine.request_classes, []
        for request_class in former:
            del request_class.members[engine.id]
            request_class.policy.update(engine, False)
            if request_class.ready_count and len(request_class.queues) > 1:
                self.dispatchable[request_class] = None  # tasks may now run on engines that they avoided (R18)
        return list(self._by_target.get(engine.id, ()))

    def _add_member(self, request_class: RequestClass, engine: Engine) -> None:
        request_class.members[engine.id] = engine
        engine.request_classes.append(request_class)
        request_class.policy.update(engine, request_class.takes(engine))
        if request_class.ready_count:
            self.dispatchable[request_class] = None

    def update_engine(self, engine: Engine) -> None:
        """Adjust the classes of an engine whose load, free resources or time of use changed."""
        for request_class in engine.request_classes:
            takes = request_class.takes(engine)
            request_class.policy.update(engine, takes)
            if takes and request_class.ready_count:
                self.dispatchable[request_class] = None

    def pause(self, client: ClientState) -> None:
        """Withhold the ready tasks of a client (R34). Costs the number of queues."""
        for request_class in self._by_key.values():
            for queue in request_class.queues.values():
                queue.pause(client)

    def resume(self, client: ClientState) -> None:
        """Make the withheld tasks of a client available again. Costs the number of queues."""
        for request_class in self._by_key.values():
            for queue in request_class.queues.values():
                queue.resume(client)
            if request_class.ready_count:
                self.dispatchable[request_class] = None

    def push(self, task: Task, request_class: RequestClass) -> None:
        """Queue a task that became ready."""
        if task.excluded or task.avoided:
            request_class.queue(task.excluded, task.avoided).push(task)
        else:
            request_class.main_queue.push(task)
        self.dispatchable[request_class] = None

    def remove(self, task: Task, queue: ReadyQueue) -> None:
        """Take a task out of its queue other than by dispatch."""
        queue.remove(task)
        self.discard_queue_if_empty(queue)

    def discard_queue_if_empty(self, queue: ReadyQueue) -> None:
        """Discard the queue, and its class, if no task is in them."""
        request_class = queue.request_class
        if not queue.ready_count and not queue.paused_count and queue is not request_class.main_queue:
            del request_class.queues[queue.excluded, queue.avoided]
        if not request_class.ready_count and request_class is not self.unconstrained:
            self.discard_if_empty(request_class)

    def pop_next(self) -> tuple[Task, Engine] | None:
        """Remove the ready task that is assigned next, and choose its engine; None if no ready task has an engine with
        room."""
        dispatchable = self.dispatchable
        if len(dispatchable) == 1:  # the usual case: no comparison
            (request_class,) = dispatchable
            if request_class.targets is None and len(request_class.queues) == 1:
                engine = request_class.policy.pick(NO_ENGINES) if request_class.ready_count else None
                if engine is not None:
                    return request_class.main_queue.pop(), engine
                dispatchable.clear()
                return None
        return self._pop_best() if dispatchable else None

    def _pop_best(self) -> tuple[Task, Engine] | None:
        """`pop_next`, by comparison of the first tasks of all queues of the dispatchable classes."""
        best: tuple[tuple[int, float, int, int], ReadyQueue, frozenset[EngineId]] | None = None
        for request_class in list(self.dispatchable):
            has_room = False
            for queue in request_class.queues.values():
                if not queue.ready_count:
                    continue
                excluded = request_class.effective_exclusions(queue.excluded, queue.avoided)
                if request_class.policy.has_candidate(excluded):
                    has_room = True
                    task = queue.head()
                    order = (-queue.top_priority, task.client.virtual_time, task.client.number, task.seq)
                    if best is None or order < best[0]:
                        best = (order, queue, excluded)
            if not has_room:
                del self.dispatchable[request_class]
        if best is None:
            return None
        _, queue, excluded = best
        engine = queue.request_class.policy.pick(excluded)
        if engine is None:  # `has_candidate` said that there is one
            raise AssertionError("a placement policy found no engine although it has a candidate")
        task = queue.pop()
        self.discard_queue_if_empty(queue)
        return task, engine
